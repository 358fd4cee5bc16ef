"""One interval at a time: EZKL uses every core, so two at once only make both late.

The one task that runs `serve` owns the work. Who asks waits beside it: leaving does not stop
the work, and asking the same again joins it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nodeapp.core.errors import Busy, Corrupt, NodeError, Unavailable, from_code
from nodeapp.wire.ipc_prover import ProveReply, ProveRequest

QUEUE_LIMIT = 64
BUSY_RETRY_SECONDS = 30.0

Outcome = ProveReply | NodeError


class ProofQueue:
    """Requests in order of arrival, equal ones once."""

    def __init__(
        self, prove: Callable[[ProveRequest], Awaitable[ProveReply]], *, limit: int = QUEUE_LIMIT
    ) -> None:
        self._prove = prove
        self._requests: asyncio.Queue[ProveRequest] = asyncio.Queue(limit)
        self._outcomes: dict[ProveRequest, asyncio.Future[Outcome]] = {}

    @property
    def depth(self) -> int:
        """Intervals that wait or are being proven."""
        return len(self._outcomes)

    async def ask(self, request: ProveRequest) -> ProveReply:
        """Wait for the interval's proofs.

        Raises:
            Busy: `limit` others wait already.
            NodeError: what proving it ended with.
        """
        future = self._outcomes.get(request)
        if future is None:
            if self._requests.full():
                raise Busy(
                    f"{self.depth} intervals wait for proof", retry_after_seconds=BUSY_RETRY_SECONDS
                )
            future = asyncio.get_running_loop().create_future()
            self._outcomes[request] = future
            self._requests.put_nowait(request)
        outcome = await asyncio.shield(future)
        if isinstance(outcome, NodeError):
            raise from_code(outcome.code, outcome.message, outcome.retry_after_seconds)
        return outcome

    async def serve(self) -> None:
        """Prove for ever; the process gives this a task.

        Raises:
            Corrupt: the proof store cannot be trusted.
        """
        try:
            while True:
                request = await self._requests.get()
                outcome = await self._outcome(request)
                self._outcomes.pop(request).set_result(outcome)
        finally:
            for future in self._outcomes.values():
                future.set_result(Unavailable("prover stops"))
            self._outcomes.clear()

    async def _outcome(self, request: ProveRequest) -> Outcome:
        try:
            return await self._prove(request)
        except Corrupt:
            raise
        except NodeError as error:
            return error
