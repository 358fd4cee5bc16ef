"""services.fabstir-node: what configurations give, what is refused and in which words."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import tomli

from appliance.nixos_settings import settings_json
from nodeapp.evm.deployment import Deployment
from nodeapp.service.config import load_settings
from tests.image.toolroot import room
from tests.nix.expressions import ROOT, evaluated, needs_nix, refused
from tests.nix.modules import CONFIGURATIONS, HERE, configured, machine, nixpkgs_lib, with_options

GOLDEN = HERE / "golden"
STORE_PACKAGE = "/nix/store/00000000000000000000000000000000-fabstir-node"
pytestmark = needs_nix


@pytest.fixture(params=["own", "nixpkgs"], scope="module")
def library(request):
    """The small lib of the tests, and nixpkgs' own where it is at hand."""
    if request.param == "own":
        return ""
    return nixpkgs_lib() or pytest.skip("FABSTIR_NIXPKGS_LIB does not name nixpkgs' lib")


@pytest.fixture(scope="module")
def judged(library):
    """What fails of every row of ASSERTED, as it stands and put right; one run of Nix."""
    rows = []
    for wrong, _, remedy in ASSERTED:
        both = f"map (one: {{ services.fabstir-node = one; }}) [ {{ {wrong} }} {{ {remedy} }} ]"
        right = (
            f"{{ lib, ... }}: {{ imports = [ {HERE}/configurations/minimal.nix"
            f" {{ imports = {both}; }} ]; }}"
        )
        before, after = (
            f"({machine(one, library)}).failed" for one in (with_options(wrong), right)
        )
        rows.append(f"[ {before} {after} ]")
    return evaluated(f"[ {' '.join(rows)} ]")


def golden_files(found: dict[str, Any]) -> dict[str, str]:
    """What a configuration sets, as files: texts as they are, the rest as JSON."""
    rest = {
        name: value
        for name, value in found.items()
        if name not in ("units", "etc", "messages", "values", "failed")
    }
    etc = {path.rpartition("/")[2]: text for path, text in found["etc"].items()}
    return {
        **found["units"],
        **etc,
        "machine.json": json.dumps(rest, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
    }


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


REFUSED = {
    "settings.chian.x = 1;": "settings.chian",
    "settings.chain.chain_idd = 1;": "settings.chain.chain_idd",
    'settings.chain.chain_id = "8453";': "settings.chain.chain_id",
    "settings.chain.chain_id = lib.mkForce 0;": "settings.chain.chain_id",
    "settings.chain.poll_seconds = 0;": "settings.chain.poll_seconds",
    'settings.chain.proof = "maybe";': "settings.chain.proof",
    "settings.chain.confirmations_by_amount = [ [ 1 ] ];": "settings.chain.confirmations_by_amount",
    'settings.inference.replicas = "many";': "settings.inference.replicas",
    'settings.chains.base.chain_id = "x";': "settings.chains.base.chain_id",
    'settings.chain.rpc_urls = [ "1" "2" "3" "4" "5" "6" "7" "8" "9" ];': "settings.chain.rpc_urls",
    'processes = [ "gpu" ];': "processes",
    "ports.p2p = 70000;": "ports.p2p",
    'wallet.keystoreFile = lib.mkForce "keys/host.json";': "wallet.keystoreFile",
    "wallet.keystoreFile = lib.mkForce ./keystore.json;": "wallet.keystoreFile",
    'gpu.devices = "some";': "gpu.devices",
    'gpu.devices = [ "0; reboot" ];': "gpu.devices",
    'hardening.disable = [ "ProtectEverything" ];': "hardening.disable",
    'resources.memoryMax = "much";': "resources.memoryMax",
    'resources.cpuQuota = "4";': "resources.cpuQuota",
    "backups.keep.last = 0;": "backups.keep.last",
    "backups.intervalSeconds = 0;": "backups.intervalSeconds",
    'updates.releaseSource = "github:a/b; reboot";': "updates.releaseSource",
    'listenAddress = "localhost";': "listenAddress",
    'firewallInterfaces = [ "eth 0" ];': "firewallInterfaces",
    "credentials.other.encrypted = true;": "credentials.other.file",
}


@pytest.mark.parametrize("options", REFUSED)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(library, options):
    said = refused(machine(with_options(options), library))
    assert f"services.fabstir-node.{REFUSED[options]}" in said.replace('"', "")
    assert re.search(r"is not of type|does not exist|no value defined", said), said


# Options that must be refused, the start of what is said, and what puts it right.
ASSERTED = [
    (
        "wallet.keystoreFile = lib.mkForce null;",
        "settings.chain: the host's key is missing; set services.fabstir-node.wallet.keystoreFile",
        'settings.chain = { signer_url = "unix:/run/signer"; signer_address = "0x1"; };',
    ),
    (
        'settings.chain.signer_url = "unix:/run/signer";',
        "settings.chain.signer_address: set the address",
        'settings.chain.signer_address = "0x1";',
    ),
    (
        "deploymentFile = lib.mkForce null;",
        "settings.chain.deployment_file: set the JSON file",
        'settings.chain.deployment_file = "/etc/d.json";',
    ),
    (
        'settings.chains.base = { signer_url = "u"; signer_address = "0x1"; };',
        "settings.chains.base.deployment_file: set the JSON file",
        'settings.chains.base.deployment_file = "/etc/base.json";',
    ),
    (
        'settings.chains.base.deployment_file = "/etc/base.json";',
        "settings.chains.base: the host's key is missing; set keystore_file",
        'settings.chains.base = { keystore_file = "/run/k"; password_file = "/run/p"; };',
    ),
    (
        'settings.chains.B1 = { signer_url = "u"; signer_address = "0x"; deployment_file = "/d"; };',
        "settings.chains.B1: B1 is no name of a chain",
        "settings.chains = lib.mkForce { };",
    ),
    (
        'wallet.keystoreFile = lib.mkOverride 60 "/nix/store/abc-keystore.json";',
        "credentials.keystore.file: /nix/store/abc-keystore.json lies in the Nix store",
        'wallet.keystoreFile = lib.mkForce "/run/k";',
    ),
    (
        'environmentFiles = [ "/nix/store/abc-environment" ];',
        "environmentFiles.[0]: /nix/store/abc-environment lies in the Nix store",
        'environmentFiles = lib.mkForce [ "/run/environment" ];',
    ),
    (
        'settings.updater.restic_password_file = "/nix/store/abc-password";',
        "settings.updater.restic_password_file: /nix/store/abc-password lies in",
        'settings.updater.restic_password_file = lib.mkForce "/run/p";',
    ),
    (
        'settings.chain.password_file = "credential:other";',
        "settings.chain.password_file: no credential is called other; set",
        'credentials.other.file = "/run/p";',
    ),
    (
        'credentials."a/b".file = "/run/p";',
        "credentials: a/b is no name of a credential",
        'credentials = lib.mkForce { keystore.file = "/run/k"; password.file = "/run/p"; };',
    ),
    (
        'processes = [ "chain" "chain" "s5" "prover" ];',
        "processes: name one process at least, and each once",
        'processes = lib.mkForce [ "chain" "s5" "prover" ];',
    ),
    (
        'processes = [ "p2p" "s5" "chain" "prover" ];',
        "processes: p2p needs s5, inference, chain; add",
        'processes = [ "inference" ];',
    ),
    (
        'processes = [ "chain" "prover" ];',
        "processes: chain needs s5 for the evidence",
        'processes = [ "s5" ];',
    ),
    (
        'processes = [ "chain" "s5" ];',
        "processes: prover is missing; add it, or set",
        'settings.chain.proof = "off";',
    ),
    (
        'processes = [ "s5" ]; backups = { enable = true; repository = "/b"; passwordFile = "/p";'
        ' recoveryPasswordFile = "/r"; };',
        "processes: updater is missing, which makes the backups",
        'processes = [ "updater" ];',
    ),
    (
        'settings.p2p.listen = "/dns4/example.org/tcp/9000";',
        "settings.p2p.listen: /dns4/example.org/tcp/9000 is not /ip4/ADDRESS/tcp/PORT",
        'settings.p2p.listen = lib.mkForce "/ip4/0.0.0.0/tcp/9001";',
    ),
    (
        "ports.p2p = 5050; openFirewall = true; portal.openFirewall = true;"
        ' portal.listenAddress = "0.0.0.0";',
        "ports: p2p, portal and metrics want the same port",
        "ports.portal = 5051;",
    ),
    (
        'gpu = { devices = "all"; manageDriver = false; };',
        "gpu.devices: GPUs are wanted, but NVIDIA's driver is off",
        "gpu.manageDriver = lib.mkForce true;",
    ),
    (
        "gpu.devices = [ ];",
        "gpu.devices: the list is empty; name a GPU",
        'gpu.devices = [ "0" ];',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r"; };',
        "backups.repository: say where backups go",
        'backups.repository = "/backup";',
    ),
    (
        'backups = { enable = true; repository = "/backup"; recoveryPasswordFile = "/run/r"; };',
        "backups.passwordFile: set the file with the repository's password",
        'backups.passwordFile = "/run/p";',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r";'
        ' repository = "rest:https://me:secret@backup.example.org/"; };',
        "backups.repository: it holds a password",
        'backups.repository = lib.mkForce "rest:https://backup.example.org/";',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r";'
        ' repository = "/var/lib/fabstir/backup"; };',
        "backups.repository: /var/lib/fabstir/backup lies in services.fabstir-node.stateDir",
        'backups.repository = lib.mkForce "/var/lib/fabstir-backup";',
    ),
    (
        "monitoring.prometheus.enable = true;",
        "monitoring.metrics.enable: Prometheus is to scrape the node, but its metrics are off",
        "monitoring.metrics.enable = true;",
    ),
    (
        "monitoring.metrics.openFirewall = true;",
        "monitoring.metrics.openFirewall: the metrics are off",
        "monitoring.metrics.enable = true;",
    ),
    (
        'updates = { backend = "nixos"; repositoryUrl = "https://r.example.org";'
        ' trustedRootFile = "/etc/root.json"; };',
        "updates.releaseSource: set the flake reference",
        'updates.releaseSource = "github:example/fabstir-node";',
    ),
    (
        'updates = { backend = "sysupdate"; trustedRootFile = "/etc/root.json"; };',
        "updates.repositoryUrl: say where releases are published",
        'updates.repositoryUrl = "https://r.example.org";',
    ),
    (
        'updates = { backend = "sysupdate"; repositoryUrl = "https://r.example.org"; };',
        "updates.trustedRootFile: set the root.json",
        'updates.trustedRootFile = "/etc/root.json";',
    ),
    (
        'processes = [ "s5" "chain" "prover" ]; updates = { backend = "sysupdate";'
        ' repositoryUrl = "https://r.example.org"; trustedRootFile = "/etc/root.json"; };',
        "processes: updater is missing, which services.fabstir-node.updates needs",
        'processes = [ "updater" ];',
    ),
]


@pytest.mark.parametrize("row", range(len(ASSERTED)), ids=[said for _, said, _ in ASSERTED])
def test_an_assertion_says_what_to_do_and_holds_when_it_is_done(judged, row):
    failed, left = judged[row]
    said = f"services.fabstir-node.{ASSERTED[row][1]}"
    assert any(message.startswith(said) for message in failed), failed
    assert left == []


def test_a_package_without_a_part_that_is_wanted_is_refused(library):
    without = (
        "{ package, ... }: { imports = ["
        f" {HERE}/configurations/gpu-backups.nix ]; services.fabstir-node.package ="
        ' (package "node") // { withCuda = false; withEzkl = false; }; }'
    )
    failed = " ".join(evaluated(f"({machine(without, library)}).failed"))
    assert "services.fabstir-node.package was built without CUDA" in failed
    assert "packages.x86_64-linux.node-cuda" in failed
    assert "prover needs EZKL" in failed


def test_a_driver_without_its_libraries_is_refused(library):
    bare = (
        f"{{ lib, ... }}: {{ imports = [ {HERE}/configurations/gpu-backups.nix ];"
        " hardware.graphics.enable = lib.mkForce false; }"
    )
    assert "hardware.graphics.enable is off" in str(evaluated(f"({machine(bare, library)}).failed"))


def test_what_works_but_helps_nobody_is_warned_of(library):
    options = (
        'openFirewall = true; listenAddress = "127.0.0.1"; portal.openFirewall = true;'
        ' backups = { enable = true; repository = "/b"; passwordFile = "/p"; };'
    )
    warnings = evaluated(f"({machine(with_options(options), library)}).warnings")
    assert len(warnings) == 3
    assert all(warning.startswith("services.fabstir-node.") for warning in warnings)
    assert "opens port 9000" in " ".join(warnings)


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


def random_value(rng: random.Random, depth: int) -> Any:
    kinds = ["text", "int", "float", "bool"] + ["list", "table"] * (depth > 0)
    match rng.choice(kinds):
        case "text":
            letters = "aé\"\\\n\t\r\x01\x1f\x7f$'#={}[]. \U0001f600\u2028"
            return "".join(rng.choices(letters, k=rng.randrange(6)))
        case "int":
            return rng.randint(-(2**62), 2**62)
        case "float":
            return rng.choice([0.5, 1.0, -2.0, 1e-9, 1e30, 0.1, 12345.678])
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [random_value(rng, 0) for _ in range(rng.randrange(4))]
        case _:
            return random_table(rng, depth - 1)


def random_table(rng: random.Random, depth: int) -> dict[str, Any]:
    names = ["a", "b-c", "d_1", "with space", "dot.ted", "ü", '"', "$", "", "1"]
    return {name: random_value(rng, depth) for name in rng.sample(names, rng.randrange(5))}


def test_any_table_becomes_toml_that_says_the_same(tmp_path):
    rng = random.Random(20261123)
    tables = [random_table(rng, 3) for _ in range(150)]
    given = tmp_path / "tables.json"
    given.write_text(json.dumps(tables))
    texts = evaluated(
        f"map (import {ROOT}/nixos-modules/lib/toml.nix)"
        f" (builtins.fromJSON (builtins.readFile {given}))"
    )
    read = [tomli.loads(text) for text in texts]
    assert read == tables
    # In Python 1 == 1.0; in TOML they are two types.
    assert json.dumps(read, sort_keys=True) == json.dumps(tables, sort_keys=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{ a.b = ./x; }", "would be copied into the Nix store"),
        ("{ a = [ null ]; }", "null inside"),
    ],
)
def test_what_toml_cannot_say_is_refused(value, said):
    assert said in refused(f"import {ROOT}/nixos-modules/lib/toml.nix {value}")


def test_null_is_left_out_of_toml():
    text = evaluated(
        f"import {ROOT}/nixos-modules/lib/toml.nix {{ a = null; b = {{ c = null; }}; }}"
    )
    assert text == "[b]\n"


def directives(text: str) -> set[str]:
    """Every line that says something, with its section."""
    found = set()
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#"):
            found.add(f"{section} {line}")
    return found


@pytest.mark.parametrize(
    ("file", "section"),
    [("fabstir-update@.service", "service"), ("fabstir-update.socket", "socket")],
)
def test_the_update_helper_is_the_same_with_and_without_nix(file, section):
    made = evaluated(
        f"let units = import {ROOT}/nixos-modules/lib/update-units.nix {{"
        ' command = "/opt/fabstir-node/.venv/bin/python -m nodeapp.updater.helper"; };'
        f" in import {ROOT}/nixos-modules/lib/ini.nix [ {{"
        f' name = "{section.capitalize()}"; values = units.{section}Config; }} ]'
    )
    committed = directives((ROOT / "appliance" / "systemd" / file).read_text("utf-8"))
    ours = {line for line in committed if line.startswith(f"[{section.capitalize()}]")}
    assert directives(made) == {line.replace("Accept=yes", "Accept=true") for line in ours}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_command_of_the_unit_finds_nothing_wrong(tmp_path, name):
    """`config check` with the credentials that the unit hands over, at other places of the disk."""
    deployment = tmp_path / "deployment.json"
    chain = 1 if name == "full" else 8453
    deployment.write_text(deployment_text(chain))
    (tmp_path / "base.json").write_text(deployment_text(8453))
    toml = (GOLDEN / name / "node.toml").read_text("utf-8").replace("/etc/fabstir", str(tmp_path))
    file = tmp_path / "node.toml"
    file.write_text(toml)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    unit = (GOLDEN / name / "fabstir-node.service").read_text("utf-8")
    for credential in re.findall(r"^LoadCredential\w*=([^:]+):", unit, re.MULTILINE):
        (credentials / credential).write_text("{}")

    def check(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nodeapp.cli.main", "config", "check", "--config", str(file)],
            # Ports of this machine may be taken.
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
                "FABSTIR_P2P__LISTEN": "/ip4/127.0.0.1/tcp/0",
                "FABSTIR_S5__LISTEN_PORT": "0",
                **environment,
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    done = check(CREDENTIALS_DIRECTORY=str(credentials))
    assert (done.returncode, done.stderr) == (0, "")
    if name == "minimal":
        # The check can fail: without the secret it does.
        (credentials / "keystore").unlink()
        assert "chain.keystore_file" in check(CREDENTIALS_DIRECTORY=str(credentials)).stderr


def deployment_text(chain_id: int) -> str:
    """A deployment file with addresses of nothing."""
    names = [one for one in Deployment.__struct_fields__ if one not in ("chain_id", "first_block")]
    places = {name: f"0x{index + 1:040x}" for index, name in enumerate(names)}
    return json.dumps({"chain_id": chain_id, **places})


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed (apt install systemd)"
)


@needs_systemd
@pytest.mark.parametrize(
    ("name", "unit", "tenths"),
    [
        ("minimal", "fabstir-node.service", 20),
        ("gpu-backups", "fabstir-node.service", 20),
        ("full", "fabstir-node.service", 20),
        ("full", "fabstir-metrics.service", 20),
    ],
)
def test_a_unit_exposes_little(name, unit, tenths):
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", f"--threshold={tenths}"),
            str(GOLDEN / name / unit),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@needs_systemd
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_systemd_accepts_the_units(tmp_path, name):
    command = tmp_path / "bin"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    names = [
        path.name for path in (GOLDEN / name).iterdir() if path.suffix in (".service", ".socket")
    ]
    for unit in names:
        text = (GOLDEN / name / unit).read_text("utf-8")
        text = re.sub(rf"{STORE_PACKAGE}/bin/[a-z-]+", str(command), text)
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit) for unit in names)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "fabstir" in line]
    assert ours == []


def test_the_alerts_are_about_metrics_that_exist():
    alerts = evaluated(f"import {ROOT}/nixos-modules/lib/alerts.nix")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "nodeapp").rglob("*.py"))
    rules = alerts["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    named = set()
    for rule in rules:
        for prefix, name in re.findall(
            r"fabstir_(chain\(_\[a-z0-9\]\+\)\?|[a-z0-9]+)_([a-z_]+)", rule["expr"]
        ):
            named.add(name)
            exists = f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source
            assert exists or f"fabstir_{prefix}_{name}" in source, rule["expr"]
    assert len(named) == 7
