"""The three far ends of a relay: an engine by script, a journal that counts, a renter's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.ipc_chain import ProducedRequest
from nodeapp.wire.ipc_inference import Event, Finished, GenerateRequest, Produced, Started


@dataclass
class ScriptedEngine:
    """rpc.InferenceClient: token n of an answer is n; every life makes as many as its entry says.

    A life that is shorter than what was asked for ends with Unavailable, as a crash does.
    """

    lives: list[int]
    piece: int = 1
    hold: asyncio.Event | None = None
    after_first: asyncio.Event | None = None
    asked: list[GenerateRequest] = field(default_factory=list)
    closed: int = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        life = self.lives.pop(0)
        if life == 0:
            raise Unavailable("inference is not reachable")
        first = len(request.continue_token_ids)
        left = min(life, request.max_tokens)
        try:
            yield Started(prompt_tokens=11, context_length=4096)
            for start in range(first, first + left, self.piece):
                ids = tuple(range(start, min(start + self.piece, first + left)))
                yield Produced(ids, "".join(f"{token} " for token in ids))
                if start == 0 and self.after_first is not None:
                    await self.after_first.wait()
            if self.hold is not None:
                await self.hold.wait()
            if left < request.max_tokens:
                raise Unavailable("inference is not reachable")
            yield Finished("length", left)
        finally:
            self.closed += 1


@dataclass
class CountingChain:
    """rpc.ChainClient towards the relay: what was journalled, in order."""

    journalled: list[int] = field(default_factory=list)
    refusal: NodeError | None = None
    """What it says from now on, as when the session ended on chain."""

    async def produced(self, request: ProducedRequest) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert request.first_token == len(self.journalled), "journal and stream have parted"
        self.journalled += request.token_ids


@dataclass
class RenterStream:
    """network.Stream: keeps what is sent and notes whether it was journalled before."""

    chain: CountingChain
    received: list[int] = field(default_factory=list)
    text: str = ""
    batches: list[int] = field(default_factory=list)
    ends: list[pb.End] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def write_frame(self, frame: bytes) -> None:
        message = envelope.decode(frame)
        if message.WhichOneof("body") == "end":
            self.ends.append(message.end)
        else:
            tokens = message.tokens
            assert tokens.first_token == len(self.received)
            self.received += tokens.ids
            self.text += tokens.text
            self.batches.append(len(tokens.ids))
            assert self.received == self.chain.journalled[: len(self.received)]
        self.arrived.set()

    async def until(self, tokens: int) -> None:
        """Wait until so many tokens are here."""
        async with asyncio.timeout(10):
            while len(self.received) < tokens:
                self.arrived.clear()
                await self.arrived.wait()

    async def until_end(self) -> pb.End:
        async with asyncio.timeout(10):
            while not self.ends:
                self.arrived.clear()
                await self.arrived.wait()
        return self.ends[0]
