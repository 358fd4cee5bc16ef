"""Write nixos-modules/python/pins.json: `python3 -m appliance.nix_pins` (after the locks changed).

The locks say versions and the hashes of every file a project published; Nix must know which of
those files to fetch. pip is asked: the file it takes is the one every other machine gets. Only
file names and hashes are recorded: nixpkgs' fetchPypi makes the address from them.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.steps.console import SetupFailure, Status, step
from appliance.steps.environment import BUILD_LOCK, PIP_QUIET, ensure_build_tools, lock_file
from appliance.steps.layout import ROOT, layout, python_tag, write_atomically
from appliance.steps.model import MODEL_LOCK
from appliance.steps.run import run

PINS = ROOT / "nixos-modules" / "python" / "pins.json"
LOCKS = {"runtime": lock_file(development=False), "build": BUILD_LOCK, "model": MODEL_LOCK}
"""Packages of the running node; what builds the few source-only ones; the demo's model."""
PYTHON_TAG = "cpython-3.11-x86_64"
Pin = dict[str, str]


def pin_of(file_name: str, sha256: str) -> Pin:
    """The arguments of fetchPypi for one file of the index.

    Args:
        file_name: of a wheel or a .tar.gz.
        sha256: hex digits, from the lock.

    Raises:
        SetupFailure: not such a name.
    """
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    if file_name.endswith(".whl"):
        parts = file_name.removesuffix(".whl").split("-")
        if len(parts) != 5:
            raise SetupFailure(f"wheel {file_name} has a build number: fetchPypi cannot say it")
        name, version, python, abi, platform = parts
        kind = {"format": "wheel", "python": python, "abi": abi, "platform": platform}
    elif file_name.endswith(".tar.gz"):
        name, _, version = file_name.removesuffix(".tar.gz").rpartition("-")
        kind = {"format": "setuptools"}
    else:
        raise SetupFailure(f"{file_name} is neither a wheel nor a .tar.gz")
    return {"pname": name, "version": version, **kind, "hash": f"sha256-{digest}"}


def file_name(pin: Mapping[str, str]) -> str:
    """The inverse of `pin_of`."""
    stem = f"{pin['pname']}-{pin['version']}"
    if pin["format"] == "wheel":
        return f"{stem}-{pin['python']}-{pin['abi']}-{pin['platform']}.whl"
    return f"{stem}.tar.gz"


def pins_of(report: str) -> list[Pin]:
    """From pip's installation report, in the order of the lock."""
    found: list[Pin] = []
    for item in json.loads(report)["install"]:
        download = item["download_info"]
        sha256 = download["archive_info"]["hashes"]["sha256"]
        found.append(pin_of(download["url"].rpartition("/")[2], sha256))
    return found


def _ask_pip(python: Path, status: Status, lock: Path) -> list[Pin]:
    with tempfile.NamedTemporaryFile("r", suffix=".json", encoding="utf-8") as report:
        command: list[str | Path] = [python, "-m", "pip", "install", "--dry-run", "--quiet"]
        command += ["--ignore-installed", "--no-deps", "--require-hashes", "--no-build-isolation"]
        command += ["--report", report.name, "-r", lock]
        # Files on this machine are not the index's.
        quiet = {**PIP_QUIET, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
        run(status, command, what=f"asking pip for {lock.name}", environment=quiet)
        return pins_of(report.read())


def rendered(pins: Mapping[str, Sequence[Pin]]) -> str:
    """One line a file, so that a change of one package is a change of one line."""
    groups = []
    for group, entries in pins.items():
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        groups.append(f'  "{group}": [\n{lines}\n  ]')
    return "{\n" + ",\n".join(groups) + "\n}\n"


def main() -> int:
    """Returns the exit code."""
    try:
        if python_tag() != PYTHON_TAG:
            raise SetupFailure(f"pins are made with {PYTHON_TAG}, this is {python_tag()}")
        with step("pins for Nix") as status:
            python = ensure_build_tools(layout(), status)
            pins = {group: _ask_pip(python, status, lock) for group, lock in LOCKS.items()}
            write_atomically(PINS, rendered(pins))
    except SetupFailure as failure:
        sys.stderr.write(f"pins: {failure}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
