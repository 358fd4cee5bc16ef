"""Provider records are anybody's word: dead and lying ones must not hide an honest host."""

import asyncio
import time

import pytest

from nodeapp.core.errors import NotFound, Unauthorised
from nodeapp.network.dht import ProviderInfo
from nodeapp.renter import discovery as module
from nodeapp.renter.discovery import Discovery
from nodeapp.renter.sources import Sources
from nodeapp.renter.standing import Standings
from nodeapp.service.clock import SystemClock

MODEL = "0x" + "33" * 32


class Contracts:
    class deployment:  # noqa: N801
        chain_id = 31337

    async def model(self, _model_id):
        return None

    async def nodes_for_model(self, _model_id):
        return ()


class Dht:
    def __init__(self, providers):
        self.providers = providers

    async def join(self, _bootstrap):
        return None

    async def find_providers(self, _key, *, connected_only):
        return [ProviderInfo(name, ("/ip4/127.0.0.1/tcp/1",)) for name in self.providers]


class Host:
    def __init__(self, providers):
        self.dht = Dht(providers)


class Record:
    peer_id = "honest"


class Found:
    record = Record
    wallet = "0x" + "11" * 20
    address = "/ip4/127.0.0.1/tcp/1"


class Looking(Discovery):
    """`dead…` never answers, `liar…` is found out, `honest` is what is looked for."""

    async def _ask(self, hint, model_id, max_price):
        if hint.peer_id.startswith("dead"):
            await asyncio.Event().wait()
        if hint.peer_id.startswith("liar"):
            raise Unauthorised("offer is not signed by a registered host")
        return Found()


@pytest.fixture
def looking(tmp_path):
    def make(*providers):
        standings = Standings.load(tmp_path)
        return Looking(Sources(Host(providers), Contracts(), (), standings, SystemClock()))

    return make


async def test_dead_and_lying_providers_do_not_hide_an_honest_host(monkeypatch, looking):
    monkeypatch.setattr(module, "ASK_SECONDS", 0.3)
    began = time.monotonic()
    fakes = [f"dead{number}" for number in range(40)] + [f"liar{number}" for number in range(40)]
    found = await looking(*fakes, "honest").find(MODEL, max_price=10)
    assert len(found) == 1
    assert time.monotonic() - began < 3


async def test_after_the_first_offer_the_silent_are_not_waited_for_long(monkeypatch, looking):
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.2)
    began = time.monotonic()
    found = await looking("honest", *(f"dead{number}" for number in range(90))).find(
        MODEL, max_price=10
    )
    assert len(found) == 1
    assert time.monotonic() - began < 2


async def test_nobody_found_says_why(monkeypatch, looking):
    monkeypatch.setattr(module, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(module, "SEARCH_SECONDS", 0.4)
    with pytest.raises(NotFound, match=r"dead1: no answer inside 0.05 s") as caught:
        await looking("dead1", "liar1").find(MODEL, max_price=10)
    assert "liar1: offer is not signed" in caught.value.message
