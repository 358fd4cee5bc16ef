"""Backups follow one history into one repository; what a node on a new disk made never counts."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.retention import DAY_SECONDS, Retention, in_order, kept
from nodeapp.core.session import SessionClosing
from nodeapp.service.clock import SystemClock
from nodeapp.service.lifecycle import Shell
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings
from nodeapp.store.backups import history_of
from nodeapp.updater.backup_rounds import BackupRounds
from nodeapp.updater.drill import _scratch_place
from nodeapp.updater.lineage import LastGood, check_history, remember
from nodeapp.updater.restic import Stored, open_restic
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.staging import recovery_password
from nodeapp.wire.ipc import Empty
from tests.fakes.backed_node import BackedNode, ChainOwner
from tests.fakes.paid_session import HOST, JOB

NOW = 1_795_456_800.0
needs_restic = pytest.mark.skipif(
    shutil.which("restic") is None, reason="restic is not installed (apt install restic)"
)


@dataclass(frozen=True, slots=True)
class WrongClock(SystemClock):
    """This machine's, so many seconds off."""

    off: float = 0.0

    def unix_seconds(self) -> float:
        return SystemClock.unix_seconds(self) + self.off


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A node with one backup; restic takes about a second a call."""

    async def save() -> None:
        node = BackedNode(directory)
        await node.start()
        await (await node.backups()).create()
        await node.ledger.close()

    directory = tmp_path_factory.mktemp("lineage")
    asyncio.run(save())
    return directory


@pytest.fixture
async def node(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "node")
    (tmp_path / "node/etc/host.json.journal").unlink()
    node = BackedNode(tmp_path / "node")
    await node.start()
    yield node
    await node.ledger.close()


async def on_a_new_disk(node: BackedNode, directory: Path, **updater: int) -> BackedNode:
    """As provisioned from the same CONFIG: same wallet and repository, nothing else."""
    shutil.copytree(node.directory / "etc", directory / "etc")
    (directory / "etc/host.json.journal").unlink()
    repository = node.settings.updater.restic_repository
    fresh = BackedNode(directory, restic_repository=repository, **updater)
    await fresh.start_blank()
    return fresh


def rounds_of(node: BackedNode) -> tuple[BackupRounds, Shell, list[str]]:
    held = []

    async def hold(reason: str) -> None:
        held.append(reason)

    shell = Shell("updater", node.settings.node, node.paths, Metrics("updater"), SystemClock())
    source = Snapshots(ChainOwner(node.ledger), node.paths.state / "snapshots", keep=2)
    return BackupRounds(shell, node.settings.updater, {"chain": source}, hold), shell, held


@needs_restic
async def test_a_new_disk_backs_nothing_up_until_it_is_restored_or_adopted(node, tmp_path):
    restic = open_restic(node.settings.updater, node.paths.cache)
    good = await restic.one("latest")
    fresh = await on_a_new_disk(node, tmp_path / "fresh")
    part, shell, held = rounds_of(fresh)
    async with started(part):
        with pytest.raises(Rejected, match=r"1 backups of 0x7099.*restore latest.*backup adopt"):
            await part.create(Empty())
    assert held[-1] in part.summary()
    assert "no good backup yet, backup failed: not backed up: the repository" in part.summary()
    assert b"fabstir_updater_backup_needs_operator 1.0" in shell.metrics.render()
    assert [one.id for one in await restic.stored()] == [good.id]
    await fresh.ledger.close()
    shown = await fresh.repository.restore("latest", is_dry_run=False, replace=True)
    assert "2 records, 1 sessions" in shown.steps[0].detail
    await fresh.open()
    # What is backed up from now on follows what was restored.
    made = await (await fresh.backups()).create()
    stored = await restic.stored()
    assert [one.sequence for one in stored] == [1, 2]
    assert {one.history for one in stored} == {good.history}
    assert stored[-1].id.startswith(made.id)
    await fresh.ledger.close()


@needs_restic
async def test_an_adopted_journal_is_latest_and_leaves_the_other_history_alone(node, tmp_path):
    fresh = await on_a_new_disk(node, tmp_path / "fresh", keep_last=1)
    part, _shell, held = rounds_of(fresh)
    async with started(part):
        made = await part.adopt(Empty())
        assert held == [""]
        again = await part.create(Empty())
    restic = open_restic(node.settings.updater, node.paths.cache)
    stored = await restic.stored()
    assert [one.sequence for one in stored] == [1, 3]
    assert stored[-1].id.startswith(again.id)
    assert made.id != again.id
    assert (await restic.one("latest")).history == await history(fresh)
    await fresh.ledger.close()


@needs_restic
async def test_an_empty_mount_point_is_refused_until_a_new_repository_is_asked_for(node):
    repository = Path(node.settings.updater.restic_repository)
    away = repository.rename(repository.with_name("not-mounted"))
    repository.mkdir()
    backups = await node.backups()
    for only_if_changed in (True, False):
        with pytest.raises(Rejected, match=r"is the disk of .* mounted\?.*backup init"):
            await backups.create(only_if_changed=only_if_changed)
    assert list(repository.iterdir()) == []
    # Another repository in its place is no better.
    shutil.rmtree(repository)
    shutil.copytree(away, repository)
    good = msgspec.structs.replace(backups.last_good(), id="another", repository="0" * 64)
    remember(backups.directory, good)
    with pytest.raises(Rejected, match=r"repository [0-9a-f]{8} is not 00000000"):
        await backups.create()
    shutil.rmtree(repository)
    made = await backups.create(intent="init")
    assert (made.is_new, made.records) == (True, 2)
    assert not (await backups.create(only_if_changed=True)).is_new


@needs_restic
async def test_a_clock_in_the_past_loses_no_backup_and_is_told_like_missing_keys(node):
    backups = await node.backups()
    one_only = replace(
        backups,
        settings=msgspec.structs.replace(backups.settings, keep_last=1, recovery_password_file=""),
        clock=WrongClock(off=-10 * 365 * DAY_SECONDS),
    )
    await node.ledger.record(SessionClosing(JOB, "renter"))
    made = await one_only.create(only_if_changed=True)
    stored = await open_restic(node.settings.updater, node.paths.cache).stored()
    assert [one.id[:8] for one in stored] == [made.id[:8]]
    assert "ago WITHOUT keys, the clock is 36" in one_only.summary()
    assert one_only.summary().endswith(" behind the backup before it")


@needs_restic
async def test_latest_is_told_by_number_and_not_by_time(node):
    restic = open_restic(node.settings.updater, node.paths.cache)
    before = await restic.one("latest")
    await restic._run(
        "backup", "--json", "--host", "fabstir-node", "--time", "2036-01-01 00:00:00",
        "--tag", f"fabstir-node,{HOST},history-{before.history},sequence-2",
        str(node.keystore),
    )  # fmt: skip
    await restic._run(
        "backup", "--json", "--host", "fabstir-node", "--time", "2016-01-01 00:00:00",
        "--tag", f"fabstir-node,{HOST},history-{before.history},sequence-3",
        str(node.keystore),
    )  # fmt: skip
    assert [one.made_at[:4] for one in (await restic.stored())[1:]] == ["2036", "2016"]
    assert (await restic.one("latest")).sequence == 3


@pytest.mark.parametrize("content", ["", "\n", "  \nthe password is on the second line\n"])
def test_an_empty_recovery_password_is_refused_by_the_name_of_its_file(tmp_path, content):
    file = tmp_path / "recovery.password"
    file.write_text(content)
    with pytest.raises(InvalidRequest, match=rf"{file} .*empty first line"):
        recovery_password(str(file))


def stored(history: str, sequence: int = 1) -> Stored:
    return Stored("1" * 64, "2026-11-23T13:21:35Z", HOST, (), history, sequence)


@pytest.mark.parametrize(
    ("before", "history", "there"),
    [
        (LastGood(), "a", []),
        (LastGood(), "a", [stored("a"), stored("b", 2)]),
        (LastGood(at=1.0), "a", [stored("", 0)]),  # an older program's
        (LastGood(history="a"), "a", [stored("", 0)]),  # restored from an older program's
        (LastGood(at=1.0, history="a"), "a", [stored("b", 2)]),
    ],
)
def test_a_journal_goes_on_from_backups_of_its_own_history(before, history, there):
    check_history(before, history, HOST, there)


@pytest.mark.parametrize(
    ("before", "there"),
    [
        (LastGood(), [stored("", 0)]),
        (LastGood(), [stored("b")]),
        (LastGood(at=1.0, history="b"), [stored("b")]),  # the journal was begun anew
    ],
)
def test_another_history_is_refused(before, there):
    with pytest.raises(Rejected, match="does not go on from them"):
        check_history(before, "a", HOST, there)


async def test_a_journal_keeps_its_history_and_its_copies_have_it(tmp_path):
    node = BackedNode(tmp_path)
    await node.start()
    first = await history(node)
    await node.ledger.close()
    await node.open()
    assert await history(node) == first != ""
    await node.ledger.close()


def test_clocks_that_were_wrong_cost_no_snapshot():
    rule = Retention(24, 7, 8)
    have = {f"d{day}": NOW - day * DAY_SECONDS for day in range(1, 60)}
    # An evening after a dead battery.
    for number in range(36):
        now = 1_430_000_000.0 + number * 300
        have[f"p{number}"] = now
        stays = kept(in_order(have, now), rule)
        assert f"p{number}" in stays
        have = {name: have[name] for name in stays}
    # 2.5 h ten years ahead, then right again.
    for number in range(30):
        now = NOW + 3650 * DAY_SECONDS + number * 300
        have[f"f{number}"] = now
        have = {name: have[name] for name in kept(in_order(have, now), rule)}
    for number in range(100):
        now = NOW + number * 300
        have[f"n{number}"] = now
        have = {name: have[name] for name in kept(in_order(have, now), rule)}
    assert {f"n{number}" for number in range(76, 100)} <= have.keys()
    assert in_order(have, now)[-1][0] == "n99"


def test_a_restore_works_on_the_disk_of_the_state_and_not_in_memory(tmp_path):
    paths = resolve_paths(NodeSettings(state_dir=str(tmp_path / "a/state")))
    assert _scratch_place(paths) == tmp_path
    paths.state.mkdir(parents=True)
    assert _scratch_place(paths) == paths.state
    paths.process_state("updater").mkdir()
    assert _scratch_place(paths) == paths.process_state("updater")


async def history(node: BackedNode) -> str:
    return history_of((await node.ledger.backup(node.directory / "copies")).path)


@asynccontextmanager
async def started(part: BackupRounds) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as schedules:
        begun = asyncio.Event()

        async def run() -> None:
            async with asyncio.TaskGroup() as tasks:
                await part.start(tasks)
                begun.set()
                await asyncio.Event().wait()

        schedule = schedules.create_task(run())
        await begun.wait()
        yield
        schedule.cancel()
