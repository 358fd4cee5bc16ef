"""What goes into and comes out of one proof worker (a child process): two JSON files.

The parent judges a worker by its result file alone: EZKL can crash while the interpreter ends.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from nodeapp.core.ledger_proof import CONTEXT_LIMBS, MAX_CHUNKS, VECTOR_LENGTH

MAX_PROOF_BYTES = 16_384

Element = Annotated[int, msgspec.Meta(ge=0, lt=1 << 21)]
Vector = Annotated[
    tuple[Element, ...], msgspec.Meta(min_length=VECTOR_LENGTH, max_length=VECTOR_LENGTH)
]
Limbs = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)], ...],
    msgspec.Meta(min_length=CONTEXT_LIMBS, max_length=CONTEXT_LIMBS),
]
Commitment = Annotated[bytes, msgspec.Meta(min_length=32, max_length=64)]
ProofBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_PROOF_BYTES)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the nested values."""


class ShownProof(Part, frozen=True):
    """A proof and the statement it is said to show."""

    commitment: Commitment
    count: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    context_limbs: Limbs
    proof: ProofBytes


class SetupJob(Part, frozen=True, tag="setup"):
    """Make srs (unless it is there), vk and pk in `directory`, beside circuit and settings."""

    directory: str


class ProveJob(Part, frozen=True, tag="prove"):
    """Prove one vector with the profile in `directory`; verified before it is returned."""

    directory: str
    vector: Vector


class VerifyJob(Part, frozen=True, tag="verify"):
    """Verify proofs against the profile in `directory`, stopping at the first bad one."""

    directory: str
    proofs: Annotated[tuple[ShownProof, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]
    allow_test_srs: bool


class CommitJob(Part, frozen=True, tag="commit"):
    """Commit to vectors as the circuit does."""

    directory: str
    vectors: Annotated[tuple[Vector, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]


Job: TypeAlias = SetupJob | ProveJob | VerifyJob | CommitJob


class Spent(Part, frozen=True):
    """What the worker cost, children of its own included."""

    cpu_seconds: float
    wall_seconds: float
    peak_megabytes: int


class SetUp(Part, frozen=True, tag="set_up"):
    """The keys are there."""

    logrows: int
    spent: Spent


class Proved(Part, frozen=True, tag="proved"):
    """A proof that verified in this worker."""

    shown: ShownProof
    spent: Spent


class Verified(Part, frozen=True, tag="verified"):
    """Every proof holds."""

    spent: Spent


class Committed(Part, frozen=True, tag="committed"):
    """Commitments in the order asked."""

    commitments: tuple[Commitment, ...]


class Refused(Part, frozen=True, tag="refused"):
    """The proof, or what was said about it, is wrong: no retry helps."""

    reason: str
    index: int = 0


class Failed(Part, frozen=True, tag="failed"):
    """A fault on this machine (missing or damaged file, out of memory)."""

    reason: str


Result: TypeAlias = SetUp | Proved | Verified | Committed | Refused | Failed


_job_decoder: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_result_decoder: msgspec.json.Decoder[Result] = msgspec.json.Decoder(Result)


def encode_job(job: Job) -> bytes:
    """The job file."""
    return msgspec.json.encode(job)


def decode_job(data: bytes) -> Job:
    """Read the job file; written by our own parent, so a fault is a bug."""
    return _job_decoder.decode(data)


def encode_result(result: Result) -> bytes:
    """The result file."""
    return msgspec.json.encode(result)


def decode_result(data: bytes) -> Result:
    """Read the result file."""
    return _result_decoder.decode(data)
