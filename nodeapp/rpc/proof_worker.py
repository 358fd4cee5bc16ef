"""Run proof workers: how the prover, a renter and the command line use EZKL without importing it.

Each job is one child in a process group of its own, in a private directory that is removed
whatever happens. The child's result file is the only thing believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import nodeapp
from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.ledger_proof import chunk_ids, ledger_vector
from nodeapp.wire import prover_job
from nodeapp.wire.proof_envelope import ProofEnvelope, check_ledger
from nodeapp.wire.proof_profile import MANIFEST_NAME, ProfileManifest, decode_manifest

WORKER_MODULE = "nodeapp.prover.worker"
MAX_THREADS = 32
VERIFY_SECONDS = 60.0
_STDERR_BYTES = 400


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How one child is run."""

    timeout_seconds: float
    threads: int = 0
    """rayon threads; 0: all cores."""
    nice: int = 0
    scratch: Path | None = None
    """Parent of the private directory, best on tmpfs; None: the system's."""


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """Whether the proofs hold, and if not, why."""

    ok: bool
    reason: str


async def run_worker(job: prover_job.Job, settings: WorkerSettings) -> prover_job.Result:
    """Carry out one job in a child.

    Returns:
        What the child wrote; `Failed` and `Refused` included.

    Raises:
        Unavailable: the child was killed, ran out of time or wrote nothing.
    """
    directory = Path(
        await asyncio.to_thread(tempfile.mkdtemp, prefix="proof-", dir=settings.scratch)
    )
    try:
        return await _run_in(directory, job, settings)
    finally:
        # Not awaited in a thread: a cancelled task must not leave token ids behind.
        shutil.rmtree(directory, ignore_errors=True)


async def verify_proofs(
    profile_dir: Path, proofs: Sequence[prover_job.ShownProof], *, allow_test_srs: bool
) -> VerifyOutcome:
    """Check proofs against the profile in `profile_dir`.

    Args:
        profile_dir: a directory made by nodeapp.prover.profile; `pk` may be missing.
        proofs: 1 to MAX_CHUNKS, each with the statement the caller wants it to show.
        allow_test_srs: accept a locally made reference string (development only).

    Raises:
        Unavailable: this machine could not check (file missing, profile damaged).
    """
    job = prover_job.VerifyJob(str(profile_dir), tuple(proofs), allow_test_srs)
    match await run_worker(job, WorkerSettings(timeout_seconds=VERIFY_SECONDS)):
        case prover_job.Verified():
            return VerifyOutcome(ok=True, reason="")
        case prover_job.Refused(reason, index):
            return VerifyOutcome(ok=False, reason=f"proof {index}: {reason}")
        case other:
            raise Unavailable(f"proofs could not be verified: {_reason(other)}")


async def ledger_commitments(
    profile_dir: Path, vectors: Sequence[Sequence[int]]
) -> tuple[bytes, ...]:
    """Commit to ledger vectors as the profile's circuit does.

    Raises:
        Unavailable: this machine could not compute (file missing, profile damaged).
    """
    job = prover_job.CommitJob(str(profile_dir), tuple(tuple(vector) for vector in vectors))
    match await run_worker(job, WorkerSettings(timeout_seconds=VERIFY_SECONDS)):
        case prover_job.Committed(commitments):
            return commitments
        case other:
            raise Unavailable(f"commitment could not be computed: {_reason(other)}")


async def verify_ledger(
    profile_dir: Path,
    envelope: ProofEnvelope,
    *,
    token_ids: Sequence[int],
    salts: Sequence[bytes],
    allow_test_srs: bool,
) -> VerifyOutcome:
    """Everything a renter can check of an envelope's ledger: its own ids are what was proven.

    Contexts and counts are recomputed, the commitments are recomputed from `token_ids` (as the
    renter received them) and `salts` (one a chunk), then every proof is verified. The host's
    signature and the chain's numbers are the caller's to check.

    Raises:
        Unavailable: this machine could not check.
    """
    manifest = await asyncio.to_thread(read_profile, profile_dir)
    try:
        vectors = _expected_vectors(envelope, manifest, token_ids, salts)
    except InvalidRequest as error:
        return VerifyOutcome(ok=False, reason=error.message)
    for index, commitment in enumerate(await ledger_commitments(profile_dir, vectors)):
        if envelope.chunks[index].commitment != commitment:
            reason = f"chunk {index} commits to other tokens than received"
            return VerifyOutcome(ok=False, reason=reason)
    return await verify_proofs(profile_dir, envelope.chunks, allow_test_srs=allow_test_srs)


def _expected_vectors(
    envelope: ProofEnvelope,
    manifest: ProfileManifest,
    token_ids: Sequence[int],
    salts: Sequence[bytes],
) -> list[tuple[int, ...]]:
    for name, said, known in (
        ("profile", envelope.profile_id, manifest.profile_id),
        ("ezkl", envelope.ezkl, manifest.ezkl),
        ("reference string", envelope.srs_kind, manifest.srs),
        ("reference string", envelope.srs_sha256, manifest.srs_sha256),
        ("verifying key", envelope.vk_sha256, manifest.vk_sha256),
    ):
        if said != known:
            raise InvalidRequest(f"envelope is for {name} {said}, not {known}")
    check_ledger(envelope)
    if len(token_ids) != envelope.tokens:
        raise InvalidRequest(
            f"envelope counts {envelope.tokens} tokens, {len(token_ids)} were received"
        )
    chunks = chunk_ids(token_ids)
    if len(salts) != len(chunks):
        raise InvalidRequest(f"{len(salts)} salts for {len(chunks)} chunks")
    return [
        ledger_vector(ids, chunk.context_limbs, salt)
        for ids, chunk, salt in zip(chunks, envelope.chunks, salts, strict=True)
    ]


def read_profile(profile_dir: Path) -> ProfileManifest:
    """The manifest of a profile directory.

    Raises:
        Unavailable: not there or malformed.
    """
    try:
        return decode_manifest((profile_dir / MANIFEST_NAME).read_bytes())
    except (OSError, InvalidRequest) as error:
        raise Unavailable(f"proof profile {profile_dir}: {error}") from error


async def _run_in(
    directory: Path, job: prover_job.Job, settings: WorkerSettings
) -> prover_job.Result:
    job_path, result_path = directory / "job.json", directory / "result.json"
    await asyncio.to_thread(job_path.write_bytes, prover_job.encode_job(job))
    errors_path = directory / "stderr"
    with errors_path.open("wb") as errors:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            WORKER_MODULE,
            str(job_path),
            str(result_path),
            str(os.getpid()),
            str(settings.nice),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
            env=_environment(directory, settings.threads),
            cwd=directory,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(settings.timeout_seconds):
            await child.wait()
    except TimeoutError as error:
        raise Unavailable(f"proof worker ran longer than {settings.timeout_seconds:g} s") from error
    finally:
        await _end(child)
    try:
        return prover_job.decode_result(await asyncio.to_thread(result_path.read_bytes))
    except (FileNotFoundError, msgspec.DecodeError) as error:
        tail = (await asyncio.to_thread(errors_path.read_bytes))[-_STDERR_BYTES:]
        text = tail.decode("utf-8", "replace").strip().replace("\n", " | ")
        raise Unavailable(
            f"proof worker ended with {child.returncode} and no result: {text}"
        ) from error


def _environment(directory: Path, threads: int) -> dict[str, str]:
    """Exactly what a worker needs: EZKL panics without HOME, caches below EZKL_REPO_PATH."""
    chosen = threads or min(os.cpu_count() or 1, MAX_THREADS)
    roots = (str(Path(nodeapp.__file__).parent.parent), *(entry for entry in sys.path if entry))
    return {
        "HOME": str(directory),
        "EZKL_REPO_PATH": str(directory / "ezkl"),
        "TMPDIR": str(directory),
        "RAYON_NUM_THREADS": str(chosen),
        "MALLOC_ARENA_MAX": "4",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)),
        "PATH": os.defpath,
    }


async def _end(child: asyncio.subprocess.Process) -> None:
    """No member of the group outlives the job, also when this task is cancelled."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _reason(result: prover_job.Result) -> str:
    match result:
        case prover_job.Refused(reason, _) | prover_job.Failed(reason):
            return reason
        case _:
            return f"unexpected answer {type(result).__name__}"
