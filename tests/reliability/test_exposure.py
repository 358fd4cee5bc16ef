"""What one session may cost a host that is not paid for it."""

import pytest

from nodeapp.core.errors import Busy, PaymentRequired
from nodeapp.core.exposure import (
    FREE_PROMPT_BYTES,
    FREE_TOKENS,
    MAX_LIVE_PROMPT_BYTES,
    MAX_UNCLAIMED,
)
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    RequestResumed,
    TokensProduced,
)
from nodeapp.core.steps import is_running_out
from nodeapp.core.transitions import apply
from tests.fakes.paid_session import (
    JOB,
    STARTED_AT,
    claim_of,
    new_session,
    request_id,
    running_hash,
    sealed,
)

WINDOW = 64


def ask(session, number, *, tokens=WINDOW, prompt=b"sealed"):
    return apply(session, RequestAuthorised(JOB, request_id(number), tokens, prompt))


def produce(session, number, count):
    return apply(session, TokensProduced(JOB, request_id(number), tuple(range(count))))


def end(session, number):
    return apply(session, RequestEnded(JOB, request_id(number), "stop"))


def acknowledge_all(session):
    """As the renter does it, whatever the ids were."""
    ids = list(session.stream)
    return apply(session, RenterSentReceipt(JOB, session.produced, running_hash(ids), bytes(65)))


def until_refused(step, session):
    """How often a step went well, and why not once more."""
    for number in range(1000):
        try:
            session = step(session, number)
        except PaymentRequired as error:
            return number, error.message
    raise AssertionError("never refused")


def test_a_renter_that_never_acknowledges_gets_no_more_than_the_free_tokens():
    answers, reason = until_refused(
        lambda session, number: end(produce(ask(session, number), number, WINDOW), number),
        new_session(),
    )
    assert "never acknowledged" in reason
    assert answers * WINDOW <= FREE_TOKENS + 2 * WINDOW


def test_taking_the_same_request_up_again_is_bounded_too():
    resumed = RequestResumed(JOB, request_id(1))
    answers, reason = until_refused(
        lambda session, _number: produce(apply(session, resumed), 1, WINDOW),
        produce(ask(new_session(), 1), 1, WINDOW),
    )
    assert "never acknowledged" in reason
    assert answers * WINDOW <= FREE_TOKENS


def test_a_receipt_for_what_was_lost_lets_the_session_go_on():
    session = new_session()
    for number in range(FREE_TOKENS // WINDOW):
        session = end(produce(ask(session, number), number, WINDOW), number)
    session = end(produce(ask(session, 90), 90, WINDOW), 90)
    with pytest.raises(PaymentRequired):
        ask(session, 91)
    assert ask(acknowledge_all(session), 91).request is not None


def test_an_honest_renter_on_a_bad_line_is_not_stopped():
    """Loses ten tokens with every connection, one connection for every fifty tokens."""
    session, ids = new_session(deposit=10_000_000), []
    for number in range(300):
        session = produce(ask(session, number, tokens=60), number, 50)
        ids += range(40)
        receipt = RenterSentReceipt(JOB, len(ids), running_hash(ids), bytes(65))
        session = apply(session, receipt)
        session = end(session, number)
        if session.acknowledged - session.claimed >= 1000:
            session = claim(session, session.acknowledged - session.claimed)
    assert session.forgotten >= 2000


def claim(session, tokens):
    session = apply(session, ClaimPrepared(JOB, claim_of(session, tokens)))
    session = apply(session, sealed(session.claim))
    proof = session.claim.proof_hash
    return apply(session, ContractReceiveProofAccepted(JOB, tokens, proof, STARTED_AT))


def test_no_new_answer_while_too_much_waits_for_a_claim():
    session = new_session(deposit=10_000_000)
    session = produce(ask(session, 1, tokens=20_000), 1, MAX_UNCLAIMED + 1)
    session = end(acknowledge_all(session), 1)
    with pytest.raises(Busy, match="wait for their claim"):
        ask(session, 2)
    assert ask(claim(session, 1000), 2).request is not None


def test_prompts_nobody_pays_for_do_not_fill_the_journal():
    prompt = bytes(700_000)
    prompts, reason = until_refused(
        lambda session, number: end(ask(session, number, prompt=prompt), number), new_session()
    )
    assert "prompts of session" in reason
    assert prompts * len(prompt) <= FREE_PROMPT_BYTES


def test_prompts_waiting_for_a_claim_fit_one_transcript():
    session, ids = new_session(), []
    for number in range(20):
        session = produce(ask(session, number, tokens=1, prompt=bytes(700_000)), number, 1)
        ids.append(0)
        receipt = RenterSentReceipt(JOB, len(ids), running_hash(ids), bytes(65))
        session = end(apply(session, receipt), number)
    assert sum(len(prompt.sealed) for prompt in session.prompts) <= MAX_LIVE_PROMPT_BYTES
    assert session.prompts[-1].request_id == request_id(19)


def test_tokens_too_few_to_be_claimed_are_not_sold():
    session = new_session(deposit=15_000)  # pays for 150 tokens
    session = end(acknowledge_all(produce(ask(session, 1, tokens=100), 1, 100)), 1)
    session = claim(session, 100)
    with pytest.raises(PaymentRequired, match="50 tokens left to claim, the smallest claim is 100"):
        ask(session, 2, tokens=50)


def test_a_deposit_below_the_first_claim_is_not_served():
    session = new_session(deposit=15_000, interval=151)
    with pytest.raises(PaymentRequired, match="smallest claim is 151"):
        ask(session, 1, tokens=10)


def test_a_session_ends_before_others_may_end_it():
    session = new_session()  # 3600 s, proof window 300 s
    assert not is_running_out(session, STARTED_AT + 3299)
    assert is_running_out(session, STARTED_AT + 3300)
