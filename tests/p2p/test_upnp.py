"""A router forwards our port, renews it, forgets it; and what the operator is told when not."""

import asyncio

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.network.upnp import LEASE_SECONDS, Forward, PortForward, port_to_forward

HERE = "127.0.0.1"


def forward(port=9000):
    return PortForward(port, interface=HERE)


async def test_the_port_is_forwarded_here_for_a_lease_and_not_after_the_end(router):
    ours = forward()
    opened = await ours.open()
    assert opened == Forward("81.2.69.142", 9000)
    assert opened.multiaddr == "/ip4/81.2.69.142/tcp/9000"
    assert router.mappings == {9000: (HERE, 9000, LEASE_SECONDS)}
    await ours.close()
    assert router.mappings == {}
    await ours.close()


async def test_opening_again_renews_it_without_another_search(router):
    ours = forward()
    await ours.open()
    router.mappings.clear()  # the lease ended
    router.is_silent = True
    assert (await ours.open()).port == 9000
    assert 9000 in router.mappings


async def test_another_machine_keeps_its_port_and_we_get_the_next_one(router):
    router.taken = {9000, 9001}
    ours = forward()
    assert (await ours.open()).multiaddr == "/ip4/81.2.69.142/tcp/9002"
    assert router.mappings == {9002: (HERE, 9000, LEASE_SECONDS)}
    router.taken.clear()
    assert (await ours.open()).port == 9002


async def test_a_router_that_knows_permanent_forwards_only_gets_one(router):
    router.permanent_only = True
    ours = forward()
    await ours.open()
    assert router.mappings == {9000: (HERE, 9000, 0)}
    await ours.close()
    assert router.mappings == {}


async def test_a_router_that_refuses_is_named_with_its_reason(router):
    router.refuses = 606
    with pytest.raises(
        Unavailable, match=r"refuses to forward TCP port 9000 \(Action not authorized"
    ):
        await forward().open()
    assert router.mappings == {}


async def test_a_router_behind_a_router_is_said_to_be_no_way_in(router):
    router.address = "192.168.1.5"
    with pytest.raises(Unavailable, match=r"192\.168\.1\.5 is not public"):
        await forward().open()
    router.address = "81.2.69.142"
    ours = forward()
    await ours.open()
    router.address = "100.64.3.4"
    with pytest.raises(Unavailable, match=r"100\.64\.3\.4 is not public"):
        await ours.open()


async def test_the_new_address_of_the_router_is_seen(router):
    ours = forward()
    await ours.open()
    router.address = "81.2.69.143"
    assert (await ours.open()).address == "81.2.69.143"


async def test_without_a_router_the_operator_is_told_what_to_do(router):
    router.is_silent = True
    with pytest.raises(Unavailable, match="no router answered; forward TCP port 9000"):
        await forward().open()


async def test_a_router_that_has_gone_is_looked_for_again(router):
    ours = forward()
    await ours.open()
    ours._forward = None
    async with asyncio.timeout(10):
        assert (await ours.open()).port == 9000
    assert router.asked.count("AddPortMapping") == 2


@pytest.mark.parametrize(
    "listen", [(), ("/ip4/127.0.0.1/tcp/9000",), ("/ip4/0.0.0.0/tcp/0",), ("/dns4/x/tcp/9000",)]
)
def test_a_port_that_no_router_can_lead_to_is_refused(listen):
    with pytest.raises(InvalidRequest, match=r"p2p\.listen"):
        port_to_forward(listen)


def test_the_port_of_the_first_address_that_can_be_reached_is_forwarded():
    assert port_to_forward(("/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/9000")) == 9000


async def test_no_forward_is_left_for_ever_because_one_with_a_lease_was_refused_once(router):
    router.refuses_leases = True
    with pytest.raises(Unavailable, match="refuses to forward"):
        await forward().open()
    assert router.mappings == {}


async def test_a_router_that_hangs_is_asked_nothing_else_until_it_answers(router):
    ours = forward()
    await ours.open()
    router.hears.clear()
    ours._call_seconds = 0.1
    with pytest.raises(Unavailable, match=r"does not answer$"):
        await ours.open()
    for _ in range(2):
        with pytest.raises(Unavailable, match="has not answered an earlier question yet"):
            await ours.open()
    hanging = ours._asked
    assert not hanging.done()
    router.hears.set()
    async with asyncio.timeout(10):
        await asyncio.wait((hanging,))
    ours._call_seconds = 30.0
    assert (await ours.open()).port == 9000
    await ours.close()
    assert router.mappings == {}


async def test_a_hanging_router_that_refuses_late_troubles_nobody(router):
    ours = forward()
    await ours.open()
    router.hears.clear()
    ours._call_seconds = 0.1
    with pytest.raises(Unavailable, match=r"does not answer$"):
        await ours.open()
    router.refuses = 606
    hanging = ours._asked
    router.hears.set()
    async with asyncio.timeout(10):
        await asyncio.wait((hanging,))
    assert isinstance(hanging.exception(), Unavailable)
