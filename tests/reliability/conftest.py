"""A host's account for every test of its queue."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.reliability.account import Account


@pytest.fixture
async def account(tmp_path: Path) -> AsyncIterator[Account]:
    account = Account(tmp_path)
    await account.start()
    yield account
    await account.ledger.close()
