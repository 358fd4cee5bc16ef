"""Provider records that others left with us: bounded, and not to be filled by one neighbour.

py-libp2p 0.8.1 keeps the first 20 providers of a key and ignores every later one for a day, and
keeps any number of keys: whoever comes first with 20 identities hides all others. Here the newest
stay, few of them from one subnet. Everything runs on the trio thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from nodeapp.core.peer_score import subnet_of
from nodeapp.network.library import remote_ip

PROVIDERS_OF_A_KEY: Final = 100
OF_ONE_SUBNET: Final = 4
"""Of one key; by where the provider is connected from, not by what it claims. Private: exempt."""
KEYS: Final = 4096


class ProviderBook:
    """Takes the place of the library store's `add_provider`; its own dictionary stays in use."""

    def __init__(self, store: Any, subnet: Callable[[Any], str]) -> None:  # noqa: ANN401 - untyped library
        """`subnet` tells where a peer is connected from, "" when it is exempt."""
        self._store = store
        self._subnet = subnet
        self._subnets: dict[bytes, dict[str, str]] = {}

    def add(self, key: bytes, provider: Any) -> None:  # noqa: ANN401 - untyped library
        """Keep or renew one record; the oldest goes where there are too many."""
        from libp2p.kad_dht.provider_store import ProviderRecord

        keys: dict[bytes, dict[str, Any]] = self._store.providers
        records, subnets = keys.pop(key, {}), self._subnets.pop(key, {})
        keys[key], self._subnets[key] = records, subnets
        name, subnet = str(provider.peer_id), self._subnet(provider.peer_id)
        records.pop(name, None)
        if subnet:
            neighbours = [known for known in records if subnets.get(known) == subnet]
            if len(neighbours) >= OF_ONE_SUBNET:
                del records[neighbours[0]]
        while len(records) >= PROVIDERS_OF_A_KEY:
            del records[next(iter(records))]
        records[name] = ProviderRecord(provider_info=provider, timestamp=time.time())  # noqa: TID251 - the library compares with it
        subnets[name] = subnet
        for gone in [known for known in subnets if known not in records]:
            del subnets[gone]
        while len(keys) > KEYS:
            oldest = next(iter(keys))
            del keys[oldest]
            self._subnets.pop(oldest, None)


def bound_providers(kad: Any) -> None:  # noqa: ANN401 - untyped library
    """Give a DHT our rules for records; remove when > 0.8.1 has its own."""
    network = kad.host.get_network()

    def subnet(peer_id: Any) -> str:  # noqa: ANN401 - untyped library
        connections = network.connections.get(peer_id) or []
        return subnet_of(remote_ip(connections[0].muxed_conn)) if connections else ""

    store = kad.provider_store
    store.add_provider = ProviderBook(store, subnet).add
