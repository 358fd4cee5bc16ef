"""One in-process chain for the whole run, rolled back after every test; anvil where a test asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.main import Devnet, DevnetOptions, running_devnet
from nodeapp.service.paths import default_cache_dir
from tests.contracts.market import Market, provisioned
from tests.contracts.world import MODEL, RULES, World, build_world


@pytest.fixture(scope="session")
def built_world() -> World:
    return build_world()


@pytest.fixture
def world(built_world: World) -> Iterator[World]:
    before = built_world.tester.take_snapshot()
    yield built_world
    built_world.tester.revert_to_snapshot(before)


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    try:
        return find_anvil(default_cache_dir())
    except Unavailable as error:
        pytest.skip(error.message)


@pytest.fixture
async def devnet(anvil_binary: Path, tmp_path: Path) -> AsyncIterator[Devnet]:
    """A fresh chain that mines every transaction at once, with the contracts on it."""
    options = DevnetOptions(
        directory=tmp_path / "devnet",
        anvil=anvil_binary,
        models=(MODEL,),
        block_time_seconds=0,
        rules=RULES,
    )
    async with running_devnet(options) as running:
        yield running


@pytest.fixture
async def market(devnet: Devnet) -> Market:
    return await provisioned(devnet)
