"""A session kept for later: used while it is ours and alive, replaced when it is not."""

from dataclasses import dataclass, replace

import msgspec
import pytest

from nodeapp.core.errors import NotFound, PaymentRequired
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.contracts import SessionStatus
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.renter.run import Renter
from nodeapp.renter.settings import RenterSettings

MODEL, HOST = "0x" + "33" * 32, "0x" + "22" * 20
HEAD = SessionHead(31337, "0x" + "11" * 20, 7, HOST, "peer", MODEL, "", ())


@dataclass(frozen=True)
class Job:
    depositor: str
    status: SessionStatus = SessionStatus.ACTIVE
    host: str = HOST
    model_id: str = MODEL


class Contracts:
    def __init__(self, job):
        self.job = job

    async def session(self, job_id):
        if self.job is None:
            raise NotFound(f"session {job_id} does not exist")
        return self.job


class Scripted(Renter):
    """Pays and asks without a network; the kept session refuses after `tokens` tokens."""

    __slots__ = ("asked", "tokens")

    async def pay(self, _model_id):
        return SessionRecord.create(self.state_dir, replace_job(8))

    async def ask(self, record, _question):
        self.asked.append(record.head.job_id)
        if record.head.job_id == HEAD.job_id and self.tokens is not None:
            record.receive(0, tuple(range(self.tokens)))
            raise PaymentRequired("session 7 is closing; open a new session")


def replace_job(job_id):
    return msgspec.structs.replace(HEAD, job_id=job_id)


@pytest.fixture
def renter(tmp_path):
    settings = RenterSettings(str(tmp_path), "", "", "", ("http://127.0.0.1:1",), 31337, (), MODEL)
    wallet = new_wallet()
    made = Scripted(settings, wallet, Contracts(Job(wallet.address)), None, None, lambda _: None)
    object.__setattr__(made, "asked", [])
    object.__setattr__(made, "tokens", None)
    SessionRecord.create(tmp_path, HEAD)
    return made


async def test_an_active_session_of_ours_is_used_again(renter):
    kept = await renter.reopen(MODEL)
    assert kept is not None
    assert (await renter.ask_on(kept, MODEL, None)).head.job_id == 7


@pytest.mark.parametrize(
    "change",
    [
        {"depositor": "0x" + "99" * 20},
        {"status": SessionStatus.COMPLETED},
        {"host": "0x" + "88" * 20},
        {"model_id": "0x" + "77" * 32},
    ],
)
async def test_a_session_that_is_not_what_the_record_says_is_left_alone(renter, change):
    renter.contracts.job = replace(renter.contracts.job, **change)
    assert await renter.reopen(MODEL) is None


async def test_a_record_of_a_chain_that_began_anew_does_not_stop_the_renter(renter):
    renter.contracts.job = None
    assert await renter.reopen(MODEL) is None


async def test_a_session_the_host_is_closing_is_replaced(renter):
    object.__setattr__(renter, "tokens", 0)
    record = await renter.ask_on(await renter.reopen(MODEL), MODEL, None)
    assert (record.head.job_id, renter.asked) == (8, [7, 8])


async def test_an_answer_that_broke_off_is_not_paid_a_second_time(renter):
    object.__setattr__(renter, "tokens", 5)
    with pytest.raises(PaymentRequired):
        await renter.ask_on(await renter.reopen(MODEL), MODEL, None)
    assert renter.asked == [7]
