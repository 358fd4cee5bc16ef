"""Who may do how much: handshakes per minute, streams per peer, frames per second.

Limits are per authenticated libp2p peer and for all peers together; a refused peer is told when
to come back. Peer ids cost nothing, so the limit for all is not for peers that have paid: whoever
floods with new ids keeps out other new ones only. Questions for our offer are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from nodeapp.core.errors import Busy, ProtocolViolation
from nodeapp.service.clock import Clock, SystemClock

MAX_FRAMES_PER_SECOND = 200
"""Receipts arrive at most once a token batch; more is a flood."""
GLOBAL_FACTOR = 10
MAX_PAYING_PEERS = 4096
"""Remembered; the one that paid longest ago is forgotten first."""


class Admission:
    """In-memory limits; a restart forgets them, which only helps the honest."""

    def __init__(
        self, *, handshakes_per_minute: int, max_streams_per_peer: int, clock: Clock | None = None
    ) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._handshakes = RateLimitItemPerMinute(handshakes_per_minute)
        self._all_handshakes = RateLimitItemPerMinute(handshakes_per_minute * GLOBAL_FACTOR)
        self._clock = clock or SystemClock()
        self._frames: dict[str, tuple[float, float]] = {}
        self._max_streams = max_streams_per_peer
        self._streams: Counter[str] = Counter()
        self._paying: dict[str, None] = {}

    def has_paid(self, peer_id: str) -> None:
        """The peer opened a session that it paid."""
        self._paying.pop(peer_id, None)
        self._paying[peer_id] = None
        if len(self._paying) > MAX_PAYING_PEERS:
            del self._paying[next(iter(self._paying))]

    def is_paying(self, peer_id: str) -> bool:
        """Whether the peer opened a session that it paid, since this process started."""
        return peer_id in self._paying

    @contextmanager
    def stream(self, peer_id: str, purpose: str = "handshake") -> Iterator[None]:
        """Count one stream of a peer while it lives; each purpose has its own limits.

        Raises:
            Busy: too many handshakes or streams.
        """
        allowed = self._limiter.hit(self._handshakes, purpose, peer_id)
        if allowed and peer_id not in self._paying:
            allowed = self._limiter.hit(self._all_handshakes, purpose)
        if not allowed:
            raise Busy(f"too many streams for a {purpose}", retry_after_seconds=60.0)
        if self._streams[peer_id] >= self._max_streams:
            raise Busy(f"{self._max_streams} streams of this peer are open", retry_after_seconds=5)
        self._streams[peer_id] += 1
        try:
            yield
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]
                self._frames.pop(peer_id, None)

    def frame(self, peer_id: str) -> None:
        """Count one received frame.

        Raises:
            ProtocolViolation: a flood.
        """
        # Not by `limits`, which starts a thread for what it counts: this runs for every receipt.
        now = self._clock.monotonic_seconds()
        left, since = self._frames.get(peer_id, (float(MAX_FRAMES_PER_SECOND), now))
        left = min(left + (now - since) * MAX_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND) - 1.0
        if left < 0.0:
            raise ProtocolViolation(f"more than {MAX_FRAMES_PER_SECOND} frames a second")
        self._frames[peer_id] = (left, now)
