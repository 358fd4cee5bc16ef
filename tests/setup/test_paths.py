"""Files live where FHS, XDG or the settings say."""

from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.paths import default_cache_dir, resolve_paths
from nodeapp.service.settings import NodeSettings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "XDG_CACHE_HOME", "FABSTIR_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/host")


def test_a_persons_run_uses_the_home_directory():
    paths = resolve_paths(NodeSettings())
    assert paths.state == Path("/home/host/.local/state/fabstir-node")
    assert paths.run == paths.state / "run"
    assert paths.cache == Path("/home/host/.cache/fabstir-node")


def test_xdg_variables_are_followed(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    paths = resolve_paths(NodeSettings())
    assert (paths.state, paths.cache) == (Path("/s/fabstir-node"), Path("/c/fabstir-node"))


def test_systemd_names_the_state_of_a_service(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/fabstir")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert resolve_paths(NodeSettings()).state == Path("/var/lib/fabstir")


def test_settings_come_before_everything(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/fabstir")
    monkeypatch.setenv("FABSTIR_CACHE", "/c")
    paths = resolve_paths(NodeSettings(state_dir="/a", run_dir="/b", cache_dir="/d"))
    assert (paths.state, paths.run, paths.cache) == (Path("/a"), Path("/b"), Path("/d"))
    assert default_cache_dir() == Path("/c")


def test_a_relative_state_directory_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(NodeSettings(state_dir="here")).state == tmp_path / "here"


def test_names_inside_the_node():
    paths = resolve_paths(NodeSettings(state_dir="/a"))
    assert paths.socket("chain") == Path("/a/run/chain.sock")
    assert paths.process_state("chain") == Path("/a/chain")
    assert paths.log == Path("/a/log")


def test_a_directory_too_long_for_a_socket_is_refused_before_anything_starts():
    fits = "/" + "x" * (107 - 1 - len("/supervisor.sock"))
    assert resolve_paths(NodeSettings(run_dir=fits)).run == Path(fits)
    with pytest.raises(InvalidRequest, match=r"too long for a Unix socket; shorten node.run_dir"):
        resolve_paths(NodeSettings(run_dir=fits + "x"))
