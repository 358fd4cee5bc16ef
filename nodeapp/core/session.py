"""One paid session as plain values: its state, and everything that can happen to it.

What a change does to a state is in transitions.py, what a state obliges the node to do is in
steps.py, what a reorganised chain takes back in reorgs.py.

Two kinds of facts stand side by side and never alter each other (decision 0006): what the chain
said, each with the block that said it (opened_in, proofs, ended, withdrawn), and what happened
here (stream, receipts, requests, claims). Whatever needs both is derived.

The token stream of a session is numbered from 0 over all its requests. Counters of our own:
first_kept <= covered <= acknowledged <= produced; only acknowledged tokens are ever claimed.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from nodeapp.core.ids import Address, Cid, JobId, ModelId, RequestId, TxHash
from nodeapp.core.pricing import affordable_tokens
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens


class Phase(StrEnum):
    """Where a session stands."""

    VANISHED = "vanished"
    """A reorg took its creation away; it goes on if the same creation comes again."""
    ACTIVE = "active"
    CLOSING = "closing"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


class ClaimStage(StrEnum):
    """How far one claim is."""

    PREPARED = "prepared"
    SEALED = "sealed"


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the contract says of a session; never changes."""

    chain_id: int
    marketplace: Address
    job_id: JobId
    renter: Address
    host: Address
    model_id: ModelId
    asset: Address
    deposit: BaseUnits
    price_per_token: PricePerToken
    proof_interval: Tokens
    proof_timeout_seconds: int
    max_duration_seconds: int
    started_at: BlockTime


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One interval of the stream; the next is prepared when the chain has taken this one."""

    interval: int
    first_token: Tokens
    tokens: Tokens
    salts: tuple[bytes, ...]
    """() once sealed: the proof is made and never made again."""
    previous_commitment: bytes
    stage: ClaimStage = ClaimStage.PREPARED
    proof_hash: bytes = b""
    proof_cid: Cid = Cid("")
    transcript_cid: Cid = Cid("")
    last_commitment: bytes = b""
    proofs: int = 0
    proof_bytes: int = 0
    prove_cpu_seconds: float = 0.0


class OpenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt being answered."""

    request_id: RequestId
    first_token: Tokens
    max_tokens: Tokens
    claimed_ids: tuple[int, ...] = ()
    """Ids of this answer that a claim took out of the stream; a resumed engine needs them."""


class PromptRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, readable by the renter only, and where its answer starts in the stream."""

    request_id: RequestId
    first_token: Tokens
    sealed: bytes


class AcceptedProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chain took a claim; its hash says which."""

    proof_hash: bytes
    tokens: Tokens
    at: BlockTime
    block: BlockNumber = BlockNumber(0)
    tx_hash: TxHash = TxHash("")


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chain settled the session."""

    phase: Phase
    host_earnings: BaseUnits
    refund: BaseUnits
    block: BlockNumber = BlockNumber(0)
    at: BlockTime = BlockTime(0)
    tx_hash: TxHash = TxHash("")
    tokens_used: Tokens = Tokens(-1)
    """All accepted claims together, as the chain says; -1: not recorded."""


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the node knows of one paid session.

    It is stored: a new field needs a default.
    """

    terms: Terms
    running_hash: bytes
    opened_in: BlockNumber | None = BlockNumber(0)
    """Block of the creation; None: a reorg took it away."""
    vanished_from: BlockNumber = BlockNumber(0)
    """The block that it was taken from."""
    opened_tx: TxHash = TxHash("")
    proofs: tuple[AcceptedProof, ...] = ()
    ended: Ended | None = None
    withdrawn: BaseUnits | None = None
    withdrawn_in: BlockNumber = BlockNumber(0)
    withdrawn_tx: TxHash = TxHash("")
    """Which transaction took the share out, with those of other sessions; "": none of ours."""
    renter_key: bytes = b""
    """Compressed secp256k1 key of the depositor, 33 bytes; pinned at first authentication."""
    closing: str = ""
    """Why renter, operator or idleness ended it; "": nobody did."""
    acknowledged: Tokens = Tokens(0)
    first_kept: Tokens = Tokens(0)
    """Place of stream[0]; what lies before it is in sealed claims."""
    stream: tuple[int, ...] = ()
    """Token ids [first_kept, produced)."""
    request: OpenRequest | None = None
    prompts: tuple[PromptRecord, ...] = ()
    """Prompts whose answers reach into the stream."""
    claims: tuple[Claim, ...] = ()
    first_interval: int = 0
    """Not 0 after a reorg gave the job id to another session: keys of transactions stay unique."""
    receipt_signature: bytes = b""
    forgotten: Tokens = Tokens(0)
    """Sent and never acknowledged: given away."""
    prompt_bytes: int = 0
    """Sealed prompts journalled so far."""

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        if self.opened_in is None:
            return Phase.VANISHED
        if self.ended is not None:
            return self.ended.phase
        return Phase.CLOSING if self.closing or self.is_claimed_elsewhere else Phase.ACTIVE

    @property
    def claimed(self) -> Tokens:
        """Tokens the chain has accepted."""
        return Tokens(sum(proof.tokens for proof in self.proofs))

    @property
    def intervals(self) -> int:
        """Number of the next claim."""
        return self.first_interval + len(self.claims)

    @property
    def covered(self) -> Tokens:
        """Tokens in claims, accepted or not: where the next one begins."""
        return Tokens(self.claims[-1].first_token + self.claims[-1].tokens if self.claims else 0)

    @property
    def produced(self) -> Tokens:
        """Tokens journalled before they were sent."""
        return Tokens(self.first_kept + len(self.stream))

    @property
    def affordable(self) -> Tokens:
        """Tokens the deposit pays for, whole session."""
        return affordable_tokens(self.terms.deposit, self.terms.price_per_token)

    @property
    def claim(self) -> Claim | None:
        """The oldest claim the chain may still take."""
        if not self.claims or self.ended is not None or self.is_claimed_elsewhere:
            return None
        taken = self._accepted_hashes
        return next((claim for claim in self.claims if claim.proof_hash not in taken), None)

    @property
    def mined_claims(self) -> tuple[Claim, ...]:
        """Claims the chain has accepted, oldest first."""
        taken = self._accepted_hashes
        return tuple(claim for claim in self.claims if claim.proof_hash in taken)

    @property
    def is_claimed_elsewhere(self) -> bool:
        """The chain has a claim this journal does not know; what it covers cannot be told."""
        if not self.proofs:
            return False  # nearly every open session, and this is asked with every block
        return not self._accepted_hashes <= {claim.proof_hash for claim in self.claims}

    @property
    def lacks_proofs(self) -> bool:
        """It ended with more claims than are known here: an endpoint left logs out."""
        return self.ended is not None and self.ended.tokens_used not in (-1, self.claimed)

    @property
    def previous_commitment(self) -> bytes:
        """Last commitment of the newest sealed claim, 32 bytes."""
        return self._sealed[-1].last_commitment if self._sealed else bytes(32)

    @property
    def previous_proof_hash(self) -> bytes:
        """Hash of the newest sealed claim, 32 bytes."""
        return self._sealed[-1].proof_hash if self._sealed else bytes(32)

    @property
    def last_proof_at(self) -> BlockTime:
        """From when the contract counts its windows."""
        return max((proof.at for proof in self.proofs), default=self.terms.started_at)

    @property
    def host_earnings(self) -> BaseUnits:
        """The host's share, net of the treasury's; 0 before the end."""
        return self.ended.host_earnings if self.ended is not None else BaseUnits(0)

    @property
    def refund(self) -> BaseUnits:
        """What the renter got back; 0 before the end."""
        return self.ended.refund if self.ended is not None else BaseUnits(0)

    @property
    def is_open(self) -> bool:
        """New requests may be authorised."""
        return self.phase is Phase.ACTIVE

    @property
    def is_settled(self) -> bool:
        """Ended on chain, and nothing of it is still to be withdrawn."""
        is_paid_out = self.withdrawn is not None or self.host_earnings == 0
        return self.opened_in is not None and self.ended is not None and is_paid_out

    @property
    def _accepted_hashes(self) -> frozenset[bytes]:
        return frozenset(proof.proof_hash for proof in self.proofs)

    @property
    def _sealed(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.stage is ClaimStage.SEALED)

    def ids(self, first: int, count: int) -> tuple[int, ...]:
        """Token ids [first, first + count); () when they are in a sealed claim already."""
        start = first - self.first_kept
        return self.stream[start : start + count] if start >= 0 else ()

    def delivered_ids(self) -> tuple[int, ...]:
        """Ids of the open request that the renter has acknowledged."""
        if self.request is None:
            return ()
        first = Tokens(max(self.request.first_token, self.first_kept))
        return self.request.claimed_ids + self.ids(first, self.acknowledged - first)


class SessionChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of everything that can happen to a session."""

    job_id: JobId


class ContractReceiveSessionOpened(SessionChange, frozen=True):
    """A confirmed SessionJobCreatedForModel names us as host.

    Changes that come from the chain carry their block; 0: known before blocks were recorded.
    """

    terms: Terms
    block: BlockNumber = BlockNumber(0)
    tx_hash: TxHash = TxHash("")


class RenterAuthenticated(SessionChange, frozen=True):
    """The depositor proved its key in a handshake."""

    renter_key: bytes


class RequestAuthorised(SessionChange, frozen=True):
    """max_tokens of the deposit are reserved for one prompt."""

    request_id: RequestId
    max_tokens: Tokens
    sealed_prompt: bytes


class RequestResumed(SessionChange, frozen=True):
    """The renter is back; what it did not acknowledge is forgotten and made again."""

    request_id: RequestId


class TokensProduced(SessionChange, frozen=True):
    """Written before the tokens leave the node."""

    request_id: RequestId
    token_ids: tuple[int, ...]


class RenterSentReceipt(SessionChange, frozen=True):
    """A valid signed receipt: the first `tokens` tokens of the session were received."""

    tokens: Tokens
    running_hash: bytes
    signature: bytes


class RequestEnded(SessionChange, frozen=True):
    """No more tokens of this request; the reservation is released."""

    request_id: RequestId
    reason: str


class SessionClosing(SessionChange, frozen=True):
    """Renter, operator or idleness ends the session: claim the rest, then complete."""

    reason: str


class ClaimPrepared(SessionChange, frozen=True):
    """An interval is fixed; from here on it is always the same tokens and salts."""

    claim: Claim


class ClaimSealed(SessionChange, frozen=True):
    """Proof made, verified and stored; the envelope must not be made again."""

    interval: int
    proof_hash: bytes
    proof_cid: Cid
    transcript_cid: Cid
    last_commitment: bytes
    proofs: int
    proof_bytes: int
    prove_cpu_seconds: float


class ContractReceiveProofAccepted(SessionChange, frozen=True):
    """A confirmed ProofSubmitted of ours."""

    tokens: Tokens
    proof_hash: bytes
    at: BlockTime
    block: BlockNumber = BlockNumber(0)
    tx_hash: TxHash = TxHash("")


class ContractReceiveSessionEnded(SessionChange, frozen=True):
    """A confirmed SessionCompleted or SessionTimedOut."""

    phase: Phase
    host_earnings: BaseUnits
    refund: BaseUnits
    block: BlockNumber = BlockNumber(0)
    at: BlockTime = BlockTime(0)
    tx_hash: TxHash = TxHash("")
    tokens_used: Tokens = Tokens(-1)
    """All accepted claims together, as the chain says; -1: not recorded."""


class EarningsWithdrawn(SessionChange, frozen=True):
    """The session's share left the earnings contract."""

    amount: BaseUnits
    block: BlockNumber = BlockNumber(0)
    tx_hash: TxHash = TxHash("")


Change = (
    ContractReceiveSessionOpened
    | RenterAuthenticated
    | RequestAuthorised
    | RequestResumed
    | TokensProduced
    | RenterSentReceipt
    | RequestEnded
    | SessionClosing
    | ClaimPrepared
    | ClaimSealed
    | ContractReceiveProofAccepted
    | ContractReceiveSessionEnded
    | EarningsWithdrawn
)
