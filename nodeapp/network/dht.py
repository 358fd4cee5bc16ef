"""Kademlia provider records and values under our own protocol id, on the trio thread.

Workarounds for py-libp2p 0.8.1, all in this file: `protocol_prefix` is ignored, lookups answer
from the local store only, answers repeat, routing tables are empty after a connect. A record
says "peer X provides this" and nothing more: it may be stale or a lie. A value is kept and
believed only if the rule of its namespace accepts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from nodeapp.core.errors import InvalidRequest, NodeError, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.network.bridge import Bridge
from nodeapp.network.providers import bound_providers
from nodeapp.network.resolve import resolved
from nodeapp.network.settings import KAD_PROTOCOL_ID, DhtMode, NetworkSettings, RecordRule

QUERY_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 1.0
"""After the first provider the slower peers are waited for so long and no longer."""
QUERIES_AT_ONCE: Final = 10
PROVIDERS_MAX: Final = 100
ADDRESSES_MAX: Final = 8
JOIN_SETTLE_SECONDS: Final = 2.0
"""After the first bootstrap node the others are waited for so long and no longer."""
REFRESH_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 2.0
"""Next try of an announcement nobody took, unless a connection comes or goes before."""
_MODULES: Final = (
    "common",
    "kad_dht",
    "peer_routing",
    "provider_store",
    "routing_table",
    "value_store",
)


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """A peer said to provide a key; addresses are multiaddrs with /p2p/, ready for `connect`."""

    peer_id: PeerId
    addresses: tuple[str, ...]


class Dht:
    """The asyncio side; `running` is entered on the trio thread by the host."""

    def __init__(
        self,
        bridge: Bridge,
        connect: Callable[[str], Awaitable[PeerId]],
        settings: NetworkSettings,
    ) -> None:
        """Built with the host."""
        self._bridge = bridge
        self._connect = connect
        self._settings = settings
        self._kad: Any = None
        self._ways_in: set[PeerId] = set()
        self._peers_changed = trio.Event()

    @property
    def ways_in(self) -> frozenset[PeerId]:
        """Bootstrap nodes that were reached at any time."""
        return frozenset(self._ways_in)

    async def join(self, bootstrap: Sequence[str], deadline_seconds: float = 20.0) -> int:
        """Connect to known nodes and fill the routing table; call again when peers were lost.

        Args:
            bootstrap: multiaddrs with /p2p/; one that answers is enough.
            deadline_seconds: for all of it.
        Returns:
            Peers in the routing table.
        Raises:
            Unavailable: none of them answers (InvalidRequest if the only fault is an address).
        """
        await self._reach_any(bootstrap, deadline_seconds)
        return await self._bridge.call("join dht", self._refresh, deadline_seconds)

    async def _reach_any(self, bootstrap: Sequence[str], deadline_seconds: float) -> None:
        failures: list[NodeError] = []
        reached = 0
        limit = asyncio.timeout(deadline_seconds)

        async def dial(address: str) -> None:
            nonlocal reached
            try:
                await self._connect_any(address)
            except NodeError as error:
                failures.append(error)
            else:
                reached += 1
                _bring_forward(limit, JOIN_SETTLE_SECONDS)

        try:
            async with limit, asyncio.TaskGroup() as tasks:
                for address in bootstrap:
                    tasks.create_task(dial(address))
        except TimeoutError:
            silent = f"no bootstrap node answers inside {deadline_seconds:g} s"
            failures.append(Unavailable(silent))
        if failures and not reached:
            raise failures[0]

    async def _connect_any(self, address: str) -> None:
        """At one of the literal addresses that a configured one stands for."""
        failure: NodeError | None = None
        for literal in await resolved(address):
            try:
                self._ways_in.add(await self._connect(literal))
            except NodeError as error:
                failure = failure or error
            else:
                return
        if failure is not None:
            raise failure

    async def routing_table_size(self) -> int:
        """Peers in the routing table.

        Raises:
            Unavailable: the trio thread has ended.
        """

        async def size() -> int:
            return int(self._kad.get_routing_table_size())

        return await self._bridge.call("routing table size", size, QUERY_SECONDS)

    async def provide(self, key: str, deadline_seconds: float = 30.0) -> bool:
        """Announce this host under a key, again and again until some peer took it.

        Records live 24 h or more but peers come and go: repeat every few hours and after a
        reconnect. A peer takes at most 10 of ours in 10 s.

        Args:
            key: from wire/provider_key.py.
            deadline_seconds: longest wait for a peer.
        Returns:
            False when no peer was found in time.
        Raises:
            Unavailable: the trio thread has ended.
        """
        return await self._bridge.call(
            "provide",
            lambda: self._provide(key, deadline_seconds),
            deadline_seconds + QUERY_SECONDS,
        )

    async def find_providers(
        self, key: str, deadline_seconds: float = 20.0, *, connected_only: bool = False
    ) -> list[ProviderInfo]:
        """Ask the peers closest to a key, always the network, each provider once.

        Args:
            key: from wire/provider_key.py.
            deadline_seconds: for all of it.
            connected_only: ask who is connected now and look for nobody closer; takes a round trip
                or two where a lookup may wait for peers that are gone.
        Returns:
            At most PROVIDERS_MAX, unchecked; this host itself is left out.
        Raises:
            Unavailable: the deadline passed or the trio thread has ended.
        """
        return await self._bridge.call(
            "find providers",
            lambda: self._find_providers(key, connected_only=connected_only),
            deadline_seconds,
        )

    async def put_value(self, key: str, value: bytes, deadline_seconds: float = 20.0) -> int:
        """Store a value with the peers closest to its key; repeat it before they forget.

        Args:
            key: "/namespace/rest", the namespace is one of the settings' record_rules.
            value: what the rule of the namespace accepts.
            deadline_seconds: for all of it.
        Returns:
            How many peers took it.
        Raises:
            NodeError: the rule refuses it, or the deadline passed.
        """
        self._rule(key)(key, value)
        return await self._bridge.call(
            "put value", lambda: self._put_value(key, value), deadline_seconds
        )

    async def get_value(self, key: str, deadline_seconds: float = 20.0) -> bytes | None:
        """The newest valid value that the peers closest to the key hold; always asks the network.

        Raises:
            Unavailable: the deadline passed or the trio thread has ended.
        """
        rule = self._rule(key)
        return await self._bridge.call(
            "get value", lambda: self._get_value(key, rule), deadline_seconds
        )

    @contextlib.asynccontextmanager
    async def running(self, library_host: Any) -> AsyncIterator[None]:  # noqa: ANN401 - untyped library
        """Trio side: serve and maintain the DHT around a block."""
        from libp2p.tools.anyio_service import background_trio_service

        self._kad = kad = _new_kad(library_host, self._settings)
        async with background_trio_service(kad):
            yield

    def note_peers(self) -> None:
        """Trio side: a connection came or went."""
        self._peers_changed.set()
        self._peers_changed = trio.Event()

    async def _refresh(self) -> int:
        with trio.move_on_after(REFRESH_SECONDS):
            for peer in self._kad.host.get_connected_peers():
                await self._kad.add_peer(peer)
            if self._settings.dht_mode is DhtMode.SERVER:
                # Whoever serves must be known to its neighbours, and find them: one lookup of
                # itself. Other buckets fill as others ask, and every two minutes by the library.
                own = self._kad.local_peer_id.to_bytes()
                await self._kad.peer_routing.find_closest_peers_network(own)
        return int(self._kad.get_routing_table_size())

    async def _provide(self, key: str, deadline_seconds: float) -> bool:
        is_taken = False
        with trio.move_on_after(deadline_seconds):
            while not is_taken:
                changed = self._peers_changed
                is_taken = bool(await self._kad.provide(key))
                if not is_taken:
                    with trio.move_on_after(RETRY_SECONDS):
                        await changed.wait()
        return is_taken

    async def _find_providers(self, key: str, *, connected_only: bool) -> list[ProviderInfo]:
        from libp2p.kad_dht.kad_dht import _encode_key

        store = self._kad.provider_store
        raw_key = _encode_key(key)
        found = _Found(str(self._kad.local_peer_id))
        found.add(store.get_providers(raw_key))

        async def ask(peer: Any) -> bool:  # noqa: ANN401 - untyped library
            # Its public twin answers from the local store once it has anything there.
            answer, _ = await store._get_providers_from_peer_with_closers(peer, raw_key)  # noqa: SLF001
            found.add(answer)
            return bool(found.addresses)

        if connected_only:
            await self._ask(self._kad.host.get_connected_peers(), ask)
        else:
            await self._ask_closest(raw_key, ask)
        return found.providers()

    async def _put_value(self, key: str, value: bytes) -> int:
        store, raw_key = self._kad.value_store, key.encode()
        store.put(raw_key, value)
        taken = 0

        async def give(peer: Any) -> bool:  # noqa: ANN401 - untyped library
            nonlocal taken
            taken += bool(await store._store_at_peer(peer, raw_key, value))  # noqa: SLF001 - its public twin does not count
            return False

        await self._ask_closest(raw_key, give)
        return taken

    async def _get_value(self, key: str, rule: RecordRule) -> bytes | None:
        store, raw_key = self._kad.value_store, key.encode()
        best: tuple[int, bytes] | None = None

        async def ask(peer: Any) -> bool:  # noqa: ANN401 - untyped library
            nonlocal best
            # Its public twin answers from the local store once it has anything there.
            value = await store._get_from_peer(peer, raw_key)  # noqa: SLF001
            if isinstance(value, bytes):
                with contextlib.suppress(NodeError):  # a lying peer's value is no value
                    best = max(best or (-1, b""), (rule(key, value), value))
            return best is not None

        await self._ask_closest(raw_key, ask)
        return best[1] if best is not None else None

    async def _ask_closest(self, raw_key: bytes, ask: Callable[[Any], Awaitable[bool]]) -> None:
        await self._ask(await self._kad.peer_routing.find_closest_peers_network(raw_key), ask)

    async def _ask(self, peers: Sequence[Any], ask: Callable[[Any], Awaitable[bool]]) -> None:
        """`ask` every peer; once one says True the slower get SETTLE_SECONDS."""
        limiter = trio.CapacityLimiter(QUERIES_AT_ONCE)
        scope = trio.CancelScope()

        async def one(peer: Any) -> None:  # noqa: ANN401 - untyped library
            is_enough = False
            async with limiter:
                with trio.move_on_after(QUERY_SECONDS):
                    is_enough = await ask(peer)
            if is_enough:
                scope.deadline = min(scope.deadline, trio.current_time() + SETTLE_SECONDS)

        with scope:
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    if peer != self._kad.local_peer_id:
                        nursery.start_soon(one, peer)

    def _rule(self, key: str) -> RecordRule:
        namespace = key.split("/")[1] if key.startswith("/") else ""
        rule = self._settings.record_rules.get(namespace)
        if rule is None:
            raise InvalidRequest(f"dht key {key[:100]!r} has no rule for its namespace")
        return rule


class _Found:
    """Providers by peer id, addresses in order of appearance, both bounded."""

    def __init__(self, own_id: str) -> None:
        self.addresses: dict[str, dict[str, None]] = {}
        self._own_id = own_id

    def add(self, infos: Sequence[Any]) -> None:
        for info in infos:
            peer_id = str(info.peer_id)
            is_full = len(self.addresses) >= PROVIDERS_MAX and peer_id not in self.addresses
            if peer_id == self._own_id or is_full:
                continue
            known = self.addresses.setdefault(peer_id, {})
            for address in info.addrs:
                if len(known) < ADDRESSES_MAX:
                    known[_with_peer_id(str(address), peer_id)] = None

    def providers(self) -> list[ProviderInfo]:
        return [
            ProviderInfo(PeerId(peer_id), tuple(addresses))
            for peer_id, addresses in self.addresses.items()
        ]


def _bring_forward(limit: asyncio.Timeout, seconds: float) -> None:
    """Let it expire this soon, unless it does earlier or did."""
    soon = asyncio.get_running_loop().time() + seconds
    if not limit.expired():
        limit.reschedule(min(soon, limit.when() or soon))


def _with_peer_id(address: str, peer_id: str) -> str:
    return f"{address.partition('/p2p/')[0]}/p2p/{peer_id}"


def _new_kad(library_host: Any, settings: NetworkSettings) -> Any:  # noqa: ANN401 - untyped library
    from libp2p.custom_types import TProtocol
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT

    # py-libp2p 0.8.1 ignores `protocol_prefix`: handlers and dials use a constant, bound by name
    # in six modules. A test asserts that no /ipfs/kad id is offered; remove when > 0.8.1.
    for name in _MODULES:
        module = importlib.import_module(f"libp2p.kad_dht.{name}")
        module.PROTOCOL_ID = TProtocol(KAD_PROTOCOL_ID)  # type: ignore[attr-defined]
    mode = settings.dht_mode
    library_mode = DHTMode.SERVER if mode is DhtMode.SERVER else DHTMode.CLIENT
    kad = KadDHT(library_host, library_mode, strict_validation=True)
    bound_providers(kad)
    for namespace, rule in settings.record_rules.items():
        kad.register_validator(namespace, _validator(rule))
    if mode is DhtMode.SERVER and KAD_PROTOCOL_ID not in map(
        str, library_host.get_mux().get_protocols()
    ):
        raise Unavailable(f"libp2p does not offer {KAD_PROTOCOL_ID}: it is not version 0.8.1")
    return kad


def _validator(rule: RecordRule) -> Any:  # noqa: ANN401 - untyped library
    from libp2p.records.validator import Validator

    class RuleValidator(Validator):
        """The library's face of a RecordRule; what it raises resets the peer's stream."""

        def validate(self, key: str, value: bytes) -> None:
            rule(key, value)

        def select(self, key: str, values: list[bytes]) -> int:
            return max(range(len(values)), key=lambda place: (rule(key, values[place]), -place))

    return RuleValidator()
