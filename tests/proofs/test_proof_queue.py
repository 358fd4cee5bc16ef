"""nodeapp/prover/queue.py, intervals.py, proof_store.py: one proof for one question."""

import asyncio

import pytest
import stamina

from nodeapp.core.errors import Busy, Corrupt, InvalidRequest, Rejected, Unavailable
from nodeapp.core.ledger_proof import context_limbs
from nodeapp.prover.intervals import IntervalProver
from nodeapp.prover.proof_store import ProofStore, proof_key
from nodeapp.prover.queue import ProofQueue
from nodeapp.wire import prover_job
from nodeapp.wire.ipc_prover import ProfileReply, ProveRequest
from tests.proofs.ledger_case import CONTEXT, VECTOR

PROFILE = ProfileReply("0a" * 32, "poseidon", "23.0.5", "test", "0b" * 32, "0c" * 32)
SPENT = prover_job.Spent(1.0, 1.0, 1)


def request(tokens: int = 250, salts: int | None = None, job_id: int = 7) -> ProveRequest:
    count = -(-tokens // 240) if salts is None else salts
    return ProveRequest(
        chain_id=CONTEXT.chain_id,
        marketplace=CONTEXT.marketplace,
        job_id=job_id,
        host=CONTEXT.host,
        model_id=CONTEXT.model_id,
        interval=0,
        first_token_index=0,
        previous_commitment=bytes(32),
        token_ids=tuple(range(tokens)),
        salts=tuple(bytes([number]) * 16 for number in range(count)),
    )


class ScriptedWorker:
    """The far end: a worker whose proofs differ each time, as EZKL's do."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.jobs = []

    async def __call__(self, job):
        self.jobs.append(job)
        if self.answers:
            return self.answers.pop(0)
        number = len(self.jobs)
        shown = prover_job.ShownProof(
            bytes([number]) * 32,
            sum(value != 0 for value in job.vector[:240]),
            job.vector[240:248],
            b"proof %d" % number,
        )
        return prover_job.Proved(shown, SPENT)


def prover(tmp_path, worker) -> IntervalProver:
    return IntervalProver(
        profile=PROFILE,
        directory="unused",
        store=ProofStore(tmp_path),
        worker=worker,
        note=lambda _outcome, _spent: None,
    )


async def test_chunks_are_proven_in_order_each_naming_the_one_before(tmp_path):
    worker = ScriptedWorker()
    reply = await prover(tmp_path, worker).prove(request(500))
    assert [chunk.shown.count for chunk in reply.proofs] == [240, 240, 20]
    assert worker.jobs[0].vector[240:248] == context_limbs(CONTEXT)
    assert len({job.vector[240:248] for job in worker.jobs}) == 3


async def test_the_same_question_after_a_crash_gets_the_first_proof(tmp_path):
    first = await prover(tmp_path, ScriptedWorker()).prove(request())
    never = ScriptedWorker(prover_job.Failed("must not be asked"))
    assert await prover(tmp_path, never).prove(request()) == first
    assert never.jobs == []


async def test_a_crash_in_the_middle_keeps_the_chunks_that_were_made(tmp_path):
    class Dies(ScriptedWorker):
        async def __call__(self, job):
            if self.jobs:
                raise asyncio.CancelledError
            return await super().__call__(job)

    with pytest.raises(asyncio.CancelledError):
        await prover(tmp_path, Dies()).prove(request())
    later = ScriptedWorker()
    reply = await prover(tmp_path, later).prove(request())
    assert len(later.jobs) == 1
    assert reply.proofs[0].shown.proof == b"proof 1"


async def test_another_session_is_another_question(tmp_path):
    worker = ScriptedWorker()
    await prover(tmp_path, worker).prove(request(10))
    await prover(tmp_path, worker).prove(request(10, job_id=8))
    assert len(worker.jobs) == 2


async def test_a_local_fault_is_tried_again_and_then_told(tmp_path):
    with stamina.set_testing(True, attempts=3, cap=True):
        await _fault_is_tried_again_and_told(tmp_path)


async def _fault_is_tried_again_and_told(tmp_path):
    once = ScriptedWorker(prover_job.Failed("disk full"))
    assert len((await prover(tmp_path, once).prove(request(10))).proofs) == 1
    always = ScriptedWorker(*[prover_job.Failed("disk full")] * 3)
    with pytest.raises(Unavailable, match="disk full"):
        await prover(tmp_path / "other", always).prove(request(10))
    assert len(always.jobs) == 3


async def test_an_own_proof_that_does_not_verify_is_not_tried_again(tmp_path):
    worker = ScriptedWorker(prover_job.Refused("[halo2] constraint system"))
    with pytest.raises(Rejected, match="halo2"):
        await prover(tmp_path, worker).prove(request(10))
    assert len(worker.jobs) == 1
    assert list(tmp_path.rglob("*.json")) == []


async def test_salts_must_match_the_chunks(tmp_path):
    with pytest.raises(InvalidRequest, match="1 salts for 2 chunks"):
        await prover(tmp_path, ScriptedWorker()).prove(request(250, salts=1))


def test_a_torn_proof_file_is_corrupt_not_missing(tmp_path):
    store = ProofStore(tmp_path)
    key = proof_key(PROFILE.profile_id, VECTOR)
    assert store.get(key) is None
    shown = prover_job.ShownProof(bytes(32), 1, (0,) * 8, b"p")
    store.put(key, prover_job.Proved(shown, SPENT))
    assert store.get(key) == prover_job.Proved(shown, SPENT)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(Corrupt):
        store.get(key)


class SlowProver:
    """Proves when told to, and remembers how many it did at once."""

    def __init__(self) -> None:
        self.may_finish = asyncio.Event()
        self.started = asyncio.Event()
        self.running = self.most_at_once = self.calls = 0

    async def __call__(self, asked):
        self.calls += 1
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.started.set()
        await self.may_finish.wait()
        self.running -= 1
        return asked


async def test_one_interval_at_a_time_and_equal_ones_once():
    slow = SlowProver()
    queue = ProofQueue(slow)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(queue.serve())
        asks = [tasks.create_task(queue.ask(request(10, job_id=job))) for job in (1, 2, 1, 3)]
        await slow.started.wait()
        assert queue.depth == 3
        slow.may_finish.set()
        answers = [await ask for ask in asks]
        serving.cancel()
    assert answers[0] is answers[2]
    assert (slow.most_at_once, slow.calls, queue.depth) == (1, 3, 0)


async def test_who_leaves_does_not_stop_the_work_and_may_come_back():
    slow = SlowProver()
    queue = ProofQueue(slow)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(queue.serve())
        impatient = tasks.create_task(queue.ask(request(10)))
        await slow.started.wait()
        impatient.cancel()
        again = tasks.create_task(queue.ask(request(10)))
        await asyncio.wait([impatient])
        slow.may_finish.set()
        assert await again == request(10)
        serving.cancel()
    assert slow.calls == 1


async def test_a_full_queue_says_when_to_come_back():
    slow = SlowProver()
    queue = ProofQueue(slow, limit=1)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(queue.serve())
        first = tasks.create_task(queue.ask(request(10, job_id=1)))
        await slow.started.wait()
        second = tasks.create_task(queue.ask(request(10, job_id=2)))
        while queue.depth < 2:
            await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await queue.ask(request(10, job_id=3))
        assert refused.value.retry_after_seconds
        slow.may_finish.set()
        await asyncio.wait([first, second])
        serving.cancel()


async def test_a_corrupt_store_ends_the_process_not_just_the_question():
    async def corrupt(_asked):
        raise Corrupt("torn")

    queue = ProofQueue(corrupt)
    async with asyncio.timeout(10):
        asking = asyncio.get_running_loop().create_task(queue.ask(request(10)))
        with pytest.raises(Corrupt):
            await queue.serve()
        asking.cancel()
