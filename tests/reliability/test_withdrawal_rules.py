"""When earnings are withdrawn, of which sessions, and when it is not worth its gas: no chain, no journal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core import transitions
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.units import BlockTime, Wei
from nodeapp.core.withdrawals import (
    NATIVE,
    WithdrawalFinished,
    WithdrawalPolicy,
    Withdrawals,
    apply,
    is_due,
    is_worth_it,
    owed,
    plan_withdrawal,
)
from tests.fakes.paid_session import ASSET, ended, new_session


def test_the_schedule_counts_from_the_last_one():
    policy = WithdrawalPolicy(100, 0, 0, 5.0, 0)
    plan = plan_withdrawal(
        Withdrawals(), (), asset=ASSET, balance=5, payout="", now=BlockTime(1000)
    )
    state = apply(Withdrawals(), plan)
    assert not is_due(state, ASSET, BlockTime(2000), policy), "one is under way"
    state = apply(state, WithdrawalFinished(0))
    assert not is_due(state, ASSET, BlockTime(1099), policy)
    assert is_due(state, ASSET, BlockTime(1100), policy)
    assert is_due(state, NATIVE, BlockTime(0), policy)
    with pytest.raises(InvalidRequest, match="withdrawal 0 is not open"):
        apply(state, WithdrawalFinished(0))
    with pytest.raises(InvalidRequest, match="does not fit"):
        apply(state, plan)


def test_gas_may_eat_up_a_part_only():
    policy = WithdrawalPolicy(0, 0, 0, 5.0, native_price=3_000_000_000)
    cheap, dear = Wei(10**12), Wei(10**15)  # 0.003 and 3 dollars
    assert is_worth_it(1_000_000, ASSET, cheap, policy)
    assert not is_worth_it(1_000_000, ASSET, dear, policy)
    assert is_worth_it(10**17, NATIVE, dear, policy)
    assert not is_worth_it(10**16, NATIVE, dear, policy)
    assert not is_worth_it(0, ASSET, cheap, policy)


@given(
    shares=st.lists(st.integers(1, 1000), max_size=8),
    balance=st.integers(0, 9000),
)
def test_property_every_share_is_covered_or_gone(shares, balance):
    sessions = []
    for number, share in enumerate(shares):
        session = new_session(job_id=number + 1)
        sessions.append(_ended_session(session, share))
    plan = plan_withdrawal(
        Withdrawals(), sessions, asset=ASSET, balance=balance, payout="", now=BlockTime(1)
    )
    share_of = dict(enumerate(shares, start=1))
    assert sorted((*plan.job_ids, *plan.gone)) == list(share_of)
    assert sum(share_of[job_id] for job_id in plan.job_ids) <= balance == plan.amount
    if sum(shares) <= balance:
        assert plan.gone == ()


def _ended_session(session, share):
    return transitions.apply(session, ended(session.terms.job_id, share))


def test_only_ended_sessions_with_a_share_are_owed():
    sessions = [new_session(job_id=number) for number in (3, 1, 2)]
    sessions[0] = _ended_session(sessions[0], 5)
    sessions[1] = _ended_session(sessions[1], 0)
    assert [one.terms.job_id for one in owed(sessions, ASSET)] == [3]
