"""Claims are as large as the contract takes them, never padded, never stranded without need."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.claims import MAX_CLAIM, MIN_CLAIM, claim_size

COUNTS = st.integers(0, 6000)
LEAST = st.integers(MIN_CLAIM, MAX_CLAIM)


def size(unclaimed, *, interval=1000, least=MIN_CLAIM, is_streaming=False, is_urgent=False):
    return claim_size(
        unclaimed=unclaimed,
        interval=interval,
        least=least,
        is_streaming=is_streaming,
        is_urgent=is_urgent,
    )


def test_nothing_is_due_before_the_interval_is_full():
    assert size(999) == 0
    assert size(1000) == 1000


def test_while_a_request_runs_enough_for_a_last_claim_is_held_back():
    assert size(1000 + MIN_CLAIM - 1, is_streaming=True) == 0
    assert size(1000 + MIN_CLAIM, is_streaming=True) == 1000


def test_urgency_claims_whatever_the_contract_takes():
    assert size(MIN_CLAIM - 1, is_urgent=True) == 0
    assert size(MIN_CLAIM, is_urgent=True, is_streaming=True) == MIN_CLAIM


def test_the_first_claim_of_a_session_reaches_its_proof_interval():
    assert size(499, least=500, is_urgent=True) == 0
    assert size(500, least=500, is_urgent=True) == 500
    assert size(500, interval=100, least=500) == 500


def test_a_cut_leaves_a_claimable_rest():
    assert size(MAX_CLAIM, is_urgent=True) == MAX_CLAIM
    assert size(MAX_CLAIM + 1, is_urgent=True) == MAX_CLAIM - MIN_CLAIM
    assert size(MAX_CLAIM + MIN_CLAIM, is_urgent=True) == MAX_CLAIM


def test_a_cut_first_claim_still_reaches_a_long_proof_interval():
    assert size(MAX_CLAIM + 1, least=1900, is_urgent=True) == 1900


@settings(max_examples=400, deadline=None)
@given(
    unclaimed=COUNTS, interval=COUNTS, least=LEAST, streaming=st.booleans(), urgent=st.booleans()
)
def test_property_a_claim_is_none_or_one_the_contract_accepts(
    unclaimed, interval, least, streaming, urgent
):
    tokens = size(
        unclaimed, interval=interval, least=least, is_streaming=streaming, is_urgent=urgent
    )
    assert tokens == 0 or least <= tokens <= min(unclaimed, MAX_CLAIM)


@settings(max_examples=200, deadline=None)
@given(total=COUNTS, interval=st.integers(MIN_CLAIM, MAX_CLAIM))
def test_property_a_closing_session_strands_only_what_was_never_claimable(total, interval):
    left, claimed = total, 0
    while tokens := size(
        left, interval=interval, least=interval if claimed == 0 else MIN_CLAIM, is_urgent=True
    ):
        left, claimed = left - tokens, claimed + tokens
    if claimed == 0:
        assert total < interval
    elif interval <= MAX_CLAIM - MIN_CLAIM:
        assert left == 0
    else:
        assert left < MIN_CLAIM
