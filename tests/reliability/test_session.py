"""The money machine, change by change."""

import msgspec
import pytest

from nodeapp.core.claims import MAX_CLAIM
from nodeapp.core.errors import Busy, InvalidRequest, PaymentRequired
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    EarningsWithdrawn,
    Phase,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    RequestResumed,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import (
    LEFT_SECONDS,
    CompleteSession,
    PrepareClaim,
    SealClaim,
    SubmitClaim,
    TriggerTimeout,
    WaitUntil,
    WithdrawEarnings,
    is_given_up,
    is_left_to_renter,
    next_step,
    overdue_at,
)
from nodeapp.core.transitions import apply
from tests.fakes.paid_session import (
    JOB,
    RENTER_KEY,
    STARTED_AT,
    claim_of,
    new_session,
    opened,
    request_id,
    running_hash,
    sealed,
)

ONE, TWO = request_id(1), request_id(2)
WINDOW = 30


class Life:
    """`Life().feed(change, …)`; ids are their own numbers, so they are easy to follow."""

    def __init__(self, session=None):
        self.session = session or new_session()
        self.ids = []

    def feed(self, *changes):
        for change in changes:
            self.session = apply(self.session, change)
        return self

    def ask(self, request=ONE, tokens=1000):
        return self.feed(RequestAuthorised(JOB, request, tokens, b"sealed"))

    def make(self, count, request=ONE):
        first = self.session.produced
        self.ids = [*self.ids[:first], *range(first, first + count)]
        return self.feed(TokensProduced(JOB, request, tuple(range(first, first + count))))

    def acknowledge(self, count):
        return self.feed(RenterSentReceipt(JOB, count, running_hash(self.ids[:count]), b"s"))

    def claim(self, tokens):
        claim = claim_of(self.session, tokens)
        return self.feed(ClaimPrepared(JOB, claim), sealed(claim))

    def mined(self, at=STARTED_AT + 1):
        claim = self.session.claim
        return self.feed(ContractReceiveProofAccepted(JOB, claim.tokens, claim.proof_hash, at))

    def step(self, seconds=1, interval=100, dispute=WINDOW):
        return next_step(
            self.session,
            STARTED_AT + seconds,
            interval_tokens=interval,
            dispute_window_seconds=dispute,
        )


def answered(count=300):
    return Life().ask().make(count).acknowledge(count)


def test_a_new_session_owes_nothing_and_affords_its_deposit():
    life = Life()
    assert (life.session.produced, life.session.affordable) == (0, 10_000)
    assert life.step() is None


def test_opening_a_known_session_again_changes_nothing():
    life = answered()
    assert apply(life.session, opened()) == life.session


def test_the_key_that_logged_in_first_is_the_only_one():
    life = Life().feed(RenterAuthenticated(JOB, RENTER_KEY), RenterAuthenticated(JOB, RENTER_KEY))
    with pytest.raises(InvalidRequest, match="another renter key"):
        life.feed(RenterAuthenticated(JOB, b"\x02" * 33))


def test_a_second_request_waits_for_the_first():
    with pytest.raises(Busy):
        Life().ask().ask(TWO)


def test_no_more_than_the_deposit_can_be_reserved():
    with pytest.raises(PaymentRequired, match="pays for 10000 tokens"):
        Life().ask(tokens=10_001)


def test_no_more_than_the_reservation_can_be_produced():
    with pytest.raises(PaymentRequired, match="over its 10 tokens"):
        Life().ask(tokens=10).make(11)


def test_tokens_of_another_request_are_refused():
    with pytest.raises(InvalidRequest, match="not open"):
        Life().ask().make(1, TWO)


def test_a_receipt_for_tokens_never_sent_is_refused():
    with pytest.raises(InvalidRequest, match="only 3 sent"):
        Life().ask().make(3).feed(RenterSentReceipt(JOB, 4, running_hash([0, 1, 2, 3]), b"s"))


def test_a_receipt_over_other_tokens_is_refused():
    with pytest.raises(InvalidRequest, match="another running hash"):
        Life().ask().make(3).feed(RenterSentReceipt(JOB, 3, running_hash([0, 1, 9]), b"s"))


def test_an_old_receipt_moves_nothing_back():
    life = answered(10)
    before = life.session
    assert life.acknowledge(4).session == before


def test_what_was_not_acknowledged_is_made_again_after_a_resume():
    life = Life().ask().make(10).acknowledge(6).feed(RequestResumed(JOB, ONE))
    assert life.session.delivered_ids() == (0, 1, 2, 3, 4, 5)
    assert life.session.produced == 6


def test_a_resumed_answer_keeps_ids_that_a_claim_took():
    life = answered(300).claim(200).mined().feed(RequestResumed(JOB, ONE))
    assert life.session.delivered_ids() == tuple(range(300))
    assert life.make(1).acknowledge(301).session.delivered_ids() == tuple(range(301))


def test_claims_take_the_ids_of_the_open_request_only():
    life = Life().ask().make(150).acknowledge(150).feed(RequestEnded(JOB, ONE, "stop"))
    life.ask(TWO).make(150, TWO).acknowledge(300).claim(200).mined()
    assert life.session.delivered_ids() == tuple(range(150, 300))


def test_unacknowledged_tokens_of_an_ended_request_are_never_claimed():
    life = Life().ask().make(150).acknowledge(120).feed(RequestEnded(JOB, ONE, "cancelled"))
    assert life.step() == PrepareClaim(120)
    life.ask(TWO)
    assert life.session.produced == 120


def test_ending_a_request_that_is_not_open_changes_nothing():
    life = answered()
    assert apply(life.session, RequestEnded(JOB, TWO, "stop")) == life.session


def test_a_claim_goes_from_prepared_over_sealed_to_mined():
    life = answered(300)
    assert life.step() == PrepareClaim(200)
    claim = claim_of(life.session, 200)
    assert life.feed(ClaimPrepared(JOB, claim)).step() == SealClaim(claim)
    life.feed(sealed(claim))
    assert life.step() == SubmitClaim(life.session.claim)
    done = life.session.claim
    life.mined()
    assert (life.session.claimed, life.session.stream) == (200, tuple(range(200, 300)))
    assert life.session.previous_commitment == done.last_commitment
    assert life.session.previous_proof_hash == done.proof_hash
    assert life.session.claims == (msgspec.structs.replace(done, salts=()),)
    assert life.step() is None


def test_only_one_claim_is_under_way():
    life = answered(300)
    claim = claim_of(life.session, 200)
    life.feed(ClaimPrepared(JOB, claim))
    with pytest.raises(InvalidRequest, match="does not fit"):
        life.feed(ClaimPrepared(JOB, msgspec.structs.replace(claim, interval=1)))


@pytest.mark.parametrize("wrong", [{"tokens": 301}, {"first_token": 1}, {"interval": 1}])
def test_a_claim_beside_the_acknowledged_tokens_is_refused(wrong):
    life = answered(300)
    claim = msgspec.structs.replace(claim_of(life.session, 200), **wrong)
    with pytest.raises(InvalidRequest, match="does not fit"):
        life.feed(ClaimPrepared(JOB, claim))


def test_sealing_needs_the_claim_that_is_under_way():
    life = answered(300)
    with pytest.raises(InvalidRequest, match="has no claim"):
        life.feed(sealed(claim_of(life.session, 200)))


def test_a_claim_this_journal_does_not_know_is_never_claimed_again():
    """Only our account can claim on our session: the journal is from before that claim."""
    life = answered(300).claim(200)
    life.feed(ContractReceiveProofAccepted(JOB, 250, b"\xee" * 32, STARTED_AT + 9))
    session = life.session
    assert (session.claimed, len(session.stream), session.claim) == (250, 100, None)
    assert session.phase is Phase.CLOSING
    assert life.step(10_000) == CompleteSession()
    with pytest.raises(PaymentRequired, match="closing"):
        life.ask(TWO, 10)


def test_a_claim_over_more_than_the_restored_journal_has_leaves_it_sound():
    life = answered(120)
    life.feed(ContractReceiveProofAccepted(JOB, 400, b"\xee" * 32, STARTED_AT + 9))
    assert (life.session.claimed, life.session.acknowledged, life.session.produced) == (
        400,
        120,
        120,
    )
    with pytest.raises(PaymentRequired, match="journal does not know"):
        life.make(1)
    assert life.step(10_000) == CompleteSession()


def test_a_late_session_claims_all_it_may_before_the_proof_window_ends():
    life = answered(150)
    assert life.step(149) is None
    assert life.step(150) == PrepareClaim(150)


def test_closing_claims_the_rest_then_waits_then_completes():
    life = answered(150).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    assert life.session.phase is Phase.CLOSING
    assert life.step() == PrepareClaim(150)
    life.claim(150).mined(STARTED_AT + 10)
    assert life.step(12) == WaitUntil(STARTED_AT + 10 + WINDOW + 2)
    assert life.step(10 + WINDOW + 2) == CompleteSession()


def test_a_session_that_may_be_timed_out_before_it_may_be_completed_is_timed_out():
    """Its proof window of 300 s is shorter than the dispute window here."""
    life = answered(150).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    life.claim(150).mined(STARTED_AT + 10)
    assert overdue_at(life.session) == STARTED_AT + 311
    assert life.step(310, dispute=500) == WaitUntil(STARTED_AT + 311)
    assert life.step(311, dispute=500) == TriggerTimeout()
    assert life.step(512, dispute=500) == CompleteSession()


def test_a_session_is_overdue_after_its_duration_too():
    long = Life(new_session()).session
    terms = msgspec.structs.replace(long.terms, max_duration_seconds=200)
    assert overdue_at(msgspec.structs.replace(long, terms=terms)) == STARTED_AT + 201


def test_a_rest_too_small_for_the_contract_does_not_hold_up_the_end():
    life = answered(199).claim(100).mined()
    life.feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    assert life.step(WINDOW + 3) == CompleteSession()


@pytest.mark.parametrize("tokens", [0, 1, 999])
def test_no_gas_is_spent_on_a_session_that_pays_nothing(tokens):
    """Whoever takes less than its proof interval and leaves costs the host no transaction."""
    life = Life(new_session(interval=1000))
    if tokens:
        life.ask().make(tokens).acknowledge(tokens).feed(RequestEnded(JOB, ONE, "stop"))
    assert not is_left_to_renter(life.session), "it may go on"
    life.feed(SessionClosing(JOB, "idle"))
    assert is_left_to_renter(life.session)
    assert [life.step(seconds) for seconds in (1, 32, 301, 10**6)] == [None] * 4


def test_a_session_left_to_its_renter_pays_what_the_renter_ends_it_with():
    life = answered(99).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    life.feed(ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 10_000, 990_000))
    assert life.step() == WithdrawEarnings()


def test_a_late_receipt_makes_a_session_claimable_that_was_left_to_its_renter():
    life = Life().ask().make(100).acknowledge(99).feed(RequestEnded(JOB, ONE, "lost"))
    life.feed(SessionClosing(JOB, "idle"))
    assert is_left_to_renter(life.session)
    assert life.acknowledge(100).step() == PrepareClaim(100)


def test_a_claim_that_a_reorganisation_took_back_is_not_given_away():
    life = answered(150).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    life.claim(150).mined()
    life.session = msgspec.structs.replace(life.session, proofs=())
    assert not is_left_to_renter(life.session)
    assert isinstance(life.step(10**6), SubmitClaim)


def test_a_session_left_to_its_renter_is_given_up_a_day_after_its_time_out():
    life = answered(99).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    end = overdue_at(life.session) + LEFT_SECONDS
    assert (is_given_up(life.session, end - 1), is_given_up(life.session, end)) == (False, True)
    earning = answered(150).feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    assert not is_given_up(earning.session, 10 * end)


def test_a_closing_session_takes_no_new_request_and_finishes_the_open_one():
    life = Life().ask().feed(SessionClosing(JOB, "idle"))
    life.make(5).acknowledge(5)
    assert life.step(WINDOW + 2) is None
    with pytest.raises(PaymentRequired, match="open a new session"):
        life.feed(RequestEnded(JOB, ONE, "stop")).ask(TWO)


@pytest.mark.parametrize("phase", [Phase.COMPLETED, Phase.TIMED_OUT])
def test_an_ended_session_owes_only_its_withdrawal(phase):
    life = answered(300).claim(200).feed(ContractReceiveSessionEnded(JOB, phase, 900, 100))
    assert life.session.claim is None
    assert life.step() == WithdrawEarnings()
    assert life.feed(EarningsWithdrawn(JOB, 900)).step() is None
    assert life.feed(SessionClosing(JOB, "idle")).session.phase is phase


def test_an_ended_session_that_earned_nothing_owes_nothing():
    life = Life().feed(ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 0, 1_000_000))
    assert life.step() is None


def test_nothing_is_claimed_or_produced_after_the_end():
    life = answered(300)
    claim = claim_of(life.session, 200)
    life.feed(ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 0, 1_000_000))
    with pytest.raises(InvalidRequest, match="does not fit"):
        life.feed(ClaimPrepared(JOB, claim))
    with pytest.raises(PaymentRequired, match="is completed"):
        life.make(1)
    with pytest.raises(PaymentRequired):
        life.ask(TWO)


def test_prompts_are_kept_until_their_answers_are_claimed():
    life = Life().ask().make(150).acknowledge(150).feed(RequestEnded(JOB, ONE, "stop"))
    life.ask(TWO).make(150, TWO).acknowledge(300)
    assert [prompt.request_id for prompt in life.session.prompts] == [ONE, TWO]
    life.claim(150).mined()
    assert [prompt.request_id for prompt in life.session.prompts] == [TWO]


def test_prompts_without_an_answer_do_not_pile_up():
    life = answered(10).feed(RequestEnded(JOB, ONE, "stop"))
    for number in range(2, 50):
        life.ask(request_id(number)).feed(RequestEnded(JOB, request_id(number), "cancelled"))
    assert len(life.session.prompts) == 2


def test_a_session_far_behind_is_claimed_in_pieces_the_prover_takes():
    life = Life().ask(tokens=5000).make(5000).acknowledge(5000)
    life.feed(RequestEnded(JOB, ONE, "stop"), SessionClosing(JOB, "renter"))
    sizes = []
    while isinstance(step := life.step(), PrepareClaim):
        sizes.append(step.tokens)
        life.claim(step.tokens).mined()
    assert sum(sizes) == 5000
    assert max(sizes) <= MAX_CLAIM
