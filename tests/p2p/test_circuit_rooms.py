"""A paid answer through a relay, of a host that its renter has no way to: three real processes."""

import asyncio
import json
import time

import pytest

from nodeapp.core.errors import NodeError
from nodeapp.rpc.p2p import P2pClient
from tests.p2p.rooms import rooms, says

RELAY_PORT, HOST_PORT, TOKENS = 9100, 9200, 40


def wait_for(path, seconds=40):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.05)
    return path


def seen(socket, part, seconds=40):
    """What the node tells of itself, once one of its addresses has this in it."""

    async def ask():
        async with P2pClient(socket) as client:
            return await client.network()

    end = time.monotonic() + seconds
    while True:
        try:
            view = asyncio.run(ask())
        except NodeError:
            view = None
        if view is not None and any(part in address for address in view.addresses):
            return view
        assert time.monotonic() < end, f"{view} has no address with {part}"
        time.sleep(0.2)


@pytest.mark.timeout(150)
def test_a_renter_is_served_by_a_host_that_only_a_relay_reaches(tmp_path):
    relay, hidden, renter = 0, 1, 2
    with rooms(3) as house:
        house.cable(relay, hidden, "10.77.1")
        house.cable(relay, renter, "10.77.2")
        house.route(renter, "10.77.1", "10.77.2.1")
        house.start(
            relay,
            "nodeapp.p2p.bootstrap",
            *("--state-dir", tmp_path / "relay", "--ready-file", tmp_path / "relay.address"),
            *("--listen", f"/ip4/0.0.0.0/tcp/{RELAY_PORT}", "--relay"),
        )
        backend = "tests.benchmarks.p2p_backend"
        house.start(
            hidden, backend, *("--dir", tmp_path, "--renters", 1, "--tokens-per-second", 400)
        )
        wait_for(tmp_path / "run" / "inference.sock")
        relay_id = wait_for(tmp_path / "relay.address").read_text().strip().rpartition("/")[2]
        way = f"/ip4/10.77.1.1/tcp/{RELAY_PORT}/p2p/{relay_id}"
        sets = (
            f"node.state_dir={tmp_path}",
            f"node.run_dir={tmp_path / 'run'}",
            f"p2p.listen=/ip4/0.0.0.0/tcp/{HOST_PORT}",
            f"p2p.relays={json.dumps([way])}",
        )
        house.start(
            hidden, "nodeapp.p2p.main", *(word for pair in sets for word in ("--set", pair))
        )
        view = seen(tmp_path / "run" / "p2p.sock", "/p2p-circuit/")
        assert "reachable through 1 of 1 relays" in view.reachability
        circuit = f"{way}/p2p-circuit/p2p/{view.peer_id}"
        assert circuit in view.addresses
        assert house.can_reach(renter, "10.77.1.1", RELAY_PORT)
        assert not house.can_reach(renter, "10.77.1.2", HOST_PORT)
        asking = house.start(
            renter,
            "tests.benchmarks.p2p_renters",
            *("stream", "--address", circuit, "--dir", tmp_path),
            *("--renters", 1, "--tokens", TOKENS),
        )
        says(asking, "ready")
        asking.stdin.write("\n")
        asking.stdin.flush()
        facts = says(asking, "tokens")
    assert facts["tokens"] == TOKENS
