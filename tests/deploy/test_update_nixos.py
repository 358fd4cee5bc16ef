"""NixOS: root's helper goes back to the generation that ran a release; the boot judges a trial.

The tools are scripts that change a profile of links as nix-env and nixos-rebuild do.
"""

from dataclasses import replace
from pathlib import Path

import pytest

import nodeapp
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.release import Release
from nodeapp.core.update import Phase, UpdateState
from nodeapp.updater import helper
from nodeapp.updater.boot_health import BootHealth
from nodeapp.updater.generations import KEPT, recall, remember
from nodeapp.updater.helper import Tools, commands, run
from nodeapp.updater.nixos import NixosBackend
from nodeapp.updater.update_journal import UpdateJournal
from tests.deploy.test_boot_health import NEW, OLD, Gate, Helper, health_at_boot
from tests.nix.golden import GOLDEN

NIX_ENV = """#!/bin/sh
[ "$1 $3" = "--profile --switch-generation" ] || exit 9
ln -sfn "$(basename "$2")-$4-link" "$2"
"""
REBUILD = """#!/bin/sh
echo "$@" >> @BASE@/rebuilt
[ "$1" = boot ] || exit 0
ln -sfn system-9-link @BASE@/profiles/system
"""
SWITCH = """#!/bin/sh
echo "$1 $(readlink @BASE@/profiles/system)" >> @BASE@/switched
"""


class Machine:
    """A NixOS in a directory: generations, what runs, the tools in PATH."""

    def __init__(self, base: Path):
        self.base = base
        self.profile = base / "profiles" / "system"
        self.profile.parent.mkdir()
        for number in (3, 7, 8, 9):
            made = base / f"store-{number}" / "bin"
            made.mkdir(parents=True)
            self.script(made / "switch-to-configuration", SWITCH)
            self.profile.with_name(f"system-{number}-link").symlink_to(made.parent)
        self.profile.symlink_to("system-8-link")
        (base / "bin").mkdir()
        self.script(base / "bin" / "nix-env", NIX_ENV)
        self.script(base / "bin" / "nixos-rebuild", REBUILD)
        (base / "release-source").write_text("github:example/fabstir-node\n")
        self.runs(7)

    def script(self, path: Path, text: str) -> None:
        path.write_text(text.replace("@BASE@", str(self.base)))
        path.chmod(0o755)

    def runs(self, number: int) -> None:
        system = self.base / "current-system"
        system.unlink(missing_ok=True)
        system.symlink_to(self.base / f"store-{number}")

    def tools(self, version: str) -> Tools:
        return Tools(
            nixos_source=self.base / "release-source",
            nixos_flake=self.base / "release-flake",
            nixos_profile=self.profile,
            nixos_system=self.base / "current-system",
            nixos_record=self.base / "generations",
            version=version,
        )

    def lines(self, name: str) -> list[str]:
        return (self.base / name).read_text().splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setattr(helper, "PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return made


def test_the_way_back_is_the_generation_of_the_release_not_the_one_before(machine):
    """7 runs release 0.1.0; 8 is the operator's, never started; 9 is release 0.2.0."""
    run("nixos-build", ["0.2.0"], machine.tools("0.1.0"))
    run("nixos-boot", ["0.2.0"], machine.tools("0.1.0"))
    assert machine.profile.readlink() == Path("system-9-link")
    machine.runs(9)
    run("nixos-back", ["0.1.0"], machine.tools("0.2.0"))
    assert machine.lines("switched") == ["boot system-7-link"]
    assert machine.lines("generations") == ["0.1.0 7"]


def test_what_the_operator_switched_to_meanwhile_stays_when_the_trial_never_started(machine):
    run("nixos-boot", ["0.2.0"], machine.tools("0.1.0"))
    machine.runs(8)
    run("nixos-back", ["0.1.0"], machine.tools("0.1.0"))
    assert machine.lines("switched") == ["boot system-8-link"]


def test_a_generation_that_was_removed_is_told_and_nothing_is_switched(machine):
    run("nixos-boot", ["0.2.0"], machine.tools("0.1.0"))
    machine.profile.with_name("system-7-link").unlink()
    with pytest.raises(InvalidRequest, match=r"generation 7, which ran 0\.1\.0, was removed"):
        run("nixos-back", ["0.1.0"], machine.tools("0.2.0"))
    assert machine.profile.readlink() == Path("system-9-link")


def test_nothing_is_built_where_there_would_be_no_way_back(machine):
    (machine.base / "store-8").rename(machine.base / "store-of-a-test")
    system = machine.base / "current-system"
    system.unlink()
    system.symlink_to(machine.base / "store-of-a-test")
    with pytest.raises(InvalidRequest, match="is no generation of"):
        run("nixos-build", ["0.2.0"], machine.tools("0.1.0"))
    assert not (machine.base / "rebuilt").exists()


@pytest.mark.parametrize("verb", ["nixos-build", "nixos-boot"])
def test_an_older_release_is_not_built_whatever_the_updater_says(machine, verb):
    for version in ("0.1.9", "0.2.0-rc.1", "0.2.0"):
        with pytest.raises(InvalidRequest, match=r"not newer than 0\.2\.0, which runs"):
            run(verb, [version], machine.tools("0.2.0"))


def test_the_machines_own_flake_is_named(machine):
    override = "--override-input fabstir-node github:example/fabstir-node/v0.2.0"
    run("nixos-build", ["0.2.0"], machine.tools("0.1.0"))
    (machine.base / "release-flake").write_text("/srv/machines?dir=gpu#gpu-1\n")
    run("nixos-boot", ["0.2.0"], machine.tools("0.1.0"))
    assert machine.lines("rebuilt") == [
        f"build {override}",
        f"boot --flake /srv/machines?dir=gpu#gpu-1 {override}",
    ]
    for text in ("", "--impure", "/etc/nixos --impure", "a#b#c"):
        (machine.base / "release-flake").write_text(text)
        with pytest.raises(InvalidRequest, match="holds no flake"):
            commands("nixos-build", ["0.2.0"], machine.tools("0.1.0"))


def test_the_record_keeps_the_last_releases(machine):
    tools = machine.tools("0.1.0")
    for number in range(KEPT + 2):
        version = f"0.1.{number}"
        remember(tools.nixos_record, tools.nixos_profile, tools.nixos_system, version)
        remember(tools.nixos_record, tools.nixos_profile, tools.nixos_system, "0.0.9")
    lines = machine.lines("generations")
    assert (len(lines), lines[0], lines[-1]) == (KEPT, "0.1.3 7", "0.0.9 7")
    tools.nixos_record.write_text("0.1.0 x\n\n0.1.1 7\n0.1.2 7 8\n")
    found = [recall(tools.nixos_record, tools.nixos_profile, f"0.1.{n}") for n in range(3)]
    assert found == [0, 7, 0]


def trial(tmp_path, **more) -> UpdateJournal:
    journal = UpdateJournal(tmp_path / "update.json")
    pending = UpdateState(
        current=OLD,
        newest=OLD,
        phase=Phase.REBOOT_PENDING,
        candidate=Release(NEW, "", "", ()),
        tries_left=3,
        boot="the one before",
    )
    journal.write(replace(pending, **more))
    return journal


def judge(journal, gate, asked) -> BootHealth:
    return BootHealth(journal, NixosBackend(NEW, asked), gate, lambda: 0, lambda: False)


async def test_the_boot_judges_the_trial_and_goes_back(tmp_path):
    journal, asked = trial(tmp_path), Helper()
    assert await judge(journal, Gate("updater is fatal"), asked).failure() == "updater is fatal"
    assert journal.read().phase is Phase.ROLLED_BACK
    assert asked.asked == [("nixos-back", OLD), ("reboot",)]


async def test_three_starts_without_a_verdict_are_enough(tmp_path):
    """Nothing counts but the journal: every start hangs, and the power goes."""
    journal, asked = trial(tmp_path), Helper()
    for start in range(3):
        state = judge(journal, Gate(""), asked)._begin()
        assert (state.phase, state.tries_left) == (Phase.BOOTED, 2 - start)
        journal.write(replace(state, boot=f"start {start}"))
    assert asked.asked == []
    gate = Gate("")
    assert "no verdict after 3 starts" in await judge(journal, gate, asked).failure()
    assert asked.asked == [("nixos-back", OLD), ("reboot",)]
    assert gate.asked == []


def test_the_command_of_the_unit_judges_a_nixos_machine(tmp_path):
    """Nothing of the node runs: the verdict is written all the same, and the helper is asked."""
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nprocesses = ["s5", "updater"]\n'
        '[updater]\nbackend = "nixos"\ngate_seconds = 0.3\ngate_settle_seconds = 0.1\n'
    )
    state = tmp_path / "state" / "updater"
    state.mkdir(parents=True)
    journal = trial(state)
    done = health_at_boot(tmp_path, config)
    assert (done.returncode, "not healthy" in done.stderr) == (1, True), done.stderr
    assert journal.read().blacklist[0].version == nodeapp.__version__
    # Once more: it is not on trial any longer.
    done = health_at_boot(tmp_path, config)
    assert done.returncode == 0, done.stderr


def test_settings_that_the_new_release_does_not_know_fail_its_trial(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('[updater]\nbackend = "nixos"\n[node]\nof_another_release = 1\n')
    (tmp_path / "state" / "updater").mkdir(parents=True)
    journal = trial(tmp_path / "state" / "updater")
    done = health_at_boot(tmp_path, config)
    assert done.returncode == 1, done.stderr
    assert "of_another_release" in journal.read().blacklist[0].reason


def test_the_judge_needs_none_of_the_secrets_that_the_node_is_handed(tmp_path):
    """Settings of the module name credentials that only the node's own unit gets."""
    config = tmp_path / "node.toml"
    config.write_text((GOLDEN / "full" / "node.toml").read_text("utf-8"))
    (tmp_path / "state" / "updater").mkdir(parents=True)
    journal = trial(tmp_path / "state" / "updater")
    done = health_at_boot(
        tmp_path,
        config,
        "--set",
        "updater.gate_seconds=0.3",
        "--set",
        "updater.gate_settle_seconds=0.1",
        "--set",
        f"node.run_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 1, done.stderr
    assert "supervisor" in journal.read().blacklist[0].reason
