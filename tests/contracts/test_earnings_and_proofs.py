"""HostEarnings, ProofSystem, the assets, and a refund that cannot be delivered."""

from __future__ import annotations

from pathlib import Path

from nodeapp.core.units import Wei
from nodeapp.devnet.build import compile_contract
from nodeapp.evm.abi import Call, checksum, creation, parse_abi
from nodeapp.evm.calls import NATIVE, UNLIMITED, approve, mint, transfer
from tests.contracts.world import MODEL, NATIVE_PRICE, World, refused

WITHOUT_RECEIVE = """
# pragma version 0.4.3
interface Market:
    def createSessionJobForModel(
        host: address, modelId: bytes32, price: uint256, duration: uint256,
        interval: uint256, window: uint256
    ) -> uint256: payable
    def completeSessionJob(jobId: uint256, cid: String[256]): nonpayable

@external
@payable
def open(market: address, host: address, modelId: bytes32, price: uint256) -> uint256:
    return extcall Market(market).createSessionJobForModel(
        host, modelId, price, 3600, 1000, 300, value=msg.value
    )

@external
def close(market: address, jobId: uint256):
    extcall Market(market).completeSessionJob(jobId, "")
"""


def _earn(world: World, tokens: int = 1000) -> int:
    job = world.open()
    world.pass_seconds(10)
    world.claim(job, tokens)
    world.complete(job, world.renter)
    return world.session(job)["host_share"]


def test_a_host_withdraws_part_and_then_the_rest(world: World) -> None:
    usdc = world.deployment.usdc
    share = _earn(world)
    receipt = world.send(world.calls.withdraw_earnings(usdc, 300), world.host)
    event = world.events(receipt, "HostEarnings")["EarningsWithdrawn"]
    assert (event["amount"], event["remainingBalance"]) == (300, share - 300)
    world.send(world.calls.withdraw_all_earnings(usdc), world.host)
    assert world.usdc(world.host) == share
    assert world.earned(usdc) == 0
    with refused("Zero amount"):
        world.send(world.calls.withdraw_all_earnings(usdc), world.host)


def test_several_assets_are_withdrawn_at_once(world: World) -> None:
    usdc = world.deployment.usdc
    share = _earn(world)
    world.send(world.calls.withdraw_several_earnings([NATIVE, usdc]), world.host)
    assert world.usdc(world.host) == share
    balances = world.read(
        world.deployment.host_earnings, "HostEarnings", "getBalances", world.host, [usdc, NATIVE]
    )
    assert balances == (0, 0)


def test_nobody_withdraws_more_than_the_own_earnings(world: World) -> None:
    usdc = world.deployment.usdc
    share = _earn(world)
    with refused("Insufficient balance"):
        world.send(world.calls.withdraw_earnings(usdc, share + 1), world.host)
    with refused("Insufficient balance"):
        world.send(world.calls.withdraw_earnings(usdc, 1), world.stranger)


def test_only_the_marketplace_credits_and_marks(world: World) -> None:
    earnings, proofs = world.deployment.host_earnings, world.deployment.proof_system
    credit = world.call(earnings, "HostEarnings", "creditEarnings", world.host, 1, NATIVE)
    mark = world.call(proofs, "ProofSystem", "markProofUsed", b"\1" * 32, world.host, 1, bytes(32))
    for call in (credit, mark):
        for sender in (world.host, world.owner):
            with refused("Not authorized"):
                world.send(call, sender)
    for address, contract in ((earnings, "HostEarnings"), (proofs, "ProofSystem")):
        allow = world.call(address, contract, "setAuthorizedCaller", world.host, True)
        with refused("Not owner"):
            world.send(allow, world.host)


def test_assets_move_as_erc20_says(world: World) -> None:
    usdc = world.deployment.usdc
    assert world.read(usdc, "Erc20", "decimals") == 6
    assert world.read(usdc, "Erc20", "symbol") == "USDC"
    assert world.read(world.deployment.fab, "Erc20", "decimals") == 18
    supply = world.read(usdc, "Erc20", "totalSupply")
    world.send(mint(usdc, world.stranger, 100), world.stranger)
    assert world.read(usdc, "Erc20", "totalSupply") == supply + 100
    world.send(transfer(usdc, world.host, 40), world.stranger)
    with refused("Insufficient balance"):
        world.send(transfer(usdc, world.host, 61), world.stranger)
    world.send(approve(usdc, world.owner, 50), world.stranger)
    pull = world.call(usdc, "Erc20", "transferFrom", world.stranger, world.host, 30)
    world.send(pull, world.owner)
    assert world.read(usdc, "Erc20", "allowance", world.stranger, world.owner) == 20
    with refused("Insufficient allowance"):
        world.send(pull, world.owner)
    assert world.read(usdc, "Erc20", "allowance", world.renter, world.deployment.marketplace) == (
        UNLIMITED
    )


def test_a_refund_that_cannot_be_delivered_waits_in_the_marketplace(
    world: World, tmp_path: Path
) -> None:
    source = tmp_path / "NoReceive.vy"
    source.write_text(WITHOUT_RECEIVE)
    artifact = compile_contract(source)
    abi = parse_abi(artifact["abi"])
    created = world.send(
        creation("NoReceive", artifact["bytecode"], artifact["abi"], ()), world.renter
    )
    wallet = checksum(created["contract_address"])

    def call(function: str, *arguments: object, value: int = 0) -> Call:
        return Call(wallet, function, abi.functions[function].encode(arguments), value)

    market, deposit = world.deployment.marketplace, 10**16
    job = world.market("nextJobId")
    model = bytes.fromhex(MODEL.model_id[2:])
    opening = call("open", market, world.host, model, NATIVE_PRICE, value=deposit)
    world.send(opening, world.renter)
    receipt = world.send(call("close", market, job), world.renter)
    session = world.session(job)
    assert session["status"] == 1
    assert world.earned(NATIVE) == session["host_share"] == 100 * NATIVE_PRICE // 1000
    assert (
        world.market("userDepositsNative", wallet)
        == session["refund"]
        == Wei(deposit - session["host_share"])
    )
    assert world.events(receipt)["RefundCreditedToDeposit"]["amount"] == session["refund"]
