"""Any order of changes and reorgs keeps the counters in order, and the journal replays to it."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nodeapp.chain.draft import Draft
from nodeapp.chain.ledger import Entry, RewoundTo
from nodeapp.core.chain_view import ChainView
from nodeapp.core.errors import Rejected
from nodeapp.core.outbox import Outbox
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    EarningsWithdrawn,
    Phase,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    RequestResumed,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import (
    CompleteSession,
    PrepareClaim,
    SealClaim,
    SubmitClaim,
    WithdrawEarnings,
    next_step,
)
from nodeapp.core.transitions import apply, open_session
from tests.fakes.paid_session import (
    JOB,
    STARTED_AT,
    claim_of,
    opened,
    request_id,
    running_hash,
    sealed,
)

ENDED = (Phase.COMPLETED, Phase.TIMED_OUT)
NUMBERS = st.integers(1, 3)
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class SessionMachine(RuleBasedStateMachine):
    """The renter's view (`received`, `signed`) runs beside the node's."""

    def __init__(self):
        super().__init__()
        self.block = 1
        first = self.creation()
        self.session = open_session(first)
        self.journal = [_encode(first)]
        self.received = []
        self.signed = 0
        self.claims = []
        """(block, tokens) that the chain holds."""
        self.now = STARTED_AT

    def creation(self):
        return opened(deposit=1_500, price=1_000, interval=150, block=self.block)

    def change(self, change):
        try:
            after = apply(self.session, change)
        except Rejected:
            return False
        self.journal.append(_encode(change))
        self.session = after
        return True

    @rule(number=NUMBERS, tokens=st.integers(1, 900))
    def ask(self, number, tokens):
        if self.change(RequestAuthorised(JOB, request_id(number), tokens, b"p")):
            self.received = self.received[: self.session.produced]

    @rule(number=NUMBERS)
    def resume(self, number):
        if self.change(RequestResumed(JOB, request_id(number))):
            self.received = self.received[: self.session.produced]
            assert self.session.delivered_ids() == tuple(
                self.received[self.session.request.first_token :]
            )

    @rule(number=NUMBERS, ids=st.lists(st.integers(0, 2**21 - 2), max_size=200))
    def produce(self, number, ids):
        if self.change(TokensProduced(JOB, request_id(number), tuple(ids))):
            self.received += ids

    @precondition(lambda self: self.session.request is not None)
    @rule(size=st.integers(1, 300))
    def produce_for_the_open_request(self, size):
        start = len(self.received)
        ids = tuple(range(start, start + size))
        if self.change(TokensProduced(JOB, self.session.request.request_id, ids)):
            self.received += ids

    @rule(count=st.integers(0, 1_600))
    def sign(self, count):
        ids = self.received[:count]
        if self.change(RenterSentReceipt(JOB, len(ids), running_hash(ids), b"s")):
            self.signed = max(self.signed, len(ids))

    @rule(count=st.integers(1, 1_600))
    def sign_for_other_tokens(self, count):
        before = self.session
        self.change(RenterSentReceipt(JOB, count, b"\x00" * 32, b"s"))
        assert self.session == before

    @rule(number=NUMBERS)
    def end_request(self, number):
        self.change(RequestEnded(JOB, request_id(number), "stop"))

    @rule(seconds=st.integers(1, 200))
    def chain_goes_on(self, seconds):
        self.now += seconds
        self.block += 1
        step = next_step(self.session, self.now, interval_tokens=400, dispute_window_seconds=30)
        match step:
            case PrepareClaim(tokens=tokens):
                assert self.change(ClaimPrepared(JOB, claim_of(self.session, tokens)))
            case SealClaim(claim=claim):
                assert self.change(sealed(claim))
            case SubmitClaim(claim=claim):
                least = 150 if not self.claims else 100
                assert claim.tokens >= least
                assert self.change(
                    ContractReceiveProofAccepted(
                        JOB, claim.tokens, claim.proof_hash, self.now, self.block
                    )
                )
                self.claims.append((self.block, claim.tokens))
            case CompleteSession():
                paid = self.paid()
                assert self.change(
                    ContractReceiveSessionEnded(
                        JOB, Phase.COMPLETED, paid, 1_500 - paid, self.block
                    )
                )
            case WithdrawEarnings():
                assert self.change(EarningsWithdrawn(JOB, self.session.host_earnings, self.block))

    def paid(self):
        return sum(tokens for _, tokens in self.claims)

    @rule(depth=st.integers(1, 12))
    def reorganise(self, depth):
        before = self.session
        fork = max(0, self.block - depth)
        change = RewoundTo(fork, "0x" if fork else "")
        self.journal.append(_encode(change))
        draft = Draft({JOB: self.session}, Outbox(), ChainView()).add([change])
        self.session = draft.sessions.get(JOB, self.session)
        self.claims = [one for one in self.claims if one[0] <= fork]
        for name in ("stream", "acknowledged", "request", "prompts", "claims", "closing"):
            assert getattr(self.session, name) == getattr(before, name), "local facts stay"

    @precondition(lambda self: self.session.phase is Phase.VANISHED)
    @rule()
    def the_creation_comes_again(self):
        self.block += 1
        assert self.change(self.creation())

    @rule(tokens=st.integers(-5, 400))
    def prepare_any_claim(self, tokens):
        unclaimed = self.session.acknowledged - self.session.covered
        fits = self.session.claim is None and 0 < tokens <= unclaimed
        if not fits:
            assert not self.change(ClaimPrepared(JOB, claim_of(self.session, tokens)))

    @precondition(lambda self: len(self.journal) > 25)
    @rule()
    def close(self):
        self.change(SessionClosing(JOB, "idle"))

    @invariant()
    def counters_are_in_order(self):
        session = self.session
        assert session.claimed <= session.acknowledged <= session.affordable
        if session.phase not in ENDED:
            assert session.acknowledged <= session.produced <= session.affordable

    @invariant()
    def exactly_what_was_signed_counts(self):
        assert self.session.acknowledged == self.signed
        assert self.paid() == self.session.claimed <= self.session.covered <= self.signed

    @invariant()
    def the_unclaimed_stream_is_what_the_renter_got(self):
        session = self.session
        if session.phase not in ENDED:
            assert session.stream == tuple(self.received[session.first_kept : session.produced])

    @invariant()
    def a_claim_holds_acknowledged_tokens_only(self):
        claim = self.session.claim
        if claim is not None:
            assert claim.first_token + claim.tokens <= self.session.acknowledged

    def teardown(self):
        replayed = Draft({}, Outbox(), ChainView()).add([_decode(line) for line in self.journal])
        assert replayed.sessions[JOB] == self.session


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
