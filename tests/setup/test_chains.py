"""Several chains in one settings file: names, processes, journals, and what each is handed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from nodeapp.cli.doctor import _depth
from nodeapp.cli.preflight import findings
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.networks import NETWORKS, network_name
from nodeapp.service.chains import (
    chain_processes,
    chain_sections,
    chosen_process,
    name_of,
    snapshots_of,
    with_chosen_chain,
)
from nodeapp.service.config import load_settings
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import Paths
from nodeapp.service.settings import ChainSettings, Settings
from nodeapp.service.supervisord import (
    Tree,
    process_settings,
    render_supervisord,
    settings_toml,
)

FILE = """
[chain]
chain_id = 84532
[chains.base]
chain_id = 8453
rpc_urls = ["https://one.example", "https://two.example"]
[chains.opbnb]
chain_id = 5611
"""
PATHS = Paths(Path("/var/lib/f"), Path("/run/f"), Path("/var/cache/f"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "node.toml"
    file.write_text(FILE)
    return load_settings(file, environment={})


def test_every_chain_gets_a_process_beside_the_first(settings: Settings) -> None:
    processes = settings.node.processes
    assert chain_processes(processes) == ("chain", "chain-base", "chain-opbnb")
    assert [name_of(one) for one in processes if name_of(one)] == ["base", "opbnb"]
    assert list(chain_sections(settings)) == ["chain", "chains.base", "chains.opbnb"]
    assert load_settings(environment={}).node.processes == ("s5", "prover", "inference",
        "chain", "p2p", "updater")  # fmt: skip


def test_environment_and_flags_reach_into_a_chain(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(FILE)
    loaded = load_settings(
        file,
        flags=["chains.base.confirmations=7", "chains.third.chain_id=9"],
        environment={
            "FABSTIR_CHAINS__BASE__POLL_SECONDS": "3.5",
            "FABSTIR_CHAINS__OPBNB__ABI": "v2",
        },
    )
    base = loaded.chains["base"]
    assert (base.chain_id, base.confirmations, base.poll_seconds) == (8453, 7, 3.5)
    assert loaded.chains["opbnb"].abi == "v2"
    assert loaded.chains["third"].chain_id == 9


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("chains.base.chain_di=1", "unknown key chains.base.chain_di; did you mean chain_id"),
        ("chains.base=1", "chains.base is no section"),
        ("chains.Base.chain_id=1", "does not match|matching regex"),
    ],
)
def test_a_mistake_in_a_chain_is_named(flag: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        load_settings(flags=[flag], environment={})


def test_each_process_is_handed_its_own_chain_only(settings: Settings) -> None:
    first = tomli.loads(process_settings(settings, "chain", PATHS))
    base = tomli.loads(process_settings(settings, "chain-base", PATHS))
    assert first["chain"]["chain_id"] == 84532
    assert "chains" not in first
    assert base["chains"].keys() == {"base"}
    assert base["chains"]["base"]["chain_id"] == 8453
    assert "chain" not in base
    conf = render_supervisord(Tree(PATHS, Path("/py"), Path("/src"), settings.node.processes))
    assert "[program:chain-base]" in conf
    assert "nodeapp.chain.main --config /var/lib/f/conf/chain-base.toml --chain base" in conf
    assert conf.count("--chain ") == 2


def test_shown_settings_are_a_settings_file(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "again.toml"
    file.write_text(settings_toml(settings))
    assert load_settings(file, environment={}) == settings


def test_journals_snapshots_and_metrics_stay_apart() -> None:
    assert PATHS.journal == PATHS.journal_of("chain") != PATHS.journal_of("chain-base")
    assert snapshots_of(Path("/s"), "chain") == Path("/s")
    assert snapshots_of(Path("/s"), "chain-base") == Path("/s/chain-base")
    metrics = Metrics("chain-base")
    metrics.counter("things_total", "Things").inc()
    assert b"fabstir_chain_base_things_total 1.0" in metrics.render()


def test_two_sections_of_one_chain_are_found(tmp_path: Path) -> None:
    loaded = load_settings(
        flags=["chain.chain_id=8453", "chains.base.chain_id=8453"], environment={}
    )
    assert "chains.base.chain_id is 8453, which [chain] has already" in list(findings(loaded))


def test_the_doctor_knows_how_deep_a_deposit_should_be() -> None:
    shallow = ChainSettings(chain_id=8453, confirmations=1, rpc_urls=("https://one.example",))
    found = list(_depth("chain", shallow))
    assert "wait for 5 or more, about 10 s" in found[0]
    assert "a second one" in found[1]
    assert list(_depth("chain", ChainSettings())) == []


def test_networks_are_named_by_id() -> None:
    assert {8453, 84532, 5611, 31337} == set(NETWORKS)
    assert network_name(8453) == "Base (8453)"
    assert network_name(1) == "chain 1"


def test_a_command_is_about_the_chosen_chain(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    assert chosen_process(settings) == "chain"
    assert with_chosen_chain(settings) == settings
    chosen = load_settings(file, flags=["node.chain=base"], environment={})
    assert chosen_process(chosen) == "chain-base"
    assert with_chosen_chain(chosen).chain == settings.chains["base"]
    wrong = load_settings(file, flags=["node.chain=bass"], environment={})
    with pytest.raises(InvalidRequest, match=r"no \[chains.bass\]; known: base, opbnb"):
        with_chosen_chain(wrong)
