"""What llama.cpp said last when something failed. The library has one log for the whole process.

Rules: the call-back is never freed, for llama.cpp keeps calling it after the model that set it is
gone; it stores a few short lines and does nothing else, since any thread may call it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache

_ERROR, _CONTINUED = 4, 5
"""GGML_LOG_LEVEL_ERROR; GGML_LOG_LEVEL_CONT goes on with the line before."""
_LINES = 4
_LINE_BYTES = 400


class ErrorLog:
    """The last lines of level error; what is less is dropped."""

    def __init__(self) -> None:
        import llama_cpp

        self._lines: deque[str] = deque(maxlen=_LINES)
        self._is_error = False
        self._call_back = llama_cpp.llama_log_callback(self._write)
        llama_cpp.llama_log_set(self._call_back, ctypes.c_void_p(0))

    def forget(self) -> None:
        """What comes from now on belongs to something new."""
        self._lines.clear()

    @property
    def text(self) -> str:
        """The lines that are kept, "" when there was no error."""
        return "; ".join(tuple(self._lines))[:300]

    def _write(self, level: int, text: bytes | None, _data: object) -> None:
        if level != _CONTINUED:
            self._is_error = level == _ERROR
        line = (text or b"")[:_LINE_BYTES].decode(errors="replace").strip()
        if self._is_error and line:
            self._lines.append(line)


@cache
def error_log() -> ErrorLog:
    """The one of this process; the first call sends llama.cpp's log here."""
    return ErrorLog()
