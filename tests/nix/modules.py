"""The NixOS module in a NixOS of stubs: what a configuration sets, or why it is refused.

The Nix of the machine evaluates; nothing is fetched or built. Once with the small lib of
tests/nix/lib.nix, once with nixpkgs' own where FABSTIR_NIXPKGS_LIB names it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CONFIGURATIONS = ("minimal", "full", "gpu-backups")
needs_nix = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None, reason="Nix is not installed (apt-get install nix-bin)"
)


def nixpkgs_lib() -> str:
    """nixpkgs' lib, or "" where none is at hand."""
    return os.environ.get("FABSTIR_NIXPKGS_LIB", "")


def evaluated(expression: str) -> Any:
    """The value of a Nix expression.

    Raises:
        AssertionError: it does not evaluate; with what Nix said.
    """
    done = _nix("--eval", "--strict", "--json", "-E", expression)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def refused(expression: str) -> str:
    """What Nix says to an expression that must not evaluate."""
    done = _nix("--eval", "--strict", "--json", "-E", expression)
    assert done.returncode != 0, done.stdout[:1000]
    return done.stderr


def _nix(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("nix-instantiate", *arguments),
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NIX_REMOTE": "dummy://"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def machine(configuration: str, library: str = "") -> str:
    """The expression for a machine with this configuration (Nix)."""
    return f'import {HERE}/evaluate.nix {{ library = "{library}"; }} ({configuration})'


def configured(name: str) -> str:
    """One of tests/nix/configurations."""
    return f"import {HERE}/configurations/{name}.nix"


def with_options(options: str) -> str:
    """The minimal configuration and these options of services.fabstir-node (Nix)."""
    return (
        f"{{ lib, ... }}: {{ imports = [ {HERE}/configurations/minimal.nix ];"
        f" config.services.fabstir-node = {{ {options} }}; }}"
    )
