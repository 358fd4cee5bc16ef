"""Set a checkout up: `python3 -m appliance.setup [--development] [--check]` (what `make` calls).

Images and installed nodes take `--environment-only`: no model, local chain or test proof keys.

Idempotent and cached: what is there is not made again, and a second run only compares stamps.
Needs nothing but Python >= 3.11; Debian and Ubuntu packages are installed when run as root,
otherwise the one command that does it is printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.steps import (
    anvil,
    debian,
    embedding_model,
    environment,
    llama,
    model,
    proofs,
    system,
)
from appliance.steps.console import SetupFailure, Status, step
from appliance.steps.layout import (
    APPLIANCE,
    Layout,
    cpu_flags,
    digest,
    layout,
    only_one,
    python_tag,
    read_stamp,
    write_atomically,
)

FREE_BYTES_NEEDED = 4 << 30
"""Virtual environment 1.5 GB, build directory 1 GB, wheels and models: rounded up."""


@dataclass(frozen=True, slots=True)
class Part:
    """One step: whether it is done, and how it is done."""

    title: str
    is_done: Callable[[], bool]
    do: Callable[[Status], None]


def parts(places: Layout, *, development: bool) -> tuple[Part, ...]:
    """In the order they need each other."""
    return (
        *environment_parts(places, development=development),
        *parts_of_the_demo(places, development=development),
    )


def environment_parts(places: Layout, *, development: bool) -> tuple[Part, ...]:
    """What the node itself runs on."""
    lock = environment.lock_file(development=development)
    text = lock.read_text("utf-8")

    def install_environment(status: Status) -> None:
        wheel = llama.ensure_llama_wheel(places, status, text)
        environment.ensure_environment(places, status, development=development, llama_wheel=wheel)
        write_atomically(
            environment_stamp(places, development=development),
            environment_key(development=development, portable=places.portable),
        )

    tools = Part("system packages of the tests", lambda: not system.missing_tools(), _install_tools)
    return (
        Part("system packages", lambda: not system.missing(), _install_system),
        *((tools,) if development else ()),
        Part(
            "build tools",
            lambda: environment.build_tools_present(places),
            lambda status: _discard(environment.ensure_build_tools(places, status)),
        ),
        Part(
            "llama.cpp for this processor",
            lambda: llama.is_wheel_present(places, text),
            lambda status: _discard(llama.ensure_llama_wheel(places, status, text)),
        ),
        Part(
            f"packages of {lock.name}",
            lambda: is_environment_current(places, development=development),
            install_environment,
        ),
    )


def parts_of_the_demo(places: Layout, *, development: bool) -> tuple[Part, ...]:
    """What demo and tests run with, and a real node need not have."""
    embeddings = Part(
        "embedding model all-MiniLM-L6-v2",
        lambda: embedding_model.is_embedding_model_present(places),
        lambda status: _discard(embedding_model.ensure_embedding_model(places, status)),
    )
    tools = Part(
        "Debian root of the image's tools",
        lambda: is_debian_there(places),
        lambda status: _make_debian(places, status),
    )
    return (
        Part(
            "model SmolLM2-135M-Instruct",
            lambda: model.is_model_present(places),
            lambda status: _discard(model.ensure_model(places, status)),
        ),
        Part(
            f"anvil {anvil.VERSION}",
            lambda: anvil.anvil_path(places).exists(),
            lambda status: _discard(anvil.ensure_anvil(places, status)),
        ),
        Part(
            "proof profile",
            lambda: proofs.is_profile_present(places),
            lambda status: proofs.ensure_profile(places, status),
        ),
        *((embeddings, tools) if development else ()),
    )


def _discard(_made: Path) -> None:
    """A step's result is found again by its path."""


def _install_system(status: Status) -> None:
    absent = system.missing()
    if absent:
        system.install(status, absent)


def _install_tools(status: Status) -> None:
    absent = system.missing_tools()
    lacking = system.install_tools(status, absent) if absent else ""
    if lacking:
        status.mark = "left  "
        sys.stderr.write(f"  {lacking}\n")


def _make_debian(places: Layout, status: Status) -> None:
    try:
        debian.ensure_debian(places, status)
    except SetupFailure as failure:
        status.mark = "left  "
        sys.stderr.write(f"  {failure}\n  the tests that need it are skipped\n")


def environment_key(*, development: bool, portable: bool = False) -> str:
    """Changes when a pin, what installs them, the interpreter or the processor does."""
    steps = (APPLIANCE / "steps" / name for name in ("environment.py", "llama.py"))
    build = (environment.BUILD_LOCK, *llama.OWN_FILES)
    lock = environment.lock_file(development=development)
    processor = "portable" if portable else cpu_flags()
    return digest(lock, *build, *steps, python_tag(), processor, sys.base_prefix)


def environment_stamp(places: Layout, *, development: bool) -> Path:
    """Says what the virtual environment was made from."""
    return places.venv / ("setup-development.stamp" if development else "setup.stamp")


def is_environment_current(places: Layout, *, development: bool) -> bool:
    """The development environment serves a plain run as well: its lock is a superset."""
    if not (places.python.exists() and places.command.exists()):
        return False
    kinds = (True,) if development else (True, False)
    return any(
        read_stamp(environment_stamp(places, development=kind))
        == environment_key(development=kind, portable=places.portable)
        for kind in kinds
    )


def is_debian_there(places: Layout) -> bool:
    """Also true where it cannot be made: the tests that need it are skipped and say why."""
    return debian.debian_path(places).is_dir() or not debian.can_be_made()


def is_everything_there(places: Layout, *, development: bool) -> bool:
    """Stamps and files only: no child process, well below a second."""
    return (
        is_environment_current(places, development=development)
        and model.is_model_present(places)
        and anvil.anvil_path(places).exists()
        and proofs.is_profile_present(places)
        and (not development or embedding_model.is_embedding_model_present(places))
        and (not development or not system.missing_tools())
        and (not development or is_debian_there(places))
    )


def set_up(places: Layout, *, development: bool, environment_only: bool = False) -> None:
    """Do what is missing.

    Raises:
        SetupFailure: a step could not be done; the text says what to do.
    """
    chosen = environment_parts if environment_only else parts
    there = is_environment_current if environment_only else is_everything_there
    if there(places, development=development):
        return
    began = time.monotonic()
    with only_one(places.cache):
        _check_space(places)
        for part in chosen(places, development=development):
            if part.is_done():
                continue
            with step(part.title) as status:
                part.do(status)
    sys.stderr.write(f"  set-up done in {time.monotonic() - began:.1f} s\n")


def _check_space(places: Layout) -> None:
    for directory in (places.cache, places.venv):
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < FREE_BYTES_NEEDED and not places.python.exists():
            raise SetupFailure(
                f"{directory} has {free >> 20} MB free, set-up needs {FREE_BYTES_NEEDED >> 20} MB"
            )


def report(places: Layout, *, development: bool) -> int:
    """Print what is there and what is missing; returns the number of missing parts."""
    absent = 0
    for part in parts(places, development=development):
        done = part.is_done()
        absent += not done
        sys.stdout.write(f"  {'ok     ' if done else 'missing'} {part.title}\n")
    lacking = [*system.missing(), *(system.missing_tools() if development else ())]
    if lacking:
        command = " ".join(system.install_command(lacking))
        sys.stdout.write(f"  system packages: {command}\n")
    return absent


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all there, 1 something is missing or failed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python3 -m appliance.setup", description=__doc__)
    parser.add_argument("--development", action="store_true", help="also what the tests need")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    parser.add_argument(
        "--environment-only", action="store_true", help="not what only the demo needs"
    )
    parser.add_argument(
        "--portable", action="store_true", help="for every x86-64-v3 processor, not this one only"
    )
    chosen = parser.parse_args(arguments)
    places = layout(portable=chosen.portable)
    try:
        if chosen.check:
            return 1 if report(places, development=chosen.development) else 0
        set_up(
            places,
            development=chosen.development,
            environment_only=chosen.environment_only,
        )
    except SetupFailure as failure:
        sys.stderr.write(f"set-up: {failure}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"set-up: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("set-up: interrupted; what is finished is kept\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
