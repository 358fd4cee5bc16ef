"""The host's key signs what a host does and nothing else, wherever the key is."""

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from eth_account import Account
from eth_hash.auto import keccak

from nodeapp.chain.signing import PolicySigner, host_policy, journal_marker, open_signer
from nodeapp.core.errors import InvalidRequest, Rejected, Unauthorised, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.outbox import TransactionMined, TransactionSigned
from nodeapp.core.signing_policy import Rule, SigningRefused
from nodeapp.devnet.provision import ensure_keys
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import Calls, approve, send_native, transfer
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.signers import RemoteSigner
from nodeapp.security.wallet import verify_digest
from nodeapp.service.config import credential_path
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from nodeapp.wire.signed import (
    capability_digest,
    capability_message,
    domain_separator,
    envelope_digest,
    envelope_message,
)
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import open_ledger
from tests.fakes.remote_signer import RemoteSignerServer, serving

CHAIN_ID = 31337


def address(number):
    return "0x" + f"{number:02d}" * 20


MARKET, NODES, MODELS, PROOFS, EARNINGS, FAB, USDC = (address(n) for n in range(11, 18))
DEPLOYMENT = Deployment(CHAIN_ID, NODES, MODELS, MARKET, PROOFS, EARNINGS, USDC, FAB)
CALLS = Calls(DEPLOYMENT)
PAYOUT = address(99)
THIEF = address(66)
SETTINGS = ChainSettings(payout_address=PAYOUT, max_gas_per_day=10**15, max_payout_per_day=1000)


def fields(call, gas=100_000, fee=10**9):
    values = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": 3,
        "value": call.value,
        "data": call.data,
        "gas": gas,
        "maxFeePerGas": fee,
        "maxPriorityFeePerGas": 1,
    }
    return values if call.to is None else values | {"to": call.to}


@pytest.fixture
async def ledger(tmp_path):
    ledger = await open_ledger(tmp_path)
    yield ledger
    await ledger.close()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def signer(ledger, clock):
    wallet = new_wallet()
    policy = host_policy(SETTINGS, DEPLOYMENT, wallet.address)
    return PolicySigner(wallet, policy, ledger, clock=clock, metrics=Metrics("chain"))


ALLOWED = [
    CALLS.submit_proof(7, 100, b"\x01" * 32, proof_cid="a", delta_cid="b"),
    CALLS.complete_session(7),
    CALLS.trigger_timeout(7),
    CALLS.withdraw_earnings(USDC, 5),
    CALLS.set_model_price("0x" + "ab" * 32, USDC, 5),
    CALLS.unregister_node(),
    approve(FAB, NODES, 5),
    transfer(USDC, PAYOUT, 5),
    send_native(PAYOUT, 5),
]


@pytest.mark.parametrize("call", ALLOWED, ids=lambda call: call.function)
async def test_what_a_host_does_is_signed(signer, call):
    raw, _ = await signer.sign_transaction(fields(call))
    assert Account.recover_transaction(raw) == signer.address


async def test_a_nonce_may_be_used_up_with_nothing(signer):
    await signer.sign_transaction(fields(send_native(signer.address, 0)))


REFUSED = [
    (transfer(USDC, THIEF, 5), Rule.PAYEE),
    (send_native(THIEF, 5), Rule.PAYEE),
    (send_native(PAYOUT, 1001), Rule.PAYOUT_CAP),
    (approve(FAB, THIEF, 5), Rule.SPENDER),
    (approve(USDC, NODES, 5), Rule.FUNCTION),
    (transfer(MARKET, PAYOUT, 5), Rule.FUNCTION),
    (transfer(THIEF, PAYOUT, 5), Rule.CONTRACT),
    (replace(CALLS.complete_session(7), value=1), Rule.VALUE),
    (replace(CALLS.complete_session(7), to=None), Rule.CREATION),
    (replace(CALLS.complete_session(7), data=b"\x00" * 36), Rule.FUNCTION),
    (replace(CALLS.complete_session(7), to=MODELS), Rule.CONTRACT),
]


@pytest.mark.parametrize(("call", "rule"), REFUSED, ids=lambda value: str(value)[:40])
async def test_anything_else_is_refused_by_its_rule(signer, call, rule):
    with pytest.raises(SigningRefused) as caught:
        await signer.sign_transaction(fields(call))
    assert caught.value.rule is rule


async def test_without_a_payout_address_no_money_leaves(ledger, clock):
    wallet = new_wallet()
    policy = host_policy(ChainSettings(), DEPLOYMENT, wallet.address)
    signer = PolicySigner(wallet, policy, ledger, clock=clock, metrics=Metrics("chain"))
    for call in (transfer(USDC, PAYOUT, 1), send_native(PAYOUT, 1)):
        with pytest.raises(SigningRefused, match="unknown payee"):
            await signer.sign_transaction(fields(call))


async def test_refusals_are_counted_by_rule(ledger, clock):
    metrics, wallet = Metrics("chain"), new_wallet()
    policy = host_policy(SETTINGS, DEPLOYMENT, wallet.address)
    signer = PolicySigner(wallet, policy, ledger, clock=clock, metrics=metrics)
    for _ in range(2):
        with pytest.raises(SigningRefused):
            await signer.sign_transaction(fields(send_native(THIEF, 5)))
    assert b'fabstir_chain_signing_refused_total{rule="unknown payee"} 2.0' in metrics.render()


async def test_gas_of_a_day_is_capped_and_a_day_later_free(signer, clock):
    """10**15 wei a day, 10**14 a transaction."""
    call = CALLS.complete_session(7)
    for _ in range(10):
        await signer.sign_transaction(fields(call))
    with pytest.raises(SigningRefused, match=r"chain\.max_gas_per_day is 1000000000000000"):
        await signer.sign_transaction(fields(call))
    clock.now += 86_401
    await signer.sign_transaction(fields(call))


async def test_payouts_of_a_day_add_up(signer):
    for _ in range(2):
        await signer.sign_transaction(fields(send_native(PAYOUT, 500)))
    with pytest.raises(SigningRefused, match="payouts per day"):
        await signer.sign_transaction(fields(send_native(PAYOUT, 1)))


async def test_a_restart_does_not_forget_what_was_spent(ledger, clock):
    spent = TransactionSigned("claim/1/0", 0, "0x1", b"raw", 10**9, 1)
    now = int(clock.unix_seconds())
    mined = TransactionMined("claim/1/0", "0x1", 1, 5, "0x5", now - 60, 10**15)
    await ledger.record(spent, mined)
    wallet = new_wallet()
    policy = host_policy(SETTINGS, DEPLOYMENT, wallet.address)
    signer = PolicySigner(wallet, policy, ledger, clock=clock, metrics=Metrics("chain"))
    with pytest.raises(SigningRefused, match="gas per day"):
        await signer.sign_transaction(fields(CALLS.complete_session(7)))


async def test_payouts_before_a_restart_count(ledger, clock):
    """1000 wei a day; restarting, even every minute, does not make it more."""
    now = int(clock.unix_seconds())
    await ledger.record(
        TransactionSigned("payout/all/0", 0, "0x1", b"", 22, 2, is_payment=True, value=600),
        TransactionSigned("payout/all/1", 1, "0x2", b"", 22, 2, is_payment=True, value=300),
    )
    mined = TransactionMined("payout/all/0", "0x1", 1, 5, "0x5", now - 60, 1, 600)
    await ledger.record(mined)
    wallet = new_wallet()
    policy = host_policy(SETTINGS, DEPLOYMENT, wallet.address)
    signer = PolicySigner(wallet, policy, ledger, clock=clock, metrics=Metrics("chain"))
    with pytest.raises(SigningRefused, match="payouts per day"):
        await signer.sign_transaction(fields(send_native(PAYOUT, 200)))
    await signer.sign_transaction(fields(send_native(PAYOUT, 100)))


async def test_only_messages_of_this_marketplace_are_signed(signer):
    separator = domain_separator(CHAIN_ID, MARKET)
    signature = await signer.sign_hashed(capability_message(separator, b"record"))
    verify_digest(capability_digest(separator, b"record"), signature, signer.address)
    signature = await signer.sign_hashed(envelope_message(separator, b"\x05" * 32))
    verify_digest(envelope_digest(separator, b"\x05" * 32), signature, signer.address)
    elsewhere = capability_message(domain_separator(CHAIN_ID, THIEF), b"record")
    raw, _ = await new_wallet().sign_transaction(fields(send_native(THIEF, 5)))
    for message in (elsewhere, raw, b"", capability_message(separator, b"r") + b"\x00"):
        with pytest.raises(SigningRefused, match="unknown message"):
            await signer.sign_hashed(message)


# --- a remote key -----------------------------------------------------------------


@pytest.fixture
def server():
    return RemoteSignerServer(new_wallet(), CHAIN_ID)


@pytest.mark.parametrize("over", ["http", "unix"])
async def test_a_remote_signer_signs_like_a_local_key(server, over, tmp_path):
    call, separator = CALLS.complete_session(7), domain_separator(CHAIN_ID, MARKET)
    socket = tmp_path / "s.sock" if over == "unix" else None
    async with (
        serving(server, socket) as url,
        RemoteSigner(url, server.wallet.address) as signer,
    ):
        assert signer.public_key == server.wallet.public_key
        signed = await signer.sign_transaction(fields(call))
        assert signed == await server.wallet.sign_transaction(fields(call))
        message = capability_message(separator, b"record")
        assert await signer.sign_hashed(message) == server.wallet.sign_digest(keccak(message))
    assert server.asked == ["eth_signTransaction", "sign"]


@pytest.mark.parametrize(
    "lie",
    [{"value": 9}, {"nonce": 4}, {"gas": 1}, {"chainId": 1}, {"to": THIEF}, {"data": b"\x01"}],
    ids=str,
)
async def test_a_remote_signer_that_signs_something_else_is_not_believed(server, lie):
    server.lie = lie
    async with serving(server) as url, RemoteSigner(url, server.wallet.address) as signer:
        with pytest.raises(Unauthorised, match="another transaction than it was asked for"):
            await signer.sign_transaction(fields(CALLS.complete_session(7)))


async def test_a_remote_signer_that_answers_rubbish_ends_nothing(server):
    """Bytes cut short, of another kind of transaction, or none at all: refused, not a crash."""
    call = fields(CALLS.complete_session(7))
    good, _ = await server.wallet.sign_transaction(call)
    fees = {"maxFeePerGas", "maxPriorityFeePerGas"}
    older = {name: value for name, value in call.items() if name not in fees}
    kind_1, _ = await server.wallet.sign_transaction(older | {"type": 1, "gasPrice": 5})
    rubbish = (b"", b"\x02", b"\x02\xff\xff", b"\x02\xc0", good[:-3], good + b"\0", kind_1)
    async with serving(server) as url, RemoteSigner(url, server.wallet.address) as signer:
        for raw in rubbish:
            server.raw = raw
            with pytest.raises(Unauthorised, match=r"no EIP-1559 transaction"):
                await signer.sign_transaction(call)


async def test_a_remote_signer_that_signs_as_another_is_not_believed(server):
    server.other = new_wallet()
    async with serving(server) as url, RemoteSigner(url, server.wallet.address) as signer:
        with pytest.raises(Unauthorised):
            await signer.sign_transaction(fields(CALLS.complete_session(7)))
        with pytest.raises(Unauthorised, match="another key"):
            await signer.sign_hashed(b"message")


async def test_a_remote_refusal_and_silence_are_told_apart(server):
    server.refuse = "signer is locked"
    async with serving(server) as url:
        async with RemoteSigner(url, server.wallet.address) as signer:
            with pytest.raises(Rejected, match="signer is locked"):
                await signer.sign_transaction(fields(CALLS.complete_session(7)))
        with pytest.raises(Rejected, match="has no key of"):
            async with RemoteSigner(url, new_wallet().address):
                pass
    with pytest.raises(Unavailable, match="does not answer"):
        async with RemoteSigner(url, server.wallet.address):
            pass


async def test_settings_choose_the_remote_signer(server):
    async with serving(server) as url, AsyncExitStack() as resources:
        settings = ChainSettings(signer_url=url, signer_address=server.wallet.address)
        assert (await open_signer(settings, resources)).address == server.wallet.address
        with pytest.raises(InvalidRequest, match=r"chain\.signer_address is not"):
            await open_signer(ChainSettings(signer_url=url), resources)


# --- a key that systemd hands over -----------------------------------------------------


async def test_a_keystore_may_be_a_systemd_credential(tmp_path, monkeypatch):
    keys = ensure_keys(tmp_path, "host")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = ChainSettings(
        keystore_file="credential:host.json", password_file="credential:host.password"
    )
    async with AsyncExitStack() as resources:
        opened = await open_signer(settings, resources)
    assert opened.address == keys.wallet.address
    marker = journal_marker(settings, tmp_path / "state", opened.address)
    assert marker == tmp_path / "state" / f"{opened.address}.journal", "it outlives the credential"


@pytest.mark.parametrize("name", ["credential:", "credential:../x", "credential:a/b"])
def test_a_credential_is_one_file_of_the_directory(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(InvalidRequest, match="hands over no credential"):
        credential_path(name)


def test_a_credential_without_systemd_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(InvalidRequest, match="add LoadCredential=host:/path to the unit"):
        credential_path("credential:host")


def test_where_keys_are_shown_read_only_the_journal_is_noted_in_the_state(tmp_path, monkeypatch):
    settings = ChainSettings(keystore_file=str(tmp_path / "keys" / "host.json"))
    account = Address("0x" + "11" * 20)
    beside = tmp_path / "keys" / "host.json.journal"
    beside.parent.mkdir()
    assert journal_marker(settings, tmp_path / "state", account) == beside
    # Root may write everywhere: what a read-only mount says is said here.
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    assert journal_marker(settings, tmp_path / "state", account) == (
        tmp_path / "state" / f"{account}.journal"
    )
    beside.write_text("noted before")
    assert journal_marker(settings, tmp_path / "state", account) == beside
