"""A router on loopback that speaks UPnP."""

import pytest

from nodeapp.network import upnp
from tests.fakes.router import Router


@pytest.fixture
async def router(monkeypatch):
    monkeypatch.setattr(upnp, "SEARCH_MILLISECONDS", 300)
    async with Router().running() as running:
        yield running
