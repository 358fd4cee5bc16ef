"""The files of an image's release: `python -m appliance.release pack|sign|publish`.

    pack     from a finished disk and its UKI; the same bytes every time, no key needed
    sign     SHA256SUMS.gpg, by the key whose public half is in the running images
    publish  into the TUF repository that nodes read (appliance/publish.py)

Beside the UKI a release has the slot's two partitions without what lies behind their contents, and
the whole disk to flash. Rules of this file: `pack` needs the standard library, xz and zstd only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.disk_image import CHUNK, Damaged, Slot, check_bootable, superblock, usrhash

NAME = "fabstir-node"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.gpg"
MANIFEST = "manifest.json"
FORMAT = 1
# More than one thread gives the same bytes as one: blocks of a fixed size, packed one by one. xz
# checks a download once more while it is written into a slot. The store is packed already (erofs
# with lz4), so a higher level would only take longer.
XZ = ("xz", "--check=sha256", "--block-size=64MiB", f"--threads=+{os.cpu_count() or 1}")
ZSTD = ("zstd", "-q", "--check", "-T0")


@dataclass(frozen=True, slots=True)
class Files:
    """Names of a release's files."""

    version: str
    root: str

    @property
    def uki(self) -> str:
        """Stored last by an update, so that nothing boots a slot that is not whole."""
        return f"{NAME}_{self.version}.efi"

    @property
    def store(self) -> str:
        """systemd-sysupdate takes the partition's identifier from the name."""
        return f"{NAME}_{self.version}_{self.root[:32]}.store.raw.xz"

    @property
    def hashes(self) -> str:
        """As store."""
        return f"{NAME}_{self.version}_{self.root[32:]}.verity.raw.xz"

    @property
    def flash(self) -> str:
        """The whole disk: for a person, not for an update."""
        return f"{NAME}_{self.version}.raw.zst"

    @property
    def updating(self) -> tuple[str, ...]:
        """What a node downloads."""
        return (SUMS, SIGNATURE, self.hashes, self.store, self.uki)


def pack(  # noqa: PLR0913 (each is one thing that a release says or holds)
    version: str,
    disk: Path,
    uki: Path,
    out: Path,
    *,
    least_from: str = "",
    notes: str = "",
    flash: bool = True,
    level: int = 6,
) -> Files:
    """Make all files but the signature.

    Args:
        version: of the slot's label and the UKI.
        disk: raw image with slot A.
        uki: the one that boots it.
        out: made; must be empty.
        least_from: the oldest release that may update to this one.
        notes: for operators.
        flash: with the whole disk, for new machines.
        level: of xz, 0 to 9; a test that only wants the parts takes a low one.

    Raises:
        Damaged: disk and UKI do not belong together, or are not of this version.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise Damaged(f"{out} is not empty")
    kernel = uki.read_bytes()
    files = Files(version, usrhash(kernel))
    (out / files.uki).write_bytes(kernel)
    with disk.open("rb") as raw:
        slot = check_bootable(raw, kernel)
        _check_labels(slot, f"{NAME}_{version}")
        head = superblock(raw, slot.hashes.offset)
        _packed(raw, slot.store.offset, head.data_bytes, out / files.store, level)
        _packed(raw, slot.hashes.offset, head.hash_bytes, out / files.hashes, level)
    if flash:
        subprocess.run([*ZSTD, "-o", out / files.flash, disk], check=True)
    _write_manifest(out, files, least_from=least_from, notes=notes)
    sums = (f"{_sha256(path)}  {path.name}\n" for path in sorted(out.iterdir()))
    (out / SUMS).write_text("".join(sums), "ascii")
    return files


def sign(release: Path, key: str, home: Path | None = None) -> None:
    """Detached signature of SHA256SUMS, by gpg; dated by SOURCE_DATE_EPOCH when that is set."""
    where = ("--homedir", str(home)) if home else ()
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    dated = ("--faked-system-time", f"{epoch}!") if epoch else ()
    target = ("--output", release / SIGNATURE, "--detach-sign", release / SUMS)
    subprocess.run(
        ["gpg", "--batch", "--yes", "--quiet", *where, *dated, "--local-user", key, *target],
        check=True,
    )


def publish(
    release: Path,
    repository: Path,
    keys: Path,
    channel: str,
    *,
    beside: Mapping[str, Sequence[Path]] | None = None,
) -> None:
    """Offer a signed release on a channel.

    Args:
        release: what `pack` and `sign` made; its sums are compared first.
        repository: of appliance/publish.py.
        keys: its keys.
        channel: as `stable`.
        beside: artefacts of other kinds of installation of the same version, as `venv`.
    """
    from appliance.tuf_repository import Repository

    check(release)
    manifest = json.loads((release / MANIFEST).read_text("utf-8"))
    files = Files(manifest["version"], manifest["usrhash"])
    Repository(repository, keys).add(
        channel,
        files.version,
        {"sysupdate": [release / name for name in files.updating], **(beside or {})},
        notes=manifest["notes"],
        least_from=manifest["least_from"],
    )


def check(release: Path) -> None:
    """That every file is what SHA256SUMS says, and every packed one is whole.

    Raises:
        Damaged: names the first that is not.
    """
    for line in (release / SUMS).read_text("ascii").splitlines():
        wanted, _, name = line.partition("  ")
        if _sha256(release / name) != wanted:
            raise Damaged(f"{name} is not what {SUMS} says")
        if (
            name.endswith(".xz")
            and subprocess.run(["xz", "-tq", release / name], check=False).returncode
        ):
            raise Damaged(f"{name} is not whole")


def _check_labels(slot: Slot, label: str) -> None:
    for one in (slot.store, slot.hashes):
        if one.label != label:
            raise Damaged(f"the slot is labelled {one.label}, not {label}")


def _packed(disk: BinaryIO, offset: int, size: int, target: Path, level: int) -> None:
    with target.open("wb") as out:
        child = subprocess.Popen([*XZ, f"-{level}", "-c"], stdin=subprocess.PIPE, stdout=out)
        if child.stdin is None:
            raise Damaged("xz takes no input")
        disk.seek(offset)
        left = size
        with child.stdin as pipe:
            while left:
                piece = disk.read(min(CHUNK, left))
                if not piece:
                    raise Damaged(f"the disk ends {left} bytes before {target.name} does")
                pipe.write(piece)
                left -= len(piece)
        if child.wait() != 0:
            raise Damaged(f"xz ended with {child.returncode}")


def _write_manifest(out: Path, files: Files, *, least_from: str, notes: str) -> None:
    """What the release is, and each file that is there so far."""
    listed = {
        path.name: {"sha256": _sha256(path), "size_bytes": path.stat().st_size}
        for path in sorted(out.iterdir())
    }
    manifest = {
        "format": FORMAT,
        "version": files.version,
        "usrhash": files.root,
        "least_from": least_from,
        "notes": notes,
        "files": listed,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m appliance.release", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="the files of a release from a disk and its UKI")
    packing.add_argument("--version", required=True)
    packing.add_argument("--disk", type=Path, required=True)
    packing.add_argument("--uki", type=Path, required=True)
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--least-from", default="")
    packing.add_argument("--notes", default="")
    packing.add_argument("--no-flash", action="store_true", help="an update only")
    signing = verbs.add_parser("sign", help="SHA256SUMS.gpg")
    signing.add_argument("release", type=Path)
    signing.add_argument("--key", required=True, help="fingerprint or address")
    signing.add_argument("--homedir", type=Path)
    publishing = verbs.add_parser("publish", help="into the repository that nodes read")
    publishing.add_argument("release", type=Path)
    publishing.add_argument("--repository", type=Path, required=True)
    publishing.add_argument("--keys", type=Path, required=True)
    publishing.add_argument("--channel", default="stable")
    publishing.add_argument("--venv", type=Path, help="the same version for plain Linux")
    publishing.add_argument(
        "--kind", nargs="+", action="append", default=[], metavar="KIND FILE", help="as --venv"
    )
    return parser


def _publish(given: argparse.Namespace) -> None:
    from tuf.api.exceptions import RepositoryError

    from appliance.channels import NotPublished, kinds_of
    from nodeapp.core.errors import InvalidRequest

    venv = [["venv", given.venv]] if given.venv else []
    try:
        beside = kinds_of([*given.kind, *venv])
        publish(given.release, given.repository, given.keys, given.channel, beside=beside)
    except (NotPublished, RepositoryError, InvalidRequest) as error:
        raise Damaged(str(error)) from error


def main() -> int:
    """One verb; 1 when it cannot be done, with the reason."""
    given = _parser().parse_args()
    try:
        if given.verb == "pack":
            pack(
                given.version,
                given.disk,
                given.uki,
                given.out,
                least_from=given.least_from,
                notes=given.notes,
                flash=not given.no_flash,
            )
        elif given.verb == "sign":
            sign(given.release, given.key, given.homedir)
        else:
            _publish(given)
    except (Damaged, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
