"""Fixtures of every area, and how long properties are looked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nodeapp.service.paths import default_cache_dir
from tests.image.toolroot import require_tools
from tests.world import World, running_world

settings.register_profile(
    "fuzz", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
if os.environ.get("HYPOTHESIS_PROFILE"):
    settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One chain and one node for all tests of a session; 15 s the first time."""
    with running_world(tmp_path_factory.mktemp("w")) as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> World:
    """The shared world, with every process ready again."""
    shared_world.until_ready()
    return shared_world


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The small chat model."""
    path = default_cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing: run `make setup`")
    return path


@pytest.fixture(scope="session")
def debian_tools() -> Path:
    """A Debian 13 root with systemd-repart, systemd-sysupdate, ukify, QEMU's block tools and Nix."""
    return require_tools()
