"""Hosts of one local network find each other, and nobody there can make us dial elsewhere."""

import asyncio
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import IPVersion, ServiceStateChange
from zeroconf.asyncio import AsyncZeroconf

from nodeapp.core.errors import Unavailable
from nodeapp.network import mdns
from nodeapp.network.mdns import (
    MAX_ADDRESSES,
    MAX_PEERS,
    LanPeers,
    Link,
    announcing,
    find_link,
    listening,
    read_text,
    write_text,
)
from tests.p2p.hosts import until
from tests.p2p.rooms import rooms, says

PEER = "12D3KooWGRUVh8sVJHfDsMTA6E3sGJ5mwkSxcWPbq7KWzDDD4L3e"
LOOPBACK = ("127.0.0.1",)
LAN = Link(("192.168.7.2",), (ipaddress.IPv4Network("192.168.7.0/24"),))


def told(*addresses, peer=PEER):
    return write_text([f"{address}/p2p/{peer}" for address in addresses])


def heard(text):
    peers = LanPeers(LAN, "")
    peers._take("instance", text)
    return peers.peers()


async def test_a_host_that_tells_the_link_is_found_there_until_it_ends():
    async with asyncio.timeout(25), listening(LOOPBACK) as found:
        async with announcing(PEER, ("/ip4/0.0.0.0/tcp/9123",), LOOPBACK) as addresses:
            assert addresses == (f"/ip4/127.0.0.1/tcp/9123/p2p/{PEER}",)
            async for peer_id, where in found.each(15):
                assert (peer_id, where) == (PEER, addresses)
                break
            assert set(found.peers()) == {PEER}
        await until(lambda: not found.peers())


async def test_nobody_is_found_where_nobody_tells():
    async with listening(LOOPBACK) as found:
        assert [peer async for peer in found.each(0.3)] == []


async def test_a_host_that_listens_elsewhere_only_says_so():
    with pytest.raises(Unavailable, match="not on the local network"):
        async with announcing(PEER, ("/ip4/10.99.99.99/tcp/9000",), LOOPBACK):
            pass


def test_without_an_interface_there_is_no_link():
    with pytest.raises(Unavailable, match="no network interface"):
        find_link(("203.0.113.77",))


def test_listening_everywhere_is_told_with_the_addresses_of_the_link():
    assert LAN.expand(("/ip4/0.0.0.0/tcp/9000/p2p/x", "/ip4/127.0.0.1/tcp/9000")) == (
        "/ip4/192.168.7.2/tcp/9000",
    )


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/192.168.8.1/tcp/80",
        "/ip4/10.0.0.1/tcp/80",
        "/ip4/8.8.8.8/tcp/53",
        "/ip6/::1/tcp/22",
        "/dns4/router.local/tcp/80",
        "/ip4/192.168.7.9/udp/9000",
        "/ip4/192.168.7.9/tcp/99999",
        "/ip4/192.168.7.9.1/tcp/9000",
    ],
)
def test_only_addresses_on_the_link_are_taken(address):
    assert heard(told(address)) == {}
    on_link = "/ip4/192.168.7.9/tcp/9000"
    assert heard(told(address, on_link)) == {PEER: (f"{on_link}/p2p/{PEER}",)}


def test_one_instance_speaks_for_one_peer_with_few_addresses():
    many = [f"/ip4/192.168.7.{n}/tcp/9000" for n in range(1, 30)]
    assert len(heard(told(*many))[PEER]) == MAX_ADDRESSES
    two = told(many[0]) + told(many[1], peer="another")
    assert heard(two) == {PEER: (f"{many[0]}/p2p/{PEER}",)}


def test_a_link_full_of_names_fills_no_memory():
    peers = LanPeers(LAN, "own")
    for number in range(3 * MAX_PEERS):
        peers._take(f"name {number}", told("/ip4/192.168.7.9/tcp/9000", peer=f"peer{number}"))
        peers.note(None, mdns.SERVICE, f"name {number}", mdns.ServiceStateChange.Added)
    assert len(peers.peers()) == MAX_PEERS
    assert peers._names.qsize() == MAX_PEERS
    peers.note(None, mdns.SERVICE, "name 0", mdns.ServiceStateChange.Removed)
    assert len(peers.peers()) == MAX_PEERS - 1


@given(st.binary(max_size=600))
def test_property_whatever_is_told_is_read_without_harm(text):
    for address in read_text(text):
        assert "/p2p/" in address
    heard(text)


@given(st.lists(st.integers(1, 65535), max_size=4))
def test_property_what_is_written_is_read(ports):
    addresses = tuple(f"/ip4/192.168.7.9/tcp/{port}/p2p/{PEER}" for port in ports)
    assert read_text(write_text(addresses)) == addresses


@pytest.mark.timeout(120)
def test_two_hosts_on_a_cable_find_each_other_and_talk(tmp_path):
    with rooms(2) as house:
        house.cable(0, 1, "192.168.77")
        telling = house.start(0, "tests.p2p.lan_host", "tell", tmp_path)
        finding = house.start(1, "tests.p2p.lan_host", "find", tmp_path)
        said, found = says(telling, "told"), says(finding, "echo")
    assert found == {"peer_id": said["peer_id"], "addresses": said["told"], "echo": "hello"}
    assert said["told"][0].startswith("/ip4/192.168.77.1/tcp/")


@pytest.mark.parametrize(
    "label", ["\ufffd" * 63, "\ufffd" * 30, "\x00\n", "a.b"], ids=["63", "30", "control", "dot"]
)
async def test_a_name_that_is_none_does_not_end_the_listening(label):
    """What is no UTF-8 in a name of 63 bytes comes as three times as many."""
    zeroconf = AsyncZeroconf(interfaces=list(LOOPBACK), ip_version=IPVersion.V4Only)
    peers = LanPeers(find_link(LOOPBACK), "")
    for name in (f"{label}.{mdns.SERVICE}", f"next.{mdns.SERVICE}"):
        peers.note(zeroconf.zeroconf, mdns.SERVICE, name, ServiceStateChange.Added)
    try:
        asking = asyncio.ensure_future(peers.ask(zeroconf.zeroconf))
        async with asyncio.timeout(10):
            while not (asking.done() or peers._names.empty()):
                await asyncio.sleep(0.01)
        assert not asking.done()
        asking.cancel()
    finally:
        await zeroconf.async_close()
