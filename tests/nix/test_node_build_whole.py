"""The package of the whole lock, built by Nix from the index's files, runs the demo.

Minutes (llama.cpp is compiled) and the network (pip fetches what Nix would): `slow`. Only nixpkgs is
replaced, see flake.py.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.nix_pins import LOCKS
from appliance.steps.console import step
from appliance.steps.environment import PIP_QUIET, ensure_build_tools
from appliance.steps.layout import layout
from appliance.steps.run import run
from tests.nix.flake import SYSTEM, flake_copy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed"),
]


def fetch(index: Path) -> None:
    """By pip, from the index only; Nix compares every file with its pin."""
    quiet = {**PIP_QUIET, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    with step("files of the locks") as status:
        python = ensure_build_tools(layout(), status)
        for lock in LOCKS.values():
            command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
            command += ["--no-build-isolation", "-d", index, "-r", lock]
            run(status, command, what=f"pip download of {lock.name}", environment=quiet)


def test_the_node_built_by_nix_runs_the_demo_on_an_empty_cache(tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    fetch(index)
    node = flake_copy(tmp_path / "flake", index).built(f"packages.{SYSTEM}.node-ezkl", 4000)
    facts = tmp_path / "facts.json"
    done = subprocess.run(
        [node / "bin/fabstir-node", "demo", "--json", facts],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FABSTIR_CACHE": str(tmp_path / "c")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(facts.read_text())
    assert found["tokens_delivered"] == found["tokens_claimed"] > 0
    assert found["tamper_detected"]
