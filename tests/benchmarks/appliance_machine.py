"""The flashed disk in a machine: what firmware, boot loader, verity, partitions and slots do.

One machine that nobody touches: the whole tree with the model, a renter outside whose session stays
open over an update and a bad update, judged by the product's own health gate. Emulated, a program
needs thirty times as long; only what waits for one is longer here than on a real machine (SLOW).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image.test.machine import HOST, Machine, Silent, running_machine
from image.test.release import Image, Workshop, write_config
from tests.benchmarks.appliance_money import KeptSession
from tests.benchmarks.appliance_world import (
    CLI,
    CONFIG,
    SLOW,
    appliance_world,
    port_of,
    running_channel,
)
from tests.benchmarks.appliance_world import write_config as write_files
from tests.benchmarks.report import Row, row

PROGRAMS = 7
TOKENS = 120
"""Of each question: more than the least claim, so that each is claimed whole."""
UKIS = "/boot/EFI/Linux"
AUTOMATIC = {"apply_automatically": True, "check_interval_seconds": 20.0}
LONG = {"proof_timeout_seconds": 3600, "max_duration_seconds": 6 * 3600}
"""The renter's session must outlive three boots of an emulated machine."""
BOOT_SECONDS = 600.0
READY_SECONDS = 1500.0
ANSWER_SECONDS = 1200.0
UPDATE_SECONDS = 1200.0
TRIAL_SECONDS = 1500.0
GATE_SECONDS, MAX_GATE_SECONDS = 900.0, 1400.0
"""The boot's judge has 1500 s."""
LOOK = ("systemctl", "is-active", "fabstir-node.service")
MARK = "/var/lib/fabstir/s5/kept-by-the-campaign"


def machine_rows(
    shop: Workshop,
    image: Image,
    releases: Mapping[str, Path],
    data: Path,
    logs: Path,
    *,
    patience: float = 1.0,
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
            appliance_world(shop.job / "m" / "w") as world,
            running_channel(shop.job / "m" / "channel", HOST) as channel,
        ):
            config = shop.job / "m" / "config"
            more: dict[str, Mapping[str, object]] = {
                **SLOW,
                "chain": {**SLOW["chain"], "idle_settle_seconds": 6 * 3600.0},
                "updater": {
                    **SLOW["updater"],
                    **AUTOMATIC,
                    "gate_seconds": min(GATE_SECONDS * patience, MAX_GATE_SECONDS),
                },
            }
            write_files(world, config, outside=HOST, inside="127.0.0.1", channel=channel, **more)
            write_config(shop, disk, config)
            ports = {port: port for port in port_of(world)}
            renter = world.renter("outside", **LONG)
            session = KeptSession("machine", world, renter, TOKENS, ANSWER_SECONDS * patience)
            with running_machine(
                shop, disk, serial, data=data, forwards=ports, patience=patience
            ) as one:
                _first_boot(one, rows)
                rows.append(session.ask("on the flashed release"))
                channel.publish(releases["0.2.0"])
                _good_update(one, rows)
                rows.append(session.ask("after the update"))
                channel.publish(releases["0.3.0"])
                _bad_update(one, rows)
                rows.append(session.ask("after the fall-back"))
                rows += session.close()
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
    rows.append(_healthy(one))


def _how() -> str:
    return "OVMF, systemd-boot, UKI, repart makes slot B and state, verity /usr, tmpfs root"


def _until_ready(one: Machine, rows: list[Row], name: str, clock: Any) -> None:
    one.until_true(*LOOK, seconds=READY_SECONDS)
    rows.append(row(name, clock(), "s", f"<= {READY_SECONDS:g}"))


def _healthy(one: Machine) -> Row:
    """Asked of the product itself, which takes a minute to start here."""
    command = ("runuser", "-u", "fabstir", "--", CLI, "status", "--json", *CONFIG)
    said = one.run("env", "FABSTIR_NODE__RUN_DIR=/run/fabstir", *command, seconds=READY_SECONDS)
    assert said.code == 0, said.err[-600:]
    ready = [each["process"] for each in json.loads(said.out)["processes"] if each["ready"]]
    return row("machine: programs ready", len(ready), "", f"== {PROGRAMS}", " ".join(ready))


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


def _state(one: Machine) -> dict[str, Any]:
    """The update journal; a command of the node would take a minute to start here."""
    answer = one.run("cat", "/var/lib/fabstir/updater/update.json")
    assert answer.code == 0, answer.err
    state: dict[str, Any] = json.loads(answer.out)["state"]
    return state


def _until_state(one: Machine, what: str, seconds: float, **wanted: object) -> dict[str, Any]:
    end = one.deadline(seconds)
    state: dict[str, Any] = {}
    while time.monotonic() < end:
        with contextlib.suppress(Silent, AssertionError, OSError):
            state = _state(one)
            if all(state.get(key) == value for key, value in wanted.items()):
                return state
        time.sleep(3)
    raise Silent(f"{what} not inside {seconds:g} s; the update journal says {state}")


def _good_update(one: Machine, rows: list[Row]) -> None:
    one.run("runuser", "-u", "fabstir", "--", "touch", MARK)
    began = time.monotonic()
    assert one.until_boot(2, UPDATE_SECONDS) == "0.2.0", one.boots()
    seconds = time.monotonic() - began
    note = "found by the node itself: TUF, download, sysupdate into slot B, reboot"
    rows.append(row("machine: release 2 offered to its first boot", seconds, "s", "", note))
    one.until_answers(BOOT_SECONDS)
    rows.append(_counted(one))
    state = _until_state(one, "a verdict on 0.2.0", TRIAL_SECONDS, candidate=None)
    rows.append(row("machine: offered to judged", time.monotonic() - began, "s"))
    rows.append(_is("machine: release 2 is blessed", state["current"] == "0.2.0", state))
    one.until_true("test", "-e", f"{UKIS}/fabstir-node_0.2.0.efi", seconds=BOOT_SECONDS)
    rows.append(row("machine: boot counter taken off release 2", 1, "", "== 1", _ukis(one)))
    rows.append(_kept(one, "after the update"))


def _bad_update(one: Machine, rows: list[Row]) -> None:
    one.until_true(*LOOK, seconds=READY_SECONDS)
    began = time.monotonic()
    assert one.until_boot(3, UPDATE_SECONDS) == "0.3.0", one.boots()
    rows.append(row("machine: release 3 offered to its first boot", time.monotonic() - began, "s"))
    count = 3
    while one.boots()[-1] != "0.2.0":
        count += 1
        one.until_boot(count, TRIAL_SECONDS)
    tries = one.boots()[2:].count("0.3.0")
    seconds = time.monotonic() - began
    note = f"{tries} boots of it, nobody touched the machine"
    rows.append(row("machine: broken release 3 offered to release 2 again", seconds, "s", "", note))
    one.until_answers(BOOT_SECONDS)
    one.until_true(*LOOK, seconds=READY_SECONDS)
    state = _until_state(one, "the end of 0.3.0", TRIAL_SECONDS, candidate=None)
    rows.append(_is("machine: release 2 is what counts", state["current"] == "0.2.0", state))
    refused = {bad["version"]: bad["reason"] for bad in state["blacklist"]}
    why = {"reason": refused.get("0.3.0", "")}
    rows.append(_is("machine: release 3 blacklisted with its reason", "0.3.0" in refused, why))
    rows.append(row("machine: UKIs kept", 1, "", "", _ukis(one)))
    rows.append(_kept(one, "after the fall-back"))


def _counted(one: Machine) -> Row:
    """The boot loader took one try off before it started it."""
    one.until_true("sh", "-c", f"ls {UKIS}/fabstir-node_0.2.0*", seconds=BOOT_SECONDS)
    found = _ukis(one)
    is_so = "fabstir-node_0.2.0+2-1.efi" in found or "fabstir-node_0.2.0.efi" in found
    return row("machine: release 2 booted on a count", int(is_so), "", "== 1", found)


def _ukis(one: Machine) -> str:
    return " ".join(one.run("ls", UKIS).out.split())


def _is(name: str, is_so: bool, view: Mapping[str, Any]) -> Row:
    shown = {key: view[key] for key in ("running", "current", "phase", "reason") if view.get(key)}
    return row(name, int(is_so), "", "== 1", json.dumps(shown or dict(view))[:200])


def _kept(one: Machine, when: str) -> Row:
    return row(
        f"machine: state kept {when}", int(one.run("test", "-e", MARK).code == 0), "", "== 1"
    )
