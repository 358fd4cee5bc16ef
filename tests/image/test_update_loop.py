"""The update of a flashed disk by the real systemd-sysupdate with the committed definitions and a
real release: good ones are booted next, all others leave the disk as bootable as it was.
"""

import hashlib
import lzma
import subprocess

import pytest

from appliance.disk_image import Damaged, partitions
from appliance.release import SUMS, publish
from nodeapp.core.errors import InvalidRequest
from nodeapp.updater.helper import Tools, prepare
from tests.image.flashed import bootable_on, copied, duplicate, entries, flashed

MORE_PARTS = ("verity", "efi", "SHA256SUMS.gpg")
pytestmark = [pytest.mark.usefixtures("fuse"), pytest.mark.timeout(180)]
A = "fabstir-node_0.1.0.efi"
B = "fabstir-node_0.2.0+3-0.efi"


@pytest.fixture
def disk(factory):
    made = copied(factory.base / "first.raw", "disk.raw")
    yield made
    made.unlink()


def resigned(factory, release):
    """Sums and signature of what is in the directory now."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(release.iterdir())
        if not path.name.startswith("SHA256SUMS")
    ]
    (release / SUMS).write_text("".join(lines))
    factory.sign(release)


def run(factory, disk, release, version="0.2.0", *, check=False):
    with flashed(factory, disk.name) as machine:
        machine.offer(release.relative_to(factory.base))
        return machine.update(version, check=check)


def test_a_good_release_is_in_slot_b_and_both_slots_boot(factory, release, disk):
    assert bootable_on(disk) == {A}
    run(factory, disk, release, check=True)
    assert bootable_on(disk) == {A, B}
    wanted, stored = (release / "fabstir-node_0.2.0.efi").read_bytes(), entries(disk)[B]
    assert len(stored) == len(wanted)
    # systemd-pull leaves out runs of zeros; a kernel fills such holes, FUSE's vfat does not.
    assert all(one == other for one, other in zip(wanted, stored, strict=True) if one)


@pytest.mark.slow
def test_the_next_release_replaces_the_slot_that_does_not_run(factory, release, disk):
    run(factory, disk, release, check=True)
    newer = factory.make("0.3.0")
    factory.sign(newer)
    # Release 0.1.0 still runs (ProtectVersion=%A): 0.2.0 was never booted and makes room.
    run(factory, disk, newer, "0.3.0", check=True)
    assert bootable_on(disk) == {A, "fabstir-node_0.3.0+3-0.efi"}


def test_a_slot_that_is_being_overwritten_is_neither_booted_nor_gone_back_to(
    factory, release, disk, tmp_path
):
    """Release 2 runs, 3 goes into 1's slot, and there it ends: no snapshot, or the power."""
    run(factory, disk, release, check=True)
    prefer(disk, tmp_path / "before", "0.1.0")
    newer = factory.make("0.3.0", "third")
    factory.sign(newer)
    with flashed(factory, disk.name) as machine:
        machine.runs("0.2.0")
        machine.offer(newer.relative_to(factory.base))
        machine.verb("fill", "0.3.0")
    assert bootable_on(disk) == set(entries(disk)) == {B}
    with pytest.raises(InvalidRequest, match="no boot entry"):
        prefer(disk, tmp_path / "after", "0.1.0")
    prefer(disk, tmp_path / "running", "0.2.0")


def prefer(disk, place, version):
    """What root looks at first, shown as udev and a mount show it."""
    (place / "EFI" / "Linux").mkdir(parents=True)
    for name, body in entries(disk).items():
        (place / "EFI" / "Linux" / name).write_bytes(body)
    with disk.open("rb") as file:
        for one in partitions(file):
            (place / str(one.uuid)).touch()
    prepare("prefer", [version], Tools(boot=place, partitions=place))


@pytest.mark.slow
def test_the_same_update_again_changes_nothing_that_boots(factory, release, disk):
    run(factory, disk, release, check=True)
    run(factory, disk, release)
    assert bootable_on(disk) == {A, B}


@pytest.mark.parametrize(
    "part",
    ["store", "SHA256SUMS", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_PARTS)],
)
def test_a_tampered_part_is_refused(factory, release, disk, part):
    bad = duplicate(release, f"tampered-{part}")
    (victim,) = [
        path
        for path in bad.iterdir()
        if path.name == part or (f".{part}" in path.name and "SHA" not in path.name)
    ]
    body = bytearray(victim.read_bytes())
    # A signature's last bytes are the signature; before them are things that are not signed.
    body[-3 if part == "SHA256SUMS.gpg" else len(body) // 2] ^= 1
    victim.write_bytes(body)
    assert run(factory, disk, bad).returncode != 0
    assert bootable_on(disk) == {A}
    # The slot takes the good one afterwards.
    run(factory, disk, release, check=True)
    assert bootable_on(disk) == {A, B}


def test_a_truncated_part_is_refused(factory, release, disk):
    bad = duplicate(release, "truncated")
    (store,) = bad.glob("*.store.raw.xz")
    store.write_bytes(store.read_bytes()[:-1000])
    assert run(factory, disk, bad).returncode != 0
    assert bootable_on(disk) == {A}


def test_a_part_that_was_truncated_before_it_was_signed_is_not_published_and_never_boots(
    factory, release, disk, tmp_path
):
    bad = duplicate(release, "short")
    (store,) = bad.glob("*.store.raw.xz")
    store.write_bytes(store.read_bytes()[:-1000])
    resigned(factory, bad)
    with pytest.raises(Damaged, match="is not whole"):
        publish(bad, tmp_path / "repository", tmp_path / "keys", "stable")
    # systemd-pull 257 takes it; verity does not, and boot counting returns to A.
    run(factory, disk, bad)
    assert bootable_on(disk) == {A}


def test_a_release_that_is_larger_than_the_slot_is_refused(factory, release, disk):
    bad = duplicate(release, "large")
    (hashes,) = bad.glob("*.verity.raw.xz")
    hashes.write_bytes(lzma.compress(bytes(33 << 20)))  # the slot has 32 MiB
    resigned(factory, bad)
    assert run(factory, disk, bad).returncode != 0
    assert bootable_on(disk) == {A}


@pytest.mark.slow
def test_a_full_boot_partition_leaves_the_old_release_bootable(factory, release, disk):
    mtools = ["-i", f"{disk}@@{1 << 20}"]
    full = factory.base / "full"
    for index, size in enumerate((500 << 20, *(4 << 20,) * 4, *(1 << 20,) * 4, *(64 << 10,) * 16)):
        full.unlink(missing_ok=True)
        with full.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mcopy", *mtools, full, f"::/full{index}"], check=False, timeout=120)
    with flashed(factory, disk.name) as machine:
        machine.offer(release.relative_to(factory.base))
        machine.verb("fill", "0.2.0")
        assert machine.verb("arm", "0.2.0", check=False).returncode != 0
    assert bootable_on(disk) == {A}
    subprocess.run(["mdel", *mtools, "::/full0"], check=True, timeout=120)
    run(factory, disk, release, check=True)
    assert bootable_on(disk) == {A, B}


def test_an_older_release_is_not_even_looked_for(factory, release, disk):
    with pytest.raises(InvalidRequest, match=r"0\.0\.9 is not newer than 0\.1\.0, which runs"):
        run(factory, disk, release, "0.0.9")
    assert bootable_on(disk) == {A}
