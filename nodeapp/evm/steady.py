"""A provider for following the chain: one endpoint a step, and only what the endpoints agree on.

`survey()` asks every endpoint that is awake for its newest block, takes the highest block that most
have, and lets them vote on the hash of the confirmed one. Until the next survey all reads go to one
endpoint of the majority and "latest" means the agreed block. Logs and what contracts tell are
compared with a second endpoint: one that leaves something out, or makes it up, is noticed.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.units import BlockNumber
from nodeapp.evm.agreement import common_head, out_of_time, vote
from nodeapp.evm.endpoint import Endpoint
from nodeapp.evm.errors import Disagreement
from nodeapp.evm.provider import Provider
from nodeapp.evm.reading import read_block
from nodeapp.evm.rpc import Block, BlockTag, Decode, Decoded, log_identity

MOST_LINKS, FIRST_LINKS = 64, 8
"""So many of the newest blocks must hang together: after a pause, and at the first look."""
SURVEY_SECONDS = 10.0
"""Between surveys only the endpoint in use is asked whether there is a new block."""

Told = TypeVar("Told")


class SteadyProvider(Provider):
    """Built over a provider's endpoints; the provider closes them."""

    def __init__(self, provider: Provider, *, unix_seconds: Callable[[], float]) -> None:
        # No endpoints of its own: those of `provider`, with what is known about them.
        self.chain_id = provider.chain_id
        self.endpoints = provider.endpoints
        self.disagreement = ""
        """What the endpoints disagree on, for people; empty while they agree."""
        self._provider = provider
        self._current = None
        self._unix_seconds = unix_seconds
        self._head: Block | None = None
        self._told: Block | None = None
        self._witnesses: tuple[Endpoint, ...] = ()
        self._due = 0.0

    async def survey(self, depth: int) -> None:
        """Agree on a new head and choose the endpoint for what is read next.

        Args:
            depth: how many blocks below the head the confirmed block stands.

        Raises:
            Disagreement: no majority tells the same confirmed block.
            WrongChain: every endpoint serves another chain.
            Unavailable: no endpoint answered.
        """
        now = asyncio.get_running_loop().time()
        if now < self._due and await self._is_unchanged():
            return
        heads = await self._heads()
        head = common_head([block.number for block in heads.values()])
        height = BlockNumber(max(0, head - depth))
        told = await self._tell(heads, height)
        verdict = vote({endpoint.name: block.hash for endpoint, block in told.items()})
        if verdict.hash is None:
            self._disagree(
                f"rpc endpoints disagree on block {height}: "
                + ", ".join(f"{endpoint.name} {block.hash}" for endpoint, block in told.items())
            )
        for endpoint in told:
            if endpoint.name in verdict.losers:
                endpoint.fail(f"tells another block {height} than the others")
        winners = [endpoint for endpoint in told if endpoint.name in verdict.winners]
        await self._settle(winners, heads, head)
        self._due = now + SURVEY_SECONDS

    async def block(self, tag: BlockTag = "latest") -> Block:
        """A header; "latest" is the agreed head of the last survey."""
        if tag == "latest" and self._head is not None:
            return self._head
        return await super().block(tag)

    async def block_number(self) -> BlockNumber:
        """Number of the agreed head."""
        return (await self.block()).number

    async def logs(
        self, query: Mapping[str, object], first: BlockNumber, last: BlockNumber
    ) -> tuple[Mapping[str, Any], ...]:
        """Raw logs that two endpoints tell alike; those of one where there is only one."""
        mine = await super().logs(query, first, last)
        return await self._confirmed_by_another(
            mine,
            lambda witness: witness.logs(query, first, last),
            _same,
            f"events of blocks {first} to {last}",
        )

    async def call(
        self,
        method: str,
        params: Sequence[object],
        decode: Decode[Decoded],
        *,
        subject: str = "",
        needs_block: BlockTag | None = None,
    ) -> Decoded:
        """The decoded result; what a contract tells of a block is asked of two endpoints."""
        ask = partial(
            Provider.call,
            method=method,
            params=params,
            decode=decode,
            subject=subject,
            needs_block=needs_block,
        )
        mine = await ask(self)
        if method != "eth_call" or not isinstance(needs_block, int):
            return mine
        return await self._confirmed_by_another(
            mine, ask, operator.eq, f"{subject} at block {needs_block}"
        )

    async def _confirmed_by_another(
        self,
        mine: Told,
        ask: Callable[[Provider], Awaitable[Told]],
        is_same: Callable[[Told, Told], bool],
        subject: str,
    ) -> Told:
        """What two endpoints tell alike; what the one in use tells where there is no other.

        Raises:
            Disagreement: no two tell the same.
        """
        answers = [mine]
        for endpoint in self._witnesses:
            try:
                other = await ask(self._provider.pinned_to((endpoint,)))
            except (Unavailable, Rejected):
                continue  # It failed by itself, which says nothing about the answer.
            if any(is_same(other, known) for known in answers):
                return other
            answers.append(other)
        if len(answers) > 1:
            self._disagree(f"rpc endpoints disagree on the {subject}")
        return mine

    def _disagree(self, text: str) -> None:
        self.disagreement = text
        self._due = 0.0
        raise Disagreement(text)

    async def _is_unchanged(self) -> bool:
        """Whether the endpoint in use has no other block than before."""
        (leader,) = self.endpoints
        if leader.health.is_resting(asyncio.get_running_loop().time()):
            return False
        try:
            return await read_block(leader) == self._told
        except (Unavailable, Rejected):
            return False

    async def _heads(self) -> dict[Endpoint, Block]:
        """Newest block of every endpoint that answers and is not far behind."""
        asked = self._provider.available()
        found = await self._ask_all(asked, "latest")
        if not found:
            await self._provider.block()  # Says in its error why nobody answers.
            raise Unavailable("rpc endpoints answered late: ask once more")
        names = {endpoint.name: block for endpoint, block in found.items()}
        late = out_of_time(names, unix_seconds=self._unix_seconds())
        for endpoint in found:
            if endpoint.name in late:
                endpoint.note = f"newest block {endpoint.head} is out of time"
        return {e: block for e, block in found.items() if e.name not in late}

    async def _tell(
        self, heads: Mapping[Endpoint, Block], height: BlockNumber
    ) -> dict[Endpoint, Block]:
        """The block at a height from everybody who should have it, best endpoint first."""
        having = [endpoint for endpoint, block in heads.items() if block.number >= height]
        at_head = {e: block for e, block in heads.items() if block.number == height}
        asked = await self._ask_all([e for e in having if e not in at_head], height)
        told = {e: block for e in having if (block := (at_head | asked).get(e)) is not None}
        if not told:
            raise Unavailable(f"block {height} is not known to any rpc endpoint")
        return told

    async def _settle(
        self, winners: Sequence[Endpoint], heads: Mapping[Endpoint, Block], head: BlockNumber
    ) -> None:
        """The best endpoint of the majority that has the head becomes the one that is read."""
        leader = next((e for e in winners if heads[e].number >= head), winners[0])
        told = heads[leader]
        agreed = told if told.number <= head else await read_block(leader, head)
        if agreed is None:
            raise Unavailable(f"{leader.name} does not have its own block {head}")
        await self._check_links(leader, agreed)
        self.endpoints = (leader,)
        self._witnesses = tuple(e for e in winners if e is not leader)
        self._head, self._told = agreed, told
        self.disagreement = ""

    async def _check_links(self, leader: Endpoint, head: Block) -> None:
        """Each block since the last head must name the one before it; one endpoint alone may lie.

        A reorganisation is no lie: only the new blocks must hang together.
        """
        known = head.number - FIRST_LINKS if self._head is None else self._head.number
        first = max(known, head.number - MOST_LINKS, 0)
        if head.number - first <= 1:
            return
        numbers = [BlockNumber(number) for number in range(first + 1, head.number)]
        between = await self._provider.pinned_to((leader,)).blocks(numbers)
        chain = [*(between[number] for number in numbers), head]
        for before, after in itertools.pairwise(chain):
            if after.parent_hash != before.hash:
                leader.fail(f"tells block {after.number} that does not follow {before.number}")
                raise Unavailable(f"{leader.name} {leader.note}")

    @staticmethod
    async def _ask_all(endpoints: Sequence[Endpoint], tag: BlockTag) -> dict[Endpoint, Block]:
        async with asyncio.TaskGroup() as group:
            tasks = {e: group.create_task(_block_or_none(e, tag)) for e in endpoints}
        answers = {endpoint: task.result() for endpoint, task in tasks.items()}
        return {endpoint: block for endpoint, block in answers.items() if block is not None}


async def _block_or_none(endpoint: Endpoint, tag: BlockTag) -> Block | None:
    try:
        return await read_block(endpoint, tag)
    except (Unavailable, Rejected):
        return None  # It rests now, and says so in its note.


def _same(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    return [log_identity(log) for log in one] == [log_identity(log) for log in other]
