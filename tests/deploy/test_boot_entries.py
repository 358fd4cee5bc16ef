"""Root never lets the boot loader have an entry whose slot is gone, whatever the updater asks."""

import struct
from dataclasses import replace

import pytest

from nodeapp.core.errors import InvalidRequest
from nodeapp.updater import helper
from nodeapp.updater.boot_entries import check_startable, forget_others, version_of
from nodeapp.updater.helper import Tools, prepare

ROOTS = {"0.1.0": "1a" * 32, "0.2.0": "2b" * 32, "0.3.0": "3c" * 32}


def uki(command_line: str) -> bytes:
    """The least that has a section .cmdline: MZ, PE, one section."""
    body = command_line.encode() + b"\n\0"
    head = bytearray(512)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 64)
    head[64:68] = b"PE\0\0"
    struct.pack_into("<H", head, 70, 1)
    section = struct.pack("<8sIIII", b".cmdline", len(body), 0, len(body), len(head))
    head[88 : 88 + len(section)] = section
    return bytes(head) + body


@pytest.fixture
def machine(tmp_path):
    """0.2.0 runs from slot B, 0.1.0 is whole in slot A."""
    os_release = tmp_path / "os-release"
    os_release.write_text("IMAGE_VERSION=0.2.0\n")
    tools = Tools(
        sysupdate="/usr/bin/true",
        os_release=os_release,
        boot=tmp_path / "boot",
        partitions=tmp_path / "by-partuuid",
    )
    (tools.boot / "EFI" / "Linux").mkdir(parents=True)
    tools.partitions.mkdir()
    for version in ("0.1.0", "0.2.0"):
        install(tools, version)
    return tools


def install(tools, version, counter=""):
    root = ROOTS[version]
    entry = tools.boot / "EFI" / "Linux" / f"fabstir-node_{version}{counter}.efi"
    entry.write_bytes(uki(f"quiet usrhash={root} ro"))
    for half in (root[:32], root[32:]):
        parts = (half[:8], half[8:12], half[12:16], half[16:20], half[20:])
        (tools.partitions / "-".join(parts)).touch()


def overwrite(tools, version):
    """Its partitions are another release's."""
    for path in tools.partitions.glob(f"{ROOTS[version][:8]}-*"):
        path.unlink()


def entries(tools):
    return sorted(path.name for path in (tools.boot / "EFI" / "Linux").iterdir())


def test_the_release_that_is_whole_beside_the_running_one_can_be_preferred(machine):
    prepare("prefer", ["0.1.0"], machine)
    prepare("prefer", ["0.2.0"], machine)


def test_a_release_whose_slot_was_overwritten_cannot_be_preferred(machine):
    overwrite(machine, "0.1.0")
    with pytest.raises(InvalidRequest, match=r"0\.1\.0\.efi has lost its slot"):
        prepare("prefer", ["0.1.0"], machine)


@pytest.mark.parametrize("half", [0, 1])
def test_one_lost_partition_is_enough(machine, half):
    root = "4d" * 16 + "5e" * 16
    (machine.boot / "EFI/Linux/fabstir-node_0.1.0.efi").write_bytes(uki(f"usrhash={root}"))
    names = ["4d4d4d4d-4d4d-4d4d-4d4d-4d4d4d4d4d4d", "5e5e5e5e-5e5e-5e5e-5e5e-5e5e5e5e5e5e"]
    (machine.partitions / names[half]).touch()
    with pytest.raises(InvalidRequest, match="lost its slot"):
        prepare("prefer", ["0.1.0"], machine)
    (machine.partitions / names[1 - half]).touch()
    prepare("prefer", ["0.1.0"], machine)


@pytest.mark.parametrize("version", ["0.1.1", "0.1.0-rc.1", "0.1.00"])
def test_a_release_without_an_entry_cannot_be_preferred(machine, version):
    with pytest.raises(InvalidRequest, match="no boot entry"):
        check_startable(machine.boot, machine.partitions, version)


@pytest.mark.parametrize(
    "content",
    [b"", b"MZ", bytes(2000), uki("quiet")[:600], uki("quiet"), uki(f"usrhash={'../' * 22}x")],
)
def test_an_entry_that_is_no_uki_of_a_release_cannot_be_preferred(machine, content):
    (machine.boot / "EFI/Linux/fabstir-node_0.1.0.efi").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"no whole UKI|names 0 stores|names 1 stores"):
        prepare("prefer", ["0.1.0"], machine)


def test_before_a_slot_is_filled_the_boot_loader_knows_only_what_runs(machine):
    """And a preference that was set for the other release finds nothing: the running one boots."""
    (machine.boot / "EFI/Linux/windows.efi").touch()
    install(machine, "0.3.0", "+0-3")
    prepare("fill", ["0.3.0"], machine)
    assert entries(machine) == ["fabstir-node_0.2.0.efi", "windows.efi"]
    with pytest.raises(InvalidRequest, match="no boot entry"):
        prepare("prefer", ["0.1.0"], machine)


def test_what_a_trial_would_fall_back_to_is_not_overwritten(machine):
    names = machine.boot / "EFI" / "Linux"
    (names / "fabstir-node_0.2.0.efi").rename(names / "fabstir-node_0.2.0+2-1.efi")
    with pytest.raises(InvalidRequest, match=r"0\.2\.0 runs on trial"):
        forget_others(machine.boot, "0.2.0")
    assert entries(machine) == ["fabstir-node_0.1.0.efi", "fabstir-node_0.2.0+2-1.efi"]


def test_a_slot_is_left_alone_when_its_entry_cannot_be_removed(machine, tmp_path):
    ran = tmp_path / "ran"
    tool = tmp_path / "sysupdate"
    tool.write_text(f"#!/bin/sh\ntouch {ran}\n")
    tool.chmod(0o755)
    stubborn = machine.boot / "EFI/Linux/fabstir-node_0.1.0.efi"
    stubborn.unlink()
    stubborn.mkdir()
    tools = replace(machine, sysupdate=str(tool))
    with pytest.raises(OSError, match=r"0\.1\.0"):
        helper.run("fill", ["0.3.0"], tools)
    assert not ran.exists()
    stubborn.rmdir()
    helper.run("fill", ["0.3.0"], tools)
    assert ran.exists()


def test_nothing_older_takes_the_entries_away(machine):
    with pytest.raises(InvalidRequest, match="not newer"):
        helper.run("fill", ["0.1.0"], machine)
    assert len(entries(machine)) == 2


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("fabstir-node_0.2.0.efi", "0.2.0"),
        ("fabstir-node_0.2.0+3-0.efi", "0.2.0"),
        ("fabstir-node_0.2.0-rc.1+3.efi", "0.2.0-rc.1"),
        ("fabstir-node_0.2.0.efi.bak", ""),
        ("linux.efi", ""),
    ],
)
def test_whose_an_entry_is(name, version):
    assert version_of(name) == version
