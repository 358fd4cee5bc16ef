"""The NixOS module in a NixOS of stubs: what a configuration sets, or why it is refused.

The Nix of the machine evaluates; nothing is fetched or built. Once with the small lib of
tests/nix/lib.nix, once with nixpkgs' own where FABSTIR_NIXPKGS_LIB names it.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
CONFIGURATIONS = ("minimal", "full", "gpu-backups")


def nixpkgs_lib() -> str:
    """nixpkgs' lib, or "" where none is at hand."""
    return os.environ.get("FABSTIR_NIXPKGS_LIB", "")


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
