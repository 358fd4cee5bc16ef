"""services.fabstir-node: what configurations give, beside golden files and documents."""

import json
import re

import pytest

from appliance.nixos_settings import settings_json
from nodeapp.service.config import load_settings
from tests.image.toolroot import room
from tests.nix.expressions import ROOT, evaluated, needs_nix
from tests.nix.golden import GOLDEN, golden_files
from tests.nix.modules import CONFIGURATIONS, HERE, configured, machine, with_options

pytestmark = needs_nix


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_gives_the_golden_files(library, name):
    found = evaluated(machine(configured(name), library))
    assert found["failed"] == []
    made = golden_files(found)
    assert sorted(made) == sorted(path.name for path in (GOLDEN / name).iterdir())
    for file, text in made.items():
        assert text == (GOLDEN / name / file).read_text("utf-8"), f"{name}/{file}"


def test_a_newer_nix_gives_the_golden_files_too(debian_tools):
    """Debian 13's 2.26: numbers, text and merging are the same."""
    with room(debian_tools, {"/tree": ROOT}) as inside:
        for name in CONFIGURATIONS:
            expression = machine(configured(name)).replace(str(ROOT), "/tree")
            done = inside.run("nix-instantiate", "--eval", "--strict", "--json", "-E", expression)
            for file, text in golden_files(json.loads(done.stdout)).items():
                assert text == (GOLDEN / name / file).read_text("utf-8"), f"{name}/{file}"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_node_accepts_the_rendered_settings(name):
    settings = load_settings(GOLDEN / name / "node.toml", environment={})
    assert settings.node.run_dir == "/run/fabstir"
    assert settings.chain.keystore_file == "credential:keystore"
    if name == "full":
        assert settings.node.processes[-1] != "prover"
        assert "chain-base" in settings.node.processes
        assert settings.chain.listing_location == 'Zürich "Süd" \\ 1'
        assert settings.chain.confirmations_by_amount == ((1_000_000, 3),)
        assert settings.p2p.listen == "/ip4/203.0.113.7/tcp/4001"
    if name == "gpu-backups":
        assert settings.inference.devices == ("0", "1,2")
        assert settings.inference.replicas == 2
        assert settings.updater.restic_repository == "/mnt/backup/node"
        assert settings.updater.restic_password_file == "credential:restic-password"
        assert settings.updater.backup_interval_seconds == 900


def test_a_disabled_module_changes_nothing(library):
    found = evaluated(machine("{ }", library))
    kept = {name: value for name, value in found.items() if name not in ("values", "driver")}
    assert all(not value for value in kept.values() if not isinstance(value, dict)), kept
    assert kept["units"] == kept["etc"] == kept["users"] == {}
    assert kept["firewall"] == {"all": {"tcp": [], "udp": []}, "interfaces": {}}
    assert not found["driver"]["graphics"]


def test_the_settings_of_the_module_are_those_of_the_node():
    written = (ROOT / "nixos-modules" / "settings.json").read_bytes()
    assert written == settings_json(), "settings have changed: run `make options`"


def test_every_option_is_described_typed_and_exemplified(library):
    found = evaluated(
        f'let all = import {HERE}/options.nix {{ library = "{library}"; }}; in'
        " { inherit (all) count faults required; }"
    )
    assert found["faults"] == []
    assert found["required"] == ["credentials.file"]
    keys = sum(len(section["keys"]) for section in json.loads(settings_json()).values())
    assert found["count"] > keys + 60


def test_the_option_reference_is_the_declarations(library):
    reference = evaluated(f'(import {HERE}/options.nix {{ library = "{library}"; }}).reference')
    written = (ROOT / "docs" / "options.md").read_text("utf-8")
    assert written == reference, "options have changed: run `make options`"
    assert "| number, above 0 and at most 86400 |" in written
    assert ".000000" not in written


def test_a_file_of_others_leaves_the_settings_out(library):
    options = (
        'configFile = "/run/fabstir-config/node.toml"; wallet = lib.mkForce { };'
        ' deploymentFile = lib.mkForce null; updates.backend = "sysupdate";'
    )
    found = evaluated(machine(with_options(options), library))
    assert found["failed"] == []
    assert found["etc"] == {}
    assert "--config /run/fabstir-config/node.toml" in found["units"]["fabstir-node.service"]


def test_hardening_can_be_left_out_altogether(library):
    found = evaluated(machine(with_options("hardening.enable = false;"), library))
    assert "Protect" not in found["units"]["fabstir-node.service"]


def documented() -> list[str]:
    """The configurations of docs/nixos.md; the first is the flake around them."""
    text = (ROOT / "docs" / "nixos.md").read_text("utf-8")
    return re.findall(r"^```nix\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_documented_configurations_work_one_by_one_and_all_at_once(library):
    flake, least, *more = documented()
    assert "nixosModules.default" in flake
    rows = [f"[ {HERE}/configurations/minimal.nix ({one}) ]" for one in more]
    rows += [f"[ ({least}) ]", f"[ ({least}) {' '.join(f'({one})' for one in more)} ]"]
    found = evaluated(
        f"map (one: {machine('{ imports = one; }', library)}) [ {' '.join(f'{row}' for row in rows)} ]"
    )
    assert len(found) == len(more) + 2 >= 9
    assert [(one["failed"], one["warnings"]) for one in found] == [([], [])] * len(found)
    assert "secrets" not in json.dumps([one["etc"] for one in found])


def test_the_documented_flake_makes_a_machine_of_the_documented_configuration():
    flake = documented()[0].replace("./configuration.nix", "{ }")
    made = evaluated(
        f"let flake = {flake}; in (flake.outputs {{"
        " nixpkgs.lib.nixosSystem = machine: machine;"
        ' fabstir-node = { nixosModules.default = "m"; packages.x86_64-linux.node-ezkl = "p"; };'
        " }).nixosConfigurations.gpu"
    )
    assert made["modules"] == ["m", {"services": {"fabstir-node": {"package": "p"}}}, {}]


def test_the_alerts_are_about_metrics_that_exist():
    alerts = evaluated(f"import {ROOT}/nixos-modules/lib/alerts.nix")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "nodeapp").rglob("*.py"))
    rules = alerts["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    named = set()
    for rule in rules:
        for prefix, name in re.findall(
            r"fabstir_(chain\(_\[a-z0-9\]\+\)\?|\[a-z0-9_\]\+|[a-z0-9]+)_([a-z_]+)", rule["expr"]
        ):
            named.add(name)
            exists = f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source
            assert exists or f"fabstir_{prefix}_{name}" in source, rule["expr"]
    assert len(named) == 8
