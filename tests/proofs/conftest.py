"""Real profiles, cached between runs, and one real proof of each kind a session."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from nodeapp.prover.profile import cached_profile_dir, ensure_profile
from nodeapp.rpc.proof_worker import WorkerSettings, run_worker
from nodeapp.service.paths import default_cache_dir
from nodeapp.wire import prover_job
from tests.proofs.ledger_case import VECTOR, MadeProof


def _profile(name) -> Path:
    directory = cached_profile_dir(default_cache_dir(), name)
    asyncio.run(ensure_profile(directory, name))
    return directory


def _proof(directory: Path) -> MadeProof:
    job = prover_job.ProveJob(str(directory), VECTOR)
    result = asyncio.run(run_worker(job, WorkerSettings(timeout_seconds=300)))
    assert isinstance(result, prover_job.Proved), result
    return MadeProof(directory, result.shown, result.spent)


@pytest.fixture(scope="session")
def poseidon_profile() -> Path:
    return _profile("poseidon")


@pytest.fixture(scope="session")
def kzg_profile() -> Path:
    return _profile("kzg")


@pytest.fixture(scope="session")
def poseidon_proof(poseidon_profile: Path) -> MadeProof:
    return _proof(poseidon_profile)


@pytest.fixture(scope="session")
def kzg_proof(kzg_profile: Path) -> MadeProof:
    return _proof(kzg_profile)


@pytest.fixture(params=["poseidon", "kzg"])
def made(request) -> MadeProof:
    return request.getfixturevalue(f"{request.param}_proof")


@pytest.fixture
def digest():
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
