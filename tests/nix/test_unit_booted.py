"""The module's units under a real systemd: credentials arrive, only what is meant to be written is, no device is seen.

The golden texts run as they are, in a booted Debian 13; what stands at the package's path is unit_probe.py.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.steps.layout import layout
from tests.image.booted import Booted, booted, require_booted
from tests.nix.golden import GOLDEN, PACKAGE
from tests.nix.modules import CONFIGURATIONS, HERE

ACCOUNTS = {"minimal": "fabstir", "gpu-backups": "fabstir", "full": "hoster"}
STATES = {"minimal": "/var/lib/fabstir", "gpu-backups": "/var/lib/fabstir", "full": "/data/fabstir"}
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    root = require_booted()
    with tempfile.TemporaryDirectory(prefix="unit-", dir=layout().cache) as name:
        upper = Path(name) / "upper"
        program = upper / PACKAGE / "bin" / "fabstir-node"
        program.parent.mkdir(parents=True)
        shutil.copyfile(HERE / "unit_probe.py", program)
        program.chmod(0o755)
        helper = program.with_name("fabstir-update-helper")
        helper.write_text('#!/bin/sh\nread -r request\necho "done $request $(id -u)"\n')
        helper.chmod(0o755)
        (upper / PACKAGE / "lib" / "fabstir-node").mkdir(parents=True)
        units = upper / "etc" / "units"
        for configuration in CONFIGURATIONS:
            shutil.copytree(GOLDEN / configuration, units / configuration)
        with booted(root, Path(name)) as running:
            yield running


def shell(machine: Booted, script: str) -> str:
    return machine.run("sh", "-ec", script).stdout


def started(machine: Booted, name: str) -> dict[str, Any]:
    """The unit of a configuration runs; what it found."""
    unit = (GOLDEN / name / "fabstir-node.service").read_text("utf-8")
    secrets = re.findall(r"^LoadCredential=([^:]+):(.*)$", unit, re.MULTILINE)
    account, group = (
        re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)[0] for key in ("User", "Group")
    )
    tmpfiles = json.loads((GOLDEN / name / "machine.json").read_text("utf-8"))["tmpfiles"]
    steps = [
        "systemctl stop fabstir-node.service 2>/dev/null || true",
        f"cp /etc/units/{name}/fabstir-node.service /etc/systemd/system/",
        f"getent group {group} || groupadd -r {group}",
        f"id {account} || useradd -r -g {group} {account}",
        "mkdir -p /models/shared /mnt/backup /data /models /run/secrets /run/agenix",
        f"chown {account} /models/shared",
        *(f"mkdir -p {Path(file).parent}; umask 077; echo -n {key} > {file}" for key, file in secrets),
        "echo FABSTIR_CHAIN__POLL_SECONDS=2 > /run/secrets/fabstir-environment",
        *(f"printf '%s\\n' \"{rule}\" > /etc/tmpfiles.d/ours.conf; systemd-tmpfiles --create ours.conf"
          for rule in tmpfiles),
    ]  # fmt: skip
    for key, file in re.findall(r"^LoadCredentialEncrypted=([^:]+):(.*)$", unit, re.MULTILINE):
        steps.append(f"echo -n {key} | systemd-creds encrypt --with-key=host --name={key} - {file}")
    shell(machine, "\n".join(steps))
    machine.run("systemctl", "daemon-reload")
    done = machine.run("systemctl", "start", "fabstir-node.service", check=False)
    assert done.returncode == 0, machine.journal("fabstir-node.service")
    found: dict[str, Any] = json.loads(shell(machine, f"cat {STATES[name]}/probe.json"))
    return found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_unit_gives_the_node_what_it_needs_and_no_more(machine, name):
    found = started(machine, name)
    assert machine.state("fabstir-node.service") == "active"
    assert found["status"]["NoNewPrivs"] == "1"
    assert found["status"]["Seccomp"] == "2"
    assert int(found["status"]["CapBnd"], 16) == 0
    assert found["credentials"] == {key: key for key in found["credentials"]}
    wallet = {"keystore", "password"}
    expected = {
        "minimal": (wallet, {"/var/lib/fabstir", "/var/cache/fabstir"}),
        "gpu-backups": (
            wallet | {"recovery-password", "restic-environment", "restic-password"},
            {"/var/lib/fabstir", "/var/cache/fabstir", "/mnt/backup/node"},
        ),
        "full": (
            wallet | {"base-keystore", "base-password"},
            {"/data/fabstir", "/models/fabstir", "/models/shared"},
        ),
    }[name]
    assert set(found["credentials"]) == expected[0]
    assert set(found["writable"]) == expected[1] | {"/run/fabstir"}
    assert found["environment"]["FABSTIR_NODE__RUN_DIR"] == "/run/fabstir"
    if name == "full":
        assert found["environment"]["FABSTIR_CHAIN__POLL_SECONDS"] == "2"
        assert found["environment"]["TZ"] == "Europe/Berlin"
        assert machine.show("fabstir-node.service", "MemoryMax") == str(32 << 30)
        assert machine.show("fabstir-node.service", "CPUWeight") == "50"
    owner = shell(machine, f"stat -c %U:%a {STATES[name]}").strip()
    assert owner == f"{ACCOUNTS[name]}:700"


def test_only_a_node_with_gpus_sees_their_devices(machine):
    shell(machine, ": > /dev/nvidia0; : > /dev/sda")
    assert "nvidia0" in started(machine, "gpu-backups")["devices"]
    alone = started(machine, "minimal")["devices"]
    assert "null" in alone
    assert {"nvidia0", "sda"}.isdisjoint(alone)


def test_a_node_whose_secret_is_missing_does_not_start(machine):
    started(machine, "minimal")
    shell(machine, "rm /run/agenix/password")
    done = machine.run("systemctl", "restart", "fabstir-node.service", check=False)
    assert done.returncode != 0
    assert "credential" in machine.journal("fabstir-node.service").lower()
    machine.run("systemctl", "stop", "fabstir-node.service", check=False)


def test_the_metrics_see_the_sockets_and_nothing_of_the_state(machine):
    started(machine, "full")
    shell(machine, "cp /etc/units/full/fabstir-metrics.service /etc/systemd/system/")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "fabstir-metrics.service")
    shell(machine, "until journalctl -q -o cat -u fabstir-metrics | grep -q ^{; do sleep 0.1; done")
    lines = shell(machine, "journalctl -q -o cat -u fabstir-metrics | grep ^{").splitlines()
    found = json.loads(lines[-1])
    assert found["credentials"] == {}
    assert found["writable"] == []
    assert found["answered"]
    assert "/data/fabstir" not in found["listed"]
    assert "nvidia0" not in found["devices"]
    machine.run("systemctl", "stop", "fabstir-metrics.service")


def test_only_the_nodes_group_reaches_the_update_helper(machine):
    started(machine, "full")
    shell(
        machine,
        "cp /etc/units/full/fabstir-update* /etc/systemd/system/; systemctl daemon-reload;"
        " id stranger >/dev/null 2>&1 || useradd -r stranger; systemctl start fabstir-update.socket",
    )
    ask = (
        "import socket; line = socket.socket(socket.AF_UNIX); line.connect('/run/fabstir-update.sock');"
        " line.sendall(b'reboot\\n'); print(line.makefile().readline())"
    )
    asked = machine.run("runuser", "-u", "hoster", "--", "python3", "-c", ask)
    assert asked.stdout.strip() == "done reboot 0"
    refused = machine.run("runuser", "-u", "stranger", "--", "python3", "-c", ask, check=False)
    assert "PermissionError" in refused.stderr
    machine.run("systemctl", "stop", "fabstir-update.socket")


def test_the_judge_asks_the_node_and_the_helper_and_writes_the_nodes_own_directories(machine):
    started(machine, "full")
    shell(
        machine,
        "cp /etc/units/full/fabstir-update* /etc/units/full/fabstir-health.service"
        " /etc/systemd/system/; systemctl daemon-reload; systemctl start fabstir-update.socket",
    )
    done = machine.run("systemctl", "start", "fabstir-health.service", check=False)
    assert done.returncode == 0, machine.journal("fabstir-health.service")
    lines = shell(machine, "journalctl -q -o cat -u fabstir-health | grep ^{").splitlines()
    found = json.loads(lines[-1])
    assert found["answered"]
    assert found["helper"] == "done nixos-back 0.1.0 0"
    assert set(found["writable"]) == {"/run/fabstir", "/data/fabstir"}
    assert found["credentials"] == {}
    assert found["environment"]["FABSTIR_CHAIN__POLL_SECONDS"] == "2"
    config = ["--config", "/etc/fabstir/node.toml", "--state-dir", "/data/fabstir"]
    assert found["arguments"] == ["health", "--boot", *config]
    machine.run("systemctl", "stop", "fabstir-health.service", "fabstir-update.socket")
