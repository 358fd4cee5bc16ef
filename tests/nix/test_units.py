"""The golden units by systemd and by the node: accepted, little exposed, and what they start finds nothing wrong.

Under a running systemd: test_unit_booted.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from nodeapp.evm.deployment import Deployment
from tests.nix.expressions import ROOT, evaluated, needs_nix
from tests.nix.golden import GOLDEN, PACKAGE
from tests.nix.modules import CONFIGURATIONS

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed (apt install systemd)"
)


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


@needs_nix
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

    served = {
        "FABSTIR_INFERENCE__MODEL": "m",
        "FABSTIR_INFERENCE__MODEL_SOURCE": "https://models.example.org/m.gguf",
        "FABSTIR_PROVER__SRS_SOURCE": "https://keys.example.org/kzg14.srs",
    }
    done = check(CREDENTIALS_DIRECTORY=str(credentials), **served)
    assert (done.returncode, done.stdout) == (0, "settings are right\n"), done.stderr
    assert "error" not in done.stderr
    unserved = check(CREDENTIALS_DIRECTORY=str(credentials))
    assert "error: inference.model: names no model" in unserved.stderr
    if name == "minimal":
        # The check can fail: without the secret it does.
        (credentials / "keystore").unlink()
        assert "chain.keystore_file" in check(CREDENTIALS_DIRECTORY=str(credentials)).stderr


def deployment_text(chain_id: int) -> str:
    """A deployment file with addresses of nothing."""
    names = [one for one in Deployment.__struct_fields__ if one not in ("chain_id", "first_block")]
    places = {name: f"0x{index + 1:040x}" for index, name in enumerate(names)}
    return json.dumps({"chain_id": chain_id, **places})


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
        text = re.sub(rf"/{PACKAGE}/bin/[a-z-]+", str(command), text)
        # New in systemd 256, which NixOS has; this machine's own may be older.
        text = text.replace("WantsMountsFor=", "RequiresMountsFor=")
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


@needs_systemd
def test_the_exposure_in_the_documents_is_that_of_the_golden_units():
    found = []
    for unit in sorted(GOLDEN.glob("*/fabstir-node.service")):
        command = ("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
        said = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
        found += re.findall(r"exposure level for \S+: ([0-9.]+)", said.stdout)
    assert len(found) == 3
    text = (ROOT / "docs/nixos.md").read_text("utf-8")
    assert f"`systemd-analyze security` is {min(found)} (no GPU) to {max(found)}, of 10" in text
