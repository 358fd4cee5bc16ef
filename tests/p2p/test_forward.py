"""What the node announces and says of its router, and what it leaves behind."""

import asyncio
from dataclasses import dataclass, field

from nodeapp.p2p import forward as module
from nodeapp.p2p.forward import RouterForward
from nodeapp.service.settings import P2pSettings

HERE = "127.0.0.1"
LISTEN = "/ip4/0.0.0.0/tcp/9000"


@dataclass
class Node:
    settings: P2pSettings
    failures: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.forward = RouterForward(self.settings, self.failures.append, interface=HERE)


async def test_the_routers_address_is_announced_and_the_forward_is_gone_at_the_end(router):
    node = Node(P2pSettings(listen=LISTEN, upnp=True))
    assert await node.forward.announced() == ("/ip4/81.2.69.142/tcp/9000",)
    assert node.forward.sentence == (
        "UPnP: the router forwards 81.2.69.142 port 9000 to this machine"
    )
    assert set(router.mappings) == {9000}
    await node.forward.close()
    assert router.mappings == {}


async def test_what_the_operator_announces_stays(router):
    mine = ("/ip4/81.2.69.200/tcp/443",)
    node = Node(P2pSettings(listen=LISTEN, upnp=True, announce=mine))
    assert await node.forward.announced() == mine
    assert set(router.mappings) == {9000}
    await node.forward.close()


async def test_switched_off_nothing_is_asked(router):
    node = Node(P2pSettings(listen=LISTEN))
    assert await node.forward.announced() == ()
    async with asyncio.timeout(1):
        await node.forward.keep()
    await node.forward.close()
    assert (node.forward.sentence, router.asked) == ("", [])


async def test_a_host_that_cannot_be_led_to_is_told_so_and_starts(router):
    node = Node(P2pSettings(listen="/ip4/127.0.0.1/tcp/9000", upnp=True))
    assert await node.forward.announced() == ()
    assert "cannot be reached from the router" in node.forward.sentence
    async with asyncio.timeout(1):
        await node.forward.keep()


async def test_the_lease_is_renewed_and_another_address_is_announced_by_the_next_run(
    router, monkeypatch
):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.02)
    node = Node(P2pSettings(listen=LISTEN, upnp=True))
    await node.forward.announced()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.forward.keep())
        while router.asked.count("AddPortMapping") < 3:
            await asyncio.sleep(0.01)
        assert node.failures == []
        router.address = "81.2.69.143"
    (reason,) = node.failures
    assert "/ip4/81.2.69.143/tcp/9000" in reason
    await node.forward.close()
    assert router.mappings == {}


async def test_a_router_that_forwards_only_later_is_tried_again(router, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    router.refuses = 606
    node = Node(P2pSettings(listen=LISTEN, upnp=True))
    assert await node.forward.announced() == ()
    assert "refuses to forward" in node.forward.sentence
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.forward.keep())
        router.refuses = 0
    assert len(node.failures) == 1
    await node.forward.close()
