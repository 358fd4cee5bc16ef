"""Install the node under systemd on Debian or Ubuntu, or remove it (`sh appliance/install.sh`).

Idempotent: a second run changes only what differs, and says so. A settings file that is there is
never written; removing keeps keys, journal and settings unless `--purge`. With `--root` nothing of
the running system is touched: packages and the environment are left out, for images and tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.steps import system
from appliance.steps.console import SetupFailure, Status
from appliance.steps.layout import APPLIANCE, ROOT, write_atomically
from appliance.steps.machine import Machine
from appliance.steps.sources import copy_files, product_files

HOME = Path("opt/fabstir-node")
MARK = HOME / ".installed"
"""Says that the directory is ours to change and to remove; lists the files that were copied."""
SETTINGS = Path("etc/fabstir/node.toml")
PLACES = Path("etc/fabstir/node.toml.d/10-installed.toml")
"""So that commands without options look where the unit's node is."""
OF_UNIT = {"state_dir": "/var/lib/fabstir", "run_dir": "/run/fabstir"}
"""What the unit says whatever the settings say."""
CACHE = {"cache_dir": "/var/cache/fabstir"}
LISTEN = ('# listen = "/ip4/127.0.0.1/tcp/9000"', 'listen = "/ip4/0.0.0.0/tcp/9000"')
"""In new settings a host is open to renters. Not in the drop-in, which would win over a changed
line of the file."""
COMMAND = Path("usr/local/bin/fabstir-node")
PROGRAM = Path("/") / HOME / ".venv/bin/fabstir-node"
ACCOUNT = Path("etc/sysusers.d/fabstir-node.conf")
MODULES = Path("etc/modules-load.d/fabstir-node.conf")
UNITS = Path("etc/systemd/system")
SERVICE = "fabstir-node.service"
RELEASES = Path("fabstir-node.service.d/releases.conf")
CURRENT = Path("var/lib/fabstir/releases/current")
KEPT = (Path("etc/fabstir"), Path("var/lib/fabstir"), Path("var/cache/fabstir"))
BUILT = Path("var/cache/fabstir-install")
"""Wheels made here; root's, because the node's own cache belongs to the node."""
SYSUSERS = """u fabstir - "Fabstir node" /var/lib/fabstir
m fabstir video
m fabstir render
"""
"""The groups own the GPU's device files."""
DRIVER = "# The node may not load it.\nnvidia-uvm\n"


def install(machine: Machine, *, start: bool, portable: bool) -> None:
    """Every step in order.

    Raises:
        SetupFailure: something is in the way, or a step failed; done once more it goes on.
    """
    refuse_foreign(machine)
    if machine.is_running:
        packages(machine)
    program(machine)
    machine.put("account and groups", ACCOUNT, SYSUSERS)
    account(machine)
    settings(machine)
    if Path("/proc/driver/nvidia").exists() and machine.is_running:
        machine.put("driver module loaded at boot", MODULES, DRIVER)
    if machine.is_running:
        environment(machine, portable=portable)
    link(machine)
    units(machine, start=start)


def refuse_foreign(machine: Machine) -> None:
    """Nothing of somebody else is overwritten.

    Raises:
        SetupFailure: the directory or the command is there and not ours.
    """
    home, command = machine.path(HOME), machine.path(COMMAND)
    ours = machine.path(MARK).exists() or home.resolve() == ROOT
    if home.is_dir() and any(home.iterdir()) and not ours:
        raise SetupFailure(f"{home} was not made by this program; move it away first")
    is_link = command.is_symlink()
    if (command.exists() and not is_link) or (is_link and command.readlink() != PROGRAM):
        raise SetupFailure(f"{command} was not made by this program; move it away first")


def packages(machine: Machine) -> None:
    """Of Debian or Ubuntu: what set-up asks for, and the program of backups."""
    restic = system.Need("restic", ("restic",), lambda: shutil.which("restic") is not None)
    absent = [*system.missing(), *(() if restic.is_there() else (restic,))]
    names = " ".join(package for need in absent for package in need.packages)
    machine.do(
        f"system packages{': ' if names else ''}{names}",
        not absent,
        lambda: system.install(Status("system packages", sys.stderr), absent),
    )


def program(machine: Machine) -> None:
    """The checkout's files; those of an earlier version that are no more are removed."""
    home, mark = machine.path(HOME), machine.path(MARK)
    if home.resolve() == ROOT:
        machine.say("ok", f"program: run from /{HOME}")
        write_mark = not mark.exists() and not machine.dry
        if write_mark:
            write_atomically(mark, "")
        return
    names = product_files()
    listed = "".join(f"{name}\n" for name in names)
    before = mark.read_text("utf-8") if mark.exists() else ""
    differs = [name for name in names if not _same(ROOT / name, home / name)]

    def copy() -> None:
        write_atomically(mark, before)
        copy_files(differs, home)
        for name in sorted(set(before.splitlines()) - set(listed.splitlines())):
            (home / name).unlink(missing_ok=True)
        write_atomically(mark, listed)

    text = f"program: {len(names)} files in /{HOME}, {len(differs)} to copy"
    machine.do(text, not differs and before == listed, copy)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def account(machine: Machine) -> None:
    """By systemd's own list of accounts, which adds what is missing."""
    groups = _lines(machine.path(Path("etc/group")))
    in_groups = {
        line.split(":")[0] for line in groups if "fabstir" in line.split(":")[-1].split(",")
    }
    there = _has_account(machine.path(Path("etc/passwd"))) and {"video", "render"} <= in_groups
    tool, root = "systemd-sysusers", f"--root={machine.root}"
    text = "account fabstir"
    machine.do(text, there, lambda: machine.command(tool, root, machine.path(ACCOUNT)))


def _has_account(passwd: Path) -> bool:
    return any(line.startswith("fabstir:") for line in _lines(passwd))


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def settings(machine: Machine) -> None:
    """The commented defaults, if there are no settings yet; the new defaults beside them."""
    target = machine.path(SETTINGS)
    content = (APPLIANCE / "node.toml").read_text("utf-8").replace(*LISTEN)

    def write() -> None:
        write_atomically(target, content, mode=0o640)
        _give_to_node(machine, target)

    machine.do(f"settings: /{SETTINGS}", target.exists(), write)
    machine.put("every setting's default", SETTINGS.with_suffix(".toml.default"), content)
    machine.put("where the unit's node is", PLACES, _places(target))


def _places(settings: Path) -> str:
    """The drop-in. A cache that the settings put elsewhere stays there."""
    places = dict(OF_UNIT)
    try:
        node = tomllib.loads(settings.read_text("utf-8")).get("node", {})
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        # `config check` tells what is wrong with them.
        node = {}
    if "cache_dir" not in node:
        places |= CACHE
    lines = [f'{key} = "{value}"\n' for key, value in places.items()]
    return "".join(["# Written by appliance/install.sh, as the unit has it.\n[node]\n", *lines])


def _give_to_node(machine: Machine, place: Path) -> None:
    """Readable for the node, writable for root alone."""
    passwd = machine.path(Path("etc/passwd")).read_text("utf-8").splitlines()
    line = next(line for line in passwd if line.startswith("fabstir:"))
    os.chown(place, -1, int(line.split(":")[3]))


def environment(machine: Machine, *, portable: bool) -> None:
    """The pinned packages and llama.cpp, for this processor; minutes the first time."""
    home = machine.path(HOME)
    words = [sys.executable, "-m", "appliance.setup", "--environment-only"]
    words += ["--portable"] if portable else []
    variables = {"FABSTIR_CACHE": str(machine.path(BUILT)), "FABSTIR_VENV": str(home / ".venv")}
    python = home / ".venv" / "bin" / "python"

    def make() -> None:
        done = subprocess.run(words, cwd=home, env={**os.environ, **variables}, check=False)
        if done.returncode != 0:
            raise SetupFailure("the environment could not be made; the reason is above")
        # The node may not write its bytecode beside the program.
        machine.command(python, "-m", "compileall", "-q", home / "nodeapp")

    machine.do("environment of the node (set-up compares and makes what is missing)", False, make)  # noqa: FBT003


def link(machine: Machine) -> None:
    """The command for administrators."""
    place, wanted = machine.path(COMMAND), PROGRAM

    def make() -> None:
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(wanted)

    there = place.is_symlink() and place.readlink() == wanted
    machine.do(f"command: /{COMMAND}", there, make)


def units(machine: Machine, *, start: bool) -> None:
    """The unit, the launcher once there are releases, and whether it starts at boot."""
    source = APPLIANCE / "systemd"
    machine.put("unit", UNITS / SERVICE, (source / SERVICE).read_text("utf-8"))
    if machine.path(CURRENT).exists():
        content = (source / RELEASES).read_text("utf-8")
        machine.put("unit runs the current release", UNITS / RELEASES, content)
    wants = machine.path(UNITS / "multi-user.target.wants" / SERVICE)
    control = ["systemctl", *(() if machine.is_running else (f"--root={machine.root}",))]
    is_enabled = wants.is_symlink()
    machine.do("starts at boot", is_enabled, lambda: machine.command(*control, "enable", SERVICE))
    if not (machine.is_running and Path("/run/systemd/system").exists()):
        return
    if not machine.dry:
        machine.command("systemctl", "daemon-reload")
    trouble = settings_trouble(machine) if _is_active() else ""
    if trouble and start and not machine.dry:
        raise SetupFailure(f"the node runs on and was not restarted, settings: {trouble}")
    if trouble:
        machine.say("note", f"the node runs on; do not restart it before this is right: {trouble}")
    elif start:
        words = ("systemctl", "restart", SERVICE)
        machine.do("node started", False, lambda: machine.command(*words))  # noqa: FBT003
    elif _is_active():
        machine.say("note", f"the node runs on; systemctl restart {SERVICE} takes what changed")


def settings_trouble(machine: Machine) -> str:
    """Why the installed version would not start with these settings; empty when it would."""
    program = machine.path(PROGRAM.relative_to("/"))
    words = (program, "config", "check", "--config", machine.path(SETTINGS))
    if not program.exists():
        return ""
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    return "" if done.returncode == 0 else "; ".join((done.stderr or done.stdout).splitlines()[-3:])


def _is_active() -> bool:
    words = ["systemctl", "is-active", "--quiet", SERVICE]
    return subprocess.run(words, check=False).returncode == 0


def uninstall(machine: Machine, *, purge: bool) -> None:
    """Stop and remove; `purge` removes keys, journal, models and settings as well.

    Raises:
        SetupFailure: the directory is not ours, or a command failed.
    """
    refuse_foreign(machine)
    with_systemd = machine.is_running and Path("/run/systemd/system").exists()
    if with_systemd:
        is_gone = not machine.path(UNITS / SERVICE).exists()
        words = ("systemctl", "disable", "--now", SERVICE)
        machine.do("node stopped", is_gone, lambda: machine.command(*words))
    wants = UNITS / "multi-user.target.wants" / SERVICE
    files = (wants, UNITS / RELEASES, UNITS / SERVICE, COMMAND, MODULES, ACCOUNT)
    for place in (*files, PLACES, SETTINGS.with_suffix(".toml.default")):
        remove(machine, place)
    for directory in ((UNITS / RELEASES).parent, PLACES.parent):
        _remove_if_empty(machine, directory)
    if (machine.path(HOME) / ".git").exists():
        # Somebody's checkout, which may hold work of theirs.
        remove(machine, HOME / ".venv")
        remove(machine, MARK)
    else:
        for path in sorted(machine.path(HOME).glob("*")) + sorted(machine.path(HOME).glob(".*")):
            if path != machine.path(MARK):
                remove(machine, path.relative_to(machine.root), quiet=True)
        # Last: as long as the mark is there, an interrupted removal can be done once more.
        remove(machine, HOME)
    remove(machine, BUILT)
    (forget if purge else keep)(machine)
    if with_systemd and not machine.dry:
        machine.command("systemctl", "daemon-reload")


def keep(machine: Machine) -> None:
    """Say what is left: it is needed by the next installation, and to restore from."""
    for directory in KEPT:
        if machine.path(directory).exists():
            machine.say("kept", f"/{directory}")


def forget(machine: Machine) -> None:
    """Everything the node ever wrote, and its account."""
    for directory in KEPT:
        remove(machine, directory)
    is_gone = not _has_account(machine.path(Path("etc/passwd")))
    where = () if machine.is_running else ("--prefix", str(machine.root))
    text = "account fabstir removed"
    machine.do(text, is_gone, lambda: machine.command("userdel", *where, "fabstir"))


def remove(machine: Machine, place: Path, *, quiet: bool = False) -> None:
    """A file, a link or a whole directory; `quiet` for the parts of one."""
    target = machine.path(place)
    is_tree = target.is_dir() and not target.is_symlink()
    there = target.exists() or target.is_symlink()
    action: Callable[[], object] = (lambda: shutil.rmtree(target)) if is_tree else target.unlink
    if there and not quiet:
        machine.do(f"removed: /{place}", False, action)  # noqa: FBT003
    elif there and not machine.dry:
        action()


def _remove_if_empty(machine: Machine, place: Path) -> None:
    target = machine.path(place)
    if target.is_dir() and not any(target.iterdir()):
        remove(machine, place)


NEXT = f"""
Next, as root:
  1. wallet and settings: /{SETTINGS} (docs/host.md, docs/models.md)
  2. fabstir-node config check --config /{SETTINGS}
  3. systemctl start {SERVICE} && fabstir-node status --config /{SETTINGS}
"""
PURGE = "this deletes the wallet's keys and the journal of what the node is owed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a step failed, 2 wrong arguments."""
    chosen = _parser().parse_args(arguments)
    machine = Machine(chosen.root, chosen.dry_run)
    # The node reads the program and its settings, however careful the administrator's shell is.
    os.umask(0o022)
    try:
        _check(machine, chosen)
        if chosen.uninstall:
            uninstall(machine, purge=chosen.purge)
        else:
            install(machine, start=chosen.start, portable=chosen.portable)
            sys.stdout.write("" if machine.dry or not machine.is_running else NEXT)
    except (SetupFailure, OSError) as failure:
        sys.stderr.write(f"install: {failure}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("install: interrupted; done once more, it goes on\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install.sh", description=__doc__)
    parser.add_argument("--uninstall", action="store_true", help="remove it again")
    parser.add_argument("--purge", action="store_true", help="with --uninstall: " + PURGE)
    parser.add_argument("--yes", action="store_true", help="purge without asking")
    parser.add_argument("--start", action="store_true", help="start the node at the end")
    parser.add_argument(
        "--portable", action="store_true", help="for a disk that moves to another x86-64-v3 machine"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--root", type=Path, default=Path("/"), help="another system's root")
    return parser


def _check(machine: Machine, chosen: argparse.Namespace) -> None:
    if not chosen.root.is_absolute():
        raise SetupFailure(f"--root {chosen.root}: give the whole path, from / on")
    if chosen.purge and not chosen.uninstall:
        raise SetupFailure("--purge goes with --uninstall")
    if machine.is_running and shutil.which("apt-get") is None and not chosen.uninstall:
        raise SetupFailure("this is neither Debian nor Ubuntu: docs/install.md has the steps")
    if os.geteuid() != 0 and not machine.dry:
        raise SetupFailure("root is needed: sudo sh appliance/install.sh (or --dry-run)")
    if chosen.purge and not (chosen.yes or machine.dry):
        sys.stdout.write(f"{PURGE}. Type the word purge to go on: ")
        sys.stdout.flush()
        if sys.stdin.readline().strip() != "purge":
            raise SetupFailure("not purged; nothing was changed")


if __name__ == "__main__":
    sys.exit(main())
