"""Around the appliance under test: a chain, renters, a release channel, its CONFIG.

All of it runs outside the machine; the machine reaches it at `outside`.
"""

import contextlib
import functools
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.release import publish
from appliance.tuf_repository import Repository
from image.test.tree import DATA_PLACE
from nodeapp.renter.events import AnswerEnded
from tests.world import RenterHome, World, as_toml, started_devnet

CLI = "/opt/fabstir-node/.venv/bin/fabstir-node"
CONFIG = ("--config", "/etc/fabstir/node.toml")
PROMPT = "Write the numbers from 1 to 100, separated by commas."
WRITTEN = {
    "chain": (
        "chain_id",
        "rpc_urls",
        "poll_seconds",
        "withdraw_interval_seconds",
        "max_gas_per_day",
    ),
    "inference": ("model_sha256", "model_repo", "model_file"),
    "prover": ("profile", "allow_test_srs"),
    "s5": ("listen_port",),
    "p2p": ("bootstrap", "portal_url"),
}
"""What an operator would write; the rest stays at what the image's own release says."""
IP_FREEBIND = 15
"""The address may come later: ip(7)."""
SLOW = {
    "watchdog": {"probe_seconds": 20.0, "probe_timeout_seconds": 60.0, "misses": 10},
    "updater": {"gate_settle_seconds": 10.0, "drain_seconds": 30.0},
    "p2p": {"receipt_timeout_seconds": 240.0},
    "chain": {"rpc_timeout_seconds": 60.0},
}
"""Under emulation everything takes thirty times as long; the product's own limits stay as they are."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A TUF repository and the web server that hands it out."""

    repository: Repository
    url: str

    def publish(self, release: Path) -> None:
        """Offer a packed and signed release to flashed nodes."""
        publish(release, self.repository.directory, self.repository.keys, "stable")


@contextmanager
def running_channel(directory: Path, outside: str) -> Iterator[Channel]:
    """A new repository with keys of its own."""
    shutil.rmtree(directory, ignore_errors=True)
    repository = Repository(directory / "repository", directory / "keys")
    repository.init()
    handler = functools.partial(_Quiet, directory=str(repository.directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Channel(repository, f"http://{outside}:{server.server_port}")
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        """Nobody reads it."""


@contextmanager
def appliance_world(directory: Path) -> Iterator[World]:
    """A chain in a directory made anew."""
    shutil.rmtree(directory, ignore_errors=True)
    with started_devnet(directory) as world:
        yield world


def port_of(world: World) -> tuple[int, int]:
    """libp2p's and the portal's: the same inside and outside."""
    values: dict[str, Any] = world.node_values  # type: ignore[assignment]
    return int(values["p2p"]["listen"].rsplit("/", 1)[1]), int(values["s5"]["listen_port"])


def write_config(
    world: World,
    target: Path,
    *,
    outside: str,
    inside: str,
    channel: Channel | None,
    **more: Mapping[str, object],
) -> None:
    """The directory that becomes CONFIG.

    Args:
        world: its chain and keys.
        target: made anew.
        outside: this side's address as the machine sees it.
        inside: the machine's address as we see it.
        channel: where releases come from.
        more: settings by section, on top.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    given: dict[str, Any] = world.node_values  # type: ignore[assignment]
    values: dict[str, Any] = {
        section: {key: given[section][key] for key in keys} for section, keys in WRITTEN.items()
    }
    chain, p2p = values["chain"], values["p2p"]
    files = (("keystore_file", "wallet.json"), ("password_file", "wallet.password"))
    for key, name in (*files, ("deployment_file", "deployment.json")):
        shutil.copy(given["chain"][key], target / name)
        chain[key] = name
    chain["rpc_urls"] = [url.replace("127.0.0.1", outside) for url in chain["rpc_urls"]]
    port, _portal = port_of(world)
    p2p["listen"] = f"/ip4/0.0.0.0/tcp/{port}"
    p2p["announce"] = [f"/ip4/{inside}/tcp/{port}"]
    p2p["bootstrap"] = [address.replace("127.0.0.1", outside) for address in p2p["bootstrap"]]
    values["s5"]["listen_host"] = "0.0.0.0"
    values["inference"]["model_path"] = f"{DATA_PLACE}/model.gguf"
    values["prover"]["profile_dir"] = f"{DATA_PLACE}/kzg"
    if channel is not None:
        shutil.copy(channel.repository.root_file, target / "trusted-root.json")
        values.setdefault("updater", {})["repository_url"] = channel.url
    for section, keys in more.items():
        values.setdefault(section, {}).update(keys)
    (target / "node.toml").write_text(as_toml(values))


@dataclass(frozen=True, slots=True)
class Paid:
    """A request that was answered and paid for."""

    job_id: int
    tokens: int


def paid_request(renter: RenterHome, tokens: int, seconds: float, *words: object) -> Paid:
    """Ask from outside, to the end of the answer."""
    chat = renter.chat(PROMPT, "--max-tokens", tokens, *words)
    assert chat.finish(seconds) == 0, chat.err[-1500:]
    return Paid(chat.one(AnswerEnded).job_id, chat.tokens())


@contextmanager
def forwarded(ports: Sequence[tuple[tuple[str, int], tuple[str, int]]]) -> Iterator[None]:
    """Pass TCP on: (from where, to where). A container does not see this side's loopback."""
    servers = [_listening(*here) for here, _ in ports]
    for server, (_, there) in zip(servers, ports, strict=True):
        threading.Thread(target=_accept, args=(server, there), daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.close()


def _listening(address: str, port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
    server.bind((address, port))
    server.listen(64)
    return server


def _accept(server: socket.socket, there: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            one, _ = server.accept()
            try:
                other = socket.create_connection(there, timeout=10)
            except OSError:
                one.close()
                continue
            other.settimeout(None)
            for pair in ((one, other), (other, one)):
                threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
