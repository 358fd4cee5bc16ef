"""Every Nix file parses and evaluates; the unit is the same with and without Nix.

Needs Nix (Debian: `apt-get install nix-bin`); skipped without it. Nothing is fetched or built:
nixpkgs is replaced by a few lines under tests/deploy/nix.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomli

from appliance.steps.anvil import anvil_path
from appliance.steps.layout import Layout
from nodeapp.service.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "appliance" / "systemd" / "fabstir-node.service"
NIX_FILES = [
    ROOT / "flake.nix",
    *sorted((ROOT / "nixos-modules").rglob("*.nix")),
    *sorted((ROOT / "tests" / "deploy" / "nix").rglob("*.nix")),
]
needs_nix = pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed")


@pytest.fixture
def nix(tmp_path):
    """Runs a Nix command on a store of its own."""
    config = tmp_path / "nix-conf"
    config.mkdir()
    (config / "nix.conf").write_text(
        "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\n"
        "substituters =\nflake-registry =\n"
    )
    environment = {
        **os.environ,
        "NIX_CONF_DIR": str(config),
        "NIX_STORE_DIR": str(tmp_path / "store"),
        "NIX_STATE_DIR": str(tmp_path / "state"),
        "NIX_LOG_DIR": str(tmp_path / "log"),
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
        "NIX_REMOTE": "local",
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def evaluate(nix: Any, expression: str) -> Any:
    return json.loads(nix("nix-instantiate", "--eval", "--strict", "--json", "-E", expression))


@needs_nix
@pytest.mark.parametrize("file", NIX_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_file_parses(nix, file):
    nix("nix-instantiate", "--parse", str(file))


def unit_directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@needs_nix
def test_the_unit_is_the_same_with_and_without_nix(nix):
    made = evaluate(
        nix,
        f"import {ROOT}/nixos-modules/lib/unit.nix "
        '{ command = "/opt/fabstir-node/.venv/bin/fabstir-node"; directory = "/opt/fabstir-node"; }',
    )

    def texts(value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]

    assert {key: texts(value) for key, value in made.items()} == unit_directives()


@needs_nix
def test_the_rendered_settings_file_is_one_the_node_accepts(nix, tmp_path):
    text = evaluate(
        nix,
        f"import {ROOT}/nixos-modules/lib/toml.nix "
        '{ chain = { chain_id = 8453; rpc_urls = [ "http://a" "http://b" ]; withdraw = false; };'
        ' p2p.listen = "/ip4/0.0.0.0/tcp/9000"; }',
    )
    assert tomli.loads(text)["chain"]["rpc_urls"] == ["http://a", "http://b"]
    file = tmp_path / "node.toml"
    file.write_text(text)
    settings = load_settings(file, environment={})
    assert settings.chain.chain_id == 8453
    assert settings.chain.withdraw is False


def module(nix: Any, options: str) -> Any:
    return evaluate(nix, f"import {ROOT}/tests/deploy/nix/module.nix {options}")


@needs_nix
def test_the_module_gives_unit_user_firewall_and_settings(nix):
    made = module(
        nix,
        '{ enable = true; openFirewall = true; settings = { p2p.listen = "/ip4/0.0.0.0/tcp/9100";'
        ' chain = { keystore_file = "/k"; password_file = "/p"; deployment_file = "/d"; }; }; }',
    )
    config = made["config"]
    assert made["undescribed"] == []
    assert all(item["assertion"] for item in config["assertions"])
    assert config["networking"]["firewall"]["allowedTCPPorts"] == [9100]
    assert config["users"]["users"]["fabstir"]["isSystemUser"]
    service = config["systemd"]["services"]["fabstir-node"]["serviceConfig"]
    assert service["ExecStart"].startswith("/nix/store/none/bin/fabstir-node run")
    assert (
        'listen = "/ip4/0.0.0.0/tcp/9100"'
        in config["environment"]["etc"]["fabstir/node.toml"]["text"]
    )


@needs_nix
def test_a_module_without_a_wallet_fails_its_assertions(nix):
    failed = [
        item["message"]
        for item in module(nix, "{ enable = true; }")["config"]["assertions"]
        if not item["assertion"]
    ]
    assert len(failed) == 3
    assert "chain.keystore_file" in failed[0]


@needs_nix
def test_a_disabled_module_changes_nothing(nix):
    assert module(nix, "{ enable = false; }")["config"] == {}


@needs_nix
def test_the_flake_evaluates_to_package_apps_module_and_checks(nix, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("flake.nix", "flake.lock"):
        shutil.copyfile(ROOT / name, source / name)
    shutil.copytree(ROOT / "nixos-modules", source / "nixos-modules")
    (source / "appliance").mkdir()
    shutil.copyfile(ROOT / "appliance/nix-launch.sh", source / "appliance/nix-launch.sh")
    fake = tmp_path / "nixpkgs"
    shutil.copytree(ROOT / "tests/deploy/nix/fake-nixpkgs", fake)
    shutil.copyfile(ROOT / "tests/deploy/nix/lib.nix", fake / "lib.nix")
    options = ("--override-input", "nixpkgs", f"path:{fake}", "--offline", "--no-write-lock-file")
    nix("nix", "flake", "check", f"path:{source}", "--no-build", *options)
    app = json.loads(
        nix("nix", "eval", "--json", f"path:{source}#apps.x86_64-linux.node", *options)
    )
    assert app["type"] == "app"
    assert app["program"].endswith("/bin/fabstir-node")


def test_the_flake_has_one_pinned_input():
    nodes = json.loads((ROOT / "flake.lock").read_text("utf-8"))["nodes"]
    assert set(nodes) == {"root", "nixpkgs"}
    locked = nodes["nixpkgs"]["locked"]
    assert len(locked["rev"]) == 40
    assert locked["narHash"].startswith("sha256-")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    command = tmp_path / "fabstir-node"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    text = UNIT.read_text("utf-8").replace("/opt/fabstir-node/.venv/bin/fabstir-node", str(command))
    unit = tmp_path / "fabstir-node.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "fabstir-node" in line]
    assert ours == []


def test_the_launcher_is_sound_shell():
    script = ROOT / "appliance" / "nix-launch.sh"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
    places = Layout(Path("/venv"), Path("$cache"))
    assert f"anvil={anvil_path(places)}\n" in script.read_text("utf-8")
    assert set(re.findall(r"@(\w+)@", script.read_text())) == {
        "anvil",
        "shell",
        "root",
        "tools",
        "libraries",
        "headers",
    }
