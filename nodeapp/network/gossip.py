"""Gossipsub on the trio thread: small signed records that every node passes on.

Only the topics of the settings are joined, and only messages that their rule accepts are kept or
passed on, so a node cannot be used to spread anything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.network.bridge import Bridge
from nodeapp.network.settings import NetworkSettings

HEARTBEAT_SECONDS: Final = 5
MAX_MESSAGE_BYTES: Final = 16_384
PUBLISH_SECONDS: Final = 10.0
DEGREE: Final = (4, 3, 8)
"""Peers of the mesh: wanted, least, most; a market has few nodes."""
MESSAGES_PER_SECOND: Final = 50.0


class Gossip:
    """The asyncio side; `running` is entered on the trio thread by the host."""

    def __init__(self, bridge: Bridge, settings: NetworkSettings) -> None:
        """Built with the host."""
        self._bridge = bridge
        self._topics = settings.topics
        self._pubsub: Any = None
        self._listeners: dict[str, Callable[[bytes], None]] = {}

    def listen(self, topic: str, take: Callable[[bytes], None]) -> None:
        """Call `take` on the asyncio loop with every message of a joined topic, ours included."""
        self._listeners[topic] = take

    async def publish(self, topic: str, message: bytes) -> None:
        """Tell the peers that listen; nobody listening is no error.

        Raises:
            Unavailable: the topic is not joined, or the trio thread has ended.
        """
        if topic not in self._topics:
            raise Unavailable(f"gossip topic {topic} is not joined")
        await self._bridge.call(
            f"publish to {topic}", lambda: self._pubsub.publish(topic, message), PUBLISH_SECONDS
        )

    @contextlib.asynccontextmanager
    async def running(self, library_host: Any) -> AsyncIterator[None]:  # noqa: ANN401 - untyped library
        """Trio side: take part around a block; without topics nothing is started."""
        if not self._topics:
            yield
            return
        from libp2p.tools.anyio_service import background_trio_service

        router, self._pubsub = _new_pubsub(library_host, frozenset(self._topics))
        async with background_trio_service(self._pubsub), background_trio_service(router):
            await self._pubsub.wait_until_ready()
            async with trio.open_nursery() as nursery:
                for topic, rule in self._topics.items():
                    self._pubsub.set_topic_validator(
                        topic, _validator(rule), is_async_validator=False
                    )
                    subscription = await self._pubsub.subscribe(topic)
                    nursery.start_soon(self._read, topic, subscription)
                yield
                nursery.cancel_scope.cancel()

    async def _read(self, topic: str, subscription: Any) -> None:  # noqa: ANN401 - untyped library
        async for message in subscription:
            self._bridge.to_loop(self._hand_on, topic, bytes(message.data))

    def _hand_on(self, topic: str, message: bytes) -> None:
        take = self._listeners.get(topic)
        if take is not None:
            take(message)


def _validator(rule: Callable[[bytes], object]) -> Callable[[Any, Any], bool]:
    def is_valid(_forwarder: Any, message: Any) -> bool:  # noqa: ANN401 - untyped library
        try:
            rule(bytes(message.data))
        except NodeError:
            return False
        return True

    return is_valid


def _new_pubsub(library_host: Any, topics: frozenset[str]) -> tuple[Any, Any]:  # noqa: ANN401 - untyped library
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
    from libp2p.pubsub.pubsub import Pubsub

    wanted, least, most = DEGREE
    router = GossipSub(
        protocols=[PROTOCOL_ID_V11],
        degree=wanted,
        degree_low=least,
        degree_high=most,
        heartbeat_interval=HEARTBEAT_SECONDS,
        max_messages_per_topic_per_second=MESSAGES_PER_SECOND,
    )
    pubsub = Pubsub(
        library_host,
        router,
        strict_signing=True,
        max_inbound_rpc_size=MAX_MESSAGE_BYTES * 4,
        allowed_topics=topics,
    )
    return router, pubsub
