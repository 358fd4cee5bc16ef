"""The prover's endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from nodeapp.core.errors import Unavailable
from nodeapp.prover.queue import ProofQueue
from nodeapp.rpc.prover import PROFILE, PROVE
from nodeapp.service.server import endpoint, query
from nodeapp.wire.ipc_prover import ProfileReply, ProveReply, ProveRequest


class ProverApi:
    """Answers while the process is ready; `open` is called when it becomes so."""

    def __init__(self) -> None:
        self._opened: tuple[ProofQueue, ProfileReply] | None = None

    def open(self, queue: ProofQueue, profile: ProfileReply) -> None:
        """Begin to answer."""
        self._opened = (queue, profile)

    def routes(self) -> Sequence[web.RouteDef]:
        """POST /v1/prove, GET /v1/profile."""
        return (
            web.post(PROVE, endpoint(ProveRequest, self._prove)),
            web.get(PROFILE, query(self._profile)),
        )

    async def _prove(self, request: ProveRequest) -> ProveReply:
        return await self._parts()[0].ask(request)

    async def _profile(self) -> ProfileReply:
        return self._parts()[1]

    def _parts(self) -> tuple[ProofQueue, ProfileReply]:
        if self._opened is None:
            raise Unavailable("prover has no profile yet", retry_after_seconds=1)
        return self._opened
