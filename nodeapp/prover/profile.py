"""Make a proof profile directory: reference string and keys around a committed circuit.

    python -m nodeapp.prover.profile --profile poseidon [--dir D | --cache-dir C] [--srs FILE]

Without --srs a *test* reference string is made: whoever made it can forge proofs, so the
profile says so and verifiers refuse it unless told otherwise. With --srs the file must be the
public ceremony's, known by its sha256. Idempotent; one maker at a time; a profile appears
complete or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, NodeError, Unavailable
from nodeapp.prover import EZKL_MISSING
from nodeapp.rpc.proof_worker import WorkerSettings, run_worker
from nodeapp.service.paths import default_cache_dir
from nodeapp.store.digest import sha256_of
from nodeapp.wire import prover_job
from nodeapp.wire.proof_profile import (
    CEREMONY_SHA256,
    EZKL_VERSION,
    MANIFEST_NAME,
    ProfileManifest,
    ProfileName,
    SrsKind,
    decode_manifest,
    profile_id,
)

CIRCUITS = Path(__file__).parent / "circuits" / "ledger-240"
SETUP_SECONDS = 900.0
LOCK_POLL_SECONDS = 0.2
Report = Callable[[str], None]


def cached_profile_dir(cache_dir: Path, profile: ProfileName = "poseidon") -> Path:
    """Where tests and the demo keep a test profile; named after all that decides over it."""
    circuit = sha256_of(CIRCUITS / profile / "circuit.compiled")
    return cache_dir / "proofs" / f"{profile}-ezkl{EZKL_VERSION}-{circuit[:12]}"


def check_profile(directory: Path, *, with_proving_key: bool = False) -> ProfileManifest:
    """Read a profile and compare its files with the manifest.

    Args:
        directory: the profile.
        with_proving_key: hash the proving key too (180 MB), not just its size.

    Raises:
        Unavailable: missing, incomplete or altered.
    """
    if not directory.is_dir():
        raise Unavailable(
            f"proof keys are not there yet in {directory}: `fabstir-node proof-keys make` makes"
            " them, or the start does of the ceremony's file that prover.srs_source names"
        )
    try:
        manifest = decode_manifest((directory / MANIFEST_NAME).read_bytes())
        expected = {
            "circuit.compiled": manifest.circuit_sha256,
            "settings.json": manifest.settings_sha256,
            "srs": manifest.srs_sha256,
            "vk": manifest.vk_sha256,
        }
        if with_proving_key:
            expected["pk"] = manifest.pk_sha256
        for name, digest in expected.items():
            if sha256_of(directory / name) != digest:
                raise Unavailable(f"proof profile {directory}: {name} was altered")
        found = (directory / "pk").stat().st_size
    except (OSError, InvalidRequest) as error:
        raise Unavailable(f"proof profile {directory}: {error}") from error
    if found != manifest.pk_bytes:
        raise Unavailable(f"proof profile {directory}: pk has {found} bytes")
    return manifest


async def ensure_profile(
    directory: Path,
    profile: ProfileName,
    *,
    srs: Path | None = None,
    report: Report = lambda _line: None,
) -> ProfileManifest:
    """Return the intact profile in `directory`, making it first where it is missing.

    Args:
        directory: made, or made again if it is a damaged profile.
        profile: "poseidon" (about 14 CPU-s to make) or "kzg" (about 3).
        srs: the ceremony's file; None: make a test reference string.
        report: told each step in one line.

    Raises:
        InvalidRequest: `srs` is not the ceremony's file, or `directory` holds something else.
        Unavailable: the worker failed, or the disk did.
    """
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = await asyncio.to_thread(_open_lock, directory.with_name(directory.name + ".lock"))
    with _locked(lock):
        await _take(lock)
        await asyncio.to_thread(_require_replaceable, directory)
        try:
            manifest = await asyncio.to_thread(check_profile, directory)
        except Unavailable as error:
            is_there = await asyncio.to_thread(directory.is_dir)
            why = error.message if is_there else "not there yet"
            report(f"proof profile {profile}: making it, {why}")
        else:
            require_same(directory, manifest, profile, "test" if srs is None else "ppot")
            report(f"proof profile {profile}: present ({manifest.srs} reference string)")
            return manifest
        if find_spec("ezkl") is None:
            raise Unavailable(EZKL_MISSING)
        return await _make(directory, profile, srs, report)


def _require_replaceable(directory: Path) -> None:
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MANIFEST_NAME).exists():
        raise InvalidRequest(f"{directory} is not empty and no proof profile; name another one")


def require_same(
    directory: Path, manifest: ProfileManifest, profile: ProfileName, srs: SrsKind
) -> None:
    """What is there is what is wanted.

    Raises:
        InvalidRequest: keys of another circuit or reference string.
    """
    if (manifest.profile, manifest.srs) != (profile, srs):
        raise InvalidRequest(
            f"a {manifest.profile} profile with a {manifest.srs} reference string is there already:"
            f" move {directory} away"
        )


async def _make(
    directory: Path, profile: ProfileName, srs: Path | None, report: Report
) -> ProfileManifest:
    partial = directory.with_name(directory.name + ".partial")
    await asyncio.to_thread(_begin, partial, profile, srs)
    report(f"proof profile {profile}: computing keys, 3 to 30 s")
    result = await run_worker(
        prover_job.SetupJob(str(partial)), WorkerSettings(timeout_seconds=SETUP_SECONDS)
    )
    if not isinstance(result, prover_job.SetUp):
        raise Unavailable(f"proof keys could not be made: {result}")
    manifest = await asyncio.to_thread(
        _finish, partial, directory, profile, "test" if srs is None else "ppot"
    )
    report(
        f"proof profile {profile}: made in {result.spent.wall_seconds:.0f} s "
        f"({result.spent.cpu_seconds:.0f} CPU-s), proving key {manifest.pk_bytes >> 20} MiB"
    )
    return manifest


def _begin(partial: Path, profile: ProfileName, srs: Path | None) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(CIRCUITS / profile, partial)
    if srs is None:
        return
    rows = circuit_rows(profile)
    try:
        found = sha256_of(srs)
    except OSError as error:
        raise InvalidRequest(f"reference string {srs}: {error}") from error
    if found != CEREMONY_SHA256[rows]:
        raise InvalidRequest(f"reference string {srs} is not the ceremony's file for k={rows}")
    shutil.copyfile(srs, partial / "srs")


def circuit_rows(profile: ProfileName) -> int:
    """Log2 of the circuit's rows: which of the ceremony's files it needs."""
    settings = json.loads((CIRCUITS / profile / "settings.json").read_bytes())
    return int(settings["run_args"]["logrows"])


def _finish(
    partial: Path,
    directory: Path,
    profile: ProfileName,
    kind: SrsKind,
) -> ProfileManifest:
    circuit, settings, srs, vk, pk = (
        sha256_of(partial / name)
        for name in ("circuit.compiled", "settings.json", "srs", "vk", "pk")
    )
    manifest = ProfileManifest(
        profile_id=profile_id(
            circuit_sha256=circuit, settings_sha256=settings, vk_sha256=vk, srs_sha256=srs
        ),
        profile=profile,
        circuit="ledger-240",
        ezkl=EZKL_VERSION,
        srs=kind,
        circuit_sha256=circuit,
        settings_sha256=settings,
        srs_sha256=srs,
        vk_sha256=vk,
        pk_sha256=pk,
        pk_bytes=(partial / "pk").stat().st_size,
    )
    (partial / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    damaged = directory.with_name(directory.name + ".damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    if directory.exists():
        directory.rename(damaged)
    partial.rename(directory)
    shutil.rmtree(damaged, ignore_errors=True)
    return manifest


async def _take(descriptor: int) -> None:
    # Not a blocking flock in a thread: that cannot be cancelled and would hold up the exit.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def main() -> int:
    """Command line; prints one line a step, the directory last."""
    parser = argparse.ArgumentParser(prog="python -m nodeapp.prover.profile")
    parser.add_argument("--profile", choices=("poseidon", "kzg"), default="poseidon")
    parser.add_argument("--dir", type=Path, help="default: the shared cache")
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--srs", type=Path, help="ceremony file; without it a test one is made")
    options = parser.parse_args()
    cache = options.cache_dir or default_cache_dir()
    directory = options.dir or cached_profile_dir(cache, options.profile)

    def report(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        asyncio.run(ensure_profile(directory, options.profile, srs=options.srs, report=report))
    except NodeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    report(str(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
