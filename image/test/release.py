"""One version of the test image: verified /usr, UKI, flash disk, update artefacts.

All three stages are systemd's: repart makes /usr and its hash tree, ukify ties the kernel to the
root hash, repart puts the disk together. Source: systemd.image-policy(7), repart.d(5).
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.release import pack, sign
from appliance.steps.layout import APPLIANCE
from image.test.tree import DATA_LABEL
from tests.image.toolroot import Room

SEED = "7f6a1c2e-5d0b-4c6f-9a57-2f9f0c1f3b77"
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
BUILD_SECONDS = 600.0
NAME = "fabstir-node"
COMMAND_LINE = (
    *("root=tmpfs", "mount.usrfstype=erofs", "mount.usrflags=ro", "rw", "panic=10"),
    *("console=ttyS0,115200", "systemd.show_status=no", "systemd.firstboot=no"),
)
STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
BOOT = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
LAYOUT = APPLIANCE / "repart" / "build"
CONTENT = {
    "10-esp.conf": "/job/esp:/",
    "21-store-a.conf": "/usr:/",
}
"""What the committed definitions do not say: where the files are."""
KEY = "campaign@example.org"
PACKING = 1


@dataclass(frozen=True, slots=True)
class Image:
    """The files of one version."""

    version: str
    roothash: str
    store: Path
    verity: Path
    uki: Path

    @property
    def store_uuid(self) -> str:
        """Of the data partition: the first half of the root hash."""
        return str(uuid.UUID(self.roothash[:32]))

    @property
    def verity_uuid(self) -> str:
        """Of the hash partition: the second half."""
        return str(uuid.UUID(self.roothash[32:]))


@dataclass(frozen=True, slots=True)
class Workshop:
    """A room over the tool root in which the campaign's directory is /job."""

    tools: Room
    job: Path

    def inside(self, path: Path) -> str:
        """The same file as the tools see it."""
        return f"/job/{path.relative_to(self.job)}"

    def run(self, *command: str | Path) -> str:
        """Run a tool; its output."""
        done = self.tools.run(*command, timeout_seconds=BUILD_SECONDS, environment=EPOCH)
        return done.stdout


def make_image(shop: Workshop, tree: Path, initrd: Path, version: str) -> Image:
    """Disk with slot A, and the UKI that starts it, from a tree that bears its version's name.

    The boot partition holds the UKI, whose command line holds the root hash: it is put off, and
    filled by `make_disk`.
    """
    out = shop.job / "images" / version
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (shop.job / "esp").mkdir(exist_ok=True)
    disk = out / "disk.raw"
    said = shop.run(
        *("systemd-repart", "--empty=create", "--size=auto", "--split=yes", "--offline=yes"),
        *("--dry-run=no", "--json=short", f"--seed={SEED}", "--defer-partitions=esp"),
        *(f"--root={shop.inside(tree)}", f"--definitions={_layout(shop)}", shop.inside(disk)),
    )
    roothash = next(part["roothash"] for part in json.loads(said) if part.get("roothash"))
    for name in ("initrd", "vmlinuz"):
        shutil.copy(initrd / name, out / name)
    uki = out / f"{NAME}_{version}.efi"
    shop.run(
        *("ukify", "build", f"--linux={shop.inside(out / 'vmlinuz')}", "--uname=test"),
        *(f"--initrd={shop.inside(out / 'initrd')}", f"--stub={STUB}"),
        f"--os-release=@{shop.inside(tree / 'usr/lib/os-release')}",
        f"--cmdline=usrhash={roothash} {' '.join(COMMAND_LINE)}",
        f"--output={shop.inside(uki)}",
    )
    return Image(version, roothash, out / "disk.store.raw", out / "disk.verity.raw", uki)


def _layout(shop: Workshop) -> str:
    """The committed definitions with drop-ins that name the files; where the tools find them."""
    directory = shop.job / "layout"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(LAYOUT, directory)
    for name, source in CONTENT.items():
        dropin = directory / f"{name}.d"
        dropin.mkdir()
        (dropin / "content.conf").write_text(f"[Partition]\nCopyFiles={source}\n")
    return shop.inside(directory)


def make_disk(shop: Workshop, image: Image, size_bytes: int) -> Path:
    """What is written to a flash drive, on a drive of this size."""
    esp = shop.job / "esp"
    shutil.rmtree(esp, ignore_errors=True)
    for place in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        (esp / place).parent.mkdir(parents=True)
        shop.run("cp", BOOT, shop.inside(esp / place))
    (esp / "EFI/Linux").mkdir()
    (esp / "loader").mkdir()
    shutil.copy(image.uki, esp / "EFI/Linux")
    (esp / "loader/loader.conf").write_text("timeout 0\n")
    disk = image.store.with_name("disk.raw")
    shop.run(
        *("systemd-repart", "--offline=yes", "--dry-run=no", f"--seed={SEED}"),
        *(f"--definitions={_layout(shop)}", shop.inside(disk)),
    )
    with disk.open("r+b") as file:
        file.truncate(size_bytes)
    return disk


def make_release(image: Image, out: Path, home: Path) -> Path:
    """What an update downloads, packed and signed as a release is; where it lies.

    Args:
        image: made by `make_disk`: the release is taken from the disk.
        out: made anew.
        home: of gpg, with the campaign's key.
    """
    shutil.rmtree(out, ignore_errors=True)
    disk = image.store.with_name("disk.raw")
    notes = f"release {image.version}"
    pack(image.version, disk, image.uki, out, notes=notes, flash=False, level=PACKING)
    sign(out, KEY, home)
    return out


def make_key(shop: Workshop, home: Path) -> Path:
    """A signing key of this campaign and its public half."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700, parents=True)
    gpg = ("gpg", "--homedir", shop.inside(home), "--batch", "--quiet")
    shop.run(*gpg, "--passphrase", "", "--quick-gen-key", KEY, "ed25519", "sign")
    keyring = home / "import-pubring.gpg"
    shop.run(*gpg, "--output", shop.inside(keyring), "--export")
    return keyring


def make_data_disk(shop: Workshop, disk: Path, files: Sequence[tuple[Path, str]]) -> None:
    """Files by their place on the disk beside the appliance's."""
    content = shop.job / "data"
    shutil.rmtree(content, ignore_errors=True)
    for source, place in files:
        target = content / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    shop.run("chmod", "-R", "a+rX", shop.inside(content))
    disk.unlink(missing_ok=True)
    shop.run("mkfs.erofs", "-L", DATA_LABEL, shop.inside(disk), shop.inside(content))


def write_config(shop: Workshop, disk: Path, directory: Path) -> None:
    """Put an operator's files on the disk's CONFIG partition, as any computer does it."""
    said = json.loads(shop.run("sfdisk", "--json", shop.inside(disk)))["partitiontable"]
    parts = {part.get("name"): part for part in said["partitions"]}
    offset = int(parts["CONFIG"]["start"]) * int(said.get("sectorsize", 512))
    drive = f"{shop.inside(disk)}@@{offset}"
    for path in sorted(directory.iterdir()):
        shop.run("mcopy", "-o", "-s", "-i", drive, shop.inside(path), "::/")
