"""The model that the settings name is fetched before the node's first start, and only then."""

from __future__ import annotations

import hashlib
import socket

import pytest
import pytest_asyncio

from nodeapp.cli.first_start import fetch_model
from nodeapp.core.errors import InvalidRequest, NotFound, Rejected
from nodeapp.inference.model_store import model_store
from nodeapp.service import download as downloads
from nodeapp.service.config import load_settings
from nodeapp.service.paths import resolve_paths
from tests.fakes.file_server import FileServer
from tests.fakes.tiny_model import tiny_model

TINY = tiny_model()
SHA = hashlib.sha256(TINY).hexdigest()


@pytest_asyncio.fixture
async def server(monkeypatch):
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0.001)
    made = FileServer(TINY)
    made.url = await made.start()
    yield made
    await made.stop()


@pytest.fixture
def settings(tmp_path, server):
    def made(**inference: str):
        values = {
            "model": "tiny",
            "model_source": f"{server.url}/tiny.gguf",
            "model_sha256": SHA,
            "model_repo": "owner/repo",
            "model_file": "Tiny.gguf",
            **inference,
        }
        flags = [f"inference.{key}={value}" for key, value in values.items()]
        where = (f"node.state_dir={tmp_path}/s", f"node.cache_dir={tmp_path}/c")
        return load_settings(flags=[*where, *flags], environment={})

    return made


def entries(settings):
    return model_store(settings.inference, resolve_paths(settings.node)).entries()


async def test_it_is_fetched_once_under_the_names_of_the_settings(settings, server, capsys):
    await fetch_model(settings())
    (entry,) = entries(settings())
    assert (entry.name, entry.repo, entry.file_name) == ("tiny", "owner/repo", "Tiny.gguf")
    assert entry.sha256 == SHA
    assert "model tiny is not here yet: fetching" in capsys.readouterr().err
    asked = len(server.requests)
    await fetch_model(settings())
    assert len(server.requests) == asked


async def test_a_hub_knows_its_names_itself(settings, server):
    hub = settings(model_source="hub:some/one/H.gguf", hub_url=server.url)
    await fetch_model(hub)
    (entry,) = entries(hub)
    assert (entry.name, entry.repo, entry.file_name) == ("tiny", "some/one", "H.gguf")


async def test_a_source_that_comes_late_is_waited_for(settings, server, capsys):
    server.statuses = [503] * (downloads.MAX_TRIES + 2)
    await fetch_model(settings())
    assert [entry.name for entry in entries(settings())] == ["tiny"]
    assert "try 2" in capsys.readouterr().err


async def test_what_trying_again_does_not_heal_ends_the_start(settings, server):
    server.statuses = [404]
    with pytest.raises(NotFound, match=r"tiny\.gguf does not exist"):
        await fetch_model(settings())
    with pytest.raises(Rejected, match="expected"):
        await fetch_model(settings(model_sha256="00" * 32))
    with pytest.raises(InvalidRequest, match="not encrypted"):
        await fetch_model(settings(model_sha256=""))
    assert entries(settings()) == ()


async def test_a_file_that_is_named_by_its_path_needs_no_source(settings, server):
    await fetch_model(settings(model_path="/models/x.gguf"))
    await fetch_model(settings(model_source=""))
    assert (server.requests, entries(settings())) == ([], ())


async def test_systemd_is_told_that_the_start_goes_on(settings, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        await fetch_model(settings())
        assert systemd.recv(100) == b"EXTEND_TIMEOUT_USEC=600000000"
