"""One proof job in a process of its own: `-m nodeapp.prover.worker JOB RESULT PARENT NICE`.

EZKL holds the interpreter's lock
for whole seconds, has no cancel, and may crash at interpreter exit: so every job is a child
that is killed as a group, writes its result atomically and leaves by _exit. The working
directory is private to the job and removed by the parent; the witness, which holds the token
ids in clear, is removed here as soon as it was used.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from nodeapp.core.errors import InvalidRequest, NodeError
from nodeapp.core.ledger_proof import (
    CONTEXT_LIMBS,
    IDS_PER_CHUNK,
    LedgerStatement,
    felt_hex,
    public_instances,
)
from nodeapp.prover.library import ezkl
from nodeapp.wire import prover_job
from nodeapp.wire.proof_profile import (
    COMMITMENT_BYTES,
    EZKL_VERSION,
    MANIFEST_NAME,
    PROOF_BYTES,
    ProfileManifest,
    decode_manifest,
)

ADDRESS_SPACE_BYTES = 8 << 30
"""Measured peak: 418 MB resident; the rest is room for rayon's stacks on many cores."""
FIELD_MODULUS = 0x30644E72E131A029B85045B68181585D2833E84879B97091_43E1F593F0000001
"""Order of the BN254 scalar field."""
PR_SET_PDEATHSIG = 1
_INVALID_MARKS = ("[halo2]",)
"""How EZKL 23.0.5 marks a proof that does not hold; [io], [srs], [pfsys] are local faults."""


class ProofInvalid(Exception):
    """The proof does not hold; the message is the reason to report."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The files of one profile directory."""

    directory: Path
    manifest: ProfileManifest

    def path(self, name: str) -> str:
        """A file of the profile as EZKL wants it."""
        return str(self.directory / name)


def open_profile(directory: str) -> Profile:
    """Read the manifest and check every file that decides over validity.

    Raises:
        InvalidRequest: manifest malformed, or a file that is not the one it names.
        OSError: a file is missing.
    """
    root = Path(directory)
    manifest = decode_manifest((root / MANIFEST_NAME).read_bytes())
    for name, expected in (
        ("circuit.compiled", manifest.circuit_sha256),
        ("settings.json", manifest.settings_sha256),
        ("srs", manifest.srs_sha256),
        ("vk", manifest.vk_sha256),
    ):
        found = hashlib.sha256((root / name).read_bytes()).hexdigest()
        if found != expected:
            raise InvalidRequest(f"profile file {name} has sha256 {found}, manifest {expected}")
    return Profile(root, manifest)


def set_up(job: prover_job.SetupJob, started: float) -> prover_job.SetUp:
    """Reference string, verifying and proving key."""
    root = Path(job.directory)
    settings: dict[str, Any] = json.loads((root / "settings.json").read_bytes())
    logrows = int(settings["run_args"]["logrows"])
    if not (root / "srs").exists():
        ezkl.gen_srs(str(root / "srs"), logrows)
    ezkl.setup(
        str(root / "circuit.compiled"),
        str(root / "vk"),
        str(root / "pk"),
        srs_path=str(root / "srs"),
    )
    return prover_job.SetUp(logrows, _spent(started))


def prove(job: prover_job.ProveJob, scratch: Path, started: float) -> prover_job.Proved:
    """Witness, proof, check of the proof against the numbers we fed in."""
    profile = open_profile(job.directory)
    witness, vector, output = scratch / "witness", scratch / "vector", scratch / "proof"
    vector.write_text(json.dumps({"input_data": [[float(value) for value in job.vector]]}))
    try:
        ezkl.gen_witness(
            str(vector),
            profile.path("circuit.compiled"),
            str(witness),
            vk_path=profile.path("vk"),
            srs_path=profile.path("srs"),
        )
        ezkl.prove(
            str(witness),
            profile.path("circuit.compiled"),
            profile.path("pk"),
            str(output),
            srs_path=profile.path("srs"),
        )
    finally:
        vector.unlink(missing_ok=True)
        witness.unlink(missing_ok=True)
    proof, instances = read_ezkl_proof(output.read_bytes())
    shown = prover_job.ShownProof(
        commitment=commit(profile, (job.vector,))[0],
        count=sum(value != 0 for value in job.vector[:IDS_PER_CHUNK]),
        context_limbs=job.vector[IDS_PER_CHUNK : IDS_PER_CHUNK + CONTEXT_LIMBS],
        proof=proof,
    )
    if instances != _expected(shown):
        raise ProofInvalid("own proof shows other numbers than were proven")
    verify(profile, shown, scratch)
    return prover_job.Proved(shown, _spent(started))


def verify(profile: Profile, shown: prover_job.ShownProof, scratch: Path) -> None:
    """Check one proof and that its commitment is bound to it.

    Raises:
        ProofInvalid: with the reason.
        RuntimeError: EZKL could not work here.
    """
    name = profile.manifest.profile
    if len(shown.commitment) != COMMITMENT_BYTES[name]:
        raise ProofInvalid(f"commitment has {len(shown.commitment)} bytes in profile {name}")
    if len(shown.proof) != PROOF_BYTES[name]:
        raise ProofInvalid(f"proof has {len(shown.proof)} bytes, {PROOF_BYTES[name]} expected")
    if name == "poseidon" and int.from_bytes(shown.commitment, "little") >= FIELD_MODULUS:
        raise ProofInvalid("commitment is not a field element")
    if name == "kzg" and shown.proof[:64] != shown.commitment:
        # EZKL compares this commitment with nothing; without this line any transcript would do.
        raise ProofInvalid("commitment is not the one inside the proof")
    path = scratch / "verify"
    path.write_bytes(write_ezkl_proof(shown.proof, _expected(shown)))
    try:
        ezkl.verify(
            str(path), profile.path("settings.json"), profile.path("vk"), profile.path("srs")
        )
    except RuntimeError as error:
        if any(mark in str(error) for mark in _INVALID_MARKS):
            raise ProofInvalid(str(error).removeprefix("Failed to run verify: ")) from error
        raise


def commit(profile: Profile, vectors: Sequence[Sequence[int]]) -> tuple[bytes, ...]:
    """Commitments as the circuit makes them: Poseidon element or KZG point."""
    found = []
    for vector in vectors:
        felts = [felt_hex(value) for value in vector]
        if profile.manifest.profile == "poseidon":
            found.append(bytes.fromhex(ezkl.poseidon_hash(felts)[0]))
        else:
            point = ezkl.kzg_commit(
                felts, profile.path("vk"), profile.path("settings.json"), profile.path("srs")
            )[0]
            # The library writes little endian here, the proof carries big endian.
            found.append(bytes.fromhex(point.x)[::-1] + bytes.fromhex(point.y)[::-1])
    return tuple(found)


def read_ezkl_proof(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Raw proof and instance column out of EZKL's JSON.

    Raises:
        ProofInvalid: the two forms of the proof differ, another version, not one column.
    """
    try:
        parsed: dict[str, Any] = json.loads(data)
        proof = bytes(parsed["proof"])
        written = str(parsed["hex_proof"]).removeprefix("0x")
        (column,) = parsed["instances"]
        instances = tuple(str(value) for value in column)
        version = parsed["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise ProofInvalid(f"not an ezkl proof: {error}") from error
    if proof.hex() != written:
        raise ProofInvalid("proof and hex_proof differ")
    if version != EZKL_VERSION:
        raise ProofInvalid(f"proof of ezkl {version}, this is {EZKL_VERSION}")
    return proof, instances


def write_ezkl_proof(proof: bytes, instances: Sequence[str]) -> bytes:
    """EZKL's JSON around a raw proof; nothing untrusted is copied beyond the two arguments."""
    return json.dumps(
        {
            "protocol": None,
            "instances": [list(instances)],
            "proof": list(proof),
            "hex_proof": "0x" + proof.hex(),
            "split": None,
            "pretty_public_inputs": None,
            "timestamp": 0,
            "version": EZKL_VERSION,
        }
    ).encode()


def run(job: prover_job.Job, scratch: Path) -> prover_job.Result:
    """Carry out one job; every outcome is a value."""
    started = time.perf_counter()
    try:
        match job:
            case prover_job.SetupJob():
                return set_up(job, started)
            case prover_job.ProveJob():
                return prove(job, scratch, started)
            case prover_job.VerifyJob():
                return _verify_all(job, scratch, started)
            case prover_job.CommitJob():
                return prover_job.Committed(commit(open_profile(job.directory), job.vectors))
            case _:
                assert_never(job)
    except ProofInvalid as error:
        return prover_job.Refused(str(error))
    except (NodeError, OSError, RuntimeError, MemoryError) as error:
        return prover_job.Failed(f"{type(error).__name__}: {error}")


def _verify_all(
    job: prover_job.VerifyJob, scratch: Path, started: float
) -> prover_job.Verified | prover_job.Refused:
    profile = open_profile(job.directory)
    if profile.manifest.srs == "test" and not job.allow_test_srs:
        return prover_job.Refused("the profile's reference string is a local test one")
    for index, shown in enumerate(job.proofs):
        try:
            verify(profile, shown, scratch)
        except ProofInvalid as error:
            return prover_job.Refused(str(error), index)
    return prover_job.Verified(_spent(started))


def _expected(shown: prover_job.ShownProof) -> tuple[str, ...]:
    return public_instances(LedgerStatement(shown.commitment, shown.count, shown.context_limbs))


def _spent(started: float) -> prover_job.Spent:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return prover_job.Spent(
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        wall_seconds=round(time.perf_counter() - started, 3),
        peak_megabytes=_peak_kilobytes() // 1024,
    )


def _peak_kilobytes() -> int:
    # ru_maxrss starts with the parent's size over fork and exec; VmHWM is this program's own.
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _confine(parent: int, niceness: int) -> None:
    os.umask(0o077)
    os.nice(niceness)
    # service.lifecycle has the same line, but importing it costs a worker 0.3 s of CPU (aiohttp).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the request above took hold
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def main(arguments: Sequence[str]) -> None:
    """Run the job file, write the result file atomically, leave without interpreter exit."""
    job_path, result_path = Path(arguments[0]), Path(arguments[1])
    _confine(parent=int(arguments[2]), niceness=int(arguments[3]))
    data = job_path.read_bytes()
    job_path.unlink()
    result = run(prover_job.decode_job(data), result_path.parent)
    partial = result_path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(prover_job.encode_result(result))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(result_path)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
