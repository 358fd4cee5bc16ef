"""Several inference processes in one settings file: names, options, sections, metrics, findings."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from nodeapp.cli.preflight import findings
from nodeapp.core.errors import InvalidRequest
from nodeapp.rpc.metrics import parse_metrics
from nodeapp.service.config import load_settings
from nodeapp.service.lifecycle import process_metrics
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.replicas import (
    device_of,
    replica_count,
    replica_index,
    replica_process,
    replica_processes,
)
from nodeapp.service.settings import Settings
from nodeapp.service.supervisord import Tree, process_settings, render_supervisord, settings_toml

PATHS = Paths(Path("/var/lib/f"), Path("/run/f"), Path("/var/cache/f"))
ONE = ("s5", "prover", "inference", "chain", "p2p", "updater")


def loaded(*flags: str) -> Settings:
    return load_settings(flags=flags, environment={})


def test_a_process_is_named_by_its_number() -> None:
    names = [replica_process(index) for index in (0, 1, 12)]
    assert names == ["inference", "inference-1", "inference-12"]
    assert [replica_index(name) for name in names] == [0, 1, 12]
    others = ("chain", "chain-inference", "inference-0", "inference-x", "inference-1x", "p2p")
    assert [replica_index(name) for name in others] == [None] * len(others)


@pytest.mark.parametrize("flags", [(), ("inference.replicas=1",), ("inference.replicas=auto",)])
def test_one_replica_is_the_tree_as_it_was(flags: tuple[str, ...]) -> None:
    settings = loaded(*flags)
    assert settings.node.processes == ONE
    assert (replica_count(settings.inference), device_of(settings.inference, 0)) == (1, "")
    assert b"replica=" not in process_metrics("inference", ONE).render()


def test_further_replicas_stand_beside_the_first() -> None:
    settings = loaded("inference.replicas=3")
    assert replica_processes(settings.node.processes) == (
        "inference",
        "inference-1",
        "inference-2",
    )
    again = load_settings(flags=["inference.replicas=3"], environment={})
    assert again.node.processes == settings.node.processes
    alone = loaded("inference.replicas=3", 'node.processes=["chain"]')
    assert alone.node.processes == ("chain",)


def test_named_devices_are_as_many_replicas() -> None:
    settings = loaded('inference.devices=["0", "GPU-aa,GPU-bb"]')
    assert replica_count(settings.inference) == 2
    assert [device_of(settings.inference, index) for index in (0, 1)] == ["0", "GPU-aa,GPU-bb"]


@pytest.mark.parametrize("flag", ["replicas=0", "replicas=17", "replicas=many", 'devices=["a b"]'])
def test_a_number_or_device_out_of_range_is_refused(flag: str) -> None:
    with pytest.raises(InvalidRequest, match=r"inference\.(replicas|devices)"):
        loaded(f"inference.{flag}")


def test_each_is_handed_the_section_and_its_number() -> None:
    settings = loaded('inference.devices=["0", "1"]', "inference.max_sequences=2")
    values = tomli.loads(process_settings(settings, "inference-1", PATHS))
    assert values["inference"]["max_sequences"] == 2
    assert values["inference"]["devices"] == ["0", "1"]
    conf = render_supervisord(Tree(PATHS, Path("/py"), Path("/src"), settings.node.processes))
    assert "conf/inference-1.toml --replica 1" in conf
    assert "conf/inference.toml\n" in conf
    for process in ("inference", "inference-1"):
        assert "GOMP_SPINCOUNT" in conf.split(f"[program:{process}]")[1].split("\n[")[0]


def test_settings_with_replicas_are_shown_as_they_are_read(tmp_path: Path) -> None:
    settings = loaded("inference.replicas=2", 'inference.devices=["0", "1"]')
    file = tmp_path / "node.toml"
    file.write_text(settings_toml(settings))
    assert load_settings(file, environment={}) == settings


def test_metrics_of_replicas_have_one_name_and_a_label() -> None:
    metrics = process_metrics("inference-1", ("inference", "inference-1", "p2p"))
    metrics.counter("tokens_predicted_total", "Tokens").inc(3)
    metrics.histogram("decode_step_seconds", "Steps").observe(0.3)
    text = metrics.render().decode()
    assert 'fabstir_inference_tokens_predicted_total{replica="1"} 3.0' in text
    assert 'fabstir_inference_decode_step_seconds_bucket{le="0.5",replica="1"} 1.0' in text
    assert parse_metrics(text)["fabstir_inference_tokens_predicted_total"] == 3.0


@pytest.mark.parametrize(
    ("flags", "finding"),
    [
        (("replicas=3", 'devices=["0", "1"]'), "inference.devices names 2 for 3 replicas"),
        (("replicas=2", "pin_threads=true"), "would bind 2 replicas to the same cores"),
    ],
)
def test_what_cannot_work_is_found(flags: tuple[str, ...], finding: str) -> None:
    settings = loaded('node.processes=["inference"]', *(f"inference.{flag}" for flag in flags))
    assert any(finding in line for line in findings(settings))


def test_the_longest_socket_of_all_processes_must_fit() -> None:
    fits = "/" + "x" * (107 - 1 - len("/inference-11.sock"))
    settings = loaded("inference.replicas=12", f"node.run_dir={fits}")
    assert resolve_paths(settings.node).run == Path(fits)
    with pytest.raises(InvalidRequest, match="too long for a Unix socket"):
        resolve_paths(loaded("inference.replicas=12", f"node.run_dir={fits}x").node)
