"""Asking the prover process."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc_prover import ProfileReply, ProveReply, ProveRequest

PROVE = "/v1/prove"
PROFILE = "/v1/profile"


class ProverClient:
    """Use as an async context manager."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "prover")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def prove(self, request: ProveRequest, *, deadline_seconds: float = 900.0) -> ProveReply:
        """Prove an interval, about 9 CPU-seconds (poseidon) for each 240 tokens.

        Idempotent, so it is repeated inside the deadline while the prover restarts. Giving up
        does not stop the work: asking again finds it.

        Raises:
            InvalidRequest: the numbers of salts and chunks differ, an id is not hex.
            Busy: too many intervals wait already.
            Unavailable: the deadline passed, or the machine cannot prove.
        """
        return await self._rpc.call(
            PROVE, request, ProveReply, deadline_seconds=deadline_seconds, retry=True
        )

    async def profile(self, *, deadline_seconds: float = 5.0) -> ProfileReply:
        """The profile in use."""
        return await self._rpc.get(PROFILE, ProfileReply, deadline_seconds=deadline_seconds)
