"""After a restore nothing is done twice that the lost part of the journal did already."""

import pytest

from nodeapp.chain.ledger import CursorMoved, Ledger
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.core.errors import Unavailable
from nodeapp.core.fees import FeePolicy
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import new_wallet
from nodeapp.service.metrics import Metrics
from nodeapp.store.backups import restore_backup
from tests.fakes.mempool import FakeChain
from tests.fakes.paid_session import HOST, opened

POLICY = QueueSettings(FeePolicy(Wei(1000), Wei(100)), poll_seconds=0.005, mined_seconds=0.3)
CLAIM = Call(None, "claim", b"claim")


class Restored:
    """A journal that came out of a backup, while the claim sent since then is in the pool only."""

    def __init__(self, directory):
        self.directory = directory
        self.chain, self.wallet = FakeChain(automine=False), new_wallet()

    async def open(self, name):
        self.ledger = await Ledger.open(
            self.directory / name, owner=HOST, marker=self.directory / f"{name}.marker"
        )
        self.queue = TransactionQueue(
            self.ledger,
            self.chain,
            self.wallet,
            confirmations=1,
            metrics=Metrics("chain"),
            settings=POLICY,
        )

    async def execute(self, key="claim/7/0"):
        return await self.queue.execute(key, CLAIM)

    async def watch(self):
        """What the watcher writes once it applied every event."""
        head = await self.chain.head()
        await self.ledger.record(CursorMoved(BlockNumber(head.number), head.hash))


@pytest.fixture
async def restored(tmp_path):
    host = Restored(tmp_path)
    await host.open("first.db")
    await host.ledger.record(opened(job_id=9))
    backup = await host.ledger.backup(tmp_path / "backups")
    with pytest.raises(Unavailable, match="stays signed"):
        await host.execute()
    await host.ledger.close()
    restore_backup(backup.path, tmp_path / "second.db")
    await host.open("second.db")
    yield host
    await host.ledger.close()


async def test_nothing_is_signed_before_the_lost_claim_is_mined_and_known(restored):
    with pytest.raises(Unavailable, match=r"1 transactions of .* still wait in the pool"):
        await restored.execute()
    restored.chain.mine()
    with pytest.raises(Unavailable, match="before block 1 is applied"):
        await restored.execute()
    await restored.watch()
    # This call was made before the ledger knew the claim: the caller has to look again.
    with pytest.raises(Unavailable, match="read again"):
        await restored.execute()
    assert restored.chain.effects == ["claim"]
    assert restored.ledger.outbox.pending == {}
    restored.chain.automine = True
    await restored.execute("complete/7")
    assert restored.chain.account_nonce == 2


async def test_without_the_guard_the_claim_would_be_mined_twice(restored):
    restored.ledger.is_restored = False
    with pytest.raises(Unavailable, match="stays signed"):
        await restored.execute()
    restored.chain.mine()
    assert restored.chain.effects == ["claim", "claim"]


async def test_the_guard_outlives_a_restart_and_goes_for_good(restored):
    for is_guarded in (True, False):
        await restored.ledger.close()
        await restored.open("second.db")
        assert restored.ledger.is_restored is is_guarded
        restored.chain.mine()
        await restored.watch()
        if is_guarded:
            with pytest.raises(Unavailable, match="read again"):
                await restored.execute()


async def test_what_the_backup_holds_signed_is_sent_on_with_its_nonce(tmp_path):
    host = Restored(tmp_path)
    await host.open("first.db")
    await host.ledger.record(opened(job_id=9))
    with pytest.raises(Unavailable, match="stays signed"):
        await host.execute()
    backup = await host.ledger.backup(tmp_path / "backups")
    await host.ledger.close()
    host.chain.pool.clear()  # the endpoint forgot it
    restore_backup(backup.path, tmp_path / "second.db")
    await host.open("second.db")
    host.chain.automine = True
    await host.execute()
    assert (host.chain.effects, host.chain.account_nonce) == (["claim"], 1)
    await host.ledger.close()


async def test_a_held_journal_signs_nothing_new_until_it_is_let_go(tmp_path):
    host = Restored(tmp_path)
    host.chain.automine = True
    await host.open("first.db")
    host.ledger.held = "the repository holds another journal's backups"
    with pytest.raises(Unavailable, match="nothing new is signed: the repository holds"):
        await host.execute()
    assert host.chain.effects == []
    host.ledger.held = ""
    await host.execute()
    assert host.chain.effects == ["claim"]
    await host.ledger.close()
