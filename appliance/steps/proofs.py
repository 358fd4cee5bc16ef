"""The proof profile of the demo and the tests: keys over a test SRS, made once."""

from __future__ import annotations

from pathlib import Path

from appliance.steps.console import Status
from appliance.steps.layout import ROOT, Layout, digest, write_atomically
from appliance.steps.run import run

PROFILE = "poseidon"
CIRCUITS = ROOT / "nodeapp" / "prover" / "circuits"


def is_profile_present(places: Layout) -> bool:
    """It was made for the circuit of this checkout; the prover checks it again when it starts."""
    return _stamp(places).exists()


def _stamp(places: Layout) -> Path:
    sources = [*sorted(CIRCUITS.rglob("*.*")), ROOT / "nodeapp" / "prover" / "profile.py"]
    key = digest(*(path for path in sources if path.suffix != ".pyc"))
    return places.cache / "proofs" / f"{PROFILE}-{key}.stamp"


def ensure_profile(places: Layout, status: Status) -> None:
    """Let the prover's own program make it (about 20 s of processor time)."""
    command: list[str | Path] = [places.python, "-m", "nodeapp.prover.profile"]
    command += ["--cache-dir", places.cache, "--profile", PROFILE]
    run(status, command, what="making the proof profile", directory=ROOT)
    write_atomically(_stamp(places), "made\n")
