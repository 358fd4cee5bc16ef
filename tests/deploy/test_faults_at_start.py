"""What a person may get wrong at the start: one clear line, exit code not 0, nothing left."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.world import (
    CLI,
    ROOT,
    Started,
    World,
    as_toml,
    last_line,
    left_of,
    started_devnet,
    until,
    until_nothing_left,
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain and settings, no node; the node's faults are tried on copies of its settings."""
    with started_devnet(tmp_path_factory.mktemp("c")) as world:
        yield world


@pytest.fixture
def node(chain: World, tmp_path):
    """Runs `run` on a copy of the settings with some changed, in a state directory of its own."""

    def run(*flags: str, name: str = "run", **changed: dict[str, object]) -> Started:
        values = chain.node_values
        values["node"]["state_dir"] = str(tmp_path / "n")
        # A wallet remembers its journal, so every state directory gets a copy of its own.
        for key in ("keystore_file", "password_file"):
            values["chain"][key] = shutil.copy(values["chain"][key], tmp_path)
        for section, keys in changed.items():
            values[section] |= keys
        config = tmp_path / f"{name}.toml"
        config.write_text(as_toml(values))
        return Started(tmp_path, name, "run", "--config", config, *flags)

    return run


def complaint(started: Started, seconds: float = 60, code: int = 1) -> str:
    assert started.finish(seconds) == code, started.err
    assert "Traceback" not in started.err
    line = last_line(started.err)
    assert line.startswith("error: "), started.err
    assert '"event"' not in line
    return line


def test_a_taken_port_is_named(node, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = complaint(node(p2p={"listen": f"/ip4/127.0.0.1/tcp/{port}"}))
        assert f"127.0.0.1:{port} cannot be used" in line
        assert "choose another port" in line
    until_nothing_left(tmp_path)


def test_a_taken_rpc_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = complaint(
            Started(tmp_path, "devnet", "devnet", "--dir", tmp_path, "--rpc-port", port)
        )
        assert str(port) in line
    until_nothing_left(tmp_path)


def test_a_missing_model_is_named(node, tmp_path):
    line = complaint(node(inference={"model_path": str(tmp_path / "none.gguf")}))
    assert "inference.model_path" in line
    assert "none.gguf does not exist" in line
    until_nothing_left(tmp_path)


@pytest.mark.slow
def test_another_model_file_is_refused_by_its_digest(node, tmp_path):
    wrong = {"model_sha256": "00" * 32}
    line = complaint(node(inference=wrong, node={"processes": ["inference"]}))
    assert "inference" in line
    assert "sha256" in line
    until_nothing_left(tmp_path)


def test_another_chain_id_is_refused(node, tmp_path):
    line = complaint(node(chain={"chain_id": 84532}))
    assert "31337" in line
    assert "84532" in line
    until_nothing_left(tmp_path)


@pytest.mark.slow
def test_a_chain_that_is_down_at_the_start_is_named_and_waited_for(node, tmp_path):
    down = {"rpc_urls": ["http://127.0.0.1:9"], "proof": "off"}
    alone = {"processes": ["s5", "chain"]}
    started = node("--ready-seconds", "8", chain=down, node=alone)
    started.until_said("node runs, but is not ready: chain (", 40)
    assert "127.0.0.1:9" in last_line(started.err)
    assert started.stop() == 0
    until_nothing_left(tmp_path)


def test_an_unknown_key_names_the_nearest(node, tmp_path):
    line = complaint(node(p2p={"lissten": "x"}))
    assert "lissten" in line
    assert "listen" in line


def test_without_anvil_set_up_is_named(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = {
        **os.environ,
        "FABSTIR_NODE__CACHE_DIR": str(cache),
        "XDG_CACHE_HOME": str(cache),
    }
    run = subprocess.run(
        [*CLI, "demo", "--dir", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
        env=environment,
    )
    assert run.returncode == 1
    assert "anvil" in last_line(run.stderr)
    assert "make setup" in last_line(run.stderr)
    until_nothing_left(tmp_path)


def test_a_second_node_on_one_state_directory_is_refused_and_the_first_goes_on(node, tmp_path):
    first = node(name="first", node={"processes": ["updater"]})
    try:
        first.until_said("node ready", 40)
        line = complaint(node(name="second", node={"processes": ["updater"]}))
        assert "state directory" in line
        assert first.process.poll() is None
    finally:
        code = first.stop()
    assert code == 0
    until_nothing_left(tmp_path)


@pytest.mark.slow
def test_a_node_is_ready_without_its_bootstrap(node, tmp_path):
    lonely = node(p2p={"bootstrap": [dead_bootstrap()]})
    try:
        lonely.until_said("node ready", 90)
    finally:
        code = lonely.stop()
    assert code == 0
    until_nothing_left(tmp_path)


def dead_bootstrap() -> str:
    peer = "12D3KooWAvRH6xUXL5jrzqerouQJ8sQsJEugWwNHjJrWi6X6ELRd"
    return f"/ip4/127.0.0.1/tcp/9/p2p/{peer}"


def interrupted(directory: Path, said: str, *arguments: str) -> None:
    """Ctrl-C when the demo has said this: 130, no stack, nothing left inside 20 s."""
    demo = Started(directory, "demo", "demo", "--dir", directory / "d", *arguments)
    try:
        demo.until_said(said, 90)
        demo.signal(signal.SIGINT)
        assert demo.finish(20) == 130, demo.err
    finally:
        demo.kill()
    assert "Traceback" not in demo.err + demo.out
    until_nothing_left(directory, seconds=3)


@pytest.mark.parametrize("said", ["2/8 ", "logged in over libp2p"])
def test_ctrl_c_ends_the_demo_with_nothing_left(tmp_path, said):
    interrupted(tmp_path, said)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["1/8 ", "3/8 ", "4/8 ", "5/8 ", "mined; waiting", "7/8 "])
def test_ctrl_c_at_any_other_step_leaves_nothing(tmp_path, said):
    interrupted(tmp_path, said)


@pytest.mark.slow
def test_a_killed_demo_leaves_no_process(tmp_path):
    demo = Started(tmp_path, "demo", "demo", "--dir", tmp_path / "d")
    demo.until_said("logged in over libp2p", 90)
    demo.kill()

    def processes() -> list[str]:
        return [line for line in left_of(tmp_path) if not line.endswith(".sock")]

    until(lambda: not processes(), "no process left", 20)
    shutil.rmtree(tmp_path / "d")
