"""Where on the chain the journal is: the confirmed blocks that may still change.

Pure. Points are blocks whose events are all journalled; the oldest one is final, the newest one is
the cursor. A reorg goes back to the newest point that the chain still has.
"""

from __future__ import annotations

import msgspec

from nodeapp.core.units import BlockNumber


class CursorMoved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """All events up to this confirmed block are in the journal."""

    block_number: BlockNumber
    block_hash: str
    final: BlockNumber = BlockNumber(-1)
    """Nothing in or below this block is ever taken back; -1: nothing in this very block."""


class RewoundTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The chain has other blocks above this one now: what ours said is void."""

    block_number: BlockNumber
    block_hash: str
    """Empty: not even the first block that was read is left."""


ViewChange = CursorMoved | RewoundTo


class ChainView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It is stored: a new field needs a default."""

    points: tuple[CursorMoved, ...] = ()
    """Oldest first."""
    final: BlockNumber = BlockNumber(-1)

    @property
    def cursor(self) -> CursorMoved | None:
        """The newest block taken in."""
        return self.points[-1] if self.points else None

    def final_after(self, cursor: int, window: int) -> BlockNumber:
        """What is final once the cursor is there: the newest point that deep, at most."""
        deep = (one.block_number for one in self.points if one.block_number <= cursor - window)
        return max(self.final, max(deep, default=self.final), BlockNumber(0))


def apply(view: ChainView, change: ViewChange) -> ChainView:
    """The view after one change."""
    match change:
        case CursorMoved(block_number=number, final=final):
            final = final if final >= 0 else number
            points = (*view.points, change)
            # The newest final point stays: it is where a reorg of the whole window goes back to.
            anchor = max(
                (one.block_number for one in points if one.block_number <= final), default=0
            )
            kept = tuple(point for point in points if point.block_number >= anchor)
            return ChainView(kept, final)
        case RewoundTo(block_number=number):
            kept = tuple(point for point in view.points if point.block_number <= number)
            return msgspec.structs.replace(view, points=kept)
