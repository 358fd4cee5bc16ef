"""Every unit that we ship is sound to systemd and exposes little: by this machine's systemd and by Debian 13's.

`systemd-analyze security` weighs what a unit leaves open, from 0 to 10; docs/install.md has the scores and why the
rest is needed. That the node runs under its unit is shown in test_install_booted.py.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.image.toolroot import require_tools, room

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "appliance" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
THRESHOLD = 20
"""Tenths: 2.0."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=50, check=False
    )


def prepared(directory: Path) -> Path:
    """All units, with a program that exists in every root instead of the node's."""
    for path in UNITS.iterdir():
        if path.is_file():
            text = re.sub(
                r"^(Exec\w+=[-+!@:]*)\S+", r"\1/usr/bin/true", path.read_text(), flags=re.MULTILINE
            )
            (directory / path.name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("units"))


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Of a verification; other units of the machine may have faults of their own."""
    return [line for line in done.stderr.splitlines() if "fabstir" in line]


def exposure(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if "exposure level" in line]
    return lines[-1] if lines else done.stdout + done.stderr


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed (apt install systemd)"
)


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_unit_exposes_at_most_two_of_ten(units, name):
    options = ("--offline=true", f"--threshold={THRESHOLD}")
    done = run("systemd-analyze", "security", *options, units / name)
    assert done.returncode == 0, exposure(done)


@needs_systemd
def test_a_unit_without_hardening_is_over_the_threshold(tmp_path):
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/usr/bin/true\n")
    options = ("--offline=true", f"--threshold={THRESHOLD}")
    assert run("systemd-analyze", "security", *options, bare).returncode != 0


def test_debian_13_takes_every_unit_and_finds_the_same(units):
    with room(require_tools(), {"/units": units}) as inside:
        files = [f"/units/{path.name}" for path in sorted(units.iterdir()) if "@" not in path.name]
        assert complaints(inside.run("systemd-analyze", "verify", "--man=no", *files)) == []
        for name in SERVICES:
            options = ("--offline=true", f"--threshold={THRESHOLD}", f"/units/{name}")
            done = inside.run("systemd-analyze", "security", *options, check=False)
            assert done.returncode == 0, exposure(done)


def directives(name: str) -> set[str]:
    lines = (UNITS / name).read_text("utf-8").splitlines()
    return {line for line in lines if "=" in line and not line.startswith("#")}


def test_the_node_may_confine_its_own_processes():
    allowed = " ".join(
        line for line in directives("fabstir-node.service") if line.startswith("SystemCallFilter=")
    )
    for call in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        assert call in allowed
    assert "SystemCallErrorNumber=EPERM" in directives("fabstir-node.service")


def test_the_node_reaches_its_gpus_and_no_other_device():
    found = directives("fabstir-node.service")
    assert "DevicePolicy=closed" in found
    assert {"DeviceAllow=char-nvidia-uvm rw", "DeviceAllow=char-nvidiactl rw"} <= found
    assert not any("block" in line for line in found if line.startswith("DeviceAllow="))
    # The CUDA compiler writes the code that it runs.
    assert not any(line.startswith("MemoryDenyWriteExecute=") for line in found)
