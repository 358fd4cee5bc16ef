"""The npm openai client passes its conformance list against the real inference process."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nodeapp.service.paths import default_cache_dir
from tests.inference.openai_bridge import bridged
from tests.inference.process import end, start, until_ready
from tests.p2p.javascript import installed_packages, require_node

SOURCES = Path(__file__).parent / "js"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDING_MODEL = "all-MiniLM-L6-v2.F32.gguf"
CHECKS = (
    "chat", "streaming", "runner", "schema", "tools", "streamedTools", "logprobs", "completions",
    "responses", "models", "embeddings", "errors", "abort",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    require_node()
    models = default_cache_dir() / "models"
    if not (models / MODEL).is_file() or not (models / EMBEDDING_MODEL).is_file():
        pytest.skip("models are missing: run `make setup-dev`")
    packages = installed_packages(SOURCES, "js-openai")
    workspace = tmp_path_factory.mktemp("openai-js")
    for source in ("conformance.js", "package.json"):
        shutil.copy(SOURCES / source, workspace)
    (workspace / "node_modules").symlink_to(packages / "node_modules")
    directory = tmp_path_factory.mktemp("node")
    child = start(directory, models / MODEL, embedding_model_path=f'"{models / EMBEDDING_MODEL}"')
    path = directory / "run" / "inference.sock"
    try:
        until_ready(child, path)
        with bridged(path) as url:
            run = subprocess.run(
                ["node", "conformance.js", f"{url}/v1", EMBEDDING_MODEL],
                cwd=workspace,
                env={"PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                check=False,
                timeout=90,
            )
    finally:
        end(child)
    assert run.returncode == 0, run.stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [*CHECKS, "done"])
def test_the_npm_client_passes(results, name):
    assert results[name]["passed"], results[name]["error"]


def test_every_check_was_run(results):
    assert set(results) == {*CHECKS, "done"}
