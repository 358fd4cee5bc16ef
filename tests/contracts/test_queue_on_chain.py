"""The transaction queue against a real chain and its pool: stuck, lost, taken back, overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeapp.chain.ledger import CursorMoved, Ledger, RewoundTo
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.signing import PolicySigner, host_policy
from nodeapp.core.errors import Rejected
from nodeapp.core.fees import GWEI, FeePolicy
from nodeapp.core.ids import Address
from nodeapp.core.outbox import TransactionMined
from nodeapp.core.signing_policy import SigningRefused
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.devnet.main import Devnet
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import send_native
from nodeapp.evm.errors import Reverted
from nodeapp.evm.refusals import InsufficientFunds
from nodeapp.evm.signers import RemoteSigner
from nodeapp.evm.transactions import Transactions
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from tests.fakes.remote_signer import RemoteSignerServer, serving

TO = Address("0x00000000000000000000000000000000000B0B0b")
SETTINGS = QueueSettings(
    fees=FeePolicy(Wei(1000 * GWEI), Wei(50 * GWEI)),
    replace_after_blocks=4,
    poll_seconds=0.02,
    mined_seconds=15,
)


@dataclass
class Sender:
    devnet: Devnet
    ledger: Ledger
    queue: TransactionQueue
    wallet: Wallet

    def execute(self, key: str = "a", amount: int = 1) -> asyncio.Future[TransactionMined]:
        call = send_native(TO, Wei(amount))
        return asyncio.ensure_future(self.queue.execute(key, call, is_payment=True))

    async def rpc(self, method: str, *params: object) -> object:
        return await self.devnet.provider.request(method, list(params))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await self.queue.step()
                await asyncio.sleep(0.02)

    async def received(self) -> int:
        return await self.devnet.provider.native_balance(TO)


@pytest.fixture
async def sender(devnet: Devnet, tmp_path: Path) -> AsyncIterator[Sender]:
    wallet = new_wallet()
    await devnet.fund_native(wallet.address, Wei(10**18))
    path = tmp_path / "j.db"
    ledger = await Ledger.open(path, owner=wallet.address, marker=tmp_path / "marker")
    queue = TransactionQueue(
        ledger,
        Transactions(devnet.provider),
        wallet,
        confirmations=1,
        metrics=Metrics("chain"),
        settings=SETTINGS,
    )
    yield Sender(devnet, ledger, queue, wallet)
    await ledger.close()


async def test_a_transaction_is_mined_with_its_facts(sender: Sender) -> None:
    mined = await sender.execute(amount=7)
    block = await sender.devnet.provider.block(mined.block_number)
    assert (mined.block_hash, mined.block_time) == (block.hash, block.timestamp)
    assert mined.gas_used == 21_000
    spent = 10**18 - await sender.devnet.provider.native_balance(sender.wallet.address)
    assert (spent, await sender.received()) == (mined.cost + 7, 7)


async def test_a_stuck_transaction_is_replaced_in_the_real_pool(sender: Sender) -> None:
    await sender.rpc("evm_setAutomine", False)
    done = sender.execute()
    await sender.until(lambda: sender.ledger.outbox.pending)
    await sender.queue.step()  # Signed is not yet in the pool.
    first = sender.ledger.outbox.pending["a"].newest
    for _ in range(SETTINGS.replace_after_blocks):
        await sender.rpc("anvil_setNextBlockBaseFeePerGas", hex(first.max_fee + GWEI))
        await sender.rpc("evm_mine")
    await sender.until(lambda: len(sender.ledger.outbox.pending["a"].attempts) == 2)
    await sender.rpc("evm_setAutomine", True)
    await sender.rpc("evm_mine")
    assert (await done).tx_hash == sender.ledger.outbox.recent[0].newest.tx_hash
    assert await sender.received() == 1


async def test_what_the_pool_lost_is_sent_again(sender: Sender) -> None:
    await sender.rpc("evm_setAutomine", False)
    done = sender.execute()
    await sender.until(lambda: sender.ledger.outbox.pending)
    await sender.queue.step()
    sent = sender.ledger.outbox.pending["a"].newest
    await sender.rpc("anvil_dropAllTransactions")
    for _ in range(3):
        await sender.rpc("evm_mine")
    await sender.queue.step()
    await sender.rpc("evm_mine")
    assert (await done).tx_hash == sent.tx_hash
    assert await sender.received() == 1


async def test_what_a_real_reorg_took_out_is_sent_again_with_the_same_bytes(
    sender: Sender,
) -> None:
    before = await sender.devnet.provider.block()
    await sender.ledger.record(CursorMoved(before.number, before.hash))
    mined = await sender.execute()
    await sender.rpc("anvil_reorg", 1, [])
    await sender.rpc("anvil_dropAllTransactions")
    assert await sender.received() == 0
    await sender.ledger.record(RewoundTo(before.number, before.hash))
    await sender.until(lambda: "a" in sender.ledger.mined)
    assert sender.ledger.mined["a"].tx_hash == mined.tx_hash
    assert await sender.received() == 1


async def test_a_nonce_that_other_software_used_is_proven_by_its_block(sender: Sender) -> None:
    transactions = Transactions(sender.devnet.provider)
    await sender.rpc("evm_setAutomine", False)
    done = sender.execute(amount=5)
    await sender.until(lambda: sender.ledger.outbox.pending)
    await sender.queue.step()
    await sender.rpc("anvil_dropAllTransactions")
    foreign = await transactions.prepare(send_native(TO, Wei(3)), sender.wallet, 0)
    await transactions.broadcast(foreign)
    await sender.rpc("evm_mine")
    with pytest.raises(Rejected, match=f"used by another transaction {foreign.hash}"):
        await done
    found = await transactions.used_by(
        sender.wallet.address, 0, await sender.devnet.provider.block_number()
    )
    assert found == foreign.hash
    assert await transactions.used_by(sender.wallet.address, 1, BlockNumber(0)) is None
    assert await sender.received() == 3


async def test_a_remote_key_behind_the_policy_sends_real_transactions(
    sender: Sender, tmp_path: Path
) -> None:
    deployment, chain_id = sender.devnet.deployment, sender.devnet.provider.chain_id
    settings = ChainSettings(payout_address=TO.lower())
    server = RemoteSignerServer(sender.wallet, chain_id)
    async with (
        serving(server, tmp_path / "signer.sock") as url,
        RemoteSigner(url, sender.wallet.address) as remote,
    ):
        signer = PolicySigner(
            remote,
            host_policy(settings, deployment, remote.address),
            sender.ledger,
            clock=SystemClock(),
            metrics=Metrics("chain"),
        )
        queue = TransactionQueue(
            sender.ledger,
            Transactions(sender.devnet.provider),
            signer,
            confirmations=1,
            metrics=Metrics("chain"),
            settings=SETTINGS,
        )
        await queue.execute("payout/all/0", send_native(TO, Wei(9)), is_payment=True)
        thief = new_wallet().address
        with pytest.raises(SigningRefused, match=r"is not chain\.payout_address"):
            await queue.execute("payout/all/1", send_native(thief, Wei(9)), is_payment=True)
    assert await sender.received() == 9
    assert server.asked == ["eth_signTransaction"]
    assert sender.ledger.outbox.pending == {}


async def test_an_empty_account_is_told_before_anything_is_signed(sender: Sender) -> None:
    await sender.devnet.fund_native(sender.wallet.address, Wei(10**12))
    with pytest.raises(InsufficientFunds, match="send some to it"):
        await sender.execute()
    assert sender.ledger.outbox.pending == {}


async def test_a_refusal_of_a_contract_names_its_reason(sender: Sender) -> None:
    marketplace = sender.devnet.deployment.marketplace
    with pytest.raises(Reverted):
        await sender.queue.execute("b", Call(marketplace, "nonsense", b"\x00\x01\x02\x03"))
    assert sender.ledger.outbox.pending == {}
