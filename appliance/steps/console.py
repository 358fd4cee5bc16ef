"""Status lines: one a step, with elapsed time; a terminal sees it move, a log sees it end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

QUIET_SECONDS = 20.0
"""A log gets a sign of life so often."""


class SetupFailure(Exception):
    """A step could not be done; the text says what the person can do."""


class Status:
    """The line of the running step."""

    def __init__(self, title: str, out: TextIO) -> None:
        self._title = title
        self._out = out
        self._began = time.monotonic()
        self._said = self._began
        self._terminal = out.isatty()
        self.mark = "ok    "

    def elapsed_seconds(self) -> float:
        """Since the step began."""
        return time.monotonic() - self._began

    def update(self, detail: str) -> None:
        """Show how far it is; a log is told only now and then."""
        now = time.monotonic()
        if self._terminal:
            self._out.write(f"\r\x1b[K  … {self._title}  {detail}  {now - self._began:.0f} s")
        elif now - self._said >= QUIET_SECONDS:
            self._said = now
            self._out.write(f"  … {self._title}  {detail}  {now - self._began:.0f} s\n")
        self._out.flush()

    def end(self, mark: str) -> None:
        """Replace the moving line by the result."""
        start = "\r\x1b[K" if self._terminal else ""
        self._out.write(f"{start}  {mark} {self._title}  {self.elapsed_seconds():.1f} s\n")
        self._out.flush()


@contextmanager
def step(title: str, out: TextIO | None = None) -> Iterator[Status]:
    """Show a step; "ok" at the end, "failed" when it raises."""
    status = Status(title, out or sys.stderr)
    status.update("")
    try:
        yield status
    except BaseException:
        status.end("failed")
        raise
    status.end(status.mark)
