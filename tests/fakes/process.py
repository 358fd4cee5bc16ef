"""A process to test the shell with: `python -m tests.fakes.process STATE_DIR MODE`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from aiohttp import web

from nodeapp.core.errors import Busy, Corrupt, InvalidRequest, Unavailable
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.server import endpoint, query, stream_endpoint
from nodeapp.service.settings import NodeSettings
from nodeapp.wire.ipc import Message


class Count(Message, frozen=True):
    """`number` of something; how it is to be answered is in `how`."""

    number: int
    how: str = ""


class TestPart:
    """Answers Count with the next number; `mode` says what goes wrong."""

    __test__ = False

    def __init__(self, shell: Shell, mode: str) -> None:
        self._shell = shell
        self._mode = mode
        self.closed_streams = 0
        self.cancelled = 0

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.post("/next", endpoint(Count, self.next)),
            web.post("/stream", stream_endpoint(Count, self.stream)),
            web.get("/closed", query(self.closed)),
        ]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        match self._mode:
            case "refuses":
                raise InvalidRequest("chain.keystore_file is not set")
            case "fails":
                tasks.create_task(self._fail())
            case "breaks":
                tasks.create_task(self._break())
            case "slow":
                await asyncio.sleep(60)

    async def _fail(self) -> None:
        await asyncio.sleep(0)
        raise Unavailable("the chain is gone")

    async def _break(self) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("a bug")

    def readiness(self) -> str:
        return f"mode {self._mode}"

    async def drain(self) -> None:
        print("drained", flush=True)
        if self._mode == "never drained":
            await asyncio.sleep(60)

    async def stop(self) -> None:
        print("stopped", flush=True)

    async def next(self, ask: Count) -> Count:
        match ask.how:
            case "rejected":
                raise InvalidRequest(f"number {ask.number} is odd")
            case "busy":
                raise Busy("full", retry_after_seconds=2.5)
            case "corrupt":
                raise Corrupt("record 7 does not replay")
            case "bug":
                raise ZeroDivisionError
            case "slow":
                try:
                    await asyncio.sleep(60)
                finally:
                    self.cancelled += 1
        return Count(number=ask.number + 1)

    async def stream(self, ask: Count) -> AsyncIterator[Count]:
        try:
            for number in range(ask.number):
                yield Count(number=number)
            match ask.how:
                case "rejected":
                    raise InvalidRequest("no more")
                case "corrupt":
                    raise Corrupt("record 7 does not replay")
                case "endless":
                    while True:
                        yield Count(number=0, how="x" * 1000)
        finally:
            self.closed_streams += 1

    async def closed(self) -> Count:
        return Count(number=self.closed_streams + self.cancelled)


def main(state: str, mode: str) -> int:
    node = NodeSettings(state_dir=state, log_format="json")
    return run_service("tested", node, lambda shell: TestPart(shell, mode))


def parent(state: str) -> None:
    """Start a child, say its pid, and wait to be killed."""
    command = (sys.executable, "-m", "tests.fakes.process", state, "ok")
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    child.wait()


if __name__ == "__main__":
    if sys.argv[2] == "parent":
        parent(sys.argv[1])
    else:
        sys.exit(main(str(Path(sys.argv[1])), sys.argv[2]))
