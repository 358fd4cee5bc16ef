"""A capability record is what the wallet signed, or nothing."""

import asyncio

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, Rejected, Unauthorised
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.deployment import Deployment
from nodeapp.network.identity import identity_from_seed
from nodeapp.renter.discovery import Discovery
from nodeapp.renter.sources import Sources
from nodeapp.security.capability import capability_rule
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    CapabilityRecord,
    ModelOffer,
    decode_record,
    dht_key,
    encode_record,
    peer_signed_bytes,
)
from nodeapp.wire.signed import capability_digest, domain_separator
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import CHAIN_ID, MARKET

IDENTITY = identity_from_seed(bytes(32))
PEER = IDENTITY.peer_id
MODEL = "0x" + "ab" * 32
USDC = "0x" + "11" * 20
WALLET = new_wallet()
DEPLOYMENT = Deployment(CHAIN_ID, USDC, USDC, MARKET, USDC, USDC, USDC, USDC)
NOW = 1_000_000


class Registry:
    """The chain as discovery reads it: one active host with one price."""

    deployment = DEPLOYMENT
    is_active = True
    price = 2000
    sha256 = bytes.fromhex("cd" * 32)

    async def is_active_node(self, wallet):
        return self.is_active and wallet == WALLET.address

    async def model_price(self, wallet, model_id, asset):
        return self.price

    async def node(self, wallet):
        return self

    model_ids = (MODEL,)

    async def model(self, model_id):
        return self


def record(**changes) -> CapabilityRecord:
    whole = CapabilityRecord(
        version=1,
        chain_id=CHAIN_ID,
        marketplace=MARKET,
        wallet=WALLET.address,
        public_key=WALLET.public_key,
        peer_id=PEER,
        addresses=("/ip4/127.0.0.1/tcp/9000",),
        portal_url="http://127.0.0.1:5050",
        models=(
            ModelOffer(
                model_id=MODEL,
                name="owner/model.gguf",
                sha256="cd" * 32,
                context_length=4096,
                quantisation="Q4_1",
                asset=USDC,
                price_per_token=2000,
            ),
        ),
        free_slots=4,
        proof_mode="ledger",
        sequence=NOW,
        not_after=NOW + 3600,
    )
    return msgspec.structs.replace(whole, **changes)


def signed(whole: CapabilityRecord, wallet=WALLET) -> pb.Capability:
    encoded = encode_record(whole)
    separator = domain_separator(whole.chain_id, whole.marketplace)
    digest = capability_digest(separator, encoded)
    return pb.Capability(
        record=encoded,
        signature=wallet.sign_digest(digest),
        peer_signature=IDENTITY.sign(peer_signed_bytes(encoded)),
    )


async def check(capability, *, registry=None, peer=PEER, model=MODEL, now=NOW):
    discovery = Discovery(Sources(None, registry or Registry(), (), None, FakeClock(now)))
    return await discovery.check(capability, peer, model)


def test_a_record_comes_back_as_it_was():
    assert decode_record(encode_record(record())) == record()


def test_one_record_has_one_encoding():
    assert encode_record(record()) == encode_record(decode_record(encode_record(record())))


def test_a_record_too_long_to_send_is_not_made():
    with pytest.raises(InvalidRequest, match="8192 allowed"):
        encode_record(record(addresses=("/ip4/127.0.0.1/tcp/9000",) * 400))


@pytest.mark.parametrize(
    "changes",
    [{"chain_id": "31337"}, {"models": 3}, {"peer_id": b"x"}, {"unknown": 1}, {"sequence": None}],
)
def test_a_record_of_another_shape_is_refused(changes):
    body = msgspec.to_builtins(record(), builtin_types=(bytes,)) | changes
    with pytest.raises(InvalidRequest, match="capability record"):
        decode_record(cbor2.dumps(body))


async def test_an_honest_offer_is_found_good():
    found, offer = await check(signed(record()))
    assert (found.wallet, offer.price_per_token) == (WALLET.address, 2000)


@pytest.mark.parametrize("mode", ["receipt", "ledger or receipt", ""])
async def test_a_host_that_need_not_prove_is_passed_over_by_who_requires_it(mode):
    capability = signed(record(proof_mode=mode))
    choosy = Discovery(Sources(None, Registry(), (), None, FakeClock(NOW)), require_proofs=True)
    with pytest.raises(Rejected, match="require_proofs is set"):
        await choosy.check(capability, PEER, MODEL)
    await choosy.check(signed(record()), PEER, MODEL)
    await check(capability)


async def test_a_forged_offer_is_refused():
    with pytest.raises(Unauthorised):
        await check(signed(record(), new_wallet()))


async def test_an_offer_not_signed_by_its_peer_is_refused():
    good = signed(record())
    for forged in (b"", identity_from_seed(b"x" * 32).sign(peer_signed_bytes(good.record))):
        copy = pb.Capability(record=good.record, signature=good.signature, peer_signature=forged)
        with pytest.raises(Unauthorised, match="not signed by peer"):
            await check(copy)


def test_a_published_offer_is_kept_only_under_the_key_of_its_peer_and_for_a_day():
    rule = capability_rule(lambda: NOW)
    value = signed(record()).SerializeToString()
    assert rule(dht_key(PEER), value) == NOW
    with pytest.raises(Unauthorised, match="does not belong under"):
        rule(dht_key(identity_from_seed(b"x" * 32).peer_id), value)
    with pytest.raises(Rejected, match="more than a day"):
        rule(dht_key(PEER), signed(record(not_after=NOW + 90_000)).SerializeToString())
    with pytest.raises(Rejected, match="expired"):
        rule(dht_key(PEER), signed(record(not_after=NOW - 1)).SerializeToString())
    for garbage in (b"", b"\xff" * 40, b"x" * 20_000):
        with pytest.raises(NodeError):
            rule(dht_key(PEER), garbage)


async def test_an_offer_without_a_signature_is_refused():
    with pytest.raises(Unauthorised, match="signature of 0 bytes"):
        await check(pb.Capability(record=encode_record(record()), signature=b""))


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_property_any_changed_bit_is_refused(position, bit):
    good = signed(record())
    changed = bytearray(good.record)
    changed[position % len(changed)] ^= 1 << bit
    with pytest.raises(NodeError):
        asyncio.run(check(pb.Capability(record=bytes(changed), signature=good.signature)))


async def test_an_offer_of_another_peer_is_refused():
    with pytest.raises(Unauthorised):
        await check(signed(record()), peer="12D3KooWOther")


@pytest.mark.parametrize("changes", [{"chain_id": 1}, {"marketplace": "0x" + "77" * 20}])
async def test_an_offer_for_another_marketplace_is_refused(changes):
    with pytest.raises(Unauthorised, match="offer is for chain"):
        await check(signed(record(**changes)))


async def test_an_expired_offer_is_refused():
    with pytest.raises(Rejected):
        await check(signed(record()), now=NOW + 3601)


async def test_an_offer_of_a_host_that_left_the_registry_is_refused():
    registry = Registry()
    registry.is_active = False
    with pytest.raises(Unauthorised):
        await check(signed(record()), registry=registry)


async def test_an_offer_without_the_model_is_refused():
    with pytest.raises(NotFound):
        await check(signed(record()), model="0x" + "cd" * 32)


async def test_an_offer_at_another_price_than_on_chain_is_refused():
    registry = Registry()
    registry.price = 1999
    with pytest.raises(Rejected):
        await check(signed(record()), registry=registry)
