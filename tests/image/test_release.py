"""A release is made of a disk and the UKI that boots it, the same bytes every time, and what the
updater takes from a repository by TUF is what was made.
"""

import hashlib
import json
import lzma
import random
import shutil
import subprocess

import pytest

from appliance.disk_image import Damaged, check_bootable, usrhash
from appliance.release import MANIFEST, SIGNATURE, SUMS, XZ, ZSTD, Files, check, pack, publish, sign
from nodeapp.updater.channel import Channel
from tests.fakes.release_repository import published
from tests.image.disks import content_digest
from tests.image.flashed import duplicate, entries
from tests.image.releases import SIGNER

pytestmark = pytest.mark.timeout(180)


def test_a_release_has_its_files_and_their_sums(release):
    files = Files("0.2.0", usrhash((release / "fabstir-node_0.2.0.efi").read_bytes()))
    names = {files.uki, files.store, files.hashes, files.flash, MANIFEST, SUMS}
    assert {path.name for path in release.iterdir()} == names | {SIGNATURE}
    listed = dict(line.split("  ")[::-1] for line in (release / SUMS).read_text().splitlines())
    assert set(listed) == names - {SUMS}
    for name, digest in listed.items():
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest
    manifest = json.loads((release / MANIFEST).read_text())
    assert (manifest["version"], manifest["usrhash"]) == ("0.2.0", files.root)


def test_the_two_parts_verify_under_the_hash_of_the_uki_and_hold_nothing_behind_it(
    factory, release
):
    root = usrhash((release / "fabstir-node_0.2.0.efi").read_bytes())
    for part in ("store", "verity"):
        (packed,) = release.glob(f"*.{part}.raw.xz")
        plain = lzma.decompress(packed.read_bytes())
        assert len(plain) < 4 << 20  # the slot has 2 GiB
        (factory.base / f"{part}.raw").write_bytes(plain)
    factory.inside.run("veritysetup", "verify", "/job/store.raw", "/job/verity.raw", root)


def test_two_builds_of_a_release_are_the_same_bytes(factory, release):
    again = factory.make("0.2.0", "again")
    disks = [content_digest(path.parent / "disk.raw") for path in (release, again)]
    assert disks[0] == disks[1]

    def sums(place):
        # The flash image is packed from the disk, and the manifest names it.
        lines = (place / SUMS).read_text().splitlines()
        return [line for line in lines if not line.endswith((".raw.zst", MANIFEST))]

    assert len(sums(again)) == 3
    assert sums(again) == sums(release)


def test_what_packs_gives_the_same_bytes_on_any_number_of_processors(tmp_path):
    # Several blocks, so that there is something to do for a second thread.
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(1).randbytes(1 << 18) * 3)
    xz = [option for option in XZ if not option.startswith(("--threads", "--block-size"))]
    zstd = [option for option in ZSTD if not option.startswith("-T")]
    for command in ([*xz, "--block-size=256KiB", "--threads=+{}"], [*zstd, "-B256KiB", "-T{}"]):
        made = {
            subprocess.run(
                [*(word.format(count) for word in command), "-c", noise],
                capture_output=True,
                check=True,
                timeout=60,
            ).stdout
            for count in (1, 2)
        }
        assert len(made) == 1


def test_the_flash_image_is_the_disk(factory, release):
    with (factory.base / "flashed.raw").open("wb") as out:
        subprocess.run(
            ["zstd", "-dc", "--sparse", release / "fabstir-node_0.2.0.raw.zst"],
            stdout=out,
            check=True,
            timeout=60,
        )
    flashed = factory.base / "flashed.raw"
    assert content_digest(flashed) == content_digest(release.parent / "disk.raw")
    with flashed.open("rb") as disk:
        check_bootable(disk, (release / "fabstir-node_0.2.0.efi").read_bytes())


def test_the_boot_partition_reads_as_mtools_reads_it(factory, release):
    disk = release.parent / "disk.raw"
    read = ["mcopy", "-n", "-i", f"{disk}@@{1 << 20}", "::/EFI/Linux/fabstir-node_0.2.0.efi", "-"]
    done = subprocess.run(read, capture_output=True, check=True, timeout=20)
    assert entries(disk) == {"fabstir-node_0.2.0.efi": done.stdout}
    assert done.stdout == (release / "fabstir-node_0.2.0.efi").read_bytes()


def test_a_disk_and_a_uki_that_do_not_belong_together_are_no_release(factory, release, tmp_path):
    other = factory.make("0.3.0", "other")
    with pytest.raises(Damaged, match="no partitions for usrhash"):
        pack(
            "0.2.0",
            release.parent / "disk.raw",
            other / "fabstir-node_0.3.0.efi",
            tmp_path / "mixed",
        )
    with pytest.raises(Damaged, match=r"labelled fabstir-node_0\.3\.0, not fabstir-node_0\.4\.0"):
        pack(
            "0.4.0",
            other.parent / "disk.raw",
            other / "fabstir-node_0.3.0.efi",
            tmp_path / "misnamed",
        )


def test_a_store_with_one_bit_changed_is_no_release(factory, release, tmp_path):
    disk = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", release.parent / "disk.raw", disk], check=True)
    uki = release / "fabstir-node_0.2.0.efi"
    with disk.open("r+b") as file:
        slot = check_bootable(file, uki.read_bytes())
        for part in (slot.store.offset + 500_000, slot.hashes.offset + 5000):
            file.seek(part)
            (byte,) = file.read(1)
            file.seek(part)
            file.write(bytes([byte ^ 1]))
            file.flush()
            with pytest.raises(Damaged, match=r"not what its hash says|has root hash"):
                check_bootable(file, uki.read_bytes())
            file.seek(part)
            file.write(bytes([byte]))
    with pytest.raises(Damaged, match="is not empty"):
        pack("0.2.0", disk, uki, release)


def test_the_signature_is_of_the_release_key_and_the_same_every_time(factory, release, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    release = duplicate(release, "signed")
    signed = []
    for _ in range(2):
        sign(release, SIGNER, factory.base / "gpg")
        signed.append((release / SIGNATURE).read_bytes())
    subprocess.run(["gpgconf", "--homedir", factory.base / "gpg", "--kill", "all"], check=False)
    assert signed[0] == signed[1]
    at = f"/job/{release.relative_to(factory.base)}"
    factory.inside.run(
        "gpg", "--no-default-keyring", "--keyring", "/job/keyring.gpg", "--verify",
        f"{at}/{SIGNATURE}", f"{at}/{SUMS}",
    )  # fmt: skip


async def test_the_updater_is_offered_the_release_and_its_files_are_the_signed_ones(
    factory, release, tmp_path
):
    with published(tmp_path) as there:
        publish(release, tmp_path / "repository", tmp_path / "keys", "stable")
        channel = Channel(there.url, "stable", there.root, tmp_path / "tuf")
        offered = await channel.newest("sysupdate")
    assert offered is not None
    assert offered.version == "0.2.0"
    names = [artefact.path.split("/")[-1] for artefact in offered.artefacts]
    root = usrhash((release / "fabstir-node_0.2.0.efi").read_bytes())
    assert names == list(Files("0.2.0", root).updating)
    for artefact, name in zip(offered.artefacts, names, strict=True):
        body = (release / name).read_bytes()
        assert (artefact.size_bytes, artefact.sha256) == (
            len(body),
            hashlib.sha256(body).hexdigest(),
        )


def test_a_release_that_was_changed_after_it_was_packed_is_not_published(release, tmp_path):
    copy = tmp_path / "release"
    shutil.copytree(release, copy)
    check(copy)
    with (copy / MANIFEST).open("a") as file:
        file.write("\n")
    with pytest.raises(Damaged, match=r"manifest\.json is not what SHA256SUMS says"):
        publish(copy, tmp_path / "repository", tmp_path / "keys", "stable")
