"""A paid session to test with: terms, a renter that signs, and the changes a life is made of."""

from pathlib import Path

from nodeapp.chain.ledger import Ledger
from nodeapp.core.ids import Address, Cid, JobId, ModelId, RequestId
from nodeapp.core.session import (
    Claim,
    ClaimSealed,
    ContractReceiveSessionEnded,
    ContractReceiveSessionOpened,
    Phase,
    Session,
    Terms,
)
from nodeapp.core.transitions import open_session
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.security.wallet import address_of, public_key_of, sign_digest
from nodeapp.wire.ipc_chain import ReceiptRequest
from nodeapp.wire.signed import domain_separator, receipt_digest

JOB = JobId(7)
MARKET = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
HOST = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
ASSET = Address("0x" + "22" * 20)
RENTER_SECRET = b"\x17" * 32
RENTER_KEY = public_key_of(RENTER_SECRET)
RENTER = address_of(RENTER_KEY)
CHAIN_ID = 31337
STARTED_AT = BlockTime(1_000_000)
SEPARATOR = domain_separator(CHAIN_ID, MARKET)


async def open_ledger(directory: Path, name: str = "j.db") -> Ledger:
    """The host's journal in a directory, blank or as it was left."""
    return await Ledger.open(directory / name, owner=HOST, marker=directory / "marker")


def request_id(number: int) -> RequestId:
    return RequestId(f"{number:032x}")


def terms(
    *, deposit: int = 1_000_000, price: int = 100_000, interval: int = 100, job_id: int = JOB
) -> Terms:
    return Terms(
        chain_id=CHAIN_ID,
        marketplace=MARKET,
        job_id=JobId(job_id),
        renter=RENTER,
        host=HOST,
        model_id=ModelId("0x" + "ab" * 32),
        asset=ASSET,
        deposit=BaseUnits(deposit),
        price_per_token=PricePerToken(price),
        proof_interval=Tokens(interval),
        proof_timeout_seconds=300,
        max_duration_seconds=3600,
        started_at=STARTED_AT,
    )


def opened(*, block: int = 0, **values: int) -> ContractReceiveSessionOpened:
    chosen = terms(**values)
    return ContractReceiveSessionOpened(chosen.job_id, chosen, BlockNumber(block))


def ended(job_id: int, host_share: int) -> ContractReceiveSessionEnded:
    """Completed, with so much for the host."""
    earnings, refund = BaseUnits(host_share), BaseUnits(0)
    return ContractReceiveSessionEnded(
        JobId(job_id), Phase.COMPLETED, earnings, refund, BlockNumber(1)
    )


def new_session(**values: int) -> Session:
    return open_session(opened(**values))


def running_hash(ids: list[int] | tuple[int, ...], job_id: int = JOB) -> bytes:
    return extend_hash(initial_hash(CHAIN_ID, MARKET, JobId(job_id)), ids)


def receipt(
    ids: list[int] | tuple[int, ...], secret: bytes = RENTER_SECRET, job_id: int = JOB
) -> ReceiptRequest:
    """The renter's receipt for these first tokens of the session."""
    job, running = JobId(job_id), running_hash(ids, job_id)
    signature = sign_digest(secret, receipt_digest(SEPARATOR, job, len(ids), running))
    return ReceiptRequest(job_id=job, tokens=len(ids), running_hash=running, signature=signature)


def claim_of(session: Session, tokens: int) -> Claim:
    return Claim(
        interval=session.intervals,
        first_token=session.claimed,
        tokens=Tokens(tokens),
        salts=(b"salt",),
        previous_commitment=session.previous_commitment,
    )


def sealed(claim: Claim) -> ClaimSealed:
    return ClaimSealed(
        job_id=JOB,
        interval=claim.interval,
        proof_hash=claim.interval.to_bytes(31, "big") + b"\x01",
        proof_cid=Cid("bproof"),
        transcript_cid=Cid("btranscript"),
        last_commitment=claim.interval.to_bytes(32, "big"),
        proofs=1,
        proof_bytes=10,
        prove_cpu_seconds=0.5,
    )
