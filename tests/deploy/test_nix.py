"""The unit is the same with and without Nix, and systemd accepts it.

The flake: tests/nix/test_flake.py; the modules: tests/nix/test_modules.py, test_refusals.py, test_units.py.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.nix.expressions import evaluated, needs_nix

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "appliance" / "systemd" / "fabstir-node.service"


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
def test_the_unit_is_the_same_with_and_without_nix():
    made = evaluated(
        "import ./nixos-modules/lib/unit.nix "
        '{ command = "/opt/fabstir-node/.venv/bin/fabstir-node"; directory = "/opt/fabstir-node"; }',
    )

    def texts(value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]

    assert {key: texts(value) for key, value in made.items()} == unit_directives()


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
