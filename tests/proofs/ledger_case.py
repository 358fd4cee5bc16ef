"""One ledger chunk that the tests of this folder prove, and what a real proof of it is."""

from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.ledger_proof import LedgerContext, context_limbs, ledger_vector
from nodeapp.wire import prover_job

CONTEXT = LedgerContext(
    chain_id=31337,
    marketplace=Address("0x" + "11" * 20),
    job_id=JobId(7),
    host=Address("0x" + "22" * 20),
    model_id=ModelId("0x" + "33" * 32),
    interval=0,
    first_token_index=0,
    previous_commitment=bytes(32),
)
SALT = bytes(range(16))
TOKEN_IDS = tuple(range(49_000, 49_120))
VECTOR = ledger_vector(TOKEN_IDS, context_limbs(CONTEXT), SALT)


@dataclass(frozen=True)
class MadeProof:
    directory: Path
    shown: prover_job.ShownProof
    spent: prover_job.Spent
