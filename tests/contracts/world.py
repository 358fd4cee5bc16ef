"""The marketplace on an in-process EVM: deployed by the product's own creation and call builders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed

from nodeapp.core.ids import Address
from nodeapp.devnet.deploy import DevnetModel, Rules, creations, plan_addresses
from nodeapp.evm.abi import Call, checksum, load_abi
from nodeapp.evm.calls import (
    NATIVE,
    UNLIMITED,
    SessionTerms,
    approve,
    mint,
)
from nodeapp.evm.deployment import Deployment
from tests.contracts.calls import AllCalls

GAS = 8_000_000
MODEL = DevnetModel("owner/model-GGUF", "model.gguf", "ab" * 32)
OTHER_MODEL = DevnetModel("owner/other-GGUF", "other.gguf", "cd" * 32)
RULES = Rules(fee_basis_points=1000, dispute_window_seconds=30, min_tokens_fee=100)
STABLE_PRICE = 2_000
NATIVE_PRICE = 1_000_000_000_000
ETHER = 10**18
FAB = 10**18
DAY_SECONDS = 86_400
STAKE = 1000 * FAB
DEPOSIT = 2_000_000
TERMS = SessionTerms(STABLE_PRICE, 3600, 1000, 300)
NATIVE_TERMS = replace(TERMS, price_per_token=NATIVE_PRICE)
METADATA = '{"publicKey":"02"}'
SESSION_FIELDS = (
    *("id", "depositor", "host", "asset", "deposit", "price", "used", "duration", "started"),
    *("proved", "interval", "window", "status", "host_share", "refund", "conversation"),
    *("proof_hash", "proof_cid"),
)
ABIS = {
    name: load_abi(name)
    for name in (
        "Erc20",
        "NodeRegistry",
        "ModelRegistry",
        "JobMarketplace",
        "ProofSystem",
        "HostEarnings",
    )
}


class Refused(Exception):
    """A transaction failed; the text is the revert string."""


@dataclass
class World:
    tester: EthereumTester
    deployment: Deployment
    calls: AllCalls
    owner: Address
    treasury: Address
    host: Address
    renter: Address
    stranger: Address

    def send(self, call: Call, sender: Address) -> dict[str, Any]:
        fields = {"from": sender, "data": "0x" + call.data.hex(), "value": call.value, "gas": GAS}
        if call.to is not None:
            fields["to"] = call.to
        try:
            tx_hash = self.tester.send_transaction(fields)
            receipt = self.tester.get_transaction_receipt(tx_hash)
            if receipt["status"] == 0:
                self.tester.call(fields)
                raise AssertionError(f"{call.function} failed, and succeeds when repeated")
        except TransactionFailed as error:
            raise Refused(str(error.args[0])) from error
        return dict(receipt)

    def read(self, to: Address, contract: str, function: str, *arguments: object) -> Any:
        abi = ABIS[contract].functions[function]
        fields = {
            "from": self.stranger,
            "to": to,
            "data": "0x" + abi.encode(arguments).hex(),
            "gas": GAS,
        }
        try:
            answer = self.tester.call(fields)
        except TransactionFailed as error:
            raise Refused(str(error.args[0])) from error
        values = abi.decode(bytes.fromhex(answer[2:]))
        return values[0] if len(values) == 1 else values

    def call(self, to: Address, contract: str, function: str, *arguments: object) -> Call:
        return Call(to, function, ABIS[contract].functions[function].encode(arguments))

    def market(self, function: str, *arguments: object) -> Any:
        return self.read(self.deployment.marketplace, "JobMarketplace", function, *arguments)

    def market_call(self, function: str, *arguments: object) -> Call:
        return self.call(self.deployment.marketplace, "JobMarketplace", function, *arguments)

    def nodes(self, function: str, *arguments: object) -> Any:
        return self.read(self.deployment.node_registry, "NodeRegistry", function, *arguments)

    def usdc(self, owner: Address) -> int:
        return self.read(self.deployment.usdc, "Erc20", "balanceOf", owner)

    def fab(self, owner: Address) -> int:
        return self.read(self.deployment.fab, "Erc20", "balanceOf", owner)

    def earned(self, asset: Address) -> int:
        return self.read(
            self.deployment.host_earnings, "HostEarnings", "getBalance", self.host, asset
        )

    def native(self, owner: Address) -> int:
        return self.tester.get_balance(owner)

    def now(self) -> int:
        return self.tester.get_block_by_number("latest")["timestamp"]

    def pass_seconds(self, seconds: int) -> None:
        """Mine a block so much later, so that the next transaction sees at least that time."""
        self.tester.time_travel(self.now() + seconds)
        self.tester.mine_block()

    def open(self, deposit: int = DEPOSIT, terms: SessionTerms = TERMS) -> int:
        """A USDC session of the renter with the host; its job id."""
        job = self.market("nextJobId")
        usdc = self.deployment.usdc
        self.send(
            self.calls.create_session(self.host, MODEL.model_id, usdc, deposit, terms), self.renter
        )
        return job

    def claim(self, job: int, tokens: int, number: int = 1, sender: Address | None = None) -> None:
        proof_hash = (job * 1000 + number).to_bytes(32, "big")
        call = self.calls.submit_proof(
            job, tokens, proof_hash, proof_cid="proof", delta_cid="delta"
        )
        self.send(call, sender or self.host)

    def complete(self, job: int, sender: Address) -> None:
        self.send(self.calls.complete_session(job, "cid"), sender)

    def session(self, job: int) -> dict[str, Any]:
        return dict(zip(SESSION_FIELDS, self.market("sessionJobs", job), strict=True))

    def events(self, receipt: dict[str, Any], contract: str = "JobMarketplace") -> dict[str, Any]:
        """Decoded logs of one contract's ABI by event name."""
        found = {}
        for log in receipt["logs"]:
            event = ABIS[contract].events.get(log["topics"][0])
            if event is not None:
                found[event.name] = event.decode(log["topics"], bytes.fromhex(log["data"][2:]))
        return found


@contextlib.contextmanager
def refused(reason: str) -> Iterator[None]:
    """The body's transaction must fail with exactly this revert string."""
    with pytest.raises(Refused) as caught:
        yield
    assert str(caught.value).removeprefix("execution reverted: ") == reason


def build_world() -> World:
    tester = EthereumTester(PyEVMBackend())
    owner, treasury, host, renter, stranger = (
        checksum(account) for account in tester.get_accounts()[:5]
    )
    planned = plan_addresses(owner, 0, 131277322940537)
    world = World(tester, planned, AllCalls(planned), owner, treasury, host, renter, stranger)
    for creation in creations(planned, treasury, RULES):
        world.send(creation, owner)
    for call in world.calls.authorize_marketplace():
        world.send(call, owner)
    for model in (MODEL, OTHER_MODEL):
        digest = bytes.fromhex(model.sha256)
        world.send(world.calls.add_trusted_model(model.repo, model.file_name, digest), owner)
    world.send(mint(planned.fab, host, 10 * STAKE), host)
    world.send(approve(planned.fab, planned.node_registry, UNLIMITED), host)
    world.send(register(world), host)
    for asset, price in ((planned.usdc, STABLE_PRICE), (NATIVE, NATIVE_PRICE)):
        world.send(world.calls.set_model_price(MODEL.model_id, asset, price), host)
    world.send(mint(planned.usdc, renter, 10**13), renter)
    world.send(approve(planned.usdc, planned.marketplace, UNLIMITED), renter)
    return world


def register(world: World, models: tuple[DevnetModel, ...] = (MODEL,), **changes: Any) -> Call:
    fields: dict[str, Any] = {"min_price_native": NATIVE_PRICE, "min_price_stable": STABLE_PRICE}
    fields.update(changes)
    ids = [model.model_id for model in models]
    return world.calls.register_node(
        fields.pop("metadata", METADATA), fields.pop("url", "http://127.0.0.1:1"), ids, **fields
    )
