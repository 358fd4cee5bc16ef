"""Releases of a small image, made by the committed definitions and the real tools.

The operating system in it is a megabyte of noise; its kernel is the stub itself, which is a
whole PE file as ukify wants one. All else is as on the appliance: /usr under verity, its hash on
the UKI's command line, the UKI on the disk's ESP.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from appliance.release import SIGNATURE, pack
from tests.image.toolroot import Room

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = ROOT / "appliance" / "repart"
SEED = "0867da16-f251-457d-a9e8-c31f9a3c220b"
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
STORE_BYTES = 1_000_000
SIGNER = "release@example.org"


@dataclass
class Factory:
    """Makes releases below `base`, which is /job in the room."""

    inside: Room
    base: Path
    store_bytes: int = STORE_BYTES

    def make(self, version: str, name: str = "", *, flash: bool = False) -> Path:
        """The release's directory, packed, not signed; equal arguments make equal bytes."""
        place = self.base / (name or version)
        (place / "tree/etc").mkdir(parents=True)
        (place / "tree/etc/os-release").write_text(f"ID=fabstir-node\nIMAGE_VERSION={version}\n")
        (place / "tree/nix/store").mkdir(parents=True)
        noise = random.Random(version).randbytes(self.store_bytes)
        (place / "tree/nix/store/program").write_bytes(noise)
        for path in (place / "tree").rglob("*"):
            os.utime(path, (0, 0))
        shutil.copytree(DEFINITIONS / "build", place / "definitions")
        self._contents(place, "21-store-a", "/nix:/nix")
        root = self._repart(place, "--empty=create", "--size=auto", "--defer-partitions=esp")
        self._uki(place, version, root)
        os.utime(place / f"tree/esp/{version}.efi", (0, 0))
        self._contents(place, "10-esp", f"/esp/{version}.efi:/EFI/Linux/fabstir-node_{version}.efi")
        self._repart(place)
        uki = place / f"tree/esp/{version}.efi"
        pack(version, place / "disk.raw", uki, place / "release", flash=flash, level=0)
        return place / "release"

    def key(self) -> Path:
        """A home of gpg with a release key; its public half is beside it, as keyring.gpg."""
        home = self.base / "gpg"
        home.mkdir(mode=0o700)
        gpg = ("gpg", "--homedir", "/job/gpg", "--batch", "--quiet")
        self.inside.run(
            *gpg, "--passphrase", "", "--faked-system-time", "1600000000!",
            "--quick-gen-key", SIGNER, "ed25519", "sign", "never",
        )  # fmt: skip
        self.inside.run(*gpg, "-o", "/job/keyring.gpg", "--export")
        self._stop_agent()
        return home

    def sign(self, release: Path) -> None:
        """By the key of `key`; in the room, whose gpg made it."""
        at = f"/job/{release.relative_to(self.base)}"
        self.inside.run(
            "gpg", "--homedir", "/job/gpg", "--batch", "--yes", "--quiet",
            "--local-user", SIGNER, "--output", f"{at}/{SIGNATURE}", "--detach-sign",
            f"{at}/SHA256SUMS",
        )  # fmt: skip
        self._stop_agent()

    def _stop_agent(self) -> None:
        # gpg starts one, which would outlive the room.
        self.inside.run("gpgconf", "--homedir", "/job/gpg", "--kill", "all")

    def _contents(self, place: Path, partition: str, copied: str) -> None:
        more = place / "definitions" / f"{partition}.conf.d"
        more.mkdir()
        (more / "contents.conf").write_text(f"[Partition]\nCopyFiles={copied}\n")

    def _repart(self, place: Path, *options: str) -> str:
        at = f"/job/{place.name}"
        done = self.inside.run(
            "systemd-repart", "--offline=yes", "--dry-run=no", "--json=short", "--sector-size=512", *options,
            f"--root={at}/tree", f"--seed={SEED}", f"--definitions={at}/definitions",
            f"{at}/disk.raw", environment=EPOCH,
        )  # fmt: skip
        rows = json.loads(next(line for line in done.stdout.splitlines() if line[:1] == "["))
        return next((row["roothash"] for row in rows if row.get("roothash")), "")

    def _uki(self, place: Path, version: str, root: str) -> None:
        at = f"/job/{place.name}/tree"
        (place / "tree/esp").mkdir()
        self.inside.run(
            "ukify", "build", f"--linux={STUB}", f"--stub={STUB}", "--uname=6.12.0",
            f"--os-release=@{at}/etc/os-release", f"--cmdline=quiet usrhash={root}",
            f"--output={at}/esp/{version}.efi", environment=EPOCH,
        )  # fmt: skip
