"""The channel's far end breaks, hangs up or is withdrawn: the updater says so and can go on."""

import contextlib
import functools
import http.server
import threading

import pytest

from nodeapp.core.errors import NodeError, Rejected, Unavailable
from nodeapp.core.update import Phase
from nodeapp.updater.channel import Channel
from tests.fakes.release_repository import published
from tests.fakes.update_node import UpdateNode, offer

METADATA = ("timestamp", "snapshot", "targets.json", "channels")


class Broken(http.server.SimpleHTTPRequestHandler):
    """Serves the repository but for one file."""

    def __init__(self, *arguments, fault, **named):
        self.part, self.how = fault
        super().__init__(*arguments, **named)

    def do_GET(self):
        if self.part not in self.path:
            super().do_GET()
            return
        {"cut": self._cut, "chunk": self._chunk, "garbage": self._garbage}[self.how]()

    def _cut(self):
        self.send_response(200)
        self.send_header("Content-Length", "2000")
        self.end_headers()
        self.wfile.write(b'{"signatures": [')
        self.close_connection = True

    def _chunk(self):
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"zz\r\nabc")
        self.close_connection = True

    def _garbage(self):
        self.wfile.write(b"nonsense\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def broken(shop, part, how):
    """The address of a mirror that breaks there."""
    handler = functools.partial(Broken, directory=str(shop.repository.directory), fault=(part, how))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def shop(tmp_path):
    with published(tmp_path / "shop") as made:
        offer(made, "0.2.0")
        yield made


@pytest.fixture
def node(tmp_path, shop):
    return UpdateNode(tmp_path / "node", shop).bootstrap()


def through(node, address):
    """Its flow, over another mirror of the same repository."""
    flow = node.flow()
    flow._channel = Channel(address, "stable", node.shop.root, node.base / "tuf")
    return flow


@pytest.mark.parametrize("how", ["cut", "chunk", "garbage"])
@pytest.mark.parametrize("part", METADATA)
async def test_an_answer_that_breaks_is_an_outage_and_the_next_check_goes_on(node, shop, part, how):
    with (
        broken(shop, part, how) as address,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        await through(node, address).check()
    assert node.state.phase is Phase.IDLE
    assert (await node.flow().check()).available.version == "0.2.0"


async def test_whatever_ends_a_check_another_can_be_begun(node):
    class Fault(Exception):
        pass

    class Worse:
        async def newest(self, _kind):
            raise Fault

    flow = node.flow()
    flow._channel = Worse()
    with pytest.raises(Fault):
        await flow.check()
    assert (node.state.phase, node.state.reason) == (Phase.IDLE, "the check was broken off")
    assert (await node.flow().check()).available.version == "0.2.0"


async def test_an_outage_at_the_beginning_of_an_installation_leaves_the_offer(node, shop):
    await node.flow().check()
    with broken(shop, "timestamp", "cut") as address:
        flow = through(node, address)
        await flow.apply()
        await flow.work(flow._begun.get_nowait())
    assert (node.state.phase, node.state.candidate) == (Phase.IDLE, None)
    assert "does not answer" in node.state.reason
    assert node.state.available.version == "0.2.0"
    assert node.done == []


async def test_a_release_whose_metadata_expired_since_the_check_is_not_installed(
    node, shop, monkeypatch
):
    import datetime as dt

    from appliance import tuf_repository

    await node.flow().check()
    monkeypatch.setitem(tuf_repository.LIFE, "timestamp", dt.timedelta(days=-1))
    shop.repository.refresh()
    flow = node.flow()
    await flow.apply()
    await flow.work(flow._begun.get_nowait())
    assert (node.state.phase, node.state.available) == (Phase.IDLE, None)
    assert "has expired" in node.state.reason
    with pytest.raises(Rejected, match="no newer release"):
        await flow.apply()


async def test_what_replaced_a_release_since_the_check_is_installed_in_its_place(node, shop):
    await node.flow().check()
    offer(shop, "0.2.1")
    flow = node.flow()
    await flow.apply()
    await flow.work(flow._begun.get_nowait())
    assert node.state.candidate.version == "0.2.1"


async def test_a_restart_that_may_not_be_now_is_left_to_the_next_time(node):
    await node.flow().check()
    flow = node.flow()
    await flow.apply(lambda: "it is day")
    await flow.work(flow._begun.get_nowait())
    assert (node.state.phase, node.state.reason) == (Phase.IDLE, "it is day")
    assert "drain" not in node.done
    assert node.layout.is_complete("0.2.0")
    # At night, or for a person.
    await flow.apply()
    await flow.work(flow._begun.get_nowait())
    assert node.state.phase is Phase.REBOOT_PENDING


async def test_an_operator_allows_what_was_refused(node):
    flow = node.flow()
    with pytest.raises(NodeError, match="refused: none"):
        await flow.allow("0.2.0")
