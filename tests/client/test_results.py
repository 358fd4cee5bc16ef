"""What a host published reaches the renter, with or without a portal."""

import contextlib
import json

import pytest

from nodeapp.core.errors import NotFound, Rejected, TooLarge
from nodeapp.network.settings import DhtMode
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.results import serve_result
from nodeapp.renter.events import AnswerEnded
from nodeapp.renter.record import SessionHead
from nodeapp.renter.results import Results, is_public_url
from nodeapp.s5.cid import blob_id_of, cid_of
from nodeapp.wire.envelope import RESULTS_PROTOCOL
from tests.p2p.hosts import running
from tests.world import STORY, World

BLOB = bytes(range(256)) * 1000
CID = cid_of(blob_id_of(BLOB))


class Kept:
    """The storage process with these blobs."""

    def __init__(self, blobs):
        self.blobs = blobs

    async def load(self, cid, *, max_bytes):
        if cid not in self.blobs:
            raise NotFound(f"blob {cid} is not kept here")
        return self.blobs[cid]


@contextlib.asynccontextmanager
async def results(tmp_path, blobs):
    admission = Admission(handshakes_per_minute=30, max_streams_per_peer=4)
    async with (
        running(tmp_path, "host") as host,
        running(tmp_path, "renter", listen=(), dht_mode=DhtMode.CLIENT) as renter,
    ):
        host.set_handler(
            RESULTS_PROTOCOL, lambda stream: serve_result(stream, admission, Kept(blobs))
        )
        head = SessionHead(1, "", 1, "", host.peer_id, "", "http://127.0.0.1:1", host.addresses)

        async def start(_stack):
            return renter

        async with contextlib.AsyncExitStack() as stack:
            yield Results(head, True, start, stack)


async def test_a_blob_comes_over_libp2p_when_the_portal_cannot_be_reached(tmp_path):
    async with results(tmp_path, {CID: BLOB}) as made:
        assert await made.fetch(CID, 1 << 20) == BLOB
        with pytest.raises(NotFound, match="not kept here"):
            await made.fetch(cid_of(blob_id_of(b"other")), 100)


async def test_what_is_not_the_blob_is_dropped(tmp_path):
    async with results(tmp_path, {CID: BLOB[:-1] + b"x"}) as made:
        with pytest.raises(Rejected, match="not blob"):
            await made.fetch(CID, 1 << 20)


async def test_more_than_asked_for_is_not_taken(tmp_path):
    async with results(tmp_path, {CID: BLOB}) as made:
        with pytest.raises(TooLarge):
            await made.fetch(CID, 1000)


@pytest.mark.parametrize(
    ("url", "is_public"),
    [
        ("https://portal.example.org", True),
        ("http://8.8.8.8:5050", True),
        ("http://portal.example.org", False),
        ("http://127.0.0.1:5050", False),
        ("http://169.254.169.254/latest", False),
        ("https://localhost", False),
        ("https://[::1]", False),
        ("file:///etc/passwd", False),
        ("http://[broken", False),
    ],
)
def test_a_portal_that_a_host_may_send_a_renter_to(url, is_public):
    assert is_public_url(url) is is_public


def test_a_session_is_verified_although_its_portal_is_gone(world: World):
    home = world.renter("noportal")
    chat = home.chat(STORY, "--max-tokens", 110)
    assert chat.finish(90) == 0, chat.err
    job_id = chat.one(AnswerEnded).job_id
    world.until_settled(job_id)
    (path,) = home.state.glob(f"session-{job_id}.jsonl")
    head, *rest = path.read_text().splitlines()
    moved = json.loads(head) | {"portal_url": "http://127.0.0.1:1"}
    path.write_text("\n".join([json.dumps(moved), *rest]) + "\n")
    verify = home.command("verify", "--json")
    assert verify.finish(90) == 0, (verify.err, verify.out)
    assert json.loads(verify.out)["tokens_claimed"] == 110
