"""The short form of `make campaign-chain`'s kill points, on a real chain."""

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.devnet.anvil import find_anvil
from nodeapp.service.paths import default_cache_dir
from tests.benchmarks import chain_kills


@pytest.mark.timeout(180)
async def test_after_random_kills_nothing_is_lost_and_nothing_claimed_twice(monkeypatch):
    try:
        find_anvil(default_cache_dir())
    except Unavailable as error:
        pytest.skip(error.message)
    for module in (chain_kills.runner_module, chain_kills.withdrawals_module):
        monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.02)
        monkeypatch.setattr(module, "LONGEST_RETRY_SECONDS", 0.2)
    rows = await chain_kills.run(kills=25, signals=1)
    assert [row for row in rows if row.ok is False] == []
    assert {"kill points", "lost claims", "double claims", "overclaims"} <= {
        row.name for row in rows if row.ok
    }
