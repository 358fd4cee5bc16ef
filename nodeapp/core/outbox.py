"""Own transactions as plain values: which nonce belongs to which purpose, and how it ended.

A key names a purpose ("claim/7/0"). It holds its nonce from the first signature on, whatever is
heard of it: only a mined receipt, or proof that the nonce is used up, ends it. Several attempts of
one key share its nonce and differ in their fees, so at most one of them can be mined. What ended
stays here with its bytes until `pruned`: a reorganisation makes it pending again.
"""

from __future__ import annotations

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import TxHash
from nodeapp.core.units import BlockNumber, BlockTime, Wei


class TransactionSigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Written before the bytes leave; the same key again is a replacement with the same nonce."""

    key: str
    nonce: int
    tx_hash: TxHash
    raw: bytes
    max_fee: Wei = Wei(0)
    """Wei per gas at most; 0 in journals from before fees were recorded."""
    priority_fee: Wei = Wei(0)
    is_cancel: bool = False
    """Sends nothing to ourselves: uses the nonce up without serving the purpose."""
    is_payment: bool = False
    """Nothing on chain would refuse it a second time."""
    value: Wei = Wei(0)
    """Native coin that it sends away."""


class TransactionMined(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The receipt says it was done."""

    key: str
    tx_hash: TxHash
    gas_used: int
    block_number: BlockNumber
    block_hash: str = ""
    block_time: BlockTime = BlockTime(0)
    cost: Wei = Wei(0)
    """What it cost in all: gas, and the data fee of a rollup."""
    value: Wei = Wei(0)
    """Native coin that it sent away, beside the cost."""


class TransactionDropped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """It did not serve its purpose and never will; the key is free again.

    With a block: there the nonce was used up, by a failed attempt of ours (`tx_hash`), or by
    another transaction of the account. Without: it was never sent, the nonce is free, too.
    """

    key: str
    reason: str
    tx_hash: TxHash = TxHash("")
    gas_used: int = 0
    block_number: BlockNumber = BlockNumber(0)
    block_hash: str = ""
    block_time: BlockTime = BlockTime(0)
    cost: Wei = Wei(0)


TransactionChange = TransactionSigned | TransactionMined | TransactionDropped
TransactionEnd = TransactionMined | TransactionDropped


class Errand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One purpose with its nonce; `end` is None while no attempt is known to be mined."""

    key: str
    nonce: int
    attempts: tuple[TransactionSigned, ...]
    end: TransactionEnd | None = None

    @property
    def newest(self) -> TransactionSigned:
        """The attempt with the highest fees."""
        return self.attempts[-1]

    @property
    def is_cancelled(self) -> bool:
        """Some attempt uses the nonce up without serving the purpose."""
        return any(attempt.is_cancel for attempt in self.attempts)

    @property
    def is_payment(self) -> bool:
        """Nothing on chain would refuse it a second time."""
        return self.attempts[0].is_payment

    def attempt(self, tx_hash: TxHash) -> TransactionSigned | None:
        """The attempt with this hash."""
        return next((one for one in self.attempts if one.tx_hash == tx_hash), None)


class Outbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is under way or may come back; never changed, `apply` makes a new one."""

    pending: dict[str, Errand] = {}
    recent: tuple[Errand, ...] = ()
    """Ended, oldest first; a reorganisation may take the end back."""
    first_nonce: int = 0
    """All nonces below are used up for good."""

    @property
    def in_order(self) -> tuple[Errand, ...]:
        """Pending errands by nonce."""
        return tuple(sorted(self.pending.values(), key=lambda errand: errand.nonce))

    @property
    def held(self) -> frozenset[int]:
        """Nonces that belong to a key."""
        return frozenset(errand.nonce for errand in (*self.pending.values(), *self.recent))

    def last_end(self, key: str) -> TransactionEnd | None:
        """How the key ended last, as long as that is remembered."""
        ends = (errand.end for errand in reversed(self.recent) if errand.key == key)
        return next(ends, None)


def apply(outbox: Outbox, change: TransactionChange) -> Outbox:
    """The outbox after one change.

    Raises:
        InvalidRequest: the change does not fit: a nonce would serve two purposes, a key would be
            served twice, or something ends that is not pending.
    """
    match change:
        case TransactionSigned():
            return _signed(outbox, change)
        case TransactionMined():
            return _ended(outbox, change, used_up=True)
        case TransactionDropped():
            return _ended(outbox, change, used_up=change.block_number > 0)


def rewound(outbox: Outbox, block: BlockNumber) -> Outbox:
    """What ended above the block is pending again, with the same bytes.

    A key that was freed and signed anew meanwhile keeps its new nonce; its older nonce is then
    held by the key `<key>~<nonce>`, because the older bytes may be mined after all.
    """
    pending, kept = dict(outbox.pending), []
    for errand in outbox.recent:
        if errand.end is None or errand.end.block_number <= block:
            kept.append(errand)
            continue
        key = f"{errand.key}~{errand.nonce}" if errand.key in pending else errand.key
        pending[key] = msgspec.structs.replace(errand, key=key, end=None)
    return msgspec.structs.replace(outbox, pending=pending, recent=tuple(kept))


def pruned(outbox: Outbox, block: BlockNumber) -> Outbox:
    """Forget what ended in or below the block: it is final."""
    kept: list[Errand] = []
    first_nonce = outbox.first_nonce
    for errand in outbox.recent:
        if errand.end is not None and errand.end.block_number <= block:
            first_nonce = max(first_nonce, errand.nonce + 1)
        else:
            kept.append(errand)
    if len(kept) == len(outbox.recent):
        return outbox
    return msgspec.structs.replace(outbox, recent=tuple(kept), first_nonce=first_nonce)


def free_nonce(outbox: Outbox, *, mined: int, pool: int) -> int:
    """The nonce for a new key: the lowest that neither a key of ours nor the pool holds.

    Args:
        outbox: what is ours.
        mined: the account's nonce in the newest block.
        pool: the same with what waits in the endpoint's pool; other software of the operator
            may have put something there.
    """
    nonce, held = max(mined, outbox.first_nonce), outbox.held
    while nonce in held or nonce < pool:
        nonce += 1
    return nonce


def gaps(outbox: Outbox, *, mined: int, pool: int) -> tuple[int, ...]:
    """Nonces below a pending one that nobody holds: without them nothing after is mined."""
    if not outbox.pending:
        return ()
    first = max(mined, pool, outbox.first_nonce)
    highest = max(errand.nonce for errand in outbox.pending.values())
    held = outbox.held
    return tuple(nonce for nonce in range(first, highest) if nonce not in held)


def _signed(outbox: Outbox, change: TransactionSigned) -> Outbox:
    errand = outbox.pending.get(change.key)
    if errand is None:
        _check_free(outbox, change)
        errand = Errand(change.key, change.nonce, (change,))
    elif errand.nonce != change.nonce:
        raise InvalidRequest(f"{change.key} holds nonce {errand.nonce}, not {change.nonce}")
    elif errand.attempt(change.tx_hash) is None:
        errand = msgspec.structs.replace(errand, attempts=(*errand.attempts, change))
    return msgspec.structs.replace(outbox, pending={**outbox.pending, change.key: errand})


def _check_free(outbox: Outbox, change: TransactionSigned) -> None:
    if isinstance(outbox.last_end(change.key), TransactionMined):
        raise InvalidRequest(f"{change.key} is mined already")
    # Without fees it is from an older journal, whose nonces came from the endpoint alone.
    is_checked = change.max_fee > 0
    if is_checked and (change.nonce < outbox.first_nonce or change.nonce in outbox.held):
        raise InvalidRequest(f"nonce {change.nonce} for {change.key} belongs to another purpose")


def _ended(outbox: Outbox, end: TransactionEnd, *, used_up: bool) -> Outbox:
    errand = outbox.pending.get(end.key)
    if errand is None:
        raise InvalidRequest(f"{end.key} is not pending, it cannot end")
    if isinstance(end, TransactionMined) and errand.attempt(end.tx_hash) is None:
        raise InvalidRequest(f"{end.tx_hash} is no attempt of {end.key}")
    pending = {key: other for key, other in outbox.pending.items() if key != end.key}
    ended = (msgspec.structs.replace(errand, end=end),) if used_up else ()
    return msgspec.structs.replace(outbox, pending=pending, recent=(*outbox.recent, *ended))
