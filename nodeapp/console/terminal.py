"""Writes to one console: redraws a screen, or adds lines to a serial line, on change only."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from nodeapp.console.screen import coloured, plain_lines, screen
from nodeapp.console.status import ConsoleStatus

DEFAULT_SIZE = (80, 24)


@dataclass(slots=True)
class Terminal:
    """One of them; what was shown last is kept."""

    descriptor: int
    is_screen: bool
    _shown: str = ""
    _last: ConsoleStatus | None = None

    @classmethod
    def opened(cls, path: Path) -> Terminal:
        """Open a device without making it the controlling terminal. Raises: OSError."""
        # Nobody may be listening at the other end of a serial line: that must not stop anything.
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        return cls(descriptor, is_screen=is_screen(path))

    def show(self, status: ConsoleStatus, *, again: bool = False) -> None:
        """Nothing is written when nothing changed. Raises: OSError.

        Args:
            status: what is to be read there.
            again: draw a screen all the same: the kernel's own messages scroll it.
        """
        if self.is_screen:
            width, height = self._size()
            text = coloured(screen(status, width=width, height=height), status.phase)
            if again or text != self._shown:
                self._write(text)
            self._shown = text
            return
        lines = plain_lines(self._last, status)
        self._last = status
        self._write("".join(f"{line}\r\n" for line in lines))

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self.descriptor)
        except OSError:
            return DEFAULT_SIZE
        return (size.columns or DEFAULT_SIZE[0], size.lines or DEFAULT_SIZE[1])

    def _write(self, text: str) -> None:
        left = text.encode()
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:
                return  # what a stalled line did not take is lost


@dataclass(slots=True)
class Line:
    """A device that may be missing, hang up and come back; the others do not suffer from it."""

    path: Path
    terminal: Terminal | None = None
    _trouble: str = ""

    def show(self, status: ConsoleStatus, *, again: bool = False) -> str:
        """As Terminal.show; returns what is wrong with the device, once."""
        trouble = ""
        try:
            if self.terminal is None:
                self.terminal = Terminal.opened(self.path)
            self.terminal.show(status, again=again)
        except OSError as error:
            trouble = f"{self.path} cannot be written to: {error.strerror}"
            self._close()
        told = trouble if trouble != self._trouble else ""
        self._trouble = trouble
        return told

    def _close(self) -> None:
        if self.terminal is not None:
            with contextlib.suppress(OSError):
                os.close(self.terminal.descriptor)
        self.terminal = None


def is_screen(path: Path) -> bool:
    """A virtual terminal or a pseudo-terminal; serial lines get plain text."""
    name = str(path)
    return name.startswith("/dev/pts/") or name.removeprefix("/dev/tty").isdigit()
