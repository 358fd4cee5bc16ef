"""KV cells: what every sequence slot holds, which cells are shared, and who holds a prefix. Pure.

Tokens are indexed in blocks of BLOCK_TOKENS by the hash of everything up to their end, salted with
the cache scope: a renter can neither use another's cells nor learn from the time what they hold.
Blocks inside a prefix that the operator declared public carry no salt. The hash only finds a slot;
what is shared is what compares equal. A block that several slots share is counted once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

BLOCK_TOKENS = 64
MIN_SHARED_TOKENS = 16
"""A shorter common prefix is not worth a memory operation."""


@dataclass(eq=False, slots=True)
class Block:
    """BLOCK_TOKENS cells; `holders` are the indices of the slots whose sequence has them."""

    digest: bytes
    holders: set[int]


@dataclass(eq=False, slots=True)
class Slot:
    """One llama.cpp sequence.

    `scope`: who may share it; never empty while there are tokens. `public`: tokens at the beginning
    that anybody may share. `reserved`: cells its owner may come to need, 0 without owner.
    """

    index: int
    scope: str = ""
    public: int = 0
    tokens: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    owner: int | None = None
    reserved: int = 0
    used_at: int = 0
    used_at_row: int = 0

    @property
    def rest(self) -> int:
        """Cells held or reserved besides the blocks."""
        return max(self.reserved, len(self.tokens)) - BLOCK_TOKENS * len(self.blocks)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt as the index sees it: hashes of its full blocks, and how much of it is public."""

    token_ids: Sequence[int]
    scope: str
    public: int
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], scope: str, public: int = 0) -> Prefix:
        """Hash a prompt."""
        return cls(token_ids, scope, public, tuple(_digests(b"", token_ids, scope, public, 0)))

    def common_blocks(self, other: Prefix) -> int:
        """Full blocks at the beginning that are the same and may be shared."""
        count = 0
        for mine, others in zip(self.digests, other.digests, strict=False):
            if mine != others:
                break
            count += 1
        return count


class KvCells:
    """The slots, their blocks and the index. Who may hold how much is the scheduler's business."""

    def __init__(self, slots: int) -> None:
        self.slots = tuple(Slot(index) for index in range(slots))
        self._blocks: dict[bytes, list[Block]] = {}
        self._count = 0

    @property
    def used(self) -> int:
        """Cells held or reserved by anybody."""
        return BLOCK_TOKENS * self._count + sum(slot.rest for slot in self.slots)

    def needed(self, wanted: Slot | None, blocks: int) -> int:
        """Cells that stay when everything without owner is evicted.

        `blocks` blocks of `wanted` are counted as well.
        """
        held: set[Block] = set(wanted.blocks[:blocks]) if wanted is not None else set()
        owned = [slot for slot in self.slots if slot.owner is not None]
        for slot in owned:
            held.update(slot.blocks)
        return BLOCK_TOKENS * len(held) + sum(slot.rest for slot in owned)

    def append(self, slot: Slot, token_ids: Iterable[int]) -> None:
        """These tokens were computed after the ones there."""
        slot.tokens.extend(token_ids)
        done = len(slot.blocks)
        if len(slot.tokens) < BLOCK_TOKENS * (done + 1):
            return
        last = slot.blocks[-1].digest if done else b""
        for digest in _digests(last, slot.tokens, slot.scope, slot.public, done):
            block = Block(digest, {slot.index})
            slot.blocks.append(block)
            self._blocks.setdefault(digest, []).append(block)
            self._count += 1

    def truncate(self, slot: Slot, length: int) -> None:
        """Keep the first `length` tokens only."""
        del slot.tokens[length:]
        keep = length // BLOCK_TOKENS
        for block in slot.blocks[keep:]:
            block.holders.discard(slot.index)
            if not block.holders:
                self._forget(block)
        del slot.blocks[keep:]

    def share(self, source: Slot, target: Slot, length: int) -> None:
        """The empty target holds the first `length` tokens of the source as well."""
        target.tokens = source.tokens[:length]
        target.blocks = source.blocks[: length // BLOCK_TOKENS]
        for block in target.blocks:
            block.holders.add(target.index)

    def longest(self, prefix: Prefix) -> tuple[Slot | None, int]:
        """The slot that shares most with a prompt; never the whole prompt.

        The last token is always computed again: its logits are not kept. Of slots that share as
        much, one without owner comes first.
        """
        best: Slot | None = None
        longest = MIN_SHARED_TOKENS - 1
        for slot, known in self._candidates(prefix):
            shared = shared_tokens(slot.tokens, slot.scope, prefix, known)
            is_better_kind = best is not None and best.owner is not None and slot.owner is None
            if shared > longest or (shared == longest and is_better_kind):
                best, longest = slot, shared
        return best, longest if best is not None else 0

    def _candidates(self, prefix: Prefix) -> Iterator[tuple[Slot, int]]:
        """Slots with the deepest block there is, or those of the scope when there is none."""
        deepest: list[Block] = []
        depth = 0
        for digest in prefix.digests:
            blocks = self._blocks.get(digest)
            if not blocks:
                break
            deepest, depth = blocks, depth + 1
        if deepest:
            for block in deepest:
                for index in sorted(block.holders):
                    yield self.slots[index], depth
            return
        for slot in self.slots:
            if slot.scope == prefix.scope and slot.tokens:
                yield slot, 0

    def _forget(self, block: Block) -> None:
        self._count -= 1
        same = self._blocks[block.digest]
        same.remove(block)
        if not same:
            del self._blocks[block.digest]


def shared_tokens(tokens: Sequence[int], scope: str, prefix: Prefix, known: int) -> int:
    """Equal tokens at the beginning that may be shared; all of `known` blocks, or none.

    Never the whole prompt. `tokens` are held under `scope`.
    """
    start = known * BLOCK_TOKENS
    if list(tokens[:start]) != list(prefix.token_ids[:start]):
        return 0
    end = start + BLOCK_TOKENS
    shared = start + common_prefix(tokens[start:end], prefix.token_ids[start:end])
    if scope != prefix.scope:
        shared = min(shared, prefix.public)
    return min(shared, len(prefix.token_ids) - 1)


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Number of equal items at the beginning."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _digests(
    last: bytes, token_ids: Sequence[int], scope: str, public: int, begin: int
) -> Iterator[bytes]:
    """Hashes of the full blocks from number `begin` on; `last` is the one before."""
    salt = scope.encode()
    for number in range(begin, len(token_ids) // BLOCK_TOKENS):
        end = (number + 1) * BLOCK_TOKENS
        block = array("i", token_ids[end - BLOCK_TOKENS : end]).tobytes()
        last = blake2b((b"" if end <= public else salt) + last + block, digest_size=16).digest()
        yield last
