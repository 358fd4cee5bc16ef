"""The disk: the committed definitions are those that Nix renders, and the real systemd-repart
makes of them a flash image, twice the same bytes, and a node's disk at the first boot.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from appliance.disk_image import partitions
from tests.image.disks import content_digest
from tests.image.toolroot import room
from tests.nix.expressions import evaluated, needs_nix

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = ROOT / "appliance" / "repart"
VERSION = "0.1.0"
SEED = "0867da16-f251-457d-a9e8-c31f9a3c220b"
MIB = 1 << 20
RENDER = (
    "let r = sizes: import ./nixos-modules/lib/repart.nix { inherit sizes; };"
    " sizes = import ./image/sizes.nix; state = import ./nixos-modules/lib/state.nix; in"
    " { inherit sizes; inherit (state) fstab; files = builtins.mapAttrs (_: s: (r s).files) sizes; }"
)


@pytest.fixture(scope="module")
def rendered():
    return evaluated(RENDER)


def committed(part):
    return {path.name: path.read_text() for path in (DEFINITIONS / part).iterdir()}


@needs_nix
def test_the_committed_definitions_are_those_that_nix_renders(rendered):
    assert rendered["files"]["small"] == {part: committed(part) for part in ("build", "device")}
    assert rendered["fstab"] == (DEFINITIONS / "state.fstab").read_text()


@needs_nix
def test_the_profiles_differ_in_sizes_only(rendered):
    def without_sizes(files):
        return {
            (part, name): [line for line in text.splitlines() if not line.startswith("Size")]
            for part, texts in files.items()
            for name, text in texts.items()
        }

    small, cuda = (without_sizes(rendered["files"][name]) for name in ("small", "cuda"))
    assert small == cuda
    assert rendered["files"]["small"] != rendered["files"]["cuda"]


@pytest.mark.parametrize("profile", ["small", "cuda"])
@needs_nix
def test_what_a_slot_needs_it_has(rendered, profile):
    sizes = rendered["sizes"][profile]
    assert sizes["esp"] >= 512  # under OVMF a smaller FAT32 was not bootable
    # SHA-256 of every 4 KiB block, of every block of those, and so on: 1/128 and 1/127 of that.
    assert sizes["verity"] > sizes["store"] / 127
    assert len(f"fabstir-node_{'9' * 3}.{'9' * 3}.{'9' * 3}-rc.99") <= 36  # what GPT has room for


def build(inside, disk, tree="/job/tree"):
    inside.run(
        "systemd-repart", "--empty=create", "--size=auto", "--offline=yes", "--dry-run=no",
        "--sector-size=512",
        f"--root={tree}", f"--seed={SEED}", "--definitions=/definitions", f"/job/{disk}",
        environment={"SOURCE_DATE_EPOCH": "1700000000"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(debian_tools, tmp_path_factory):
    """A directory with a small operating system to pack, and a room to pack it in."""
    base = tmp_path_factory.mktemp("repart")
    (base / "tree/etc").mkdir(parents=True)
    (base / "tree/etc/os-release").write_text(f"ID=fabstir-node\nIMAGE_VERSION={VERSION}\n")
    (base / "tree/nix/store").mkdir(parents=True)
    (base / "tree/nix/store/program").write_bytes(os.urandom(3_000_000))
    shutil.copytree(DEFINITIONS / "build", base / "definitions")
    packed = base / "definitions" / "21-store-a.conf.d"
    packed.mkdir()
    (packed / "contents.conf").write_text("[Partition]\nCopyFiles=/nix:/nix\n")
    binds = {
        "/job": base,
        "/definitions": base / "definitions",
        "/device": DEFINITIONS / "device",
    }
    with room(debian_tools, binds) as inside:
        build(inside, "first.raw")
        yield inside, base


def by_type(disk):
    with disk.open("rb") as file:
        found = {}
        for one in partitions(file):
            found.setdefault(one.type, []).append(one)
        return found


def test_the_flash_image_has_its_parts_and_two_builds_are_the_same_bytes(job):
    inside, base = job
    found = by_type(base / "first.raw")
    assert {kind: [(p.label, p.size // MIB) for p in ps] for kind, ps in found.items()} == {
        "esp": [("esp", 512)],
        "usr-verity": [(f"fabstir-node_{VERSION}", 32)],
        "usr": [(f"fabstir-node_{VERSION}", 2048)],
        "basic-data": [("CONFIG", 64)],
    }
    # The kernel finds a slot by the hash on its command line.
    (hashes,), (store,) = found["usr-verity"], found["usr"]
    with (base / "first.raw").open("rb") as disk:
        for part, name in ((store, "store"), (hashes, "verity")):
            disk.seek(part.offset)
            (base / name).write_bytes(disk.read(4 * MIB))
    root_hash = store.uuid.hex + hashes.uuid.hex
    inside.run("veritysetup", "verify", "/job/store", "/job/verity", root_hash)
    build(inside, "second.raw")
    assert content_digest(base / "first.raw") == content_digest(base / "second.raw")


def slots_of(disk):
    found = by_type(disk)
    return found["usr"], found["usr-verity"]


def apply(inside, loop):
    done = inside.run(
        "systemd-repart", "--dry-run=no", "--json=short", "--definitions=/device", loop
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


def test_the_first_boot_makes_slot_b_and_the_state_and_the_second_changes_nothing(job):
    inside, base = job
    disk = base / "node.raw"
    inside.run("cp", "--sparse=always", "/job/first.raw", "/job/node.raw")
    os.truncate(disk, 8 << 30)
    loop = inside.run("losetup", "-f", "--show", "-P", "/job/node.raw").stdout.strip()
    try:
        made = {
            row["file"].split("/")[-1] for row in apply(inside, loop) if row["activity"] == "create"
        }
        assert made == {"30-verity-b.conf", "31-store-b.conf", "60-state.conf"}
        before = content_digest(disk)
        assert {row["activity"] for row in apply(inside, loop)} == {"unchanged"}
        assert content_digest(disk) == before
        # A copy on a larger disk: the state takes what is there, the slots stay as they are.
        slots, (state,) = slots_of(disk), by_type(disk)["linux-generic"]
        os.truncate(disk, 9 << 30)
        inside.run("losetup", "--set-capacity", loop)
        apply(inside, loop)
        assert slots_of(disk) == slots
        assert by_type(disk)["linux-generic"][0].size == state.size + (1 << 30)
        found = by_type(disk)
        for kind in ("usr", "usr-verity"):
            slot_a, slot_b = found[kind]
            assert (slot_a.label, slot_b.label) == (f"fabstir-node_{VERSION}", "_empty")
            assert slot_a.size == slot_b.size
        (state,) = found["linux-generic"]
        assert state.label == "fabstir-state"
        assert state.size > 3 << 30
        inside.run("mkdir", "-p", "/mnt/state")
        inside.run("mount", "-o", f"loop,offset={state.offset}", loop, "/mnt/state")
        listed = inside.run("btrfs", "subvolume", "list", "/mnt/state").stdout
        inside.run("umount", "/mnt/state")
        names = {line.split()[-1] for line in listed.splitlines()}
        assert names == {"@state", "@keys", "@models", "@snapshots", "@log"}
    finally:
        inside.run("losetup", "-d", loop, check=False)
