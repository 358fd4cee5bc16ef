"""The flashed disk in a machine: what firmware, boot loader, verity, partitions and slots do.

Emulated, a Python program needs thirty times as long to start as it does outside, so the tree on
trial here is PROGRAMS; the whole tree is the container's part. Real programs all of them, judged by
the product's own health gate.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image.test.machine import HOST, Answer, Machine, Silent, running_machine
from image.test.release import Image, Workshop, write_config
from tests.benchmarks.appliance_world import (
    CLI,
    CONFIG,
    SLOW,
    appliance_world,
    running_channel,
)
from tests.benchmarks.appliance_world import write_config as write_files
from tests.benchmarks.report import Row, row

PROGRAMS = ("s5", "updater")
BOOT_SECONDS = 600.0
READY_SECONDS = 900.0
UPDATE_SECONDS = 1200.0
TRIAL_SECONDS = 1500.0
LOOK = ("systemctl", "is-active", "fabstir-node.service")
MARK = "/var/lib/fabstir/s5/kept-by-the-campaign"


def machine_rows(
    shop: Workshop, image: Image, releases: Mapping[str, Path], data: Path, logs: Path
) -> list[Row]:
    """Flash, boot, update, and a bad update, in one machine that is never touched."""
    logs.mkdir(parents=True, exist_ok=True)
    serial = shop.job / "serial.log"
    serial.unlink(missing_ok=True)
    disk = shop.job / "flashed.raw"
    shop.run(
        "cp", "--sparse=always", shop.inside(image.store.with_name("disk.raw")), shop.inside(disk)
    )
    disk.with_suffix(".vars").unlink(missing_ok=True)
    rows: list[Row] = []
    try:
        with (
            appliance_world(shop.job / "w") as world,
            running_channel(shop.job / "channel", HOST) as channel,
        ):
            config = shop.job / "config"
            more: dict[str, Mapping[str, object]] = {**SLOW, "node": {"processes": list(PROGRAMS)}}
            write_files(world, config, outside=HOST, inside="127.0.0.1", channel=channel, **more)
            write_config(shop, disk, config)
            with running_machine(shop, disk, serial, data=data, forwards={}) as one:
                _first_boot(one, rows)
                channel.publish(releases["0.2.0"])
                _good_update(one, rows)
                channel.publish(releases["0.3.0"])
                _bad_update(one, rows)
                one.run("systemctl", "poweroff")
                one.until_off(BOOT_SECONDS)
    except (Silent, AssertionError) as error:
        # What was shown counts; what was not is a row, too.
        rows.append(row("machine: steps that were not reached", 1, "", "== 0", str(error)[-300:]))
    finally:
        (logs / "serial.log").write_bytes(serial.read_bytes() if serial.exists() else b"")
    return rows


def _first_boot(one: Machine, rows: list[Row]) -> None:
    one.until_boot(1, BOOT_SECONDS)
    rows.append(row("machine: firmware to the root switched to", one.seconds(), "s", "", _how()))
    one.until_answers(BOOT_SECONDS)
    rows.append(_mounted(one))
    rows.append(_slots(one))
    _until_ready(one, rows, "machine: flashed disk to a ready tree", one.seconds)


def _how() -> str:
    return "OVMF, systemd-boot, UKI, repart makes slot B and state, verity /usr, tmpfs root"


def _until_ready(one: Machine, rows: list[Row], name: str, clock: Any) -> None:
    one.until_true(*LOOK, seconds=READY_SECONDS)
    rows.append(row(name, clock(), "s", f"<= {READY_SECONDS:g}", f"tree of {', '.join(PROGRAMS)}"))


def _mounted(one: Machine) -> Row:
    said = one.run("findmnt", "--json", "--output", "TARGET,SOURCE,FSTYPE,OPTIONS", "--list").out
    found = {one["target"]: one for one in json.loads(said)["filesystems"]}
    wanted = {"/": "tmpfs", "/usr": "erofs", "/var/lib/fabstir": "btrfs"}
    right = [place for place, kind in wanted.items() if found[place]["fstype"] == kind]
    is_verified = found["/usr"]["source"] == "/dev/mapper/usr"
    note = f"/usr is {found['/usr']['source']}, {found['/usr']['options'][:20]}"
    return row(
        "machine: root, verified /usr, state as laid out",
        len(right) + is_verified,
        "",
        "== 4",
        note,
    )


def _slots(one: Machine) -> Row:
    said = one.run("lsblk", "--json", "--bytes", "--output", "NAME,SIZE,PARTLABEL").out
    parts = _flat(json.loads(said)["blockdevices"])
    named = sorted(
        (str(part["partlabel"]), int(part["size"])) for part in parts if part["partlabel"]
    )
    slots = [size for label, size in named if label in {"_empty", "fabstir-node_0.1.0"}]
    equal = len(slots) == 4 and sorted(slots)[0::2] == sorted(slots)[1::2]
    note = ", ".join(f"{label} {size >> 20} MiB" for label, size in named)
    return row(
        "machine: slots A and B of one size after the first boot", int(equal), "", "== 1", note
    )


def _flat(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for device in devices for one in (device, *_flat(device.get("children", [])))]


def _node(one: Machine, *words: str, seconds: float = 300.0) -> Answer:
    command = ("runuser", "-u", "fabstir", "--", CLI, *words, *CONFIG)
    return one.run("env", "FABSTIR_NODE__RUN_DIR=/run/fabstir", *command, seconds=seconds)


def _update(one: Machine, version: str) -> None:
    """As an operator does it, up to the reboot."""
    checked = _node(one, "update", "check", "--json")
    assert checked.code == 0, checked.err[-600:]
    assert json.loads(checked.out)["available"] == version, checked.out
    try:
        applied = _node(one, "update", "apply", "--json", seconds=UPDATE_SECONDS)
        assert applied.code == 0, f"{applied.out[-600:]} {applied.err[-600:]}"
    except Silent:
        pass  # the machine went down before it could answer


def _good_update(one: Machine, rows: list[Row]) -> None:
    one.run("runuser", "-u", "fabstir", "--", "touch", MARK)
    began = time.monotonic()
    _update(one, "0.2.0")
    assert one.until_boot(2, UPDATE_SECONDS) == "0.2.0", one.boots()
    seconds = time.monotonic() - began
    rows.append(row("machine: check, TUF, sysupdate, reboot into slot B", seconds, "s"))
    one.until_answers(BOOT_SECONDS)
    one.until_true("test", "-e", "/boot/EFI/Linux/fabstir-node_0.2.0.efi", seconds=TRIAL_SECONDS)
    rows.append(row("machine: to the blessing of it", time.monotonic() - began, "s"))
    one.until_true(*LOOK, seconds=READY_SECONDS)
    view = _view(one)
    rows.append(_is("machine: release 2 runs and is blessed", view["current"] == "0.2.0", view))
    rows.append(_kept(one, "after the update"))


def _bad_update(one: Machine, rows: list[Row]) -> None:
    began = time.monotonic()
    _update(one, "0.3.0")
    assert one.until_boot(3, UPDATE_SECONDS) == "0.3.0", one.boots()
    count = 3
    while one.boots()[-1] != "0.2.0":
        count += 1
        one.until_boot(count, TRIAL_SECONDS)
    seconds = time.monotonic() - began
    tries = one.boots()[2:].count("0.3.0")
    rows.append(
        row(
            "machine: broken release 3 to release 2 by itself",
            seconds,
            "s",
            "",
            f"{tries} boots of it",
        )
    )
    one.until_answers(BOOT_SECONDS)
    one.until_true(*LOOK, seconds=READY_SECONDS)
    view = _view(one)
    refused = {bad["version"]: bad["reason"] for bad in view["blacklist"]}
    rows.append(
        _is(
            "machine: release 2 runs again",
            view["running"] == "0.2.0" or view["current"] == "0.2.0",
            view,
        )
    )
    why = {"reason": refused.get("0.3.0", "")}
    rows.append(_is("machine: release 3 is blacklisted with its reason", "0.3.0" in refused, why))
    offered = json.loads(_node(one, "update", "check", "--json").out)["available"]
    rows.append(_is("machine: release 3 is not offered again", offered == "", {"offered": offered}))
    rows.append(_kept(one, "after the fall-back"))


def _view(one: Machine) -> dict[str, Any]:
    view: dict[str, Any] = json.loads(_node(one, "update", "status", "--json").out)
    return view


def _is(name: str, is_so: bool, view: Mapping[str, Any]) -> Row:
    shown = {key: view[key] for key in ("running", "current", "phase", "reason") if view.get(key)}
    return row(name, int(is_so), "", "== 1", json.dumps(shown or dict(view))[:200])


def _kept(one: Machine, when: str) -> Row:
    return row(
        f"machine: state kept {when}", int(one.run("test", "-e", MARK).code == 0), "", "== 1"
    )
