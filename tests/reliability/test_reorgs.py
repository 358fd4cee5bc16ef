"""After any reorg the ledger holds what a fresh sync gives, and nothing that happened here is lost."""

import pytest

from nodeapp.chain.draft import Draft
from nodeapp.chain.ledger import CursorMoved, RewoundTo
from nodeapp.core.chain_view import ChainView
from nodeapp.core.errors import PaymentRequired
from nodeapp.core.outbox import Outbox
from nodeapp.core.reorgs import is_meant_for
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    EarningsWithdrawn,
    Phase,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    TokensProduced,
)
from nodeapp.core.steps import SubmitClaim, WithdrawEarnings, next_step
from tests.benchmarks import chain_reorgs
from tests.fakes.paid_session import (
    JOB,
    STARTED_AT,
    claim_of,
    opened,
    request_id,
    running_hash,
    sealed,
)

ONE = request_id(1)


class Book:
    """Entries in, one session out."""

    def __init__(self):
        self.sessions, self.view, self.parked = {}, ChainView(), ()

    def feed(self, *entries):
        draft = Draft(self.sessions, Outbox(), self.view, parked=self.parked).add(entries)
        self.sessions = {**self.sessions, **draft.sessions}
        self.view, self.parked = draft.view, draft.parked
        return self

    @property
    def session(self):
        return self.sessions[JOB]

    def step(self):
        return next_step(
            self.session, STARTED_AT + 1, interval_tokens=100, dispute_window_seconds=30
        )


def claimed():
    """Opened in block 5, 300 tokens delivered, claim 0 accepted in block 9."""
    ids = tuple(range(300))
    book = Book().feed(
        opened(block=5),
        RequestAuthorised(JOB, ONE, 1000, b"p"),
        TokensProduced(JOB, ONE, ids),
        RenterSentReceipt(JOB, 300, running_hash(ids), b"s"),
    )
    claim = claim_of(book.session, 200)
    book.feed(ClaimPrepared(JOB, claim), sealed(claim))
    return book.feed(
        ContractReceiveProofAccepted(JOB, 200, sealed(claim).proof_hash, STARTED_AT, 9)
    )


def test_a_claim_that_a_reorg_took_out_is_submitted_again_as_it_was():
    book = claimed()
    done = book.session.claims[0]
    assert book.step() is None
    book.feed(RewoundTo(8, "0x8"))
    assert (book.session.claimed, book.session.acknowledged) == (0, 300)
    assert book.step() == SubmitClaim(done)


def test_a_vanished_session_serves_nothing_and_goes_on_when_its_creation_comes_again():
    book = claimed()
    before = book.session
    book.feed(RewoundTo(4, "0x4"))
    assert book.session.phase is Phase.VANISHED
    assert book.step() is None
    with pytest.raises(PaymentRequired, match="is vanished"):
        book.feed(TokensProduced(JOB, ONE, (1,)))
    later = opened(block=7)
    book.feed(later)
    assert book.session.phase is Phase.ACTIVE
    assert (book.session.opened_in, book.session.stream) == (7, before.stream)
    assert book.step() == SubmitClaim(before.claims[0])


def test_another_session_under_the_job_id_starts_afresh_and_the_old_one_is_kept_aside():
    book = claimed().feed(RewoundTo(4, "0x4"))
    mine = book.session
    book.feed(opened(block=6, deposit=777))
    assert (book.session.acknowledged, book.session.terms.deposit) == (0, 777)
    assert book.session.intervals > mine.intervals, "keys of transactions are never used twice"
    for key in ("claim/7/0", "claim/7/0~3", "complete/7", "timeout/7"):
        assert is_meant_for(key, mine)
        assert not is_meant_for(key, book.session), "the contract knows the number only"
    (aside,) = book.parked
    assert (aside.acknowledged, aside.phase) == (300, Phase.VANISHED)
    book.feed(RewoundTo(4, "0x4"), opened(block=6))
    assert book.session.acknowledged == 300, "the chain went back to the first branch"
    assert is_meant_for("claim/7/0", book.session)
    assert [one.terms.deposit for one in book.parked] == [777]


def test_an_end_that_was_taken_back_leaves_the_session_as_it_was():
    book = claimed().feed(RequestEnded(JOB, ONE, "stop"))
    before = book.session
    book.feed(
        ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 100, 200, 20),
        EarningsWithdrawn(JOB, 100, 22),
    )
    book.feed(RewoundTo(21, "0x21"))
    assert book.step() == WithdrawEarnings()
    book.feed(RewoundTo(19, "0x19"))
    assert book.session == before


def test_points_reach_one_block_below_the_window():
    view = (
        Draft({}, Outbox(), ChainView())
        .add([CursorMoved(10, "0xa", 0), CursorMoved(20, "0xb", 0), CursorMoved(30, "0xc", 20)])
        .view
    )
    assert [point.block_number for point in view.points] == [20, 30]
    assert view.final == 20
    assert view.final_after(100, 64) == 30


@pytest.mark.timeout(60)
async def test_random_reorg_scripts_end_as_a_fresh_sync(capsys):
    rows = {one.name: one for one in await chain_reorgs.run(20)}
    shown = capsys.readouterr().out
    assert rows["scripts that end unlike a fresh sync"].value == 0, shown
    assert rows["reorgs"].value > 50
    assert rows["claims accepted at the end"].value > 50
