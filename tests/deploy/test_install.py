"""The installer for Debian and Ubuntu: into a directory here, into a booted Debian in test_install_booted.py."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import install
from appliance.steps.console import SetupFailure
from appliance.steps.layout import ROOT
from appliance.steps.machine import Machine
from appliance.steps.sources import copy_files, product_files
from nodeapp.service.config import load_settings

SCRIPT = ROOT / "appliance" / "install.sh"
NODE_TOML = ROOT / "appliance/node.toml"
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemd-sysusers") is None,
    reason="needs root and systemd (apt install systemd)",
)


@pytest.fixture
def system(tmp_path):
    """The few files of a Linux that accounts and units are written to."""
    root = tmp_path / "system"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nvideo:x:44:\n")
    return root


def run(root: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        ["sh", str(SCRIPT), "--root", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def files(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything under it, with modes."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = (0, str(path.readlink()))
        elif path.is_file():
            found[name] = (mode, path.read_bytes())
        else:
            found[name] = (mode, "")
    return found


def test_a_dry_run_changes_nothing_and_needs_no_root(system):
    before = files(system)
    said = run(system, "--dry-run")
    assert files(system) == before
    assert "would    unit: /etc/systemd/system/fabstir-node.service" in said
    assert "done" not in said


@needs_root
def test_an_installed_node_has_program_account_settings_and_unit(system):
    run(system)
    unit = system / "etc/systemd/system/fabstir-node.service"
    assert unit.read_bytes() == (ROOT / "appliance/systemd/fabstir-node.service").read_bytes()
    assert (system / "etc/systemd/system/multi-user.target.wants/fabstir-node.service").is_symlink()
    assert (system / "opt/fabstir-node/nodeapp/cli/main.py").is_file()
    assert not (system / "opt/fabstir-node/tests").exists()
    passwd = (system / "etc/passwd").read_text()
    account = next(line for line in passwd.splitlines() if line.startswith("fabstir:")).split(":")
    groups = (system / "etc/group").read_text()
    assert "video:x:44:fabstir" in groups
    assert any(line.startswith("render:") and "fabstir" in line for line in groups.splitlines())
    settings = system / "etc/fabstir/node.toml"
    changed = set(settings.read_text().splitlines()) - set(NODE_TOML.read_text().splitlines())
    assert changed == {'listen = "/ip4/0.0.0.0/tcp/9000"'}
    assert settings.read_bytes() == settings.with_name("node.toml.default").read_bytes()
    about = settings.stat()
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o640, 0)
    assert about.st_gid == int(account[3])


@needs_root
def test_commands_without_options_look_where_the_unit_has_its_node(system):
    run(system)
    unit = (system / "etc/systemd/system/fabstir-node.service").read_text()
    loaded = load_settings(system / "etc/fabstir/node.toml", environment={})
    assert f"--state-dir {loaded.node.state_dir}\n" in unit
    assert f"Environment=FABSTIR_NODE__RUN_DIR={loaded.node.run_dir}\n" in unit
    assert f"Environment=FABSTIR_CACHE={loaded.node.cache_dir}\n" in unit
    assert loaded.p2p.listen == "/ip4/0.0.0.0/tcp/9000"


@needs_root
def test_what_an_operator_set_in_the_file_counts(system):
    settings = system / "etc/fabstir/node.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[node]\ncache_dir = "/data"\n[p2p]\nlisten = "/ip4/10.0.0.1/tcp/1"\n')
    run(system)
    loaded = load_settings(settings, environment={})
    assert (loaded.node.cache_dir, loaded.p2p.listen) == ("/data", "/ip4/10.0.0.1/tcp/1")
    settings.write_text("not toml")
    run(system)
    assert (system / install.PLACES).read_text().count("\n") == 5


@needs_root
def test_a_second_run_changes_nothing(system):
    run(system)
    before = files(system)
    said = run(system)
    assert files(system) == before
    assert "done" not in said


@needs_root
def test_settings_that_are_there_are_never_written(system):
    settings = system / "etc/fabstir/node.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[node]\n")
    run(system)
    assert settings.read_text() == "[node]\n"


@needs_root
def test_a_file_that_is_no_longer_part_of_the_program_goes(system):
    run(system)
    home = system / "opt/fabstir-node"
    (home / "nodeapp" / "gone.py").write_text("")
    mark = system / install.MARK
    mark.write_text(mark.read_text() + "nodeapp/gone.py\n")
    (home / "nodeapp" / "core" / "units.py").write_text("changed")
    run(system)
    assert not (home / "nodeapp" / "gone.py").exists()
    assert (home / "nodeapp/core/units.py").read_bytes() == (
        ROOT / "nodeapp/core/units.py"
    ).read_bytes()


@needs_root
def test_removing_keeps_keys_and_settings_and_purging_leaves_nothing(system):
    before = files(system)
    run(system)
    key = system / "var/lib/fabstir/keys/host.json"
    key.parent.mkdir(parents=True)
    key.write_text("{}")
    said = run(system, "--uninstall")
    assert key.exists()
    assert (system / "etc/fabstir/node.toml").exists()
    assert "kept     /var/lib/fabstir" in said
    left = {name for name in files(system) if "fabstir" in name}
    assert left == {
        "etc/fabstir",
        "etc/fabstir/node.toml",
        "var/lib/fabstir",
        "var/lib/fabstir/keys",
        "var/lib/fabstir/keys/host.json",
    }
    run(system, "--uninstall", "--purge", "--yes")
    after = files(system)
    assert not [name for name in after if "fabstir" in name]
    assert b"fabstir" not in (system / "etc/passwd").read_bytes()
    assert before.keys() - after.keys() == set()


@needs_root
def test_purging_without_an_answer_changes_nothing(system):
    run(system)
    before = files(system)
    assert "not purged" in run(system, "--uninstall", "--purge", code=1)
    assert files(system) == before


@needs_root
def test_a_directory_of_somebody_else_is_left_alone(system):
    theirs = system / "opt/fabstir-node/their-file"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("")
    assert "was not made by this program" in run(system, code=1)
    assert "was not made by this program" in run(system, "--uninstall", code=1)
    assert theirs.exists()


@needs_root
def test_a_checkout_in_the_place_of_the_program_is_not_removed(system):
    run(system)
    (system / "opt/fabstir-node/.git").mkdir()
    run(system, "--uninstall")
    assert (system / "opt/fabstir-node/README.md").exists()
    assert not (system / install.MARK).exists()


def test_purge_goes_with_uninstall(system):
    assert "--purge goes with --uninstall" in run(system, "--purge", code=1)


def test_a_failed_command_names_itself(tmp_path):
    machine = Machine(tmp_path, dry=False)
    with pytest.raises(SetupFailure, match=r"false .*failed \(exit code 1\)"):
        machine.command("false", "now")


def test_the_product_is_the_same_with_and_without_git(tmp_path):
    names = product_files()
    assert Path("nodeapp/cli/main.py") in names
    assert not [name for name in names if name.parts[0] in ("tests", ".venv", "build")]
    copied = tmp_path / "copy"
    assert copy_files(names, copied) == len(names)
    assert copy_files(names, copied) == 0
    assert product_files(copied) == names


@needs_root
def test_a_careful_umask_hides_nothing_from_the_node(system):
    words = ["sh", "-c", f'umask 077; exec sh {SCRIPT} --root "$1"', "sh", str(system)]
    subprocess.run(words, check=True, capture_output=True, timeout=50, stdin=subprocess.DEVNULL)
    for name in ("etc/fabstir", "opt/fabstir-node", "opt/fabstir-node/nodeapp/cli/main.py"):
        assert stat.S_IMODE((system / name).stat().st_mode) & 0o044 == 0o044, name
    assert stat.S_IMODE((system / "etc/fabstir").stat().st_mode) == 0o755


def test_a_root_that_depends_on_where_one_stands_is_refused():
    """install.sh goes into its checkout first: it would be another directory."""
    assert "give the whole path" in run(Path("tree"), "--dry-run", code=1)


def test_a_command_that_leads_elsewhere_is_left_alone(system):
    command = system / "usr/local/bin/fabstir-node"
    command.parent.mkdir(parents=True)
    command.symlink_to("/home/someone/checkout/.venv/bin/fabstir-node")
    for words in (["--dry-run"], ["--dry-run", "--uninstall"]):
        assert "was not made by this program" in run(system, *words, code=1)


@needs_root
def test_an_account_that_was_half_made_gets_its_groups(system):
    with (system / "etc" / "passwd").open("a") as passwd:
        passwd.write("fabstir:x:990:990::/var/lib/fabstir:/usr/sbin/nologin\n")
    with (system / "etc" / "group").open("a") as group:
        group.write("fabstir:x:990:\n")
    run(system)
    groups = (system / "etc/group").read_text().splitlines()
    for name in ("video", "render"):
        assert any(line.startswith(f"{name}:") and line.endswith("fabstir") for line in groups)


@needs_root
def test_a_removal_that_was_interrupted_is_done_once_more(system, monkeypatch):
    run(system)
    machine = Machine(system, dry=False)
    left = []

    def interrupted(path):
        left.append(path)
        if len(left) == 3:
            raise KeyboardInterrupt
        real(path)

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.uninstall(machine, purge=False)
    monkeypatch.undo()
    run(system, "--uninstall")
    assert not (system / "opt/fabstir-node").exists()


def test_a_running_node_is_not_restarted_into_settings_it_does_not_know(system):
    machine = Machine(system, dry=False)
    assert install.settings_trouble(machine) == ""
    program = system / "opt/fabstir-node/.venv/bin/fabstir-node"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nodeapp.cli.main "$@"\n')
    program.chmod(0o755)
    settings = system / "etc/fabstir/node.toml"
    settings.parent.mkdir()
    settings.write_text("[node]\nof_an_older_version = 1\n")
    assert "unknown key node.of_an_older_version" in install.settings_trouble(machine)
