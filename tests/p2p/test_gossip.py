"""Records spread from node to node, and nothing else does."""

import asyncio

from nodeapp.core.errors import InvalidRequest
from tests.p2p.hosts import running, until

TOPIC = "/fabstir/test/1"


def good_only(message):
    if not message.startswith(b"good"):
        raise InvalidRequest("not good")


def listening(host):
    heard = []
    host.gossip.listen(TOPIC, heard.append)
    return heard


async def test_a_message_goes_through_a_line_of_nodes_and_a_bad_one_stops_at_the_first(tmp_path):
    topics = {TOPIC: good_only}
    async with (
        running(tmp_path, "first", topics={TOPIC: lambda _message: None}) as first,
        running(tmp_path, "second", topics=topics) as second,
        running(tmp_path, "third", topics=topics) as third,
    ):
        heard = {host: listening(host) for host in (first, second, third)}
        await second.connect(first.addresses[0])
        await third.connect(second.addresses[0])

        async def tell_until_heard():
            # The mesh forms a moment after the connections.
            async with asyncio.timeout(20):
                number = 0
                while not heard[third]:
                    await first.gossip.publish(TOPIC, b"bad %d" % number)
                    await first.gossip.publish(TOPIC, b"good %d" % number)
                    number += 1
                    await asyncio.sleep(0.2)

        await tell_until_heard()
        await until(lambda: heard[second])
        assert all(message.startswith(b"good") for message in (*heard[second], *heard[third]))
        assert any(message.startswith(b"bad") for message in heard[first])


async def test_a_node_without_topics_offers_no_gossip(tmp_path):
    async with (
        running(tmp_path, "plain") as plain,
        running(tmp_path, "x", topics={TOPIC: good_only}) as x,
    ):
        assert not [offer for offer in await plain.protocols() if "meshsub" in offer]
        assert [offer for offer in await x.protocols() if "meshsub" in offer] == ["/meshsub/1.1.0"]
