"""Where renters learn of hosts, and what they refuse to dial."""

import json
from dataclasses import replace

import pytest

from nodeapp.core.errors import NotFound, Unavailable
from nodeapp.network.identity import identity_from_seed
from nodeapp.renter.discovery import _Round
from nodeapp.renter.record import newest_session
from nodeapp.renter.sources import Hint, Sources, each_hint
from nodeapp.renter.standing import Standings
from nodeapp.wire.addresses import is_public
from tests.fakes.clock import FakeClock
from tests.world import World

PEER = identity_from_seed(b"p" * 32).peer_id
MODEL = "0x" + "33" * 32
PUBLIC = f"/ip4/8.8.8.8/tcp/9000/p2p/{PEER}"


class Registry:
    def __init__(self, metadata):
        self.metadata = metadata

    async def nodes_for_model(self, _model_id):
        return tuple(self.metadata)

    async def node(self, wallet):
        if self.metadata[wallet] is None:
            raise NotFound(f"host {wallet} is not registered")

        class Node:
            metadata = self.metadata[wallet]

        return Node


def sources(tmp_path, *, metadata=None, bootstrap=()):
    registry = Registry(metadata or {})
    return Sources(None, registry, bootstrap, Standings.load(tmp_path), FakeClock())


async def hints(found, name):
    taken = []
    assert await each_hint(found.all()[name], MODEL, taken.append) == ""
    return taken


async def test_the_registry_names_hosts_by_the_libp2p_part_of_their_metadata(tmp_path):
    good = json.dumps({"publicKey": "02ab", "libp2p": {"peerId": PEER, "addresses": [PUBLIC]}})
    metadata = {
        "good": good,
        "sdk only": json.dumps({"publicKey": "02ab"}),
        "no peer": json.dumps({"libp2p": {"peerId": "nonsense", "addresses": []}}),
        "no json": "hello",
        "wrong shape": json.dumps({"libp2p": [1]}),
        "gone": None,
    }
    assert await hints(sources(tmp_path, metadata=metadata), "registry") == [
        Hint(PEER, (PUBLIC,), "registry")
    ]


async def test_hosts_met_before_are_tried_again_newest_first(tmp_path):
    met = Standings.load(tmp_path)
    met.met("0x1", PEER, "/old", 1.0)
    met.met("0x1", PEER, "/new", 2.0)
    other = identity_from_seed(b"q" * 32).peer_id
    met.met("0x2", other, "/ip4/9.9.9.9/tcp/1", 3.0)
    assert await hints(sources(tmp_path), "memory") == [
        Hint(other, ("/ip4/9.9.9.9/tcp/1",), "memory"),
        Hint(PEER, ("/new", "/old"), "memory"),
    ]


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/5432",
        "/ip4/10.1.2.3/tcp/80",
        "/ip4/192.168.0.1/tcp/80",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/0.0.0.0/tcp/80",
        "/ip4/224.0.0.1/tcp/80",
        "/ip4/100.64.0.1/tcp/80",
        "/ip6/::1/tcp/80",
        "/ip6/fe80::1/tcp/80",
        "/ip6/fc00::1/tcp/80",
        "/ip6/::ffff:127.0.0.1/tcp/80",
        "/dns4/localhost/tcp/80",
        "/ip4/8.8.8.8/udp/53",
        "/ip4/8.8.8.8",
        "8.8.8.8:80",
        "",
        "/ip4/8.8.8.8/tcp/80/p2p/" + "x" * 300,
    ],
)
def test_an_address_that_a_stranger_may_not_send_us_to(address):
    assert not is_public(address)


def test_private_addresses_are_dialled_only_in_a_private_network(tmp_path):
    hint = Hint(PEER, ("/ip4/127.0.0.1/tcp/5432", PUBLIC), "dht")
    public = sources(tmp_path, bootstrap=("/ip4/8.8.4.4/tcp/9000/p2p/x",))
    assert public.allowed(hint).addresses == (PUBLIC,)
    local = sources(tmp_path, bootstrap=("/ip4/127.0.0.1/tcp/9000/p2p/x",))
    assert local.allowed(hint) == hint


def test_a_peer_named_twice_is_tried_again_only_at_new_addresses():
    looked = _Round(MODEL, 1, None)
    assert looked.news(Hint(PEER, ("/a",), "memory")).addresses == ("/a",)
    assert looked.news(Hint(PEER, ("/a",), "registry")) is None
    assert looked.news(Hint(PEER, ("/a", "/b"), "dht")).addresses == ("/b",)


async def test_a_source_in_trouble_says_so_and_keeps_what_it_named(tmp_path):
    async def broken(_model_id):
        yield Hint(PEER, (PUBLIC,), "dht")
        raise Unavailable("no bootstrap node answers")

    taken = []
    assert await each_hint(broken, MODEL, taken.append) == "no bootstrap node answers"
    assert len(taken) == 1


def test_a_renter_that_met_the_host_needs_no_bootstrap_node(world: World):
    home = world.renter("layers")
    seen = home.command("hosts", "--json")
    assert seen.finish(60) == 0, seen.err
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    text = home.config.read_text().replace(world.renter_values["bootstrap"][0], gone)
    home.config.write_text(text)
    chat = home.chat("Say hello.", "--max-tokens", 8)
    assert chat.finish(60) == 0, chat.err
    assert home.record(newest_session(home.state)).token_ids


async def test_private_addresses_are_dialled_only_if_they_were_told_on_the_link(tmp_path):
    public = "/ip4/65.108.1.1/tcp/9000/p2p/" + PEER
    looking = sources(tmp_path, bootstrap=(public,))
    home = "/ip4/192.168.1.7/tcp/9000/p2p/" + PEER
    for source in ("memory", "dht", "registry", "gossip"):
        assert looking.allowed(Hint(PEER, (home, public), source)).addresses == (public,)
    assert looking.allowed(Hint(PEER, (home,), "mdns")).addresses == (home,)


async def test_the_local_network_is_a_source_only_where_it_is_listened_to(tmp_path):
    class Lan:
        async def each(self, seconds):
            yield PEER, ("/ip4/192.168.1.7/tcp/9000",)

    looking = sources(tmp_path)
    assert "mdns" not in looking.all()
    heard = replace(looking, lan=Lan())
    hints = [hint async for hint in heard.all()["mdns"](MODEL)]
    assert hints == [Hint(PEER, ("/ip4/192.168.1.7/tcp/9000",), "mdns")]
