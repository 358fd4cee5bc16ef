"""A nonce serves one purpose, whatever is dropped, replaced, or taken back by the chain."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.outbox import (
    Outbox,
    TransactionDropped,
    TransactionMined,
    TransactionSigned,
    apply,
    free_nonce,
    gaps,
    pruned,
    rewound,
)


def signed(key, nonce, attempt=0):
    raw = f"{key}|{nonce}|{attempt}".encode()
    return TransactionSigned(key, nonce, f"0x{raw.hex()}", raw, 100 + attempt, 1)


def mined(errand_or_signed, block=5):
    return TransactionMined(
        errand_or_signed.key, errand_or_signed.tx_hash, 21_000, block, f"0xb{block}"
    )


def outbox_of(*changes):
    outbox = Outbox()
    for change in changes:
        outbox = apply(outbox, change)
    return outbox


def test_a_replacement_has_the_nonce_of_its_key():
    outbox = outbox_of(signed("a", 0), signed("a", 0, 1))
    assert [attempt.max_fee for attempt in outbox.pending["a"].attempts] == [100, 101]
    with pytest.raises(InvalidRequest, match="a holds nonce 0, not 1"):
        apply(outbox, signed("a", 1))


def test_a_nonce_is_not_given_to_a_second_key():
    for outbox in (
        outbox_of(signed("a", 0)),
        outbox_of(signed("a", 0), mined(signed("a", 0))),
        outbox_of(signed("a", 0), TransactionDropped("a", "failed", "0x1", 1, 5)),
    ):
        with pytest.raises(InvalidRequest, match="belongs to another purpose"):
            apply(outbox, signed("b", 0))


def test_a_nonce_that_was_never_sent_is_free_again():
    outbox = outbox_of(signed("a", 0), TransactionDropped("a", "never sent"))
    assert outbox == Outbox()
    assert apply(outbox, signed("b", 0)).pending["b"].nonce == 0


def test_any_attempt_may_be_the_mined_one():
    outbox = outbox_of(signed("a", 0), signed("a", 0, 1), mined(signed("a", 0)))
    assert outbox.recent[0].end.tx_hash == signed("a", 0).tx_hash
    with pytest.raises(InvalidRequest, match="no attempt of b"):
        apply(outbox_of(signed("b", 1)), mined(signed("b", 9)))
    with pytest.raises(InvalidRequest, match="not pending"):
        apply(outbox, mined(signed("a", 0)))


def test_a_purpose_is_served_once():
    outbox = outbox_of(signed("a", 0), mined(signed("a", 0)))
    with pytest.raises(InvalidRequest, match="a is mined already"):
        apply(outbox, signed("a", 1))


def test_what_a_reorganisation_took_back_is_pending_with_the_same_bytes():
    start = outbox_of(signed("a", 0), signed("b", 1))
    outbox = apply(apply(start, mined(signed("a", 0), 5)), mined(signed("b", 1), 9))
    assert list(rewound(outbox, 7).pending) == ["b"]
    assert rewound(outbox, 4).pending == start.pending
    assert rewound(outbox, 9) == outbox


def test_a_failed_nonce_that_comes_back_is_held_beside_the_new_one():
    failed = TransactionDropped("a", "reverted", signed("a", 0).tx_hash, 30_000, 5)
    outbox = rewound(outbox_of(signed("a", 0), failed, signed("a", 1)), 4)
    assert {key: errand.nonce for key, errand in outbox.pending.items()} == {"a": 1, "a~0": 0}
    assert outbox.pending["a~0"].newest.raw == signed("a", 0).raw


def test_what_is_final_is_forgotten_but_its_nonce_is_not():
    outbox = outbox_of(signed("a", 0), mined(signed("a", 0), 5), signed("b", 1))
    outbox = apply(outbox, mined(signed("b", 1), 9))
    final = pruned(outbox, 5)
    assert [errand.key for errand in final.recent] == ["b"]
    assert final.first_nonce == 1
    assert free_nonce(final, mined=0, pool=0) == 2, "an endpoint that lags gives no used nonce"
    with pytest.raises(InvalidRequest, match="belongs to another purpose"):
        apply(final, signed("c", 0))


def test_the_next_nonce_leaves_out_what_others_have_in_the_pool():
    outbox = outbox_of(signed("a", 3))
    assert free_nonce(outbox, mined=3, pool=3) == 4
    assert free_nonce(outbox, mined=3, pool=6) == 6
    assert free_nonce(outbox, mined=2, pool=2) == 2, "the gap is filled first"


def test_a_gap_below_a_pending_nonce_is_found():
    outbox = outbox_of(signed("a", 3), signed("b", 6))
    assert gaps(outbox, mined=3, pool=3) == (4, 5)
    assert gaps(outbox, mined=3, pool=5) == (5,), "the pool has one of the operator's"
    assert gaps(Outbox(), mined=0, pool=0) == ()


def test_records_of_older_journals_are_read():
    old = msgspec.msgpack.encode(
        {"type": "TransactionSigned", "key": "a", "nonce": 0, "tx_hash": "0xaa", "raw": b"r"}
    )
    first = msgspec.msgpack.decode(old, type=TransactionSigned)
    twice = msgspec.structs.replace(first, key="b", tx_hash="0xbb")
    assert list(outbox_of(first, twice).pending) == ["a", "b"]
    assert outbox_of(first, TransactionMined("a", "0xaa", 1, 6)).recent[0].nonce == 0


class OutboxMachine(RuleBasedStateMachine):
    """Keys come and go as the queue would make them, on a chain that may take blocks back."""

    def __init__(self):
        super().__init__()
        self.outbox, self.count, self.block = Outbox(), 0, 1
        self.sent: dict[int, set[str]] = {}

    def _pick(self, number):
        errands = self.outbox.in_order
        return errands[number % len(errands)]

    @rule()
    def sign(self):
        nonce = free_nonce(self.outbox, mined=0, pool=0)
        key = f"k{self.count}"
        self.count += 1
        self.outbox = apply(self.outbox, signed(key, nonce))
        self.sent.setdefault(nonce, set()).add(key)

    @precondition(lambda self: self.outbox.pending)
    @rule(number=st.integers(0, 9))
    def replace(self, number):
        errand = self._pick(number)
        again = msgspec.structs.replace(
            signed("x", errand.nonce, len(errand.attempts)), key=errand.key
        )
        self.outbox = apply(self.outbox, again)

    @precondition(lambda self: self.outbox.pending)
    @rule(attempt=st.integers(0, 5), fails=st.booleans())
    def mine(self, attempt, fails):
        errand = self.outbox.in_order[0]
        tx = errand.attempts[attempt % len(errand.attempts)]
        self.block += 1
        end = mined(msgspec.structs.replace(tx, key=errand.key), self.block)
        if fails:
            end = TransactionDropped(errand.key, "reverted", tx.tx_hash, 1, self.block)
        self.outbox = apply(self.outbox, end)

    @rule(depth=st.integers(0, 5))
    def reorganise(self, depth):
        self.block = max(1, self.block - depth)
        self.outbox = rewound(self.outbox, self.block)

    @rule()
    def finalise(self):
        self.outbox = pruned(self.outbox, self.block - 6)

    @invariant()
    def no_nonce_serves_two_purposes(self):
        everyone = [*self.outbox.pending.values(), *self.outbox.recent]
        nonces = [errand.nonce for errand in everyone]
        assert len(nonces) == len(set(nonces))
        assert all(nonce >= self.outbox.first_nonce for nonce in nonces)
        assert all(len(keys) == 1 for keys in self.sent.values())

    @invariant()
    def the_next_nonce_is_new(self):
        assert free_nonce(self.outbox, mined=0, pool=0) not in self.outbox.held


OutboxMachine.TestCase.settings = settings(stateful_step_count=30)
TestOutboxMachine = OutboxMachine.TestCase
