"""Values of Nix expressions, by the Nix of the machine: nothing is fetched, built or stored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_nix = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None, reason="Nix is not installed (apt-get install nix-bin)"
)


def evaluated(expression: str) -> Any:
    """The value of a Nix expression; its relative paths start at the checkout.

    Raises:
        AssertionError: it does not evaluate; with what Nix said.
    """
    done = _nix(expression)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def refused(expression: str) -> str:
    """What Nix says to an expression that must not evaluate."""
    done = _nix(expression)
    assert done.returncode != 0, done.stdout[:1000]
    return done.stderr


def _nix(expression: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("nix-instantiate", "--eval", "--strict", "--json", "-E", expression),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NIX_REMOTE": "dummy://"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
