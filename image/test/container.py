"""The same image booted without a machine: systemd-nspawn over the verified /usr.

What firmware, boot loader, partitions and verity do is not in it; all else is: systemd, the units
with their hardening, the tree, the network. A container starts in seconds, so what needs the
processor's full speed is shown here. Rules of this file: everything is mounted in the room's own
mount namespace and ends with it; a reboot that the container asks for is exit code 133.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.layout import APPLIANCE
from image.test.machine import Answer, Silent
from image.test.release import Image, Workshop
from image.test.tree import DATA_PLACE, TEMPLATE, UID
from tests.image.toolroot import Room

NAME = "fabstir"
HOST, GUEST = "10.77.0.1", "10.77.0.2"
INTERFACE = f"ve-{NAME}"
NETWORK = f"[Match]\nName=host0\n[Network]\nAddress={GUEST}/30\nGateway={HOST}\n"
SAFE_PLACE = "/var/cache/fabstir/repository"
REBOOT_CODE = 133
POWER_OFF = signal.SIGRTMIN + 4
"""To a systemd: systemd(1)."""
POLL_SECONDS = 0.3
ENTER = """set -eu
cd "$1"
shift
mkdir -p outside
pivot_root . outside
exec chroot . sh -c "$@"
"""
"""A root of its own: in a chroot the kernel refuses user namespaces, which hardened units have."""
START = """set -eu
umount -l /outside
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/fabstir-appliance/$$
mkdir -p $group
echo $$ > $group/cgroup.procs
[ -s /etc/machine-id ] || systemd-machine-id-setup 2>/dev/null
exec systemd-nspawn "$@"
"""


@dataclass(slots=True)
class Container:
    """A running one. Make it with `running_container`."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float
    init: int = 0
    """Its process 1 as we see it."""

    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.began

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """One command inside.

        Raises:
            Silent: it is not up.
        """
        enter = ("nsenter", "-t", str(self.first()), "-a", "-r", "-w", "--", *command)
        try:
            done = subprocess.run(
                enter,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Silent(f"no answer to {command}") from error
        return Answer(0, done.returncode, done.stdout, done.stderr)

    def first(self) -> int:
        """The first child in a process namespace of its own.

        Raises:
            Silent: there is none.
        """
        if self.init:
            return self.init
        for child in _children(self.process.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{child}/status").read_text()
                spaces = next(line for line in status.splitlines() if line.startswith("NSpid"))
                if spaces.split()[-1] == "1" and len(spaces.split()) > 2:
                    self.init = child
                    return child
        raise Silent(f"the container is not up: {self.said()[-600:]}")

    def until_true(self, *command: str, seconds: float) -> Answer:
        """Repeat a command until it ends with 0."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Silent, OSError):
                answer = self.run(*command)
                if answer.code == 0:
                    return answer
            if self.process.poll() is not None or time.monotonic() > end:
                raise Silent(f"not inside {seconds:g} s: {' '.join(command)}; {self.said()[-600:]}")
            time.sleep(POLL_SECONDS)

    def said(self) -> str:
        """What nspawn printed."""
        return self.log.read_text("utf-8", errors="replace")

    def until_off(self, seconds: float) -> int:
        """Wait for its end; REBOOT_CODE when it asked for another start."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Shut down in order, then not."""
        for number in (POWER_OFF, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError, Silent):
                os.kill(self.first(), number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.kill()
        self.process.wait(10)


def _children(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        with contextlib.suppress(OSError):
            for task in tasks.iterdir():
                children = [int(one) for one in (task / "children").read_text().split()]
                found += children
                waiting += children
    return found


def make_state(shop: Workshop, file: Path, size_bytes: int = 4 << 30) -> None:
    """A blank state partition, with the subvolumes that the first boot makes."""
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        opened.truncate(size_bytes)
    shop.run("mkfs.btrfs", "-q", shop.inside(file))
    place = "/mnt"
    shop.run("mount", "-o", "loop", shop.inside(file), place)
    for name, *_ in subvolumes():
        shop.run("btrfs", "-q", "subvolume", "create", f"{place}/{name}")
    shop.run("umount", place)


def subvolumes() -> list[tuple[str, str, str]]:
    """(name, place, options of mount) as the committed fstab has them."""
    found = []
    for line in (APPLIANCE / "repart/state.fstab").read_text("utf-8").splitlines():
        _, place, _, options, *_ = line.split()
        name = next(one for one in options.split(",") if one.startswith("subvol=/"))
        known = [one for one in options.split(",") if not one.startswith("x-")]
        found.append((name.removeprefix("subvol=/"), place, ",".join(known)))
    return found


@contextlib.contextmanager
def running_container(  # noqa: PLR0913  # one line a part of a machine
    shop: Workshop,
    image: Image,
    tree: Path,
    state: Path,
    log: Path,
    *,
    config: Path,
    data: Path,
    safe: Path,
) -> Iterator[Container]:
    """Boot it; it is off and everything unmounted at the end of the block.

    Args:
        shop: its room has loop devices and systemd-nspawn.
        image: whose /usr is mounted.
        tree: where the template of the root is.
        state: a file with the state's file system.
        log: what nspawn prints.
        config: the directory that stands for the CONFIG partition; its secrets are wiped.
        data: model and proof profile.
        safe: a directory that outlives the disk, at SAFE_PLACE inside.
    """
    tools = shop.tools
    root = shop.job / "container"
    with contextlib.ExitStack() as mounted:
        _mount(tools, mounted, "-t", "tmpfs", "-o", "mode=0755", "tmpfs", _made(shop, root))
        shutil_inside = shop.inside(tree / TEMPLATE)
        tools.run("sh", "-c", f"cp -a {shutil_inside}/. {shop.inside(root)}/")
        inside = shop.inside(root)
        tools.run("mkdir", "-p", f"{inside}/usr")
        # There is no screen here.
        tools.run("ln", "-s", "/dev/null", f"{inside}/etc/systemd/system/fabstir-console.service")
        _mount(tools, mounted, "-o", "loop,ro", shop.inside(image.store), f"{inside}/usr")
        _mount(tools, mounted, "-o", "loop,ro", shop.inside(data), f"{inside}{DATA_PLACE}")
        tools.run(
            "sh", "-c", f"printf %s '{NETWORK}' > {inside}/etc/systemd/network/10-host0.network"
        )
        binds = []
        for name, place, options in subvolumes():
            where = f"/mnt/{name}"
            tools.run("mkdir", "-p", where)
            _mount(tools, mounted, "-o", f"loop,{options}", shop.inside(state), where)
            binds.append(f"--bind={where}:{place}")
        shutil.chown(safe, UID, UID)
        binds.append(f"--bind={shop.inside(safe)}:{SAFE_PLACE}")
        binds.append(f"--bind={shop.inside(config)}:/run/media/CONFIG")
        with log.open("ab") as opened:
            process = subprocess.Popen(
                (
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("nsenter", f"--mount=/proc/{tools.pid}/ns/mnt"),
                    *("unshare", "-m", "--propagation", "private", "sh", "-c", ENTER, "enter"),
                    *(str(tools.root), START, "start", "-D", inside, "-b", "--register=no"),
                    *("--keep-unit", "--console=pipe", "--link-journal=no", f"--machine={NAME}"),
                    *("--network-veth", "--resolv-conf=off", "--timezone=off", *binds),
                ),
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=opened,
            )
        container = Container(process, log, time.monotonic())
        try:
            container.until_true("true", seconds=60)
            up = (("addr", "add", f"{HOST}/30", "dev", INTERFACE), ("link", "set", INTERFACE, "up"))
            for command in up:
                # The network is not the room's but everybody's here.
                subprocess.run(["ip", *command], check=True, timeout=10)
            yield container
        finally:
            container.stop()


def _made(shop: Workshop, path: Path) -> str:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return shop.inside(path)


def _mount(tools: Room, mounted: contextlib.ExitStack, *words: str) -> None:
    tools.run("mount", *words)
    mounted.callback(tools.run, "umount", words[-1], check=False)
