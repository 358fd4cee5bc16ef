"""What the host's key was asked for is on record: what, for which session, and what came of it."""

import pytest
from eth_hash.auto import keccak

from nodeapp.chain.audited import ENVELOPE, AuditedSigner
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.signing import PolicySigner, host_policy
from nodeapp.core.audit import (
    MessageSigned,
    OfferSigned,
    SignatureRefused,
    TransactionSigned,
    Unrecorded,
)
from nodeapp.core.errors import Unavailable
from nodeapp.core.signing_policy import SigningRefused
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import Calls, approve, send_native, transfer
from nodeapp.evm.deployment import Deployment
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from nodeapp.wire.signed import capability_message, domain_separator, envelope_message
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import HOST

CHAIN_ID = 31337
MARKET, NODES, MODELS, PROOFS, EARNINGS, FAB, USDC, PAYOUT, THIEF = (
    "0x" + f"{number}" * 20 for number in range(11, 20)
)
DEPLOYMENT = Deployment(CHAIN_ID, NODES, MODELS, MARKET, PROOFS, EARNINGS, USDC, FAB)
CALLS = Calls(DEPLOYMENT)
SEPARATOR = domain_separator(CHAIN_ID, MARKET)


class Kept(Unrecorded):
    """A sink that remembers."""

    def __init__(self):
        self.events = []

    def record(self, event):
        self.events.append(event)

    async def keep(self, event):
        self.events.append(event)


def fields(call):
    values = {
        "type": 2, "chainId": CHAIN_ID, "nonce": 3, "value": call.value, "data": call.data,
        "gas": 100_000, "maxFeePerGas": 10**9, "maxPriorityFeePerGas": 1,
    }  # fmt: skip
    return values if call.to is None else values | {"to": call.to}


@pytest.fixture
async def signer(tmp_path):
    ledger = await Ledger.open(tmp_path / "j.db", owner=HOST, marker=tmp_path / "marker")
    wallet = new_wallet()
    policy = host_policy(ChainSettings(payout_address=PAYOUT), DEPLOYMENT, wallet.address)
    allowed = PolicySigner(wallet, policy, ledger, clock=FakeClock(), metrics=Metrics("chain"))
    yield AuditedSigner(allowed, Kept())
    await ledger.close()


SIGNED = [
    (
        CALLS.submit_proof(7, 100, b"\x01" * 32, proof_cid="a", delta_cid="b"),
        "submitProofOfWork",
        7,
    ),
    (CALLS.complete_session(8), "completeSessionJob", 8),
    (CALLS.trigger_timeout(9), "triggerSessionTimeout", 9),
    (CALLS.withdraw_earnings(USDC, 5), "withdraw", 0),
    (CALLS.set_model_price("0x" + "ab" * 32, USDC, 5), "setModelTokenPricing", 0),
    (approve(FAB, NODES, 5), "approve", 0),
    (transfer(USDC, PAYOUT, 5), "transfer", 0),
    (send_native(PAYOUT, 5), "payment", 0),
]


@pytest.mark.parametrize(("call", "function", "session"), SIGNED, ids=lambda one: str(one)[:20])
async def test_a_signed_transaction_is_told_by_its_own_bytes(signer, call, function, session):
    _raw, tx_hash = await signer.sign_transaction(fields(call))
    assert signer.audit.events == [
        TransactionSigned(
            function=function,
            to=call.to,
            session=session,
            nonce=3,
            value=str(call.value),
            max_gas_cost=str(10**14),
            chain_id=CHAIN_ID,
            tx_hash=tx_hash,
        )
    ]


async def test_a_nonce_that_is_used_up_is_nothing(signer):
    await signer.sign_transaction(fields(send_native(signer.address, 0)))
    assert signer.audit.events[0].function == "nothing"


async def test_what_the_policy_refuses_names_the_rule(signer):
    with pytest.raises(SigningRefused):
        await signer.sign_transaction(fields(send_native(THIEF, 5)))
    with pytest.raises(SigningRefused):
        await signer.sign_hashed(b"\x19\x01" + b"\x00" * 64)
    payment, message = signer.audit.events
    assert (payment.what, payment.to, payment.rule) == ("payment", THIEF, "unknown payee")
    assert THIEF in payment.reason
    assert (message.what, message.rule) == ("capability record", "unknown message")


class Gone:
    """A remote signer that does not answer."""

    address = HOST
    public_key = b""

    async def sign_transaction(self, fields):
        raise Unavailable("signer http://signer does not answer: TimeoutError")


async def test_a_signer_that_does_not_answer_is_on_record():
    signer = AuditedSigner(Gone(), Kept())
    with pytest.raises(Unavailable):
        await signer.sign_transaction(fields(CALLS.complete_session(8)))
    (event,) = signer.audit.events
    assert isinstance(event, SignatureRefused)
    assert (event.what, event.rule) == ("completeSessionJob", "signer: unavailable")


async def test_messages_are_told_by_purpose_and_digest(signer):
    envelope = envelope_message(SEPARATOR, b"\x02" * 32)
    await AuditedSigner(signer.inner, signer.audit, ENVELOPE).sign_hashed(envelope)
    offer = capability_message(SEPARATOR, b"record")
    await signer.sign_hashed(offer)
    assert signer.audit.events == [
        MessageSigned("proof envelope", "0x" + keccak(envelope).hex()),
        OfferSigned("0x" + keccak(offer).hex()),
    ]
