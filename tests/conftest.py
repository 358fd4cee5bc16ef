"""Fixtures of every area."""

from collections.abc import Iterator

import pytest

from tests.world import World, running_world


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
