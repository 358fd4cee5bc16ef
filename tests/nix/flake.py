"""A copy of the flake's files, and nix on a store of its own with nixpkgs replaced.

Nothing is fetched: the input is tests/nix/fake-nixpkgs with the machine's own programs in it.
FABSTIR_NIXPKGS_LIB may name nixpkgs' `lib` folder; then the modules are evaluated, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.steps.anvil import anvil_path
from appliance.steps.layout import layout

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).parent / "fake-nixpkgs"
SYSTEM = "x86_64-linux"
FILES = ("flake.nix", "flake.lock", "pyproject.toml", "requirements.lock", "LICENSE")
FOLDERS = ("appliance", "nixos-modules", "nodeapp", "image")
SMALL_LIB = ("lib.nix", "packaging.nix")
CONFIGURATION = """experimental-features = nix-command flakes
build-users-group =
sandbox = false
substituters =
flake-registry =
"""


def real_lib() -> Path | None:
    """nixpkgs' own lib, where there is a copy of it."""
    given = os.environ.get("FABSTIR_NIXPKGS_LIB", "")
    return Path(given) if given else None


@dataclass(frozen=True)
class Flake:
    """A flake at `source`; `home` holds the store."""

    source: Path
    nixpkgs: Path
    home: Path

    def run(self, *command: str, seconds: float = 50) -> str:
        """A nix command to its end.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = subprocess.run(
            command,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def environment(self) -> Mapping[str, str]:
        """No configuration and no store of the machine's."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "NIX_CONF_DIR": str(self.home / "conf"),
            "NIX_STORE_DIR": str(self.home / "store"),
            "NIX_STATE_DIR": str(self.home / "state"),
            "NIX_LOG_DIR": str(self.home / "log"),
            "NIX_REMOTE": "local",
        }

    def options(self) -> tuple[str, ...]:
        """Of every nix command that reads the flake."""
        fake = f"path:{self.nixpkgs}"
        return ("--override-input", "nixpkgs", fake, "--offline", "--no-write-lock-file")

    def value(self, attribute: str, apply: str = "x: x") -> Any:
        """An output of the flake, forced to the last value."""
        command = ("nix", "eval", "--json", f"path:{self.source}#{attribute}", "--apply", apply)
        return json.loads(self.run(*command, *self.options()))

    def built(self, attribute: str, seconds: float = 120) -> Path:
        """The store path of an output, built."""
        link = self.home / f"result-{attribute.rpartition('.')[2]}"
        command = ("nix", "build", f"path:{self.source}#{attribute}", "--out-link", str(link))
        self.run(*command, *self.options(), seconds=seconds)
        return link.resolve()


def flake_copy(home: Path, index: Path | None = None) -> Flake:
    """Copy the flake below `home`; `index` is the folder that fetchPypi takes files from."""
    source, nixpkgs = home / "source", home / "nixpkgs"
    source.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(ROOT / name, source / name)
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / name, source / name, ignore=leave_out)
    shutil.copytree(FAKE, nixpkgs)
    shutil.copyfile(FAKE.parent / "stubs.nix", nixpkgs / "stubs.nix")
    lib = real_lib()
    if lib is not None:
        shutil.copytree(lib, nixpkgs / "lib")
    else:
        (nixpkgs / "lib").mkdir()
        for name in SMALL_LIB:
            shutil.copyfile(FAKE.parent / name, nixpkgs / "lib" / name)
        joined = " // ".join(f"import ./{name}" for name in SMALL_LIB)
        (nixpkgs / "lib" / "default.nix").write_text(f"{joined}\n")
    python = Path(sys.executable).resolve()
    machine = {
        "python": str(python),
        "bash": shutil.which("bash"),
        "anvil": str(anvil_path(layout())),
        "path": "/usr/local/bin:/usr/bin:/bin",
        "index": str(index or home / "no-index"),
    }
    text = "".join(f"  {name} = {json.dumps(value)};\n" for name, value in machine.items())
    (nixpkgs / "machine.nix").write_text("{\n" + text + "}\n")
    (home / "conf").mkdir()
    (home / "conf" / "nix.conf").write_text(CONFIGURATION)
    return Flake(source, nixpkgs, home)
