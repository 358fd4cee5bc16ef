"""Names of bootstrap nodes."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.network.resolve import resolved, text_records
from tests.p2p.hosts import running

PEER = "/p2p/12D3KooWPqT2nMDSiXUSx5D7fasaxhxKigVhcqfkKqrLghCq9jxz"


async def texts(name):
    assert name == "_dnsaddr.boot.example"
    return [
        f"dnsaddr=/ip4/203.0.113.7/tcp/9000{PEER}",
        "dnsaddr=/ip4/203.0.113.8/tcp/9000/p2p/other",
        "dnsaddr=/dnsaddr/loop.example",
        "v=spf1 -all",
    ]


async def test_a_name_becomes_a_literal_address_and_the_rest_stays():
    assert await resolved(f"/dns4/localhost/tcp/9000{PEER}") == (f"/ip4/127.0.0.1/tcp/9000{PEER}",)
    literal = f"/ip4/203.0.113.7/tcp/9000{PEER}"
    assert await resolved(literal) == (literal,)


async def test_text_records_name_several_nodes_and_a_suffix_chooses():
    assert await resolved("/dnsaddr/boot.example", texts) == (
        f"/ip4/203.0.113.7/tcp/9000{PEER}",
        "/ip4/203.0.113.8/tcp/9000/p2p/other",
    )
    assert await resolved("/dnsaddr/boot.example/p2p/other", texts) == (
        "/ip4/203.0.113.8/tcp/9000/p2p/other",
    )
    with pytest.raises(Unavailable, match="names no address"):
        await resolved("/dnsaddr/boot.example/p2p/nobody", texts)


async def test_a_name_that_does_not_exist_says_so():
    with pytest.raises(Unavailable, match="has no address now"):
        await resolved(f"/dns4/does-not-exist.invalid/tcp/9000{PEER}")
    with pytest.raises(Unavailable, match="no txt records"):
        await text_records("_dnsaddr.does-not-exist.invalid")
    with pytest.raises(InvalidRequest, match="has no port"):
        await resolved("/dns4/localhost")


OFFLINE = """
import asyncio, pathlib, sys
from nodeapp.core.errors import Unavailable
from nodeapp.network.resolve import text_records
from tests.p2p.hosts import running

FILE = pathlib.Path("/etc/resolv.conf")

async def failure(lookup):
    try:
        await lookup
    except Unavailable as error:
        return error.message
    raise SystemExit("it was found")

async def main():
    directory = pathlib.Path(sys.argv[1])
    async with running(directory, "one") as one, running(directory, "two") as two:
        message = await failure(two.dht.join(["/dns4/boot.invalid/tcp/9000"]))
        assert message == "name boot.invalid has no address now", message
        assert "NoResolverConfiguration" in await failure(text_records("_dnsaddr.boot.invalid"))
        # The network comes up: its name servers, and a name that is found.
        if sys.argv[2] == "empty":
            FILE.write_text("nameserver 127.0.0.1\\n")
            assert "NoResolverConfiguration" not in await failure(text_records("boot.invalid"))
        await two.dht.join([one.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")])
    print("online")

asyncio.run(main())
"""
HIDDEN = {
    "empty": "mount --bind {file} /etc/resolv.conf",
    "missing": "mount -t tmpfs none /etc && cp {hosts} /etc/hosts",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_node_starts_without_a_name_server_and_finds_its_bootstrap_node_later(tmp_path, kind):
    if os.geteuid() != 0:
        pytest.skip("another /etc/resolv.conf needs root")
    (tmp_path / "empty").touch()
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    hide = HIDDEN[kind].format(file=tmp_path / "empty", hosts=tmp_path / "hosts")
    hidden = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    done = subprocess.run(
        [*hidden, sys.executable, "-c", OFFLINE, str(tmp_path), kind],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr[-120:]}")
    assert done.stdout.endswith("\nonline\n"), done.stderr[-2000:]


async def test_a_dead_bootstrap_node_does_not_hold_the_others_up(tmp_path):
    async def never(reader, _writer):
        await reader.read()

    silent = await asyncio.start_server(never, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with (
        silent,
        running(tmp_path, "bootstrap") as bootstrap,
        running(tmp_path, "host") as host,
    ):
        named = bootstrap.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")
        began = time.monotonic()
        assert await host.dht.join([f"/ip4/127.0.0.1/tcp/{port}{PEER}", named]) >= 1
        assert time.monotonic() - began < 8
