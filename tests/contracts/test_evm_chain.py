"""The EVM adapter against a real chain: one session from registration to withdrawal, and its faults."""

from __future__ import annotations

import msgspec
import pytest

from nodeapp.core.errors import NotFound, Rejected, Unavailable
from nodeapp.core.ids import JobId, ModelId
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.abi import load_abi
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import (
    NATIVE,
    UNLIMITED,
    SessionTerms,
    approve,
    send_native,
)
from nodeapp.evm.contracts import Contracts, SessionStatus
from nodeapp.evm.errors import Reverted
from nodeapp.evm.events import ProofSubmitted, SessionCompleted, SessionCreated, SessionTimedOut
from nodeapp.evm.generation import Generation
from nodeapp.evm.marketplace_events import MarketplaceEvents
from tests.contracts.market import DEPOSIT, Market
from tests.contracts.world import MODEL

PROOF = b"\x11" * 32


async def test_a_session_runs_from_deposit_to_withdrawal(market: Market) -> None:
    usdc, contracts = market.devnet.deployment.usdc, market.contracts
    assert await contracts.check() is Generation.V3
    node = await contracts.node(market.host.address)
    assert node.active
    assert node.model_ids == (MODEL.model_id,)
    assert market.host.public_key.hex() in node.metadata
    assert await contracts.nodes_for_model(MODEL.model_id) == (market.host.address,)
    job = await market.open()
    await market.pass_seconds(10)
    claim = market.calls.submit_proof(job, 1500, PROOF, proof_cid="proof", delta_cid="delta")
    await market.transactions.send(claim, market.host)
    assert await contracts.is_proof_used(PROOF)
    assert (await contracts.proof_submission(job, 0)).delta_cid == "delta"
    await market.pass_seconds(await contracts.dispute_window_seconds())
    receipt = await market.transactions.send(market.calls.complete_session(job), market.host)
    session = await contracts.session(job)
    assert session.status is SessionStatus.COMPLETED
    assert (session.tokens_used, session.last_proof_hash) == (1500, PROOF)
    assert (session.host_share, session.treasury_share, session.refund) == (2700, 300, 1_997_000)
    assert await contracts.treasury(usdc) == 300
    assert await contracts.earnings(market.host.address, usdc) == 2700
    await market.transactions.send(market.calls.withdraw_all_earnings(usdc), market.host)
    assert await contracts.asset_balance(usdc, market.host.address) == 2700
    assert receipt.cost > 0
    (completed,) = receipt.events(market.devnet.deployment.marketplace)
    assert isinstance(completed, SessionCompleted)
    assert (completed.payment, completed.refund) == (3000, 1_997_000)


async def test_events_come_in_chain_order_with_their_block(market: Market) -> None:
    job = await market.open()
    await market.pass_seconds(10)
    claim = market.calls.submit_proof(job, 200, PROOF, proof_cid="proof", delta_cid="delta")
    claimed = await market.transactions.send(claim, market.host)
    await market.pass_seconds(400)
    await market.transactions.send(market.calls.trigger_timeout(job), market.renter)
    logs = MarketplaceEvents(market.devnet.provider, market.devnet.deployment)
    head = await market.devnet.provider.block_number()
    events = await logs.get_events(BlockNumber(0), head, market.host.address)
    assert [type(event) for event in events] == [
        SessionCreated,
        ProofSubmitted,
        SessionCompleted,
        SessionTimedOut,
    ]
    proof = events[1]
    assert isinstance(proof, ProofSubmitted)
    assert (proof.tokens, proof.proof_hash, proof.proof_cid) == (200, PROOF, "proof")
    assert (proof.at.tx_hash, proof.at.block_hash) == (claimed.hash, claimed.block_hash)
    block = await market.devnet.provider.block(proof.at.block_number)
    assert block.hash == proof.at.block_hash
    assert await logs.get_events(BlockNumber(0), head) == events
    foreign = await logs.get_events(BlockNumber(0), head, market.renter.address)
    assert {type(event) for event in foreign} == {SessionCompleted, SessionTimedOut}
    assert await logs.get_events(BlockNumber(head + 1), head) == ()


async def test_old_state_is_readable_by_block(market: Market) -> None:
    before = await market.devnet.provider.block_number()
    job = await market.open()
    with pytest.raises(NotFound, match=f"session {job} does not exist"):
        await market.contracts.session(job, before)


async def test_a_revert_carries_the_contracts_reason(market: Market) -> None:
    job = await market.open()
    claim = market.calls.submit_proof(job, 99, PROOF, proof_cid="", delta_cid="")
    nonce = await market.transactions.nonce(market.host.address)
    with pytest.raises(Reverted, match="submitProofOfWork reverted: Min tokens") as caught:
        await market.transactions.prepare(claim, market.host, nonce)
    assert caught.value.reason == "Min tokens"
    assert caught.value.code == "rejected"
    assert await market.transactions.nonce(market.host.address) == nonce


async def test_a_mined_failure_is_an_error_with_its_reason(market: Market) -> None:
    job = await market.open()
    claim = market.calls.submit_proof(job, 99, PROOF, proof_cid="", delta_cid="")
    nonce = await market.transactions.nonce(market.host.address)
    signed = await market.transactions.prepare(claim, market.host, nonce, gas=500_000)
    await market.transactions.broadcast(signed)
    with pytest.raises(Reverted, match=signed.hash) as caught:
        await market.transactions.wait_mined(signed.hash)
    assert caught.value.reason == "Min tokens"


async def test_the_same_bytes_can_be_sent_again_at_any_time(market: Market) -> None:
    provider, transactions = market.devnet.provider, market.transactions
    await provider.request("evm_setAutomine", [False])
    nonce = await transactions.nonce(market.host.address)
    call = send_native(market.renter.address, Wei(1))
    signed = await transactions.prepare(call, market.host, nonce)
    for _ in range(2):
        assert await transactions.broadcast(signed) == signed.hash
    assert await transactions.receipt(signed.hash) is None
    await provider.request("evm_mine", [])
    first = await transactions.wait_mined(signed.hash)
    assert await transactions.broadcast(signed) == signed.hash
    assert await transactions.wait_mined(signed.hash) == first


async def test_another_transaction_with_a_used_nonce_is_refused(market: Market) -> None:
    transactions = market.transactions
    nonce = await transactions.nonce(market.host.address)
    await transactions.send(send_native(market.renter.address, Wei(1)), market.host)
    other = await transactions.prepare(
        send_native(market.renter.address, Wei(2)), market.host, nonce
    )
    with pytest.raises(Rejected, match=f"nonce {nonce} refused"):
        await transactions.broadcast(other)


async def test_waiting_ends_at_its_deadline(market: Market) -> None:
    await market.devnet.provider.request("evm_setAutomine", [False])
    nonce = await market.transactions.nonce(market.host.address)
    call = send_native(market.renter.address, Wei(1))
    signed = await market.transactions.prepare(call, market.host, nonce)
    await market.transactions.broadcast(signed)
    with pytest.raises(Unavailable, match=r"no 1 confirmations after 0\.1 s"):
        await market.transactions.wait_mined(signed.hash, deadline_seconds=0.1)


async def test_confirmations_are_counted_in_blocks(market: Market) -> None:
    receipt = await market.transactions.send(
        send_native(market.renter.address, Wei(1)), market.host
    )
    with pytest.raises(Unavailable):
        await market.transactions.wait_mined(receipt.hash, 3, deadline_seconds=0.1)
    await market.devnet.provider.request("anvil_mine", ["0x2"])
    assert await market.transactions.wait_mined(receipt.hash, 3) == receipt


async def test_an_account_without_coins_is_told_so(market: Market) -> None:
    poor = new_wallet()
    with pytest.raises(Rejected, match=r"(?i)insufficient funds"):
        await market.transactions.send(send_native(market.renter.address, Wei(1)), poor)


async def test_a_renter_without_usdc_is_told_so(market: Market) -> None:
    poor = new_wallet()
    await market.devnet.fund_native(poor.address, Wei(10**18))
    usdc, marketplace = market.devnet.deployment.usdc, market.devnet.deployment.marketplace
    await market.transactions.send(approve(usdc, marketplace, UNLIMITED), poor)
    call = market.calls.create_session(
        market.host.address, MODEL.model_id, usdc, DEPOSIT, SessionTerms(2000, 3600, 100, 300)
    )
    with pytest.raises(Reverted, match="Insufficient balance"):
        await market.transactions.send(call, poor)


async def test_unknown_things_are_not_found(market: Market) -> None:
    unknown = ModelId("0x" + "99" * 32)
    with pytest.raises(NotFound, match="session 77 does not exist"):
        await market.contracts.session(JobId(77))
    with pytest.raises(NotFound, match="is not registered"):
        await market.contracts.node(market.renter.address)
    with pytest.raises(NotFound, match="has no price for model"):
        await market.contracts.model_price(market.host.address, unknown, NATIVE)
    with pytest.raises(NotFound, match="is not in the registry"):
        await market.contracts.model(unknown)


async def test_a_deployment_that_is_not_there_is_named(market: Market) -> None:
    deployment = market.devnet.deployment
    wrong = msgspec.structs.replace(deployment, usdc=market.renter.address)
    with pytest.raises(Rejected, match=f"no contract stands at usdc {market.renter.address}"):
        await Contracts(market.devnet.provider, wrong).check()
    wrong = msgspec.structs.replace(deployment, node_registry=deployment.usdc)
    with pytest.raises(Rejected, match="uses node_registry 0x"):
        await Contracts(market.devnet.provider, wrong).check()
    wrong = msgspec.structs.replace(deployment, marketplace=deployment.usdc)
    with pytest.raises(Rejected, match="older than v2"):
        await Contracts(market.devnet.provider, wrong).check()


async def test_contracts_that_point_elsewhere_are_named(market: Market) -> None:
    deployment = market.devnet.deployment
    for name, other in (("usdc", "fab"), ("fab", "usdc"), ("proof_system", "host_earnings")):
        wrong = msgspec.structs.replace(deployment, **{name: getattr(deployment, other)})
        with pytest.raises(Rejected, match=f"uses {name} .*correct the deployment file"):
            await Contracts(market.devnet.provider, wrong).check()


async def test_another_generation_than_the_wanted_one_is_refused(market: Market) -> None:
    assert await market.contracts.check(Generation.V3) is Generation.V3
    with pytest.raises(Rejected, match=r'speaks abi v3, chain\.abi is "v2"'):
        await market.contracts.check(Generation.V2)


def _answering(*selectors: str) -> str:
    """Runtime code that answers 32 zero bytes to these selectors and reverts otherwise."""
    start = "5f3560e01c"  # selector = calldata[0:4]
    size = len(start) // 2 + 10 * len(selectors) + 4
    checks = "".join(f"8063{selector}1460{size:02x}57" for selector in selectors)
    return "0x" + start + checks + "5f5ffd" + "00" * 1 + "5b60205ff3"


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        (("nodeRegistry",), "speaks an abi older than v2"),
        ((), "is no marketplace"),
    ],
)
async def test_an_old_marketplace_is_refused_in_words(market: Market, functions, told) -> None:
    abi = load_abi("JobMarketplace").functions
    code = _answering(*(abi[name].selector.hex() for name in functions))
    marketplace = market.devnet.deployment.marketplace
    await market.devnet.provider.request("anvil_setCode", [marketplace, code])
    with pytest.raises(Rejected, match=told):
        await market.contracts.check()


async def test_a_marketplace_without_delegate_limits_is_v2(market: Market) -> None:
    deployment = market.devnet.deployment
    abi = load_abi("JobMarketplace").functions
    code = _answering(abi["MIN_PROOF_TIMEOUT"].selector.hex(), abi["nodeRegistry"].selector.hex())
    await market.devnet.provider.request("anvil_setCode", [deployment.marketplace, code])
    with pytest.raises(Rejected, match=r"uses node_registry 0x0{40}"):
        await market.contracts.check(Generation.V2)
