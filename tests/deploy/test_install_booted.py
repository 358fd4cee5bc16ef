"""Plain Linux whole: installed in a booted Debian 13, the node earns under its hardened unit, and goes without trace.

The Debian is a container with a real systemd (tests/image/booted.py); chain and renter are outside of it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.steps.layout import layout
from appliance.steps.sources import copy_files, product_files
from tests.image.booted import Booted, booted, require_booted
from tests.image.node_elsewhere import TOKENS, give, pay_for_an_answer, write_settings
from tests.world import World, started_devnet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
UNIT = "fabstir-node.service"
SETTINGS = "/etc/fabstir/node.toml"
INSTALL_SECONDS = 1200
PROXY = ("/etc/ssl/certs/ca-certificates.crt",)


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A Debian with the checkout's files under /source, and wheels built by an earlier run."""
    root = require_booted()
    cache = layout().cache
    with tempfile.TemporaryDirectory(prefix="booted-", dir=cache) as name:
        place = Path(name)
        source = place / "upper" / "source"
        copy_files(product_files(), source)
        built = place / "upper" / "var" / "cache" / "fabstir-install" / "wheels"
        kept = cache / "oci" / "parts" / "wheels"
        if kept.is_dir():
            shutil.copytree(kept, built)
        binds = {path: Path(path) for path in PROXY if Path(path).exists()}
        with booted(root, place, binds) as running:
            yield running


@pytest.fixture(scope="module")
def devnet(tmp_path_factory) -> Iterator[World]:
    with started_devnet(tmp_path_factory.mktemp("d")) as world:
        yield world


def install(machine: Booted, *arguments: str) -> str:
    words = ("sh", "/source/appliance/install.sh", *arguments)
    done = machine.run(*words, timeout_seconds=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def running(machine: Booted) -> dict[str, dict[str, str]]:
    """/proc/PID/status of the account's processes, by command line; the container's own /proc."""
    account = machine.run("id", "-u", "fabstir").stdout.strip()
    found: dict[str, dict[str, str]] = {}
    for place in (machine.root / "proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pairs = (line.partition(":") for line in (place / "status").read_text().splitlines())
            status = {key: value.strip() for key, _, value in pairs}
            if status["Uid"].split()[0] == account:
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[f"{place.name} {words}"] = status
    return found


def test_the_node_is_installed_twice_alike_and_does_not_start_by_itself(machine):
    said = install(machine, "--portable")
    assert "done     account fabstir" in said
    again = install(machine, "--portable")
    lines = [line for line in again.splitlines() if line.startswith("  done")]
    assert [line for line in lines if "environment" not in line] == []
    assert machine.state(UNIT) == "inactive"
    assert machine.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    assert "fabstir-node" in machine.run("fabstir-node", "--help").stdout


def test_the_node_earns_under_its_unit(machine, devnet):
    keys = machine.root / "etc" / "fabstir" / "keys"
    keys.mkdir()
    write_settings(devnet, keys, "/etc/fabstir/keys")
    account = machine.run("id", "-u", "fabstir").stdout, machine.run("id", "-g", "fabstir").stdout
    (keys / "node.toml").replace(keys.parent / "node.toml")
    give(keys, *map(int, account))
    (keys.parent / "node.toml").chmod(0o644)
    machine.run("systemctl", "start", UNIT, timeout_seconds=180)
    assert machine.state(UNIT) == "active"
    pay_for_an_answer(devnet, "of-a-unit")
    processes = running(machine)
    for module in ("p2p", "chain", "inference", "prover"):
        assert any(f"nodeapp.{module}.main" in words for words in processes), processes
    for found in processes.values():
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert int(found["CapBnd"], 16) == 0
    said = machine.run("fabstir-node", "status", "--config", SETTINGS, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert machine.journal(UNIT).count("not permitted") == 0


def test_a_killed_node_is_started_again(machine):
    before = machine.show(UNIT, "MainPID")
    machine.run("systemctl", "kill", "-s", "SIGKILL", UNIT)
    machine.until_state(UNIT, "active", 120)
    assert machine.show(UNIT, "MainPID") != before
    assert machine.show(UNIT, "NRestarts") == "1"


def test_a_stopped_node_leaves_no_process(machine):
    machine.run("systemctl", "stop", UNIT)
    assert machine.state(UNIT) == "inactive"
    assert machine.show(UNIT, "Result") == "success"
    assert running(machine) == {}
    said = machine.run("fabstir-node", "host", "status", "--config", SETTINGS, check=False)
    assert "runuser -u fabstir -- fabstir-node" in said.stderr, "root would leave files of its own"
    # /run/fabstir went with the unit; the journal is where the drop-in says.
    words = ("runuser", "-u", "fabstir", "--", "fabstir-node", "earnings", "--config", SETTINGS)
    said = machine.run(*words, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"1 sessions, {TOKENS} tokens paid" in said.stdout
    assert running(machine) == {}


def test_a_purged_node_leaves_no_trace(machine):
    install(machine, "--uninstall")
    assert machine.run("ls", "/var/lib/fabstir/chain").stdout
    install(machine, "--uninstall", "--purge", "--yes")
    places = ("/etc", "/opt", "/usr/local", "/var/lib", "/var/cache", "/run")
    left = machine.run("find", *places, "-name", "*fabstir*").stdout
    assert left == ""
    assert machine.run("id", "fabstir", check=False).returncode != 0
