"""Asks a sandboxed child to load a model file first; what it said is remembered by digest.

A verdict holds for one file content and one version of llama.cpp. A timeout is not remembered:
the machine may have been busy.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec

from nodeapp.core.audit import AuditSink, SandboxFailed, Unrecorded
from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.service.config import process_environment
from nodeapp.store.atomic import write_whole

SECONDS = 300.0
"""A file that hangs the loader is refused after it; a busy or emulated machine needs minutes."""
BYTES_PER_SECOND = 50 << 20
"""Slowest disk that is waited for."""
MAX_ANSWER_BYTES = 64 << 10
MAX_REMEMBERED = 1024
_ROOT = Path(__file__).resolve().parents[2]


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child found; `error` "" means that it loaded and decoded."""

    error: str = ""
    bos_text: str = ""
    eos_text: str = ""
    crashed: bool = False


class _Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    llama: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Prober:
    """`memory` is the file that keeps the verdicts."""

    memory: Path
    seconds: float = SECONDS
    audit: AuditSink = field(default_factory=Unrecorded)

    async def probe(self, path: Path, sha256: str) -> Verdict:
        """Load the file in a child, unless that was done before.

        Raises:
            InvalidRequest: it crashed or hung the loader, or llama.cpp refuses it.
            Unavailable: the child could not be started or shut in.
        """
        known = await asyncio.to_thread(self._recall, sha256)
        verdict = known or await self._asked(path)
        if known is None:
            await asyncio.to_thread(self._remember, sha256, verdict)
        if verdict.error:
            raise InvalidRequest(f"model {path.name}: {verdict.error}")
        return verdict

    async def _asked(self, path: Path) -> Verdict:
        """A file that attacks its loader, and a sandbox that does not hold, are for the record."""
        what = f"loader of {path.name}"
        try:
            verdict = await self._ask(path)
        except (InvalidRequest, Unavailable) as error:
            self.audit.record(SandboxFailed(what, error.message))
            raise
        if verdict.crashed:
            self.audit.record(SandboxFailed(what, verdict.error))
        return verdict

    async def _ask(self, path: Path) -> Verdict:
        size, real_path = await asyncio.to_thread(lambda: (path.stat().st_size, path.resolve()))
        seconds = self.seconds + size / BYTES_PER_SECOND
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nodeapp.inference.load_probe", str(real_path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            cwd=_ROOT,
        )
        try:
            async with asyncio.timeout(seconds):
                said, complaint = await child.communicate()
        except TimeoutError as error:
            raise InvalidRequest(
                f"model {path.name} did not load inside {seconds:.0f} s in the sandbox"
            ) from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return _verdict(child.returncode or 0, said, complaint)

    def _recall(self, sha256: str) -> Verdict | None:
        llama = version("llama-cpp-python")
        for entry in _read(self.memory):
            if (entry.sha256, entry.llama) == (sha256, llama):
                return entry.verdict
        return None

    def _remember(self, sha256: str, verdict: Verdict) -> None:
        entry = _Remembered(sha256, version("llama-cpp-python"), verdict)
        kept = [other for other in _read(self.memory) if other.sha256 != sha256]
        write_whole(self.memory, msgspec.json.encode((*kept[-MAX_REMEMBERED + 1 :], entry)))


def _verdict(code: int, said: bytes, complaint: bytes) -> Verdict:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return Verdict(error=f"crashed the loader ({name}): it is damaged or hostile", crashed=True)
    try:
        if code == 0 and len(said) <= MAX_ANSWER_BYTES:
            return msgspec.json.decode(said, type=Verdict)
    except msgspec.DecodeError:
        pass  # what it said is not to be trusted: the same as having ended without a word
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200]
    if "MemoryError" in last or "bad_alloc" in last:
        return Verdict(error="needs more memory than a file of its size may: it is hostile")
    raise Unavailable(f"model loader ended with code {code}: {last or 'no message'}")


def _environment() -> dict[str, str]:
    """No settings, no secrets; one thread, no GPU, no debugger forked on abort."""
    return {
        **process_environment(("LD_LIBRARY_PATH",)),
        "PYTHONPATH": str(_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GGML_NO_BACKTRACE": "1",
    }


def _read(memory: Path) -> tuple[_Remembered, ...]:
    """A lost or damaged memory only costs asking again."""
    try:
        return msgspec.json.decode(memory.read_bytes(), type=tuple[_Remembered, ...])
    except (FileNotFoundError, msgspec.DecodeError):
        return ()
