"""The same image booted without a machine: systemd-nspawn over the verified /usr.

What firmware, boot loader, partitions and verity do is not in it; all else is: systemd, the units
with their hardening, the tree, the network. A container starts in seconds, so what needs the
processor's full speed is shown here. Rule of this file: everything is mounted in the room's own
mount namespace and unmounted at the end.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.layout import APPLIANCE
from image.test.machine import Answer, Silent
from image.test.release import Image, Workshop
from image.test.tree import DATA_PLACE, TEMPLATE, UID
from tests.image.nspawn import ENVIRONMENT, IN_GROUP, Running, in_new_namespace, nspawn, started
from tests.image.toolroot import Room, told

NAME = "fabstir"
HOST, GUEST = "10.77.0.1", "10.77.0.2"
INTERFACE = f"ve-{NAME}"
NETWORK = f"[Match]\nName=host0\n[Network]\nAddress={GUEST}/30\nGateway={HOST}\n"
SAFE_PLACE = "/var/cache/fabstir/repository"
POLL_SECONDS = 0.3
ENTER = """set -eu
cd "$1"
shift
mkdir -p outside
pivot_root . outside
exec chroot . sh -c "$@"
"""
"""A root of its own: in a chroot the kernel refuses user namespaces, which hardened units have."""
START = f"""{IN_GROUP}
umount -l /outside
[ -s /etc/machine-id ] || systemd-machine-id-setup 2>/dev/null
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Container:
    """A running one. Make it with `running_container`."""

    running: Running
    began: float

    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.began

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """One command inside.

        Raises:
            Silent: no answer in time.
        """
        try:
            done = told(self.running.inside(*command), ENVIRONMENT, seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise Silent(f"no answer to {command}") from error
        return Answer(0, done.returncode, done.stdout, done.stderr)

    def until_true(self, *command: str, seconds: float) -> Answer:
        """Repeat a command until it ends with 0."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Silent):
                answer = self.run(*command)
                if answer.code == 0:
                    return answer
            if self.running.process.poll() is not None or time.monotonic() > end:
                said = self.running.said()[-600:]
                raise Silent(f"not inside {seconds:g} s: {' '.join(command)}; {said}")
            time.sleep(POLL_SECONDS)


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
    with contextlib.ExitStack() as mounted:
        root = _root(shop, mounted, tree, {"/usr": image.store, DATA_PLACE: data})
        binds = _state(shop, mounted, state)
        shutil.chown(safe, UID, UID)
        binds |= {SAFE_PLACE: shop.inside(safe), "/run/media/CONFIG": shop.inside(config)}
        words = nspawn(
            *(root, f"--machine={NAME}", "--network-veth", "--timezone=off"),
            *(f"--bind={outside}:{inside}" for inside, outside in binds.items()),
        )
        enter = in_new_namespace(ENTER, "enter", str(tools.root), START, "start", *words)
        began = time.monotonic()
        command = ("nsenter", f"--mount=/proc/{tools.pid}/ns/mnt", *enter)
        with started(command, log) as running:
            container = Container(running, began)
            container.until_true("true", seconds=60)
            _link_up()
            yield container


def _root(
    shop: Workshop, mounted: contextlib.ExitStack, tree: Path, images: Mapping[str, Path]
) -> str:
    """A tmpfs filled from the template, and what is mounted over it; where the tools see it."""
    tools, root = shop.tools, _made(shop, shop.job / "container")
    _mount(tools, mounted, "-t", "tmpfs", "-o", "mode=0755", "tmpfs", root)
    tools.run("sh", "-c", f"cp -a {shop.inside(tree / TEMPLATE)}/. {root}/")
    # There is no screen here.
    tools.run("ln", "-s", "/dev/null", f"{root}/etc/systemd/system/fabstir-console.service")
    tools.run("sh", "-c", f"printf %s '{NETWORK}' > {root}/etc/systemd/network/10-host0.network")
    for place, image in images.items():
        tools.run("mkdir", "-p", f"{root}{place}")
        _mount(tools, mounted, "-o", "loop,ro", shop.inside(image), f"{root}{place}")
    return root


def _state(shop: Workshop, mounted: contextlib.ExitStack, state: Path) -> dict[str, str]:
    """Its subvolumes: place inside → where the tools see it."""
    binds = {}
    for name, place, options in subvolumes():
        binds[place] = f"/mnt/{name}"
        shop.tools.run("mkdir", "-p", binds[place])
        _mount(shop.tools, mounted, "-o", f"loop,{options}", shop.inside(state), binds[place])
    return binds


def _link_up() -> None:
    """Our end of the network, which is not the room's but everybody's here."""
    for words in (
        ("addr", "add", f"{HOST}/30", "dev", INTERFACE),
        ("link", "set", INTERFACE, "up"),
    ):
        subprocess.run(["ip", *words], check=True, timeout=10)


def _made(shop: Workshop, path: Path) -> str:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return shop.inside(path)


def _mount(tools: Room, mounted: contextlib.ExitStack, *words: str) -> None:
    tools.run("mount", *words)
    mounted.callback(tools.run, "umount", words[-1], check=False)
