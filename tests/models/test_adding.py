"""Adding a model: by command and by call, from every source; what is no model leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import subprocess

import pytest
import pytest_asyncio

from nodeapp.cli.preflight import findings
from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, Rejected, TooLarge
from nodeapp.core.model_card import model_id
from nodeapp.inference import adding
from nodeapp.inference.adding import Addition, add_model
from nodeapp.inference.model_source import parse_source
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.probe import Prober
from nodeapp.s5.cid import blob_id_of, cid_of
from nodeapp.service import download as downloads
from nodeapp.service.config import load_settings
from tests.fakes import gguf_file as gf
from tests.fakes.file_server import FileServer
from tests.fakes.tiny_model import tiny_model
from tests.world import CLI

TINY = tiny_model()
SHA = hashlib.sha256(TINY).hexdigest()


class Adder:
    def __init__(self, tmp_path, verdicts):
        self.store = ModelStore(tmp_path / "models")
        self.prober = Prober(verdicts, seconds=20)
        self.said = []

    async def add(self, text, *, hub_url="", portal_url="", **more):
        addition = Addition(
            text, parse_source(text, hub_url=hub_url, portal_url=portal_url), 7, **more
        )
        made = await add_model(
            addition, self.store, self.prober, report=lambda _: None, say=self.said.append
        )
        return made.entry


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Shared: each file is loaded in the sandbox once."""
    return tmp_path_factory.mktemp("verdicts") / "v.json"


@pytest.fixture
def adder(tmp_path, verdicts):
    return Adder(tmp_path, verdicts)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "Tiny.Q0.gguf"
    path.write_bytes(TINY)
    return path


@pytest_asyncio.fixture
async def server():
    made = FileServer(TINY)
    made.url = await made.start()
    yield made
    await made.stop()


async def test_a_file_is_copied_checked_and_listed(adder, file):
    entry = await adder.add(str(file), repo="owner/repo")
    assert (entry.name, entry.repo, entry.file_name) == ("tiny.q0", "owner/repo", "Tiny.Q0.gguf")
    assert (entry.sha256, entry.size_bytes, entry.licence) == (SHA, len(TINY), "mit")
    file.unlink()
    assert adder.store.blob(SHA).read_bytes() == TINY
    assert len(adder.said) == 3
    with pytest.raises(Rejected, match="is there already"):
        await adder.add(str(file))


async def test_a_web_file_an_s5_blob_and_a_hub_file_are_the_same_model(adder, server):
    await adder.add(f"{server.url}/a/web.gguf", sha256=SHA)
    server.requests.clear()
    await adder.add(f"s5:{cid_of(blob_id_of(TINY))}", portal_url=server.url, name="blob")
    assert server.requests[0]["path"] == f"/s5/blob/{cid_of(blob_id_of(TINY))}"
    hub = await adder.add("hub:own/rep/H.gguf@v2", hub_url=server.url, sha256=SHA)
    assert (hub.repo, hub.file_name) == ("own/rep", "H.gguf")
    names = {entry.name: entry.sha256 for entry in adder.store.entries()}
    assert names == {"web": SHA, "blob": SHA, "h": SHA}
    assert adder.store.used_bytes() == len(TINY)


async def test_what_is_there_by_its_hash_is_not_fetched_again(adder, file, server):
    await adder.add(str(file))
    (adder.store.root / "catalogue.json").unlink()
    entry = await adder.add(f"{server.url}/x.gguf", sha256=SHA)
    assert (entry.sha256, server.requests) == (SHA, [])


BAD = {
    "no model": b"<html>sign in first</html>" * 10,
    "a cut off one": TINY[:-1000],
    "a template that refuses": tiny_model(template="{{ raise_exception('never') }}"),
    "a template that reaches for Python": tiny_model(
        template="{{ ''.__class__.__mro__[1].__subclasses__() }}"
    ),
    "one that crashes the loader": tiny_model(
        tokens=gf.strings("tokenizer.ggml.tokens", ["x"] * 258)
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_good_model_leaves_nothing(adder, server, name):
    server.data = BAD[name]
    with pytest.raises(InvalidRequest):
        await adder.add(f"{server.url}/x.gguf", sha256=hashlib.sha256(BAD[name]).hexdigest())
    left = [path for path in adder.store.root.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".lock"}
    assert adder.store.entries() == ()


async def test_another_hash_than_expected_is_refused(adder, file):
    with pytest.raises(Rejected, match=f"{SHA}, expected {'0' * 64}"):
        await adder.add(str(file), sha256="0" * 64)
    with pytest.raises(NotFound, match="does not exist"):
        await adder.add(str(file) + "x")


async def test_a_download_without_room_for_the_rest_is_kept(adder, server, monkeypatch):
    def append(self, file, chunk):
        file.write(chunk[:100])
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as disk:
        disk.setattr(downloads._Transfer, "_append", append)
        with pytest.raises(TooLarge):
            await adder.add(f"{server.url}/Tiny.gguf", sha256=SHA)
    assert [part.stat().st_size for part in adder.store.parts.glob("*.part")] == [100]


async def test_a_copy_that_finds_the_disk_full_says_so_and_leaves_nothing(adder, file, monkeypatch):
    def full(source, part):
        part.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(adding, "_copy_bytes", full)
    with pytest.raises(TooLarge, match="is full"):
        await adder.add(str(file))
    assert not list(adder.store.parts.glob("*.part"))


async def test_one_download_at_a_time(adder, server):
    """Two commands on the same part would write into each other."""
    server.break_after = [1000]
    release = asyncio.Event()
    server.taken = lambda: 1 << 62 if release.is_set() else 0
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(adder.add(f"{server.url}/x.gguf", sha256=SHA))
        async with asyncio.timeout(5):
            while not server.requests:
                await asyncio.sleep(0.005)
        with pytest.raises(NodeError, match="in use by process"):
            await adder.add(f"{server.url}/x.gguf", sha256=SHA, name="y")
        release.set()
    assert first.result().name == "x"


def command(state, *arguments, code=0):
    done = subprocess.run(
        (*CLI, "model", *map(str, arguments), "--state-dir", str(state)),
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def test_the_commands_from_add_to_remove(tmp_path, file):
    state = tmp_path / "state"
    assert "no model is kept" not in command(state, "add", file, "--repo", "o/r", "--pin")
    (row,) = json.loads(command(state, "list", "--json"))
    assert (row["name"], row["pinned"], row["in_use"]) == ("tiny.q0", True, False)
    assert row["model_id"] == model_id("o/r", "Tiny.Q0.gguf")
    facts = json.loads(command(state, "info", "tiny.q0", "--json"))
    assert (facts["blocks"], facts["kv_bytes_per_token"]) == (1, 128)
    assert facts["registry"] == "no chain configured"
    assert "unpin tiny.q0" in command(state, "remove", "tiny.q0", code=1)
    command(state, "unpin", "tiny.q0")
    blob = ModelStore(state / "models").blob(SHA)
    blob.chmod(0o644)
    blob.write_bytes(TINY[:-1] + b"x")
    assert "file damaged" in command(state, "verify", "tiny.q0", code=1)
    command(state, "remove", "tiny.q0")
    with contextlib.suppress(FileNotFoundError):
        assert not list((state / "models" / "blobs").iterdir())


def test_changing_the_model_of_a_node_that_is_down_says_so(tmp_path):
    said = command(tmp_path / "state", "use", "x", code=1)
    assert "not reachable" in said


def test_settings_that_name_a_model_nobody_added_are_found_before_the_start(tmp_path):
    flags = [f"node.state_dir={tmp_path}", "inference.model=nosuch", 'node.processes=["inference"]']
    (finding,) = findings(load_settings(flags=flags, environment={}))
    assert finding.startswith("inference.model: model 'nosuch' is not in the catalogue")
