"""The operator hears of empty pockets before a claim is late."""

import pytest

from nodeapp.chain.gas import CLAIM_GAS, LOOK_SECONDS, GasWatch
from nodeapp.core.outbox import TransactionMined, TransactionSigned
from nodeapp.service.metrics import Metrics
from tests.fakes.clock import FakeClock
from tests.fakes.mempool import FakeChain
from tests.fakes.paid_session import HOST, open_ledger

PRICE = 12  # wei each, base fee and tip of the fake


class Watched:
    def __init__(self, ledger):
        self.chain, self.clock, self.metrics = FakeChain(), FakeClock(), Metrics("chain")
        self.ledger = ledger
        self.gas = GasWatch(
            self.chain,
            ledger,
            HOST,
            warning_claims=50,
            clock=self.clock,
            metrics=self.metrics,
        )

    async def look(self, claims):
        self.chain.funds = claims * CLAIM_GAS * PRICE
        self.clock.now += LOOK_SECONDS
        await self.gas.step()
        return self.gas.summary()


@pytest.fixture
async def watched(tmp_path):
    ledger = await open_ledger(tmp_path)
    yield Watched(ledger)
    await ledger.close()


async def test_enough_gas_is_no_news(watched):
    assert watched.gas.summary() == "", "nothing is known yet"
    assert await watched.look(50) == ""
    text = watched.metrics.render().decode()
    assert "fabstir_chain_gas_claims_left 50.0" in text
    assert "fabstir_chain_gas_balance_wei 1.92e+08" in text


async def test_little_gas_says_how_much_and_where_to_send_some(watched):
    text = await watched.look(49)
    assert text.startswith("gas for about 49 claims left (0.000000 native coin): send some to ")
    assert text.endswith(HOST)
    assert await watched.look(60) == ""


async def test_the_chain_is_not_asked_with_every_step(watched):
    await watched.look(10)
    watched.chain.funds = 10**18
    await watched.gas.step()
    assert watched.gas.claims_left == 10


async def test_our_own_claims_tell_what_a_claim_costs(watched):
    await watched.ledger.record(TransactionSigned("claim/7/0", 0, "0x1", b"raw", 10, 1))
    await watched.ledger.record(TransactionMined("claim/7/0", "0x1", CLAIM_GAS // 2, 5))
    await watched.look(10)
    assert watched.gas.claims_left == 20
