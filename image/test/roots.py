"""What the test image is made of, each cached under a key: Debian root, node, initrd.

The NixOS image takes kernel, userland and node from nixpkgs; here they are Debian's, so that what
both share - partitions, transfers, units, the node - can be booted where nothing is fetched from
a Nix cache. Rules of this file: a cached directory is never written again; all but the mmdebstrap
runs in a room (tests/image/toolroot.py) that leaves nothing mounted.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from appliance.steps.console import Status
from appliance.steps.debian import ensure_debian
from appliance.steps.environment import BUILD_LOCK
from appliance.steps.layout import APPLIANCE, ROOT, Layout, digest, made_atomically
from nodeapp.service.config import process_environment
from tests.image.toolroot import Room, room

HERE = Path(__file__).resolve().parent
BASE = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssl", "ca-certificates"),
    *("linux-image-cloud-amd64", "dracut-core", "systemd-boot-efi", "systemd-boot-tools"),
    *("systemd-container", "systemd-repart", "systemd-cryptsetup", "dosfstools", "btrfs-progs"),
    *("python3", "python3-venv", "libgmp10", "libgomp1", "restic", "gnupg", "xz-utils", "zstd"),
    *("openssh-client",),  # ssh-keygen: the first boot makes the host's keys
)
COMPILER = ("gcc", "g++", "libc6-dev", "libgmp-dev", "python3-dev")
NODE_PLACE = "/opt/fabstir-node"
DRIVERS = "erofs virtio_blk virtio_pci virtio_net btrfs vfat nls_ascii nls_cp437 dm_verity"
INITRD_MODULES = "systemd systemd-initrd systemd-repart systemd-veritysetup dm fabstir"
LEFT_OUT = "plymouth network crypt lvm mdraid dmraid multipath qemu i18n terminfo resume nvdimm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FETCH_SECONDS = 600.0
BUILD_SECONDS = 3000.0
"""llama.cpp is compiled once a version."""


def base_root(places: Layout, status: Status) -> Path:
    """Debian 13 with systemd, a kernel and what the node calls."""
    return ensure_debian(places, status, BASE)


def node_directory(places: Layout, status: Status) -> Path:
    """/opt/fabstir-node with its environment, built by set-up itself on the image's Debian."""
    base = base_root(places, status)
    locks = (ROOT / "requirements.lock", BUILD_LOCK, APPLIANCE / "setup.py")
    steps = sorted((APPLIANCE / "steps").glob("*.py"))
    target = places.cache / "appliance" / f"node-{digest(base.name, *locks, *steps)}"
    if target.is_dir():
        return target
    build = places.cache / "appliance" / "build"
    build.mkdir(parents=True, exist_ok=True)
    with made_atomically(target) as made:
        write_sources(made)
        binds = {NODE_PLACE: made, "/var/cache/fabstir-build": build}
        if CERTIFICATES.exists():
            # A company's own root certificate is needed to fetch.
            binds[str(CERTIFICATES)] = CERTIFICATES
        with room(base, binds) as inside:
            status.update("compiler")
            _apt(inside, "install", *COMPILER)
            status.update("environment of the node (llama.cpp is compiled once)")
            inside.run(
                *("env", "-C", NODE_PLACE, "python3", "-B", "-m", "appliance.setup"),
                *("--environment-only", "--portable"),
                timeout_seconds=BUILD_SECONDS,
                environment={"FABSTIR_CACHE": "/var/cache/fabstir-build", **_fetching()},
            )
            _strip(inside)
    return target


def write_sources(target: Path) -> None:
    """What is committed of the checkout, without its tests."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD", "--", *_sources()],
        capture_output=True,
        check=True,
        timeout=60,
    )
    subprocess.run(["tar", "-x", "-C", str(target)], input=packed.stdout, check=True, timeout=60)


def _sources() -> list[str]:
    return [
        "nodeapp",
        "appliance",
        "docs",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
    ]


def initrd_directory(places: Layout, status: Status) -> Path:
    """initrd, vmlinuz, and systemd-bless-boot, whose package would write to a boot loader."""
    base = base_root(places, status)
    dropins = APPLIANCE / "initrd"
    ours = sorted(
        path for place in (HERE / "initrd", dropins) for path in place.rglob("*") if path.is_file()
    )
    words = (DRIVERS, INITRD_MODULES, LEFT_OUT)
    target = places.cache / "appliance" / f"initrd-{digest(base.name, *words, *ours)}"
    if target.is_dir():
        return target
    kernel = next((base / "usr/lib/modules").iterdir()).name
    with made_atomically(target) as made:
        module = "/usr/lib/dracut/modules.d/95fabstir"
        binds = {f"{module}/{path.name}": path for path in (HERE / "initrd").iterdir()}
        with room(base, {**binds, f"{module}/system": dropins, "/out": made}) as inside:
            status.update("initrd")
            inside.run(
                *("dracut", "--no-hostonly", "--reproducible", "--force", "--kver", kernel),
                *("--add", INITRD_MODULES, "--add-drivers", DRIVERS, "--omit", LEFT_OUT),
                *("--zstd", "/out/initrd"),
                timeout_seconds=FETCH_SECONDS,
            )
            inside.run("chmod", "0644", "/out/initrd")
            inside.run("cp", f"/boot/vmlinuz-{kernel}", "/out/vmlinuz")
            _apt(inside, "download", "systemd-boot")
            inside.run("sh", "-c", "dpkg -x /systemd-boot_*.deb /out/systemd-boot")
    return target


def _apt(inside: Room, verb: str, *packages: str) -> None:
    inside.run("apt-get", "-qq", "update", timeout_seconds=FETCH_SECONDS)
    inside.run(
        *("env", "-C", "/", "apt-get", "-qq", "-y", "--no-install-recommends", verb, *packages),
        timeout_seconds=FETCH_SECONDS,
        environment={"DEBIAN_FRONTEND": "noninteractive"},
    )


def _fetching() -> dict[str, str]:
    """How this machine's pip reaches its index; the certificate may be a company's own."""
    given = process_environment(("PIP_INDEX_URL",))
    return {**given, "PIP_CERT": str(CERTIFICATES)}


def _strip(inside: Room) -> None:
    """What nothing loads, and bytecode that a read-only /usr cannot make."""
    drop = "rm -rf .venv/lib/python3*/site-packages/pip .venv/bin/pip*"
    inside.run("sh", "-c", f"cd {NODE_PLACE} && {drop}")
    compile_bytecode(inside, f"{NODE_PLACE}/.venv/lib")


def compile_bytecode(inside: Room, *places: str) -> None:
    """Tied to the sources' content: times differ from image to image."""
    inside.run(
        *("python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *places),
        timeout_seconds=FETCH_SECONDS,
    )


def free(path: Path) -> None:
    """Remove a tree if it is there."""
    shutil.rmtree(path, ignore_errors=True)
