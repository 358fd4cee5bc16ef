"""Who is kept out, for how long, and who is not."""

import json

import pytest

from nodeapp.core.errors import InvalidRequest, ProtocolViolation, Unauthorised, Unavailable
from nodeapp.core.peer_score import LONGEST_BAN_SECONDS, next_ban, subnet_of
from nodeapp.network.settings import DhtMode
from nodeapp.p2p.bans import Bans
from nodeapp.service.metrics import Metrics
from tests.fakes.clock import FakeClock
from tests.p2p.hosts import ECHO, echo, running, until
from tests.world import World

PEER, OTHER = "12D3KooWPeer", "12D3KooWOther"
BROKEN = ProtocolViolation("hello expected, not tokens")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def bans(tmp_path, clock):
    return Bans(tmp_path / "bans.json", clock, Metrics("bans"))


def violate(bans, peer=PEER, address="8.8.8.8", times=3, *, has_paid=False, error=BROKEN):
    for _ in range(times):
        bans.note(peer, address, error, has_paid=has_paid)


def test_three_violations_are_a_ban_that_ends_and_is_longer_the_next_time(bans, clock):
    violate(bans, times=2)
    assert bans.admits(PEER, "8.8.8.8")
    violate(bans, times=1)
    assert not bans.admits(PEER, "8.8.8.8")
    assert bans.admits(OTHER, "8.8.8.8")
    clock.now += 601
    assert bans.admits(PEER, "8.8.8.8")
    violate(bans)
    clock.now += 601
    assert not bans.admits(PEER, "8.8.8.8")


def test_faults_fade_and_ours_are_not_the_peers(bans, clock):
    for _ in range(20):
        violate(bans, times=1)
        clock.now += 1200
    violate(bans, times=100, error=Unavailable("inference is restarting"))
    assert bans.admits(PEER, "8.8.8.8")


def test_a_subnet_full_of_offenders_is_kept_out_but_not_who_has_paid(bans):
    for number in range(6):
        violate(bans, peer=f"sybil{number}", address=f"8.8.8.{number}", times=2)
    assert not bans.admits(OTHER, "8.8.8.200")
    assert bans.admits(OTHER, "8.8.8.200", has_paid=True)
    assert bans.admits(OTHER, "8.8.9.1")


def test_neighbours_in_a_private_network_are_not_banned_together(bans):
    for number in range(50):
        violate(bans, peer=f"sybil{number}", address="192.168.1.7", times=2)
    assert bans.admits(OTHER, "192.168.1.7")


def test_bans_outlive_a_restart_and_a_damaged_file_stops_nothing(tmp_path, clock, bans):
    violate(bans)
    bans.ban("wallet:0xabc", "owes us", 60.0)
    again = Bans(tmp_path / "bans.json", clock, Metrics("again"))
    assert not again.admits(PEER, "")
    with pytest.raises(Unauthorised, match="not served here"):
        again.check_wallet("0xabc")
    assert set(json.loads((tmp_path / "bans.json").read_text())) == {f"peer:{PEER}", "wallet:0xabc"}
    assert again.lift(f"peer:{PEER}")
    assert again.admits(PEER, "")
    (tmp_path / "bans.json").write_text("{")
    assert Bans(tmp_path / "bans.json", clock, Metrics("damaged")).active() == {}


@pytest.mark.parametrize("name", ["", "peer", "peer:", "host:x", "x"])
def test_a_ban_needs_a_kind_and_a_name(bans, name):
    with pytest.raises(InvalidRequest, match="peer, wallet, subnet"):
        bans.ban(name, "", 1.0)


def test_no_ban_lasts_longer_than_a_day():
    ban = None
    for _ in range(60):
        ban = next_ban(ban, "", 0.0)
    assert ban.until == LONGEST_BAN_SECONDS


@pytest.mark.parametrize(
    ("address", "subnet"),
    [
        ("8.8.8.8", "8.8.8.0/24"),
        ("::ffff:8.8.8.8", "8.8.8.0/24"),
        ("2001:4860:4860::8888", "2001:4860:4860::/48"),
        ("127.0.0.1", ""),
        ("10.0.0.1", ""),
        ("", ""),
    ],
)
def test_the_subnet_of_an_address(address, subnet):
    assert subnet_of(address) == subnet


async def test_a_host_closes_the_connections_of_who_is_kept_out(tmp_path):
    kept_out = set()
    async with (
        running(tmp_path, "host", gate=lambda peer, _ip: peer not in kept_out) as host,
        running(tmp_path, "peer", listen=(), dht_mode=DhtMode.CLIENT) as peer,
    ):
        host.set_handler(ECHO, echo)
        await peer.connect(host.addresses[0])
        stream = await peer.open_stream(host.peer_id, [ECHO])
        await stream.write_frame(b"served")
        assert await stream.read_frame(deadline_seconds=5) == b"served"
        kept_out.add(peer.peer_id)
        assert await is_refused(peer, host.peer_id)
        await peer.disconnect(host.peer_id)
        await until(lambda: not host.connected_peers())
        await peer.connect(host.addresses[0])
        await until(lambda: host.peer_id not in peer.connected_peers())


async def is_refused(peer, host_id):
    """Whether a new stream ends instead of echoing."""
    try:
        stream = await peer.open_stream(host_id, [ECHO])
        await stream.write_frame(b"still there?")
        return await stream.read_frame(deadline_seconds=5) is None
    except Unavailable:
        return True


def test_the_operator_bans_and_unbans_from_the_command_line(world: World):
    from tests.world import Started

    def peers(*words):
        started = Started(world.directory, "peers", "peers", *words, "--config", world.node_file)
        return started.finish(30), started.out, started.err

    code, out, _ = peers("show")
    assert code == 0
    assert "peer id        12D3KooW" in out
    assert peers("bans")[:2] == (0, "nobody is banned\n")
    code, out, _ = peers("ban", "wallet:0x00", "--hours", "1", "--reason", "test")
    assert code == 0
    assert out.startswith("wallet:0x00  until ")
    assert "wallet:0x00" in peers("bans", "--json")[1]
    assert peers("unban", "wallet:0x00")[0] == 0
    code, _, err = peers("unban", "wallet:0x00")
    assert (code, err) == (1, "error: wallet:0x00 is not banned\n")
