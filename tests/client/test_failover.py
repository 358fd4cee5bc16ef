"""A kept session is used while it is ours and alive; a lost host's answer goes on elsewhere."""

from dataclasses import dataclass, replace

import msgspec
import pytest

from nodeapp.core.errors import InvalidRequest, NotFound, PaymentRequired, Unavailable
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.contracts import SessionStatus
from nodeapp.renter.answer import Question
from nodeapp.renter.events import AnswerEnded, TokensReceived
from nodeapp.renter.failover import ask_anywhere
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.renter.run import Renter
from nodeapp.renter.settings import RenterSettings
from nodeapp.renter.standing import Standings, ranked
from tests.fakes.clock import FakeClock

MODEL, HOST, OTHER = "0x" + "33" * 32, "0x" + "22" * 20, "0x" + "44" * 20
QUESTION = Question((("user", "count"),), 20)
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


class ScriptedAsker:
    """One host's part of an answer: deliver some tokens, then end it or fail."""

    def __init__(self, renter, record, report):
        self.renter, self.record, self.report = renter, record, report

    async def ask(self, question, *, patience_seconds):
        self.renter.asked.append((self.record.head.job_id, question.continue_ids, patience_seconds))
        tokens, failure = self.renter.script.pop(0)
        start = len(self.record.token_ids)
        ids = tuple(range(self.renter.made, self.renter.made + tokens))
        object.__setattr__(self.renter, "made", self.renter.made + tokens)
        self.record.receive(start, ids)
        if tokens:
            self.report(TokensReceived(tokens, "".join(f"{i} " for i in ids), 0.1))
        if failure is not None:
            raise failure
        ended = AnswerEnded(
            self.record.head.job_id,
            "r",
            "only this host's part",
            "stop",
            9,
            tokens,
            tokens,
            0.1,
            0.2,
            30.0,
            0,
        )
        self.report(ended)
        return ended

    async def close(self, *, patience_seconds):
        self.renter.closed.append(self.record.head.job_id)


class Scripted(Renter):
    """Pays and asks without a network; `script` holds what each call of a host does."""

    __slots__ = ("asked", "closed", "made", "offers", "script")

    async def pay(self, _model_id, *, avoid=frozenset()):
        host, job_id = next(offer for offer in self.offers if offer[0] not in avoid)
        return SessionRecord.create(
            self.state_dir, msgspec.structs.replace(HEAD, host=host, job_id=job_id)
        )

    async def others(self, _model_id, tried):
        return [offer for offer in self.offers if offer[0] not in tried]

    def asker(self, record, report):
        return ScriptedAsker(self, record, report)


@pytest.fixture
def renter(tmp_path):
    settings = RenterSettings(str(tmp_path), "", "", "", ("http://127.0.0.1:1",), 31337, (), MODEL)
    wallet = new_wallet()
    told = []
    made = Scripted(
        settings,
        wallet,
        Contracts(Job(wallet.address)),
        None,
        FakeClock(1000.0),
        told.append,
        Standings.load(tmp_path),
    )
    values = {"asked": [], "closed": [], "made": 0, "script": [], "offers": [(HOST, 8), (OTHER, 9)]}
    for name, value in values.items():
        object.__setattr__(made, name, value)
    SessionRecord.create(tmp_path, HEAD)
    return made


def ended_of(renter):
    (event,) = [event for event in renter.report.__self__ if isinstance(event, AnswerEnded)]
    return event


async def test_an_active_session_of_ours_is_used_again(renter):
    renter.script.append((3, None))
    kept = await renter.reopen(MODEL)
    assert kept is not None
    assert (await ask_anywhere(renter, kept, MODEL, QUESTION)).head.job_id == 7
    assert ended_of(renter).answer == "0 1 2 "


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


async def test_a_session_the_host_is_closing_is_replaced_and_the_answer_goes_on(renter):
    renter.script.extend([(5, PaymentRequired("session 7 is closing")), (4, None)])
    record = await ask_anywhere(renter, await renter.reopen(MODEL), MODEL, QUESTION)
    assert record.head.job_id == 8
    assert [(job, ids) for job, ids, _ in renter.asked] == [(7, ()), (8, (0, 1, 2, 3, 4))]
    assert renter.closed == [7]
    assert (ended_of(renter).tokens, ended_of(renter).answer) == (9, "0 1 2 3 4 5 6 7 8 ")


async def test_a_session_just_paid_that_is_refused_is_not_paid_again(renter):
    renter.script.extend([(0, PaymentRequired("deposit is too small"))])
    with pytest.raises(PaymentRequired, match="too small"):
        await ask_anywhere(renter, None, MODEL, QUESTION)
    assert len(renter.asked) == 1


async def test_another_host_goes_on_with_the_answer_of_a_lost_one(renter):
    renter.script.extend([(5, Unavailable("host is gone")), (4, None)])
    record = await ask_anywhere(renter, None, MODEL, QUESTION)
    assert (record.head.host, record.head.job_id) == (OTHER, 9)
    assert renter.asked == [(8, (), 20.0), (9, (0, 1, 2, 3, 4), 20.0)]
    ended = ended_of(renter)
    assert (ended.tokens, ended.hosts, ended.answer) == (9, 2, "0 1 2 3 4 5 6 7 8 ")
    assert renter.standings.of(HOST).failures_in_a_row == 1
    assert renter.standings.of(OTHER).answers == 1
    assert Standings.load(renter.state_dir).of(OTHER).tokens_per_second == 30.0


async def test_a_lost_host_is_waited_for_when_there_is_no_other(renter):
    del renter.offers[1]
    renter.script.extend([(5, Unavailable("host is gone")), (4, None)])
    record = await ask_anywhere(renter, None, MODEL, QUESTION)
    assert record.head.job_id == 8
    assert [patience for _, _, patience in renter.asked] == [20.0, 60.0]
    assert (ended_of(renter).tokens, ended_of(renter).hosts) == (9, 1)


async def test_no_more_sessions_are_paid_than_allowed(renter):
    renter.offers.extend([("0x" + "55" * 20, 10), ("0x" + "66" * 20, 11)])
    renter.script.extend([(1, Unavailable(f"host {n} is gone")) for n in range(4)])
    with pytest.raises(Unavailable, match="host 3 is gone"):
        await ask_anywhere(renter, None, MODEL, QUESTION)
    assert [job for job, _, _ in renter.asked] == [8, 9, 10, 10]


async def test_a_question_that_is_refused_is_not_taken_to_another_host(renter):
    renter.script.extend([(0, InvalidRequest("prompt is too long"))])
    with pytest.raises(InvalidRequest):
        await ask_anywhere(renter, None, MODEL, QUESTION)
    assert len(renter.asked) == 1


@dataclass(frozen=True)
class Offered:
    wallet: str
    price_per_token: int
    answer_seconds: float = 0.1


def test_the_best_host_is_the_cheap_the_fast_or_the_reliable_one_as_wanted(tmp_path):
    cheap, fast, fresh = (Offered("cheap", 1000), Offered("fast", 3000), Offered("fresh", 2500))
    hosts = [fresh, fast, cheap]
    standings = Standings.load(tmp_path)
    standings.answered("cheap", 0.0, tokens_per_second=2.0, first_token_seconds=1.0)
    standings.answered("fast", 0.0, tokens_per_second=100.0, first_token_seconds=0.1)

    def order(prefer, now=1000.0):
        return [host.wallet for host in ranked(hosts, standings, prefer, now)]

    assert order("cheapest") == ["cheap", "fresh", "fast"]
    assert order("fastest") == ["fresh", "fast", "cheap"]
    assert order("balanced") == ["fresh", "fast", "cheap"]
    standings.failed("fresh", 1000.0)
    assert order("balanced")[0] == "fast"
    assert order("balanced", now=1000.0 + 3600)[0] == "fresh"


def test_a_damaged_memory_of_hosts_is_an_empty_one(tmp_path):
    (tmp_path / "hosts.json").write_text("{broken")
    assert Standings.load(tmp_path).of("anybody").answers == 0
