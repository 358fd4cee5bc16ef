"""One host and one renter of a development chain, with everything to trade by hand."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.core.ids import JobId
from nodeapp.devnet.main import Devnet
from nodeapp.devnet.provision import HostOffer, provision_host, provision_renter
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import UNLIMITED, SessionTerms, approve
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.events import SessionCreated
from nodeapp.evm.transactions import Transactions
from tests.contracts.calls import AllCalls
from tests.contracts.world import MODEL

DEPOSIT = 2_000_000


@dataclass
class Market:
    devnet: Devnet
    contracts: Contracts
    calls: AllCalls
    transactions: Transactions
    host: Wallet
    renter: Wallet

    async def pass_seconds(self, seconds: int) -> None:
        await self.devnet.provider.request("evm_increaseTime", [seconds])
        await self.devnet.provider.request("evm_mine", [])

    async def open(self) -> JobId:
        usdc, market = self.devnet.deployment.usdc, self.devnet.deployment.marketplace
        price = await self.contracts.model_price(self.host.address, MODEL.model_id, usdc)
        terms = SessionTerms(price, 3600, 100, 300)
        await self.transactions.send(approve(usdc, market, UNLIMITED), self.renter)
        receipt = await self.transactions.send(
            self.calls.create_session(self.host.address, MODEL.model_id, usdc, DEPOSIT, terms),
            self.renter,
        )
        (created,) = receipt.events(market)
        assert isinstance(created, SessionCreated)
        return created.job_id


async def provisioned(devnet: Devnet) -> Market:
    """A registered host and a renter with funds, both new."""
    host, renter = new_wallet(), new_wallet()
    offer = HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
    await provision_host(devnet.provider, devnet.deployment, host, offer)
    await provision_renter(devnet.provider, devnet.deployment, renter)
    return Market(
        devnet,
        Contracts(devnet.provider, devnet.deployment),
        AllCalls(devnet.deployment),
        Transactions(devnet.provider, poll_seconds=0.02),
        host,
        renter,
    )
