"""The files of one test image: a Debian root whose /usr is all there is; the rest is a template.

    TREE/usr                          becomes the verified partition
    TREE/usr/share/fabstir/root       is copied into the tmpfs root by the initrd

Rules of this file: the unit texts, transfers and partitions are the repository's own, committed
below appliance/ as the Nix functions render them; what only a test needs has `test` in its name.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.layout import APPLIANCE
from image.test.roots import HERE, NODE_PLACE, compile_bytecode, write_sources
from tests.image.toolroot import Room, room

UNITS = APPLIANCE / "systemd"
SYSUPDATE = APPLIANCE / "sysupdate"
TEMPLATE = "usr/share/fabstir/root"
UID = 990
DROPPED = (
    *("usr/lib/dracut", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"),
    *("usr/lib/apt", "usr/bin/apt*", "var/lib/dpkg", "var/lib/apt", "var/cache", "var/log"),
    *("etc/apt", "etc/cron*", "etc/systemd/system/*.wants"),
)
SKIPPED = (
    *(
        "systemd-firstboot.service",
        "getty@.service",
        "serial-getty@.service",
        "getty-static.service",
    ),
    # As NixOS without its emergency mode: what cannot be mounted leaves the rest of the boot alone.
    *("emergency.service", "emergency.target"),
    *("systemd-timesyncd.service", "systemd-update-done.service", "systemd-hwdb-update.service"),
    *("systemd-journal-catalog-update.service", "ldconfig.service", "fstrim.timer"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "systemd-networkd-persistent-storage.service"),
)
NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=ipv4\n"
DATA_LABEL = "FABSTIR-TEST"
DATA_PLACE = "/srv"
"""Model and proof profile: a disk beside the appliance's, so that releases stay small."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the cached pieces and this campaign's own keys lie."""

    base: Path
    node: Path
    initrd: Path
    keyring: Path


def make_tree(tree: Path, parts: Parts, tools: Room, job: Path) -> None:
    """Everything but the version.

    Args:
        tree: made anew; below `job`.
        parts: what it is made of.
        tools: a room over the tool root in which `job` is /job.
        job: the campaign's directory.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    _copy(*(parts.base / name for name in ("usr", "etc", "var", "root")), target=tree)
    _copy(parts.initrd / "systemd-boot" / "usr", target=tree)
    for pattern in DROPPED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    _install_node(tree, parts.node)
    write_settings(tree, parts.keyring)
    enable_units(tools, f"/job/{tree.relative_to(job)}")
    _fold(tree)


def _copy(*sources: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", *sources, target], check=True, timeout=300)


def _install_node(tree: Path, node: Path) -> None:
    place = tree / "usr" / NODE_PLACE.removeprefix("/")
    place.parent.mkdir(parents=True)
    _copy(node, target=place.parent)
    (place.parent / node.name).rename(place)
    for name in ("nodeapp", "appliance", "docs"):
        shutil.rmtree(place / name, ignore_errors=True)
    write_sources(place)
    test = tree / "usr/lib/fabstir-test"
    test.mkdir()
    shutil.copy(HERE / "agent.py", test)


def write_settings(tree: Path, keyring: Path) -> None:
    """Units, transfers, mounts and accounts, into a copy of the Debian root."""
    etc = tree / "etc"
    units = tree / "usr/lib/systemd/system"
    for unit in (*UNITS.glob("*.*"), *(HERE / "units").glob("*.service")):
        if unit.is_file():
            shutil.copy(unit, units / unit.name)
    for name in ("fabstir-node.service", "boot-complete.target"):
        dropin = units / f"{name}.d"
        dropin.mkdir(exist_ok=True)
        shutil.copy(UNITS / dropin.name / "appliance.conf", dropin)
        shutil.copy(HERE / "units" / f"{name.partition('.')[0]}.slow.conf", dropin / "50-test.conf")
    (etc / "fabstir").mkdir()
    shutil.copytree(SYSUPDATE, etc / "fabstir/sysupdate")
    shutil.copy(keyring, etc / "systemd/import-pubring.gpg")
    shutil.copytree(APPLIANCE / "journald", etc / "systemd/journald.conf.d")
    (etc / "machine-id").write_text("")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "hostname").write_text("fabstir-test\n")
    state = (APPLIANCE / "repart/state.fstab").read_text("utf-8")
    (etc / "fstab").write_text(f"{state}LABEL={DATA_LABEL} {DATA_PLACE} erofs ro 0 0\n")
    shutil.copytree(APPLIANCE / "repart/device", tree / "usr/lib/repart.d", dirs_exist_ok=True)
    (tree / "usr/lib/systemd/network/80-wired.network").write_text(NETWORK)
    for name, line in (
        ("passwd", f"fabstir:x:{UID}:{UID}::/var/lib/fabstir:/usr/sbin/nologin"),
        ("group", f"fabstir:x:{UID}:"),
        ("shadow", "fabstir:!*:::::::"),
        ("gshadow", "fabstir:!*::"),
    ):
        with (etc / name).open("a") as file:
            file.write(f"{line}\n")


def enable_units(tools: Room, inside: str) -> None:
    """As `systemctl enable` and `mask` do it on a machine."""
    ours = [
        unit.name
        for unit in (*UNITS.glob("*.*"), *(HERE / "units").glob("*.service"))
        if unit.is_file() and "[Install]" in unit.read_text("utf-8")
    ]
    tools.run("systemctl", f"--root={inside}", "enable", "systemd-networkd.service", *sorted(ours))
    tools.run("systemctl", f"--root={inside}", "mask", *SKIPPED)
    tools.run("systemctl", f"--root={inside}", "set-default", "multi-user.target")


def _fold(tree: Path) -> None:
    """All that is not /usr moves below it; the root's own directories are in the template, too."""
    template = tree / TEMPLATE
    template.mkdir(parents=True)
    for name in ("etc", "var", "root"):
        (tree / name).rename(template / name)
    for name in ("bin", "sbin", "lib", "lib64"):
        (template / name).symlink_to(f"usr/{name}")
    (template / "opt").symlink_to("usr/opt")
    for name in ("boot", "mnt", "srv", "proc", "sys", "dev", "run", "tmp", "home"):
        (template / name).mkdir()
    (template / "tmp").chmod(0o1777)
    (template / "var/log").mkdir(exist_ok=True)
    (template / "var/cache").mkdir(exist_ok=True)


def compile_tree(tree: Path, base: Path) -> None:
    """Bytecode for the sources, which came after the environment's."""
    place = tree / "usr" / NODE_PLACE.removeprefix("/")
    with room(base, {NODE_PLACE: place, "/usr/lib/python3.13": tree / "usr/lib/python3.13"}) as one:
        compile_bytecode(
            one, f"{NODE_PLACE}/nodeapp", f"{NODE_PLACE}/appliance", "/usr/lib/python3.13"
        )


def name_version(tree: Path, version: str) -> None:
    """What tells images apart: os-release, and with it the boot menu and the updater."""
    (tree / "usr/lib/os-release").write_text(
        'NAME="Fabstir node test image"\n'
        "ID=fabstir-test\n"
        "IMAGE_ID=fabstir-node\n"
        f"IMAGE_VERSION={version}\n"
        f"VERSION_ID={version}\n"
        f'PRETTY_NAME="Fabstir node {version}"\n'
    )


def break_process(tree: Path, process: str) -> None:
    """Let one program of the tree end as soon as it starts, as a bad release would."""
    main = tree / "usr" / NODE_PLACE.removeprefix("/") / "nodeapp" / process / "main.py"
    main.write_text('raise SystemExit("this release is broken on purpose")\n')
    for stale in main.parent.glob("__pycache__/main.*.pyc"):
        stale.unlink()
