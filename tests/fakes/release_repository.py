"""A release repository on loopback, made by the real publishing tool, and tiny releases for it."""

from __future__ import annotations

import contextlib
import functools
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from appliance.tuf_repository import Repository

CHILD = """#!/bin/sh
exec sleep 600
"""


@dataclass
class Published:
    """A repository and where it is served; `seen` are the paths asked for."""

    repository: Repository
    url: str
    seen: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.repository.root_file

    def offer(self, version: str, archive: bytes, *, kind: str = "venv", **more: str) -> None:
        path = self.repository.directory.parent / f"fabstir-node-{version}.tar.gz"
        path.write_bytes(archive)
        self.repository.add("stable", version, {kind: [path]}, **more)

    def target(self, part: str) -> Path:
        """The one file of the repository whose name has this part."""
        (found,) = (self.repository.directory / "targets").rglob(f"*{part}*")
        return found


class _Quiet(SimpleHTTPRequestHandler):
    def __init__(self, *arguments, seen, **named):
        self.seen = seen
        super().__init__(*arguments, **named)

    def do_GET(self):
        self.seen.append(self.path)
        super().do_GET()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def published(directory: Path) -> Iterator[Published]:
    """Keys, repository and a web server in a directory."""
    repository = Repository(directory / "repository", directory / "keys")
    repository.init()
    seen: list[str] = []
    handler = functools.partial(_Quiet, directory=str(repository.directory), seen=seen)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Published(repository, f"http://127.0.0.1:{server.server_address[1]}", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def archive(files: dict[str, str | bytes]) -> bytes:
    """A release's .tar.gz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(body)
            member.mode = 0o755
            tar.addfile(member, io.BytesIO(body))
    return out.getvalue()


def small_release(version: str, command: str = CHILD) -> bytes:
    """Enough for `copy_command`: a command and a few files beside it."""
    more = {f"nodeapp/part{number}.py": f"N = {number}\n" for number in range(50)}
    return archive({"VERSION": version, "fabstir-node": command, **more})


def copy_command(directory: Path, _version: str) -> None:
    """A set-up that takes a millisecond: the release's own command becomes its environment."""
    bin_ = directory / "venv" / "bin"
    bin_.mkdir(parents=True)
    body = (directory / "source" / "fabstir-node").read_text()
    (bin_ / "fabstir-node").write_text(body)
    (bin_ / "fabstir-node").chmod(0o755)
