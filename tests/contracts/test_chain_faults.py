"""A few schedules of the fault campaign; `make campaign-chain` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.chain_faults import run


@pytest.mark.timeout(120)
async def test_no_money_is_wrong_behind_endpoints_that_lie_and_fail(anvil_binary: Path) -> None:
    rows = {row.name: row for row in await run(seeds=(3, 5, 7), rounds=5)}
    assert [f"{row.name}: {row.note}" for row in rows.values() if row.ok is False] == []
    assert rows["rpc faults injected"].value >= 10
    assert rows["rpc faults: claims mined"].value >= 3
