"""A renter written in JavaScript from docs/protocol.md and fabstir.proto, against the real node."""

import asyncio
import json
import os
import subprocess
import time

import msgspec
import pytest

from nodeapp.core.ids import Address, JobId
from nodeapp.evm.accounts import new_wallet
from nodeapp.network.identity import identity_from_seed
from nodeapp.network.settings import KAD_PROTOCOL_ID, DhtMode
from nodeapp.renter.payment import open_paid_session
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.renter.run import open_chain
from nodeapp.renter.settings import load_renter_settings
from nodeapp.security.capability import capability_rule, decode_published
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    DHT_NAMESPACE,
    decode_record,
    dht_key,
    encode_record,
    peer_signed_bytes,
)
from nodeapp.wire.envelope import CAPABILITY_PROTOCOL, INFERENCE_PROTOCOL
from nodeapp.wire.provider_key import provider_key
from nodeapp.wire.signed import capability_digest, domain_separator
from tests.p2p.hosts import running
from tests.p2p.javascript import JavaScript, environment, workspace
from tests.world import ROOT, STORY

ECHO = "/fabstir/js-echo/1.0.0"
MAX_TOKENS = 120
DROP_AFTER = 40
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return workspace(tmp_path_factory.mktemp("js"))


@pytest.fixture
def javascript(directory):
    process = JavaScript(directory)
    try:
        yield process
    finally:
        process.end()


def test_the_golden_bytes_are_the_same_in_javascript(directory):
    vectors = ROOT / "tests" / "vectors" / "protocol.json"
    with vectors.open() as file:
        checked = subprocess.run(
            ["node", "vectors.js"],
            cwd=directory,
            env=environment(),
            stdin=file,
            capture_output=True,
            check=False,
            text=True,
            timeout=30,
        )
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout) == {"wrong": []}


def test_a_javascript_renter_finds_the_node_and_gets_exactly_what_it_pays_for(
    world, javascript, tmp_path
):
    found = discovered(world, javascript)
    home = world.renter("js")
    paid = open_session(home, found)
    facts = javascript.ask(
        "converse",
        seconds=120,
        job_id=paid.job_id,
        key_file=str(key_file(home, tmp_path)),
        model_id=world.renter_values["model_id"],
        prompt=STORY,
        max_tokens=MAX_TOKENS,
        drop_after=DROP_AFTER,
    )
    assert facts["wallet"] == home.address
    assert facts["refusals"] == {
        "forged_login": "unauthorised",
        "no_hello": "protocol_violation",
        "unknown_protocol": "UnsupportedProtocolError",
    }
    check_answer(facts)

    job = world.until_settled(paid.job_id)
    assert job.tokens_used == facts["acknowledged"] == MAX_TOKENS
    assert job.host_share + job.treasury_share + job.refund == job.deposit == paid.deposit
    # The proofs on chain are held against the ids that JavaScript received.
    keep_record(home, found, paid.job_id, world, facts["ids"])
    verify = home.command("verify", "--json")
    assert verify.finish(90) == 0, verify.err
    assert json.loads(verify.out)["tokens_claimed"] == MAX_TOKENS
    assert javascript.stop() == 0


def test_a_python_host_finds_and_reaches_a_javascript_provider(world, javascript, tmp_path):
    bootstrap = world.renter_values["bootstrap"]
    discovered(world, javascript)
    key = provider_key("0x" + "5a" * 32, world.renter_values["chain_id"])
    provided = javascript.ask("provide", seconds=40, provider_key=key)
    assert provided["taken"] >= 1
    assert KAD_PROTOCOL_ID in provided["protocols"]
    assert not [offer for offer in provided["protocols"] if "/ipfs/kad" in offer]

    async def reach():
        async with running(tmp_path, "python", listen=(), dht_mode=DhtMode.CLIENT) as host:
            await host.dht.join(bootstrap)
            (provider,) = await host.dht.find_providers(key)
            assert provider.peer_id == provided["peer_id"]
            assert set(provider.addresses) <= set(provided["addresses"])
            await host.connect(provider.addresses[0])
            stream = await host.open_stream(provider.peer_id, [ECHO])
            await stream.write_frame(b"from python")
            assert await stream.read_frame(deadline_seconds=10) == b"from python"
            await stream.close()

    asyncio.run(reach())
    assert javascript.stop() == 0


def test_a_value_put_by_javascript_is_kept_by_our_nodes_only_if_it_is_signed(
    world, javascript, tmp_path
):
    found = discovered(world, javascript)
    identity = identity_from_seed(b"j" * 32)
    wallet = new_wallet()
    record = msgspec.structs.replace(
        found, peer_id=identity.peer_id, wallet=wallet.address, public_key=wallet.public_key
    )
    encoded = encode_record(record)
    separator = domain_separator(record.chain_id, record.marketplace)
    good = pb.Capability(
        record=encoded,
        signature=wallet.sign_digest(capability_digest(separator, encoded)),
        peer_signature=identity.sign(peer_signed_bytes(encoded)),
    ).SerializeToString()
    key = dht_key(identity.peer_id)
    assert javascript.ask("put", seconds=40, key=key, value=good.hex())["taken"] >= 1
    other = dht_key(identity_from_seed(b"o" * 32).peer_id)
    assert javascript.ask("put", seconds=40, key=other, value=good.hex())["taken"] == 0

    async def read():
        rules = {DHT_NAMESPACE: capability_rule(time.time)}
        async with running(
            tmp_path, "reader", listen=(), dht_mode=DhtMode.CLIENT, record_rules=rules
        ) as host:
            await host.dht.join(world.renter_values["bootstrap"])
            return await host.dht.get_value(key), await host.dht.get_value(other)

    assert asyncio.run(read()) == (good, None)
    assert javascript.stop() == 0


def discovered(world, javascript):
    """Bootstrap, DHT, identify, ping and the signed record, all seen by JavaScript."""
    values = world.renter_values
    key = provider_key(values["model_id"], values["chain_id"])
    facts = javascript.ask(
        "discover", seconds=60, bootstrap=values["bootstrap"][0], provider_key=key
    )
    record = decode_record(bytes.fromhex(facts["record"]))
    assert facts["peer_id"] == record.peer_id
    assert facts["address"] in record.addresses
    assert facts["signer"] == record.wallet
    published = decode_published(bytes.fromhex(facts["published"]))
    assert decode_record(published.record).wallet == record.wallet
    assert facts["agent"].startswith("py-libp2p/")
    assert {INFERENCE_PROTOCOL, CAPABILITY_PROTOCOL, KAD_PROTOCOL_ID} <= set(facts["protocols"])
    assert facts["ping_ms"] < 5000
    return record


def open_session(home, record):
    settings = load_renter_settings(home.config)

    async def pay():
        async with open_chain(settings) as (wallet, contracts):
            return await open_paid_session(
                contracts, wallet, Address(record.wallet), record.models[0], settings
            )

    return asyncio.run(pay())


def key_file(home, directory):
    settings = load_renter_settings(home.config)

    async def read():
        async with open_chain(settings) as (wallet, _contracts):
            return wallet.private_key.hex()

    path = directory / "renter.key"
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(asyncio.run(read()))
    return path


def check_answer(facts):
    """One answer, dropped in the middle: every token once, all of them acknowledged."""
    assert DROP_AFTER <= facts["received_before_drop"] < MAX_TOKENS
    assert facts["open_request"]
    assert len(facts["ids"]) == facts["completion_tokens"] == facts["acknowledged"] == MAX_TOKENS
    assert facts["finish_reason"] == "length"
    assert facts["prompt_tokens"] > 0
    assert facts["text"].strip()
    assert facts["acknowledged_hash"] == facts["running_hash"]
    assert facts["phase"] == "closing"
    assert facts["affordable"] > MAX_TOKENS


def keep_record(home, found, job_id, world, ids):
    head = SessionHead(
        chain_id=found.chain_id,
        marketplace=found.marketplace,
        job_id=JobId(job_id),
        host=found.wallet,
        peer_id=found.peer_id,
        model_id=world.renter_values["model_id"],
        portal_url=found.portal_url,
        addresses=found.addresses,
    )
    SessionRecord.create(home.state, head).receive(0, tuple(ids))
