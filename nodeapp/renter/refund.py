"""Deposits that no host settles: of a session without a claim, or of a host that is gone.

The marketplace ends a session for anybody once its proof window or its duration is over, and for
its renter at any time; before the first claim that costs the renter minTokensFee tokens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from nodeapp.core.errors import NotFound
from nodeapp.core.ids import JobId
from nodeapp.core.units import BaseUnits, BlockTime
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.calls import Calls
from nodeapp.evm.contracts import Contracts, SessionJob, SessionStatus
from nodeapp.evm.transactions import Transactions
from nodeapp.renter.record import SessionRecord, session_numbers


class Refund(msgspec.Struct, frozen=True):
    """One session that was still open on chain."""

    job_id: JobId
    outcome: Literal["timed_out", "cancelled", "waits"]
    refund: BaseUnits
    """What came back; 0 while it waits."""
    due_at: BlockTime
    """Block time from which it can be timed out."""


def open_records(directory: Path, contracts: Contracts) -> tuple[JobId, ...]:
    """Sessions this renter keeps a record of, with this marketplace."""
    deployment = contracts.deployment
    ours = (deployment.chain_id, deployment.marketplace)
    heads = [SessionRecord.load(directory, one).head for one in session_numbers(directory)]
    return tuple(one.job_id for one in heads if (one.chain_id, one.marketplace) == ours)


async def refunds(
    contracts: Contracts, wallet: Wallet, job_ids: Iterable[JobId], *, at_once: bool
) -> AsyncIterator[Refund]:
    """End those of the sessions that may be ended; what is over, or another's, is left out.

    Args:
        contracts: of the marketplace.
        wallet: the renter's.
        job_ids: which ones.
        at_once: also those whose time is not over, for the marketplace's fee; tokens that the
            host has not claimed by then are not paid.

    Raises:
        Rejected: the marketplace refuses.
        Unavailable: no endpoint answered, or not mined in time.
    """
    calls, transactions = Calls(contracts.deployment), Transactions(contracts.provider)
    for job_id in job_ids:
        try:
            job = await contracts.session(job_id)
        except NotFound:
            continue  # a development chain that was started anew
        if job.status is not SessionStatus.ACTIVE or job.depositor != wallet.address:
            continue
        due_at = _due_at(job)
        is_due = (await contracts.provider.block()).timestamp >= due_at
        if not (is_due or at_once):
            yield Refund(job_id, "waits", BaseUnits(0), due_at)
            continue
        call = calls.trigger_timeout(job_id) if is_due else calls.complete_session(job_id)
        receipt = await transactions.send(call, wallet)
        ended = await contracts.session(job_id, receipt.block_number)
        yield Refund(job_id, "timed_out" if is_due else "cancelled", ended.refund, due_at)


def _due_at(job: SessionJob) -> BlockTime:
    """As triggerSessionTimeout has it: not in the very second."""
    return BlockTime(
        1
        + min(
            job.start_time + job.max_duration_seconds,
            job.last_proof_time + job.proof_timeout_seconds,
        )
    )
