"""The local chain's process: anvil as a child that never outlives us.

It listens on loopback, runs in its own session (a terminal's Ctrl-C reaches us only, so that
sessions can still be settled while we stop), and dies with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.units import Wei
from nodeapp.evm.provider import Provider, quantity

VERSION = "1.7.1"
PR_SET_PDEATHSIG = 1
READY_SECONDS = 15.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.02
LISTENING = "Listening on "
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class AnvilOptions:
    """How to start it; `block_time_seconds` 0 mines every transaction at once."""

    binary: Path
    log_file: Path
    chain_id: int = 31337
    port: int = 0
    block_time_seconds: float = 1.0
    state_file: Path | None = None


def find_anvil(cache_dir: Path) -> Path:
    """The binary that set-up installed.

    Raises:
        Unavailable: not installed.
    """
    packages = cache_dir / f"anvil-{VERSION}" / "node_modules" / "@foundry-rs"
    found = sorted(packages.glob("anvil-*/bin/anvil"))
    if not found:
        raise Unavailable(f"anvil {VERSION} is not installed below {cache_dir}: run make setup")
    return found[0]


class Anvil:
    """A running chain."""

    def __init__(self, process: asyncio.subprocess.Process, options: AnvilOptions) -> None:
        self._process = process
        self._options = options
        self.url = ""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def wait_ended(self) -> int:
        """Wait for the chain to end by itself; its exit code."""
        return await self._process.wait()

    async def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            Unavailable: it ended, or did not answer in time.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                self.url = f"http://{await self._listening()}"
                async with Provider([self.url], chain_id=self._options.chain_id) as provider:
                    await provider.block_number()
                    # It writes a line per request; a chain that runs for days would fill the disk.
                    await provider.request("anvil_setLoggingEnabled", [False])
        except TimeoutError as error:
            raise Unavailable(f"anvil did not answer within {READY_SECONDS:g} s") from error

    async def stop(self) -> None:
        """End it: politely, then not; it writes its state file in between."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _listening(self) -> str:
        while True:
            text = await asyncio.to_thread(self._options.log_file.read_text, errors="replace")
            for line in text.splitlines():
                if line.startswith(LISTENING):
                    return line.removeprefix(LISTENING).strip()
            if self._process.returncode is not None:
                last = (text.strip().splitlines() or ["no output"])[-1]
                port = self._options.port
                raise Unavailable(f"anvil ended at once (port {port or 'any'}): {last[:200]}")
            await asyncio.sleep(POLL_SECONDS)


def _arguments(options: AnvilOptions) -> list[str]:
    arguments = [
        str(options.binary),
        *("--host", "127.0.0.1"),
        *("--port", str(options.port)),
        *("--chain-id", str(options.chain_id)),
        *("--accounts", "1"),
        *("--gas-limit", "60000000"),
    ]
    if options.block_time_seconds > 0:
        arguments += ["--block-time", f"{options.block_time_seconds:g}"]
    if options.state_file is not None:
        arguments += ["--state", str(options.state_file)]
    return arguments


def _die_with(parent: int) -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have ended before the line above took effect.
    if os.getppid() != parent:
        os._exit(1)


@contextlib.asynccontextmanager
async def running_anvil(options: AnvilOptions) -> AsyncIterator[Anvil]:
    """Start anvil, wait until it answers, and end it at exit.

    Raises:
        Unavailable: not installed, port taken, or no answer.
        InvalidRequest: the block time is not possible.
    """
    if options.block_time_seconds < 0:
        raise InvalidRequest(f"block time {options.block_time_seconds} is negative")
    options.log_file.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with options.log_file.open("wb") as log:
        try:
            process = await asyncio.create_subprocess_exec(
                *_arguments(options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError as error:
            raise Unavailable(
                f"cannot run {options.binary} ({error.strerror}): run make setup"
            ) from error
    anvil = Anvil(process, options)
    try:
        await anvil.wait_ready()
        yield anvil
    finally:
        await anvil.stop()


async def set_native_balance(provider: Provider, address: Address, amount: Wei) -> None:
    """Give an account native coin, at once; anvil only."""
    await provider.request("anvil_setBalance", [address, quantity(amount)])
