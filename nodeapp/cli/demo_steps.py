"""The demo's steps, each on the real thing: chain, tree, renter process, claim, verification."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.ids import JobId
from nodeapp.core.session import Phase
from nodeapp.devnet.world import World
from nodeapp.evm.contracts import Contracts, SessionJob
from nodeapp.renter.events import AnswerEnded, AnyEvent, HostFound, SessionClosed, SessionPaid
from nodeapp.renter.verify import VerifyReport
from nodeapp.rpc.chain import ChainClient
from nodeapp.s5.client import download_blob
from nodeapp.service.config import process_environment
from nodeapp.service.lifecycle import die_with_parent
from nodeapp.service.tree import KEPT_VARIABLES
from nodeapp.wire.ipc_chain import SessionDetail
from nodeapp.wire.proof_envelope import MAX_ENVELOPE_BYTES

ANSWER_SECONDS = 300.0
SETTLE_SECONDS = 300.0
VERIFY_SECONDS = 120.0
POLL_SECONDS = 0.2
CLEANUP_SECONDS = 5.0
SOURCE = Path(__file__).resolve().parents[2]
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class ChatOutcome:
    """What the renter process reported."""

    found: HostFound
    paid: SessionPaid
    ended: AnswerEnded


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What every side says of the one paid session."""

    chat: ChatOutcome
    detail: SessionDetail
    job: SessionJob
    report: VerifyReport
    tampered: VerifyReport
    """Of the envelope with one byte altered."""


async def rent(
    world: World, prompt: str, max_tokens: int, show: Callable[[AnyEvent], None]
) -> ChatOutcome:
    """Run `fabstir-node renter chat` as its own process and follow its reports.

    Raises:
        Rejected: the renter ended with an error, its own words; or the answer is too short to be
            claimed, so nothing of it would be settled.
    """
    process = await _renter(
        world, "chat", prompt, "--max-tokens", str(max_tokens), "--json", "--config"
    )
    seen: list[AnyEvent] = []
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if process.stdout is not None:
                async for line in process.stdout:
                    seen.append(_event_decoder.decode(line))
                    show(seen[-1])
            code = await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"renter did not finish inside {ANSWER_SECONDS:g} s") from error
    finally:
        errors = await _end(process)
    if code != 0:
        raise Rejected(f"renter: {errors or f'exit code {code}'}")
    ended = _one(seen, AnswerEnded)
    if not _one(seen, SessionClosed).claimable:
        raise Rejected(
            f"the answer has {ended.tokens} tokens, too few for a claim; --prompt for a longer one"
        )
    return ChatOutcome(_one(seen, HostFound), _one(seen, SessionPaid), ended)


def _one(seen: list[AnyEvent], kind: type[Found]) -> Found:
    for event in seen:
        if isinstance(event, kind):
            return event
    raise Rejected(f"renter reported no {kind.__name__}")


async def wait_settled(
    chain: ChainClient, job_id: JobId, note: Callable[[SessionDetail], None]
) -> SessionDetail:
    """Until the session is completed on chain and the host's share withdrawn.

    Raises:
        Unavailable: not inside SETTLE_SECONDS.
    """
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                detail = await chain.detail(job_id)
                note(detail)
                is_over = detail.session.phase in (Phase.COMPLETED, Phase.TIMED_OUT)
                if is_over and detail.withdrawn >= detail.session.host_earnings:
                    return detail
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise Unavailable(f"session {job_id} not settled in {SETTLE_SECONDS:g} s") from error


async def settled_job(world: World, job_id: JobId) -> SessionJob:
    """The session as the contract tells it."""
    return await Contracts(world.devnet.provider, world.devnet.deployment).session(job_id)


async def verify(world: World, job_id: JobId, envelope: Path | None = None) -> VerifyReport:
    """Run `fabstir-node renter verify` as its own process.

    Raises:
        Rejected: it could not check at all.
    """
    extra = ["--envelope", str(envelope)] if envelope is not None else []
    process = await _renter(world, "verify", "--job", str(job_id), *extra, "--json", "--config")
    output = b""
    try:
        async with asyncio.timeout(VERIFY_SECONDS):
            if process.stdout is not None:
                output = await process.stdout.read()
            await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"verification did not end inside {VERIFY_SECONDS:g} s") from error
    finally:
        errors = await _end(process)
    try:
        return msgspec.json.decode(output, type=VerifyReport)
    except msgspec.DecodeError as error:
        raise Rejected(f"renter verify: {errors or 'no report'}") from error


async def tampered_copy(portal_url: str, cid: str, directory: Path) -> Path:
    """The published envelope with its middle byte altered."""
    data = bytearray(await download_blob(portal_url, cid, max_bytes=MAX_ENVELOPE_BYTES))
    data[len(data) // 2] ^= 1
    path = directory / "tampered-envelope.bin"
    await asyncio.to_thread(path.write_bytes, data)
    return path


async def leftovers(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Processes that name the demo's directory or are our children, and sockets in it."""
    own = psutil.Process()
    callers = {own.pid, *(parent.pid for parent in own.parents())}
    children = own.children(recursive=True)
    await asyncio.to_thread(psutil.wait_procs, children, timeout=CLEANUP_SECONDS)
    processes: list[str] = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        is_ours = process in children or str(directory) in words
        is_alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if is_ours and is_alive and process.pid not in callers:
            processes.append(f"{process.pid} {words[:120]}")
    return tuple(processes), await asyncio.to_thread(_sockets, directory)


def _sockets(directory: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in directory.rglob("*") if path.is_socket())


async def _renter(world: World, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nodeapp.cli.main", "renter"),
        *arguments,
        str(world.renter_file),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=process_environment(KEPT_VARIABLES),
        cwd=SOURCE,
        start_new_session=True,
        preexec_fn=die_with_parent,
        limit=1 << 20,
    )


async def _end(process: asyncio.subprocess.Process) -> str:
    """Make sure it is gone; returns its last line on stderr."""
    if process.returncode is None:
        process.kill()
    _output, errors = await process.communicate()
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
