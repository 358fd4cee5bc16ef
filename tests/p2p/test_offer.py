"""The offer is what chain and engine say, signed, and renewed before it expires."""

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.evm.accounts import new_wallet
from nodeapp.network.identity import identity_from_seed
from nodeapp.p2p.offer import OfferBook
from nodeapp.security.wallet import verify_digest
from nodeapp.service.settings import P2pSettings
from nodeapp.wire.capability import decode_record
from nodeapp.wire.ipc_chain import HostView
from nodeapp.wire.ipc_inference import ModelFacts, Models, ModelState
from nodeapp.wire.signed import capability_digest
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import CHAIN_ID, MARKET, SEPARATOR

IDENTITY = identity_from_seed(bytes(32))
MODEL, OTHER = "0x" + "ab" * 32, "0x" + "cd" * 32
ADDRESSES = ("/ip4/127.0.0.1/tcp/9000",)
USDC = "0x" + "11" * 20


class FakeChainClient:
    def __init__(self):
        self.wallet = new_wallet()
        self.prices = {MODEL: 2000}
        self.asked = 0

    async def host(self):
        self.asked += 1
        return HostView(
            address=self.wallet.address,
            public_key=self.wallet.public_key,
            chain_id=CHAIN_ID,
            marketplace=MARKET,
            block_number=1,
            block_time=1,
            is_registered=True,
            model_ids=tuple(self.prices),
            usdc=USDC,
            prices=tuple(self.prices.values()),
        )

    async def sign_record(self, record):
        return self.wallet.sign_digest(capability_digest(SEPARATOR, record))


class FakeInferenceClient:
    is_down = False
    slots = 4

    async def models(self):
        if self.is_down:
            raise Unavailable("inference is not reachable")
        facts = ModelFacts(
            model_id=MODEL,
            repo="owner/model-GGUF",
            file_name="model.gguf",
            sha256="ef" * 32,
            size_bytes=1,
            architecture="llama",
            quantisation="Q4_1",
            context_length=2048,
            trained_context_length=8192,
            vocabulary_size=49152,
        )
        return Models((facts,))

    async def model_state(self):
        return ModelState("model.gguf", "serving", "", slots=self.slots)


@pytest.fixture
def ends():
    return FakeChainClient(), FakeInferenceClient(), FakeClock()


def book(ends):
    return OfferBook(P2pSettings(record_ttl_seconds=3600.0), *ends)


async def test_the_offer_is_signed_by_the_wallet_and_says_what_is_served(ends):
    chain, _, clock = ends
    offer = await book(ends).current("12D3KooW", ADDRESSES, IDENTITY.sign)
    digest = capability_digest(SEPARATOR, offer.capability.record)
    verify_digest(digest, offer.capability.signature, chain.wallet.address)
    record = decode_record(offer.capability.record)
    assert record == offer.record
    assert (record.peer_id, record.addresses) == ("12D3KooW", ADDRESSES)
    assert record.not_after == clock.now + 3600
    (model,) = record.models
    assert (model.model_id, model.price_per_token, model.context_length) == (MODEL, 2000, 2048)
    assert model.name == "owner/model-GGUF/model.gguf"


async def test_the_offer_is_kept_for_half_its_life_then_made_again(ends):
    chain, _, clock = ends
    offers = book(ends)
    first = await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    clock.now += 1800
    assert await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign) is first
    clock.now += 1
    second = await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    assert second.record.sequence > first.record.sequence
    assert chain.asked == 2


async def test_a_host_at_a_new_address_says_so_at_once(ends):
    offers = book(ends)
    await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    moved = ("/ip4/127.0.0.1/tcp/9001",)
    assert (await offers.current("12D3KooW", moved, IDENTITY.sign)).record.addresses == moved


@pytest.mark.parametrize("prices", [{}, {OTHER: 2000}, {MODEL: 0}])
async def test_a_model_without_a_price_on_chain_is_not_offered(ends, prices):
    ends[0].prices = prices
    with pytest.raises(InvalidRequest, match=f"model {MODEL} has no price on chain"):
        await book(ends).current("12D3KooW", ADDRESSES, IDENTITY.sign)


async def test_registered_models_that_are_not_loaded_are_left_out(ends):
    ends[0].prices = {OTHER: 5, MODEL: 7}
    offer = await book(ends).current("12D3KooW", ADDRESSES, IDENTITY.sign)
    assert [(model.model_id, model.price_per_token) for model in offer.record.models] == [
        (MODEL, 7)
    ]


async def test_an_engine_that_is_down_is_asked_again_next_time(ends):
    offers = book(ends)
    ends[1].is_down = True
    with pytest.raises(Unavailable):
        await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    ends[1].is_down = False
    assert (await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)).record.models


async def test_a_changed_listing_is_offered_at_once_under_a_higher_sequence(ends):
    chain, _, _ = ends
    offers = book(ends)
    first = await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    chain.prices = {MODEL: 3000}
    assert await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign) is first
    offers.renew()
    second = await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    assert second.record.models[0].price_per_token == 3000
    assert second.record.sequence > first.record.sequence
    assert await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign) is second


async def test_a_listing_that_is_gone_stays_refused_until_it_is_back(ends):
    chain, _, _ = ends
    offers = book(ends)
    await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    chain.prices = {}
    offers.renew()
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="host register"):
            await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)
    chain.prices = {MODEL: 2000}
    await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)


async def test_a_hot_gpu_lowers_the_slots_that_are_offered(ends):
    _chain, inference, _clock = ends
    offers = book(ends)
    assert (await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)).record.free_slots == 4
    inference.slots = 8  # of two replicas
    offers.renew()
    assert (await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)).record.free_slots == 8
    inference.slots = 1
    offers.renew()
    assert (await offers.current("12D3KooW", ADDRESSES, IDENTITY.sign)).record.free_slots == 1
