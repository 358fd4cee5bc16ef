"""Provider records of strangers are bounded, and one neighbour cannot hide the others."""

import pytest

from nodeapp.core.ids import ModelId
from nodeapp.network import providers as module
from nodeapp.network.providers import ProviderBook
from nodeapp.wire.provider_key import provider_key
from tests.p2p.hosts import running

KEY = b"key"


class Store:
    def __init__(self):
        self.providers = {}


class Provider:
    def __init__(self, peer_id):
        self.peer_id = peer_id
        self.addrs = []


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def book(store):
    """The subnet is what stands before the dash of a peer's name."""
    return ProviderBook(store, lambda peer_id: peer_id.partition("-")[0])


def test_a_thousand_ids_of_one_subnet_take_no_place_from_others(store, book):
    book.add(KEY, Provider("11.2.3.0/24-honest"))
    for number in range(1000):
        book.add(KEY, Provider(f"11.9.1.0/24-{number}"))
    book.add(KEY, Provider("11.2.4.0/24-late"))
    assert len(store.providers[KEY]) == module.OF_ONE_SUBNET + 2
    assert {"11.2.3.0/24-honest", "11.2.4.0/24-late"} <= set(store.providers[KEY])


def test_the_newest_stay_and_a_renewed_record_is_new(store, book, monkeypatch):
    monkeypatch.setattr(module, "PROVIDERS_OF_A_KEY", 3)
    for name in ("-a", "-b", "-c", "-a", "-d"):
        book.add(KEY, Provider(name))
    assert list(store.providers[KEY]) == ["-c", "-a", "-d"]


def test_keys_are_bounded_too(store, book, monkeypatch):
    monkeypatch.setattr(module, "KEYS", 10)
    for number in range(100):
        book.add(str(number).encode(), Provider("-a"))
    assert [int(key) for key in store.providers] == list(range(90, 100))


async def test_more_providers_than_the_librarys_twenty_are_all_found(tmp_path):
    key = provider_key(ModelId("0x" + "ef" * 32), 31337)
    async with running(tmp_path, "server") as server, running(tmp_path, "client") as client:
        await client.connect(server.addresses[0])
        await client.dht.join(server.addresses)
        store = server.dht._kad.provider_store
        from libp2p.kad_dht.kad_dht import _encode_key
        from libp2p.peer.peerinfo import PeerInfo

        from nodeapp.network.identity import identity_from_seed
        from nodeapp.network.library import parse_peer_id

        async def leave():
            for seed in range(30):
                peer_id = parse_peer_id(identity_from_seed(bytes([seed]) * 32).peer_id)
                store.add_provider(_encode_key(key), PeerInfo(peer_id, []))

        await server._bridge.call("leave records", leave, 5.0)
        assert len(await client.dht.find_providers(key)) == 30
