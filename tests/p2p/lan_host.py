"""A host in a network namespace of its own: `python -m tests.p2p.lan_host tell|find DIR`.

`tell` listens, tells the link and echoes; `find` knows nobody, listens and has its echo from
whoever it finds. Both print one line of JSON.
"""

import asyncio
import json
import sys
from pathlib import Path

from nodeapp.network.host import Libp2pHost
from nodeapp.network.mdns import announcing, listening
from nodeapp.network.settings import NetworkSettings
from tests.p2p.hosts import ECHO


def settings(directory: Path, name: str, *listen: str) -> NetworkSettings:
    return NetworkSettings(identity_path=directory / f"{name}.key", listen=listen)


async def tell(directory: Path) -> None:
    async def echo(stream):
        while (frame := await stream.read_frame(deadline_seconds=20)) is not None:
            await stream.write_frame(frame)

    network = settings(directory, "tell", "/ip4/0.0.0.0/tcp/0")
    async with Libp2pHost.running(network, on_death=print) as host:
        host.set_handler(ECHO, echo)
        async with announcing(host.peer_id, host.listening) as told:
            print(json.dumps({"peer_id": host.peer_id, "told": told}), flush=True)
            await asyncio.Event().wait()


async def find(directory: Path) -> None:
    async with (
        Libp2pHost.running(settings(directory, "find"), on_death=print) as host,
        listening() as heard,
    ):
        async for peer_id, addresses in heard.each(20):
            assert await host.connect(addresses[0]) == peer_id
            stream = await host.open_stream(peer_id, [ECHO])
            await stream.write_frame(b"hello")
            echo = await stream.read_frame(deadline_seconds=10)
            found = {"peer_id": peer_id, "addresses": addresses, "echo": (echo or b"").decode()}
            print(json.dumps(found), flush=True)
            return


if __name__ == "__main__":
    asyncio.run({"tell": tell, "find": find}[sys.argv[1]](Path(sys.argv[2])))
