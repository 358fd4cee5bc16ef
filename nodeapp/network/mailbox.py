"""A byte buffer handed from one loop's thread to the other's."""

from __future__ import annotations

import threading


class Mailbox:
    """Many `put`s, one wake-up: the taker gets everything there is.

    Not bounded by itself: the putter holds credits.
    """

    __slots__ = ("_bytes", "_lock", "_woken")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._woken = False
        # Guards the two fields above, touched by both threads; held for a copy, never across
        # an await.
        self._lock = threading.Lock()

    def put(self, chunk: bytes) -> bool:
        """Append; returns whether the other side must be woken (it has not been since `take`)."""
        with self._lock:
            self._bytes += chunk
            wake = not self._woken
            self._woken = True
            return wake

    def take(self) -> bytearray:
        """Everything put since the last `take`, possibly nothing."""
        with self._lock:
            taken, self._bytes = self._bytes, bytearray()
            self._woken = False
            return taken
