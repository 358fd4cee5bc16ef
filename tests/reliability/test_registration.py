"""Registering, pricing and watching against the real contracts; only the devnet is not the live one."""

import asyncio
import contextlib
from decimal import Decimal
from functools import partial

import msgspec
import pytest
import structlog
import structlog.testing

from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import ListingWatch, settings_wish
from nodeapp.chain.listing_reader import ListingReader
from nodeapp.chain.registration import Registrar
from nodeapp.chain.sending import build_sending
from nodeapp.core.errors import NotFound, Rejected
from nodeapp.core.ids import NATIVE
from nodeapp.core.listing import Listing, ModelPrice, Wish, findings
from nodeapp.core.session import SessionClosing
from nodeapp.devnet.provision import STAKE
from nodeapp.evm.abi import Call, load_abi
from nodeapp.evm.calls import model_bytes
from nodeapp.evm.transactions import Transactions
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from nodeapp.wire.ipc_listing import (
    ListingRequest,
    MarketRequest,
    UnregisterRequest,
    WithdrawRequest,
)
from tests.client.host_world import API_URL, FIRST, SECOND, host_world
from tests.contracts.calls import AllCalls
from tests.fakes.paid_session import JOB, opened

pytestmark = pytest.mark.timeout(60)
SETTINGS = ChainSettings(
    listing_api_url=API_URL,
    listing_models=(f"{FIRST.repo}/{FIRST.file_name}",),
    listing_prices=("* 2.00 usd", "* 0.001 native"),
    listing_location="Berlin",
)


class Host:
    """The parts of the chain process that register, over a real chain and a real journal."""

    def __init__(self, world, ledger, metrics):
        self.world, self.ledger, self.metrics = world, ledger, metrics
        deployment, provider = world.devnet.deployment, world.devnet.provider
        self.usdc = deployment.usdc
        self.wish = partial(
            settings_wish, SETTINGS, usdc=self.usdc, public_key=world.wallet.public_key
        )
        self.calls = AllCalls(deployment)
        self.transactions = Transactions(provider)
        sending = build_sending(
            SETTINGS,
            ledger=ledger,
            contracts=world.contracts,
            signer=world.wallet,
            clock=SystemClock(),
            metrics=metrics,
        )
        wallet = world.wallet
        self.reader = ListingReader(world.contracts, wallet.address, wallet.public_key, self.wish)
        self.registrar = Registrar(
            reader=self.reader,
            calls=self.calls,
            queue=sending.queue,
            ledger=ledger,
            withdrawer=sending.withdrawer,
        )
        self.watch = ListingWatch(
            world.contracts,
            world.wallet.address,
            judge=lambda listing, bounds: findings(
                listing, self.wish(listing), bounds, public_key=world.wallet.public_key
            ),
            check_seconds=3600,
            clock=SystemClock(),
            metrics=Metrics("chain"),
        )

    async def change(self, wish):
        return [done.text async for done in self.registrar.change(ListingRequest(wish))]

    async def register(self):
        return await self.change(self.wish(Listing()))

    async def look(self):
        await self.watch.step(await self.world.devnet.provider.block_number())
        return self.watch.findings

    async def as_owner(self, call):
        await self.transactions.send(call, self.world.devnet.owner)

    def owner_call(self, contract, address, function, *arguments):
        return Call(address, function, load_abi(contract).functions[function].encode(arguments))


@contextlib.asynccontextmanager
async def registering_host(directory):
    async with host_world(directory) as world:
        await world.fund()
        ledger = await Ledger.open(
            directory / "j.db", owner=world.wallet.address, marker=directory / "marker"
        )
        try:
            yield Host(world, ledger, Metrics("chain"))
        finally:
            await ledger.close()


@pytest.fixture
async def host(tmp_path):
    async with registering_host(tmp_path) as made:
        yield made


async def test_a_host_registers_once_and_every_price_reads_back(host):
    texts = await host.register()
    assert [text.split()[0] for text in texts] == ["approve", "register", "price", "price"]
    node = await host.world.contracts.node(host.world.wallet.address)
    assert (node.active, node.stake, node.api_url) == (True, STAKE, API_URL)
    metadata = msgspec.json.decode(node.metadata)
    assert metadata["publicKey"] == host.world.wallet.public_key.hex()
    assert metadata["location"] == "Berlin"
    price = partial(host.world.contracts.model_price, host.world.wallet.address, FIRST.model_id)
    assert (await price(host.usdc), await price(NATIVE)) == (2000, 10**12)
    assert await host.register() == []
    assert await host.look() == ()


async def test_a_registration_cut_off_after_each_step_is_completed_without_repeating_one(host):
    wish = host.wish(Listing())
    seen = []
    for _ in range(4):
        steps = host.registrar.change(ListingRequest(wish))
        seen.append((await anext(steps)).text.split()[0])
        await steps.aclose()
    assert seen == ["approve", "register", "price", "price"]
    assert await host.register() == []
    assert await host.world.devnet.provider.request(
        "eth_getTransactionCount", [host.world.wallet.address, "latest"]
    ) == hex(4 + 1)  # the fifth minted the stake


async def test_a_step_that_was_sent_but_not_seen_mined_is_not_sent_twice(host):
    provider = host.world.devnet.provider
    await provider.request("evm_setAutomine", [False])
    change = asyncio.ensure_future(host.register())
    async with asyncio.timeout(20):
        while not host.ledger.outbox.pending:
            await host.ledger.wait_for_change()
    change.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await change
    await provider.request("evm_setAutomine", [True])
    await provider.request("anvil_mine", ["0x1"])
    await host.register()
    approvals = [key for key in host.ledger.mined if "approve" in key]
    assert len(approvals) == 1
    assert (await host.world.contracts.node(host.world.wallet.address)).active


async def test_without_stake_gas_or_an_approved_model_nothing_is_sent(host):
    await host.world.devnet.fund_native(host.world.wallet.address, 0)
    with pytest.raises(Rejected, match="no native coin"):
        await host.register()
    await host.world.fund(fab=0)
    unknown = "0x" + "99" * 32
    wish = msgspec.structs.replace(
        host.wish(Listing()),
        model_ids=(unknown,),
        prices=(ModelPrice(unknown, host.usdc, 2000),),
    )
    with pytest.raises(Rejected, match=f"model {unknown} is not approved"):
        await host.change(wish)
    assert host.ledger.mined == {}


async def test_a_changed_price_is_drift_until_the_settings_are_applied(host):
    await host.register()
    await host.look()
    version = host.watch.version
    waiting = asyncio.ensure_future(host.watch.wait(version, 20))
    await host.change(Wish(prices=(ModelPrice(FIRST.model_id, host.usdc, 3500),)))
    assert "on chain is 3.5 USD, settings say 2 USD" in (await host.look())[0]
    assert await waiting > version
    assert "3.5 USD" in host.watch.summary()
    await host.change(host.wish(host.watch.listing))
    assert await host.look() == ()


async def test_models_are_added_and_removed_with_their_prices(host):
    await host.register()
    both = (FIRST.model_id, SECOND.model_id)
    await host.change(Wish(model_ids=both, prices=(ModelPrice(SECOND.model_id, host.usdc, 1000),)))
    assert "models on chain are" in (await host.look())[0]
    assert host.watch.listing.model_ids == both
    gone = ModelPrice(SECOND.model_id, host.usdc, 0)
    await host.change(Wish(model_ids=(FIRST.model_id,), prices=(gone,)))
    assert await host.look() == ()


async def test_slashing_is_seen_and_the_stake_can_be_filled_up(host):
    await host.register()
    await host.look()
    registry = host.calls
    await host.as_owner(
        registry.slash(
            host.world.wallet.address, STAKE // 4, evidence_cid="bevidence", reason="test"
        )
    )
    assert "stake is 750 FAB of 1000" in (await host.look())[0]
    with pytest.raises(Rejected, match="the stake needs 250"):
        await host.change(Wish(stake_fab=Decimal(1000)))
    await host.world.fund(fab=250 * 10**18)
    assert len(await host.change(Wish(stake_fab=Decimal(1000)))) == 2
    assert await host.look() == ()


async def test_who_took_stake_and_why_is_said_until_the_host_is_out(host):
    await host.register()
    await host.look()
    slash = partial(
        host.calls.slash, host.world.wallet.address, evidence_cid="bevidence", reason="overclaim"
    )
    provider = host.world.devnet.provider
    with structlog.testing.capture_logs() as logs:
        for fab in (500, 250, 125, 60):
            await host.as_owner(slash(fab * 10**18))
            await host.look()
            await provider.request("evm_increaseTime", [86_400])
    told = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry.get("remaining_fab") for entry in told] == [500, 250, 125, 65, None]
    assert told[0]["evidence_cid"] == "bevidence"
    assert {entry["reason"] for entry in told} == {"overclaim"}
    assert (told[-1]["event"][:12], told[-1]["returned_fab"]) == ("unregistered", 65)
    assert "not registered" in host.watch.findings[0]


async def test_a_model_that_loses_its_approval_is_found(host):
    await host.register()
    registry = host.world.devnet.deployment.model_registry
    call = host.owner_call(
        "ModelRegistry", registry, "deactivateModel", model_bytes(FIRST.model_id)
    )
    await host.as_owner(call)
    found = await host.look()
    assert found == (f"model {FIRST.model_id} is no longer approved on chain",)


async def test_open_sessions_keep_a_host_from_leaving_unless_it_insists(host):
    await host.register()
    await host.ledger.record(opened())
    with pytest.raises(Rejected, match="1 sessions are open"):
        await host.registrar.unregister(UnregisterRequest())
    await host.registrar.unregister(UnregisterRequest(force=True))
    assert "not registered" in (await host.look())[0]
    stake = await host.world.contracts.asset_balance(
        host.world.devnet.deployment.fab, host.world.wallet.address
    )
    assert stake == STAKE
    with pytest.raises(NotFound, match="is not registered"):
        await host.registrar.unregister(UnregisterRequest())


async def test_a_session_that_pays_nothing_keeps_no_host_from_leaving(host):
    await host.register()
    await host.ledger.record(opened(), SessionClosing(JOB, "idle"))
    await host.registrar.unregister(UnregisterRequest())
    assert "not registered" in (await host.look())[0]


async def test_nothing_credited_is_nothing_to_withdraw_and_the_market_is_read(host):
    await host.register()
    with pytest.raises(NotFound, match="no earnings"):
        await host.registrar.withdraw(WithdrawRequest(host.usdc))
    market = await host.reader.market(MarketRequest(FIRST.model_id, host.usdc))
    assert [(one.host, one.price) for one in market.prices] == [(host.world.wallet.address, 2000)]
    assert (await host.reader.market(MarketRequest(SECOND.model_id, host.usdc))).prices == ()


def test_a_host_that_does_not_prove_does_not_say_it_does():
    for proof, said in (("required", ["streaming", "ezkl-ledger-proof"]), ("off", ["streaming"])):
        settings = msgspec.structs.replace(SETTINGS, proof=proof)
        wish = settings_wish(settings, Listing(), usdc=NATIVE, public_key=b"\x02" * 33)
        assert msgspec.json.decode(wish.metadata)["capabilities"] == said
