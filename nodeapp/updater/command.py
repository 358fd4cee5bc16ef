"""Running another program: a deadline, a bounded answer, errors of ours.

Rules of this file: no shell; the child gets only the environment it is given; whoever is
cancelled takes the child down; it stays in this process's group, so the supervisor ends it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from nodeapp.core.errors import TooLarge, Unavailable
from nodeapp.service.config import process_environment

MAX_OUTPUT_BYTES = 64 << 20
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def found_program(name: str, package: str) -> str:
    """Its path; administrators' directories are looked at, too.

    Raises:
        Unavailable: not installed; says what to install.
    """
    path = process_environment(("PATH",)).get("PATH", "")
    program = shutil.which(name, path=f"{path}:{SYSTEM_PATH}")
    if program is None:
        raise Unavailable(
            f"the program {name} is not installed; install the package {package}"
            f" (Debian, Ubuntu: apt install {package}; NixOS:"
            f" systemd.services.fabstir-node.path = [ pkgs.{package} ])"
        )
    return program


async def run_program(
    command: Sequence[str],
    *,
    deadline_seconds: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> bytes:
    """Its standard output, at most MAX_OUTPUT_BYTES.

    Raises:
        Unavailable: it failed or the deadline passed; tells its last words.
        TooLarge: it said more than that.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**process_environment(("PATH", "HOME", "LANG")), **(environment or {})},
        cwd=directory,
    )
    name = Path(command[0]).name
    try:
        async with asyncio.timeout(deadline_seconds):
            output, errors = await child.communicate()
    except TimeoutError as error:
        raise Unavailable(f"{name} did not end inside {deadline_seconds:g} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        raise Unavailable(f"{name} failed with code {child.returncode}: {_last_words(errors)}")
    if len(output) > MAX_OUTPUT_BYTES:
        raise TooLarge(f"{name} answered {len(output)} bytes, at most {MAX_OUTPUT_BYTES}")
    return output


def _last_words(errors: bytes) -> str:
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:500] or "it said nothing"
