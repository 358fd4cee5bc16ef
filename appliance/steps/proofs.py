"""The proof profile of the demo and the tests: keys over a test SRS, made once."""

from __future__ import annotations

from pathlib import Path

from appliance.steps.console import Status
from appliance.steps.layout import ROOT, Layout
from appliance.steps.run import run

PROFILE = "poseidon"


def is_profile_present(places: Layout) -> bool:
    """A finished profile directory holds its description; the prover checks it when it starts."""
    return any(places.cache.glob(f"proofs/{PROFILE}-*/profile.json"))


def ensure_profile(places: Layout, status: Status) -> None:
    """Let the prover's own program make it (about 20 s of processor time)."""
    command: list[str | Path] = [places.python, "-m", "nodeapp.prover.profile"]
    command += ["--cache", places.cache, "--profile", PROFILE]
    run(status, command, what="making the proof profile", directory=ROOT)
