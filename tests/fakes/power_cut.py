"""Cut the power at every write point of an update: `python -m tests.fakes.power_cut DIR URL ROOT N`.

A write point is a call that changes the file system (open for writing, rename, mkdir, unlink,
chmod, symlink, utime), seen by an audit hook. A forked child runs the whole update - check,
download, install, arm, trial, blessing - and is killed before its n-th one; what it wrote last
without bringing it to the disk is cut in half, as a disk would lose it. Then: `current` must lead
to a whole release, and (for every N-th point) the same commands must end in the new one. Prints
one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import structlog

from nodeapp.core.update import TRIAL, GatePassed
from tests.fakes.update_node import PassingGate, UpdateNode

CHANGES = {
    "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.utime",
    "os.truncate", "os.link",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Cut:
    """The audit hook of one child."""

    def __init__(self, base: Path, at: int, told: int):
        self.base, self.at, self.told = str(base), at, told
        self.count = 0

    def __call__(self, event, arguments):
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & WRITING):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        path = os.fspath(path)
        if path.startswith("/") and not path.startswith(self.base):
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        kept = path if event == "open" else ""
        if event == "os.rename" and "/tuf/" in os.fspath(arguments[1]):
            # tuf renames without bringing the file to the disk first.
            kept = os.fspath(arguments[1])
        if kept:
            os.pwrite(self.told, kept.encode().ljust(4096, b"\0"), 0)


def forked(work) -> int:
    """Run it in a child; its exit code, or minus the signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001  # a child tells everything by its exit code
            traceback.print_exc()
            os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def update(node: UpdateNode) -> None:
    """From wherever it stands to the blessing."""
    for _round in range(6):
        launcher = node.launcher(PassingGate())
        _version, is_trial = launcher.decide()
        if is_trial:
            launcher._advance(GatePassed())
        if node.state.current == "0.2.0":
            launcher.decide()
            return
        if node.state.phase not in TRIAL:
            asyncio.run(node.update())
    raise AssertionError(f"not updated after six starts: {node.state}")


def is_whole(node: UpdateNode, version: str) -> bool:
    release = node.layout.release(version)
    if version == "0.1.0":
        return (release / "venv/bin/fabstir-node").is_file()
    parts = [release / f"source/nodeapp/part{number}.py" for number in range(50)]
    return (
        all(part.read_text() == f"N = {n}\n" for n, part in enumerate(parts))
        and (release / "venv/bin/fabstir-node").read_text()
        == (release / "source/fabstir-node").read_text()
    )


def cut_at(
    point: int, start: Path, base: Path, shop: SimpleNamespace, *, goes_on: bool
) -> tuple[int, str]:
    """(exit code of the child, what was found wrong)."""
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(start, base, symlinks=True)
    node = UpdateNode(base, shop)
    told = os.open(base.with_name("told"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def child():
        cut = Cut(base, point, told)
        sys.addaudithook(cut)
        update(node)
        os.pwrite(told, str(cut.count).encode().ljust(4096, b"\0"), 0)

    code = forked(child)
    text = os.pread(told, 4096, 0).rstrip(b"\0").decode()
    os.close(told)
    if code == 0:
        return int(text), ""
    if code != -signal.SIGKILL:
        return code, f"point {point}: the update itself failed"
    last = Path(text)
    if text and last.is_file() and not last.is_symlink():
        os.truncate(last, last.stat().st_size // 2)
    current = node.layout.current_version()
    if not current or not is_whole(node, current):
        return code, f"point {point}: current is {current!r} and not whole (last {text})"
    if not goes_on:
        return code, ""
    if forked(lambda: update(node)) != 0:
        return code, f"point {point}: it does not go on afterwards (last {text})"
    if node.layout.current_version() != "0.2.0" or not is_whole(node, "0.2.0"):
        return code, f"point {point}: it went on to something else"
    return code, ""


def _drop(*_arguments):
    raise structlog.DropEvent


def main() -> int:
    structlog.configure(processors=[_drop])
    base, url, root, every = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    shop = SimpleNamespace(url=url, root=root)
    start = base / "start"
    UpdateNode(start, shop).bootstrap()
    points, wrong = cut_at(0, start, base / "node", shop, goes_on=False)
    failures = [wrong] if wrong else []
    tried = 0
    for point in range(1, points + 1):
        goes_on = point % every == 0
        code, wrong = cut_at(point, start, base / "node", shop, goes_on=goes_on)
        tried += code == -signal.SIGKILL
        if wrong:
            failures.append(wrong)
    print(json.dumps({"points": points, "cut": tried, "failures": failures[:20]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
