"""The build environment (pinned tools) and the checkout's virtual environment.

Every package is pinned with hashes. Wheels are installed as they are; the few projects that
publish sources only are built here by the pinned tools and cached (see llama.py, sources.py).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.layout import (
    APPLIANCE,
    ROOT,
    Layout,
    digest,
    made_atomically,
    python_tag,
    read_stamp,
    split_lock,
    write_atomically,
)
from appliance.steps.run import run, shorten

BUILD_LOCK = APPLIANCE / "requirements-build.lock"
FROM_SOURCE = ("llama-cpp-python", "fastecdsa", "python-baseconv", "varint")
"""Projects without a wheel for this platform (November 2026)."""
PIP_QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def lock_file(*, development: bool) -> Path:
    """The development lock holds every pin of the other one, and more."""
    return ROOT / ("requirements-dev.lock" if development else "requirements.lock")


def build_python(places: Layout) -> Path:
    """Interpreter of the environment that holds pip, setuptools, CMake and ninja."""
    key = digest(BUILD_LOCK, python_tag(), str(Path(sys.executable).resolve()))
    return places.cache / "build-tools" / key / "bin" / "python"


def build_tools_present(places: Layout) -> bool:
    """The build environment of this lock was finished."""
    return read_stamp(build_python(places).parents[1] / "finished") != ""


def ensure_build_tools(places: Layout, status: Status) -> Path:
    """Make the build environment once a lock file; returns its interpreter."""
    python = build_python(places)
    home = python.parents[1]
    if build_tools_present(places):
        return python
    # A virtual environment holds its own path, so it is made in place and stamped at the end.
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    run(status, [sys.executable, "-m", "venv", home], what="python -m venv")
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    command += ["--only-binary", ":all:", "-r", BUILD_LOCK]
    run(status, command, what="installing the build tools", environment=PIP_QUIET)
    write_atomically(home / "finished", "yes\n")
    return python


def download(python: Path, status: Status, requirement: str, into: Path, *options: str) -> Path:
    """Fetch one hash-pinned file; returns its path.

    Raises:
        SetupFailure: no network, or the file is not the pinned one.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as pins:
        pins.write(requirement)
        pins.flush()
        command: list[str | Path] = [python, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--require-hashes", *options, "-d", into, "-r", pins.name]
        name = requirement.partition("=")[0].strip()
        run(status, command, what=f"downloading {name}", environment=PIP_QUIET)
    files = [path for path in into.iterdir() if path.is_file()]
    if len(files) != 1:
        raise SetupFailure(f"expected one downloaded file in {into}, found {len(files)}")
    return files[0]


def ensure_source_wheels(places: Layout, status: Status, lock_text: str) -> list[Path]:
    """Build the small source-only projects (llama.cpp has its own step); returns the wheels."""
    python = ensure_build_tools(places, status)
    wheels: list[Path] = []
    for name in FROM_SOURCE[1:]:
        _, pinned = split_lock(lock_text, (name,))
        if pinned.strip():
            wheels.append(_source_wheel(places, status, python, pinned))
    return wheels


def _source_wheel(places: Layout, status: Status, python: Path, pinned: str) -> Path:
    name = pinned.partition("=")[0].strip()
    target = places.wheels / f"{name}-{digest(pinned, BUILD_LOCK, python_tag())}"
    if not target.exists():
        with made_atomically(target) as temporary:
            sources = temporary / "source"
            sources.mkdir()
            # Taking the sources runs the project's own metadata hook: with the pinned tools only.
            flags = ("--no-binary", ":all:", "--no-build-isolation")
            archive = download(python, status, pinned, sources, *flags)
            command: list[str | Path] = [
                python,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-index",
            ]
            command += ["--no-build-isolation", "-w", temporary, archive]
            run(status, command, what=f"building {name}", environment=PIP_QUIET)
            shutil.rmtree(sources)
    return next(target.glob("*.whl"))


def ensure_environment(
    places: Layout, status: Status, *, development: bool, llama_wheel: Path
) -> None:
    """Make or bring up to date the checkout's virtual environment and its command."""
    build = ensure_build_tools(places, status)
    if not places.python.exists():
        run(status, [sys.executable, "-m", "venv", places.venv], what="python -m venv")
    text = lock_file(development=development).read_text("utf-8")
    wheels = ensure_source_wheels(places, status, text)
    pinned, _ = split_lock(text, FROM_SOURCE)
    install: list[str | Path] = [build, "-m", "pip", "--python", places.python, "install"]
    install += ["--no-deps", "--progress-bar", "off"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as pins:
        pins.write(pinned)
        pins.flush()
        command = [*install, "--require-hashes", "--only-binary", ":all:", "-r", pins.name]
        run(status, command, what="installing packages", environment=PIP_QUIET, show=_pip_line)
    command = [*install, "--no-index", llama_wheel, *wheels]
    run(status, command, what="installing built wheels", environment=PIP_QUIET, show=_pip_line)
    _add_ourselves(places)


def _pip_line(line: str) -> str:
    first, _, rest = line.strip().partition(" ")
    return shorten(f"{first.lower()} {rest}") if first in ("Collecting", "Installing") else ""


def _add_ourselves(places: Layout) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = places.venv / "lib" / version / "site-packages"
    write_atomically(packages / "fabstir-node.pth", f"{ROOT}\n")
    write_atomically(places.command, _COMMAND.format(python=places.python), mode=0o755)


_COMMAND = """#!{python}
import sys

from nodeapp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""
