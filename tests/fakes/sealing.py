"""The far ends of sealing: a prover that counts, a store in memory, contracts that know a model."""

import hashlib
from dataclasses import dataclass, field

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import Cid
from nodeapp.core.ledger_proof import LedgerContext, chunk_ids, context_limbs, following
from nodeapp.wire.ipc_prover import ProfileReply, ProvedChunk, ProveReply, ProveRequest
from nodeapp.wire.prover_job import ShownProof, Spent

PROFILE = ProfileReply(
    profile_id="0a" * 32,
    profile="poseidon",
    ezkl="23.0.5",
    srs_kind="test",
    srs_sha256="0b" * 32,
    vk_sha256="0c" * 32,
)


@dataclass
class FakeProver:
    """rpc.ProverClient; `tokens_counted` other than 0 makes it lie."""

    asked: list[ProveRequest] = field(default_factory=list)
    is_down: bool = False
    leaves_out: int = 0

    async def prove(self, request: ProveRequest, *, deadline_seconds: float) -> ProveReply:
        if self.is_down:
            raise Unavailable("prover is not reachable")
        self.asked.append(request)
        context = LedgerContext(
            request.chain_id,
            request.marketplace,
            request.job_id,
            request.host,
            request.model_id,
            request.interval,
            request.first_token_index,
            request.previous_commitment,
        )
        ids = request.token_ids[: len(request.token_ids) - self.leaves_out]
        proofs = []
        for chunk in chunk_ids(ids):
            commitment = hashlib.sha256(repr(chunk).encode()).digest()
            shown = ShownProof(commitment, len(chunk), context_limbs(context), b"proof" * 40)
            proofs.append(ProvedChunk(shown=shown, spent=Spent(1.5, 1.0, 100)))
            context = following(context, count=len(chunk), commitment=commitment)
        return ProveReply(profile=PROFILE, proofs=tuple(proofs))


@dataclass
class FakeStorage:
    """rpc.StorageClient."""

    blobs: dict[Cid, bytes] = field(default_factory=dict)
    is_down: bool = False

    async def store(self, data: bytes) -> Cid:
        if self.is_down:
            raise Unavailable("s5 is not reachable")
        cid = Cid("b" + hashlib.sha256(data).hexdigest())
        self.blobs[cid] = data
        return cid


@dataclass
class RegisteredModel:
    """evm.ModelInfo, the part that is read."""

    sha256: bytes = b"\x0d" * 32


@dataclass
class FakeContracts:
    """evm.Contracts towards sealer and runner."""

    unpaid: int = 0
    rate_limit: int = 2000

    async def model_rate_limit(self, model_id: str) -> int:
        return self.rate_limit

    async def model(self, model_id: str) -> RegisteredModel:
        return RegisteredModel()

    async def earnings(self, host: str, asset: str) -> int:
        return self.unpaid
