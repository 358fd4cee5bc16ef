"""The bootstrap node: others join by it, ask it whom it knows, and have it dial them back.

    fabstir-node bootstrap --state-dir DIR --listen /ip4/0.0.0.0/tcp/9000
    python -m nodeapp.p2p.bootstrap --state-dir DIR --listen /ip4/127.0.0.1/tcp/0 --ready-file FILE

When it can be dialled, the ready file holds its multiaddr; it appears whole and goes with the
process. SIGTERM or SIGINT ends it within 3 s with exit code 0; started as a module, as a
development network does it, the death of its parent ends it too.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import NodeError
from nodeapp.network.circuit import HOP, Relay
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.directory import Directory, serve_capability
from nodeapp.p2p.reach import REACH_PROTOCOL, serve_dial_back
from nodeapp.security.capability import capability_rule
from nodeapp.service.clock import SystemClock
from nodeapp.service.lifecycle import die_with_parent
from nodeapp.service.logs import configure_logs, get_logger
from nodeapp.service.settings import NodeSettings
from nodeapp.store.atomic import write_whole
from nodeapp.wire import envelope
from nodeapp.wire.capability import DHT_NAMESPACE, GOSSIP_TOPIC

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """What the command line says."""

    state_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    ready_file: Path | None = None
    is_relay: bool = False


Tell = Callable[[Sequence[str]], None]
"""Its multiaddrs, once it can be dialled."""


async def run_bootstrap(
    settings: BootstrapSettings, stopping: asyncio.Event, tell: Tell = lambda _addresses: None
) -> int:
    """Serve until `stopping` is set.

    Returns:
        0, or 1 when the libp2p thread died.

    Raises:
        NodeError: it could not start.
    """
    deaths: list[str] = []

    def on_death(reason: str) -> None:
        deaths.append(reason)
        stopping.set()

    await _say_ready(settings, b"")
    directory = Directory(SystemClock().unix_seconds)
    network = NetworkSettings(
        identity_path=settings.state_dir / "identity.key",
        listen=settings.listen,
        announce=settings.announce,
        dht_mode=DhtMode.SERVER,
        topics={GOSSIP_TOPIC: directory.accept},
        record_rules={DHT_NAMESPACE: capability_rule(SystemClock().unix_seconds)},
    )
    async with Libp2pHost.running(network, on_death=on_death) as host:
        admission = Admission(handshakes_per_minute=30, max_streams_per_peer=4)
        host.gossip.listen(GOSSIP_TOPIC, directory.take)
        host.set_handler(
            envelope.CAPABILITY_PROTOCOL,
            lambda stream: serve_capability(stream, admission, directory, None),
        )
        host.set_handler(REACH_PROTOCOL, lambda stream: serve_dial_back(stream, admission))
        if settings.is_relay:
            host.set_handler(HOP, Relay(host, SystemClock().unix_seconds).serve)
        await _say_ready(settings, f"{host.addresses[0]}\n".encode())
        tell(host.addresses)
        try:
            await stopping.wait()
        finally:
            await _say_ready(settings, b"")
    for reason in deaths:
        _log.error("bootstrap node ends", error=reason)
    return 1 if deaths else 0


async def _say_ready(settings: BootstrapSettings, text: bytes) -> None:
    """Write the ready file; nothing to say: remove it."""
    if settings.ready_file is None:
        return
    if text:
        await asyncio.to_thread(write_whole, settings.ready_file, text)
    else:
        await asyncio.to_thread(settings.ready_file.unlink, missing_ok=True)


def _parse(arguments: Sequence[str]) -> BootstrapSettings:
    parser = argparse.ArgumentParser(prog="python -m nodeapp.p2p.bootstrap", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--listen", action="append", help="multiaddr, TCP; port 0: a free one")
    parser.add_argument("--announce", action="append", help="multiaddr told to others instead")
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--relay", action="store_true", help="carry traffic of hosts behind NAT")
    parsed = parser.parse_args(arguments)
    listen = tuple(parsed.listen or ("/ip4/127.0.0.1/tcp/0",))
    return BootstrapSettings(
        parsed.state_dir, listen, tuple(parsed.announce or ()), parsed.ready_file, parsed.relay
    )


async def serve(settings: BootstrapSettings, tell: Tell = lambda _addresses: None) -> int:
    """Until SIGTERM or SIGINT; see run_bootstrap."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return await run_bootstrap(settings, stopping, tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    settings = _parse(sys.argv[1:] if arguments is None else arguments)
    die_with_parent()
    configure_logs("bootstrap", NodeSettings())
    try:
        return asyncio.run(serve(settings))
    except* NodeError as group:
        for error in group.exceptions:
            _log.error("bootstrap node cannot run", error=str(error))
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
