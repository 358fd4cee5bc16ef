"""Running a child: its output feeds the status line; on failure its last lines are shown."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from appliance.steps.console import SetupFailure, Status

SHOWN_LINES = 15
_PROGRESS = re.compile(r"\[(\d+)/(\d+)\]")


def run(
    status: Status,
    command: Sequence[str | Path],
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    show: Callable[[str], str] | None = None,
) -> None:
    """Run to the end.

    `what` names the command in the error; `environment` is added to this process's own; `show`
    turns a line of output into the detail of the status line ("" shows nothing).

    Raises:
        SetupFailure: it ended with another code than 0, or could not be started.
    """
    last: deque[str] = deque(maxlen=SHOWN_LINES)
    try:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=directory,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise SetupFailure(f"{what}: cannot start {command[0]}: {error}") from error
    try:
        for line in child.stdout or ():
            last.append(line.rstrip())
            status.update((show or shorten)(line))
    except BaseException:
        child.terminate()
        raise
    finally:
        code = child.wait()
    if code != 0:
        shown = "\n".join(f"    {line}" for line in last)
        raise SetupFailure(f"{what} failed (exit code {code}); its last lines:\n{shown}")


def shorten(line: str) -> str:
    """The start of a line, for the status line."""
    return line.strip()[:60]


def ninja_progress(line: str) -> str:
    """`[12/78] Building …` -> `compiled 12 of 78`."""
    found = _PROGRESS.search(line)
    return f"compiled {found[1]} of {found[2]}" if found else "configuring"
