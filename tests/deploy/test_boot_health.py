"""One verdict on a booted release: the gate says it, the journal keeps it, the exit code passes it on."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

import nodeapp
from nodeapp.core.errors import Unavailable
from nodeapp.core.release import Release
from nodeapp.core.update import Phase, UpdateState
from nodeapp.devnet.world import free_port
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings, Settings, StorageSettings
from nodeapp.service.tree import start_tree
from nodeapp.updater.boot_health import BootHealth, SettingsUnusable, boot_tries_left, is_counted
from nodeapp.updater.gate import TreeGate
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_journal import UpdateJournal

NEW = nodeapp.__version__
OLD = "0.0.1"


class Gate:
    """The far end of the judgement: what the tree would say."""

    def __init__(self, says: str) -> None:
        self.says = says
        self.asked: list[tuple[str, int]] = []

    async def failure(self, version, least_gpus):
        self.asked.append((version, least_gpus))
        return self.says


class Helper:
    def __init__(self, broken: str = "") -> None:
        self.asked: list[tuple[str, ...]] = []
        self.broken = broken

    def __call__(self, *words):
        self.asked.append(words)
        if self.broken:
            raise Unavailable(self.broken)


@pytest.fixture
def journal(tmp_path):
    journal = UpdateJournal(tmp_path / "update.json")
    journal.write(
        UpdateState(
            current=OLD,
            newest=OLD,
            phase=Phase.REBOOT_PENDING,
            candidate=Release(NEW, "", "", ()),
            tries_left=3,
            gpus=2,
        )
    )
    return journal


def judge(journal, gate, helper, running=NEW, tries=2, is_counted=True):
    backend = SysupdateBackend(running, helper)
    return BootHealth(journal, backend, gate, lambda: tries, lambda: is_counted)


async def test_a_healthy_trial_is_blessed(journal):
    gate, helper = Gate(""), Helper()
    assert await judge(journal, gate, helper).failure() == ""
    state = journal.read()
    assert (state.phase, state.current, state.previous) == (Phase.BLESSED, NEW, OLD)
    assert gate.asked == [(NEW, 2)]
    assert helper.asked == []


async def test_a_release_that_was_armed_when_the_power_was_cut_is_judged(journal):
    journal.write(replace(journal.read(), phase=Phase.ARMING, tries_left=0))
    gate = Gate("chain is fatal")
    assert await judge(journal, gate, Helper()).failure() == "chain is fatal"
    assert journal.read().phase is Phase.ROLLED_BACK


async def test_a_release_gone_back_to_that_never_gives_a_verdict_is_left(journal):
    """Its entry has no counter: the boot loader would start it for ever."""
    journal.write(replace(journal.read(), phase=Phase.BOOTED, tries_left=0, boot="before"))
    gate, helper = Gate(""), Helper()
    failure = await judge(journal, gate, helper, tries=0, is_counted=False).failure()
    assert "no verdict after 3 starts" in failure
    assert (journal.read().phase, gate.asked) == (Phase.ROLLED_BACK, [])
    assert helper.asked == [("prefer", OLD), ("reboot",)]


async def test_an_arming_that_was_cut_short_is_the_updaters_to_end(journal):
    before = replace(journal.read(), phase=Phase.ARMING, tries_left=0)
    journal.write(before)
    assert await judge(journal, Gate("no"), Helper(), running=OLD).failure() == ""
    assert journal.read() == before


async def test_an_unhealthy_trial_is_rolled_back_and_blacklisted_with_the_reason(journal):
    gate, helper = Gate("chain is fatal"), Helper()
    assert await judge(journal, gate, helper).failure() == "chain is fatal"
    state = journal.read()
    assert (state.phase, state.current) == (Phase.ROLLED_BACK, OLD)
    assert [(one.version, one.reason) for one in state.blacklist] == [(NEW, "chain is fatal")]
    assert helper.asked == [("prefer", OLD), ("reboot",)]


async def test_the_verdict_stands_when_the_helper_is_down(journal):
    assert await judge(journal, Gate("no"), Helper("not there")).failure() == "no"
    assert journal.read().phase is Phase.ROLLED_BACK


async def test_a_verdict_that_was_not_carried_out_is_so_at_the_next_boot(journal):
    """The helper was down, or the power was cut: to let the boot pass now would bless it."""
    await judge(journal, Gate("chain is fatal"), Helper("not there")).failure()
    before, helper = journal.read(), Helper()
    assert "refused here: chain is fatal" in await judge(journal, Gate(""), helper).failure()
    assert helper.asked == [("prefer", OLD), ("reboot",)]
    assert journal.read() == before
    # The release before cannot be booted: the loader has no other.
    helper = Helper()
    assert await judge(journal, Gate(""), helper, tries=0).failure() == ""
    assert await judge(journal, Gate(""), helper, running=OLD).failure() == ""
    assert helper.asked == []


@pytest.mark.parametrize(
    ("name", "tries"),
    [("0.2.0+2-1", 2), ("0.2.0+0-3", 0), ("0.2.0-rc.1+3", 3), ("0.2.0", 0), ("", 0)],
)
def test_the_boot_loaders_count_is_read(tmp_path, name, tries):
    variable = tmp_path / "LoaderBootCountPath"
    assert boot_tries_left(variable) == 0
    assert not is_counted(variable)
    text = f"\\EFI\\Linux\\fabstir-node_{name}.efi\0"
    variable.write_bytes(b"\6\0\0\0" + text.encode("utf-16-le"))
    assert boot_tries_left(variable) == tries
    assert is_counted(variable)


@pytest.mark.parametrize(("is_counted", "tries"), [(True, 2), (True, 0), (False, 0)])
async def test_a_counted_boot_without_its_state_is_not_blessed(tmp_path, is_counted, tries):
    """The state is not mounted; where nothing counts, a reboot would find the same for ever."""
    journal, helper = UpdateJournal(tmp_path / "nothing" / "update.json"), Helper()
    failure = await judge(journal, Gate(""), helper, tries=tries, is_counted=is_counted).failure()
    assert ("is it mounted?" in failure) is is_counted
    assert not (tmp_path / "nothing").exists()
    assert helper.asked == []


async def test_a_boot_that_is_no_trial_is_never_judged(journal):
    journal.write(UpdateState(current=NEW))
    gate = Gate("everything is wrong")
    assert await judge(journal, gate, Helper()).failure() == ""
    assert gate.asked == []
    assert journal.read() == UpdateState(current=NEW)


async def test_the_slot_that_was_fallen_back_to_is_let_pass(journal):
    gate, helper = Gate("no"), Helper()
    assert await judge(journal, gate, helper, running=OLD).failure() == ""
    assert gate.asked == helper.asked == []
    state = journal.read()
    assert state.phase is Phase.ROLLED_BACK
    assert f"{OLD} was started instead of {NEW}" in state.reason


async def test_a_damaged_journal_makes_no_machine_reboot(journal, tmp_path):
    (tmp_path / "update.json").write_bytes(b"{")
    assert await judge(journal, Gate("no"), Helper()).failure() == ""


async def test_a_trial_whose_settings_cannot_be_used_fails(journal):
    gate = SettingsUnusable("node.toml does not exist")
    assert "does not exist" in await judge(journal, gate, Helper()).failure()
    assert journal.read().phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("content", [b"\xff{", b'{"schema":"\xff"}', b'{"x":' + b"[" * 100_000])
async def test_no_bytes_in_the_journal_make_a_machine_reboot(journal, tmp_path, content):
    (tmp_path / "update.json").write_bytes(content)
    assert await judge(journal, Gate("no"), Helper()).failure() == ""


async def test_a_journal_that_cannot_be_read_makes_no_machine_reboot(journal, tmp_path):
    path = tmp_path / "update.json"
    path.unlink()
    os.mkfifo(path)
    assert await judge(journal, Gate("no"), Helper()).failure() == ""
    path.unlink()
    path.mkdir()
    assert await judge(journal, Gate("no"), Helper()).failure() == ""


async def test_only_a_trial_needs_a_journal_that_can_be_written(journal, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert await judge(journal, Gate("no"), Helper(), running=OLD).failure() == ""
    with pytest.raises(Unavailable):
        await judge(journal, Gate(""), Helper()).failure()
    # Not counted, as after a rollback: the machine would reboot for ever.
    assert await judge(journal, Gate(""), Helper(), tries=0).failure() == ""


BAD_SETTINGS = '[updater]\nbackend = "sysupdate"\n[node]\nof_a_newer_release = 1\n'


def health_at_boot(tmp_path, config, *flags):
    words = [sys.executable, "-m", "nodeapp.cli.main", "health", "--boot"]
    words += ["--config", str(config), "--state-dir", str(tmp_path / "state"), *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=25, check=False)


def test_settings_that_a_release_gone_back_to_does_not_know_make_no_machine_reboot(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(BAD_SETTINGS)
    done = health_at_boot(tmp_path, config)
    assert done.returncode == 0, done.stderr


def test_two_who_write_the_journal_lose_nothing(journal):
    from nodeapp.core.update import HoldSet

    def toggle(value):
        for _ in range(40):
            journal.advance(HoldSet(value))

    writers = [threading.Thread(target=toggle, args=(one,)) for one in (True, False)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert journal.read().candidate is not None


async def test_the_gate_of_a_boot_asks_the_real_tree(journal, tmp_path_factory):
    state = tmp_path_factory.mktemp("n")
    settings = Settings(
        node=NodeSettings(
            state_dir=str(state), cache_dir=str(state / "c"), processes=("s5", "updater")
        ),
        s5=StorageSettings(listen_port=free_port()),
    )
    tree = await start_tree(settings)
    try:
        paths = resolve_paths(settings.node)
        trial = UpdateState(
            current=OLD, phase=Phase.BOOTED, candidate=Release(NEW, "", "", ()), tries_left=2
        )
        journal.write(trial)
        gate = TreeGate(paths, 40.0, 0.5)
        assert await judge(journal, gate, Helper()).failure() == ""
        assert journal.read().phase is Phase.BLESSED
        journal.write(replace(trial, gpus=2))
        gate = TreeGate(paths, 2.0, 0.5)
        gpus_gone = await judge(journal, gate, Helper()).failure()
        assert gpus_gone == "0 GPUs answer, 2 did before"
        assert journal.read().phase is Phase.ROLLED_BACK
    finally:
        assert await tree.stop() == []


async def test_a_tree_that_never_came_is_told_as_what_it_is(journal, tmp_path):
    paths = resolve_paths(NodeSettings(state_dir=str(tmp_path), processes=("s5", "updater")))
    failure = await judge(journal, TreeGate(paths, 0.3, 0.1), Helper()).failure()
    assert "supervisor" in failure
    assert journal.read().blacklist[0].reason == failure
