"""The image under a real systemd at full speed: the whole tree, money from outside, a blank disk."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image.test.container import GUEST, HOST, SAFE_PLACE, Container, make_state, running_container
from image.test.release import Image, Workshop
from tests.benchmarks.appliance_money import answered, shares
from tests.benchmarks.appliance_world import (
    CLI,
    CONFIG,
    appliance_world,
    forwarded,
    paid_request,
    port_of,
    write_config,
)
from tests.benchmarks.report import Row, row
from tests.world import World

TOKENS = 160
"""More than the least claim (100): what is below it is not paid."""
READY_SECONDS = 300.0
ANSWER_SECONDS = 240.0
PROGRAMS = 7


def container_rows(shop: Workshop, image: Image, tree: Path, data: Path, logs: Path) -> list[Row]:
    """One life of a machine, its loss, and its second life on a blank disk."""
    rows: list[Row] = []
    state, blank = shop.job / "state.raw", shop.job / "blank.raw"
    log = logs / "container.log"
    logs.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    safe = shop.job / "safe"
    shutil.rmtree(safe, ignore_errors=True)
    safe.mkdir()
    with appliance_world(shop.job / "c" / "w") as world, _reached(world):
        for disk in (state, blank):
            make_state(shop, disk)
        config = shop.job / "c" / "config"

        def boot(disk: Path) -> contextlib.AbstractContextManager[Container]:
            _write(world, config)
            return running_container(
                shop, image, tree, disk, log, config=config, data=data, safe=safe
            )

        with boot(state) as one:
            _until_ready(one, rows, "first boot")
            rows.append(_secrets_gone(config))
            began = time.monotonic()
            paid = paid_request(world.renter("before"), TOKENS, ANSWER_SECONDS)
            rows.append(_answered(paid.tokens, time.monotonic() - began, "before the loss"))
            settled = world.until_settled(paid.job_id, ANSWER_SECONDS)
            rows += shares("container", "before the loss", settled, TOKENS)
            made = _node(one, "backup", "create", seconds=ANSWER_SECONDS)
            rows.append(_backed_up(made))
            _keep_journal(one, logs / "container-first.journal")
        with boot(blank) as two:
            two.until_true("test", "-e", "/etc/fabstir/node.toml", seconds=READY_SECONDS)
            two.run("systemctl", "stop", "fabstir-node.service", seconds=ANSWER_SECONDS)
            began = time.monotonic()
            _node(two, "backup", "restore", "latest", "--replace", seconds=ANSWER_SECONDS)
            two.run("systemctl", "start", "--no-block", "fabstir-node.service")
            _until_ready(two, rows, "restore on a blank disk", began)
            after = world.on_chain(paid.job_id)
            rows.append(_equal("container: settled session unchanged after it", after, settled))
            began = time.monotonic()
            again = paid_request(world.renter("after"), TOKENS, ANSWER_SECONDS)
            rows.append(_answered(again.tokens, time.monotonic() - began, "after the restore"))
            second = world.until_settled(again.job_id, ANSWER_SECONDS)
            rows += shares("container", "after the restore", second, TOKENS)
            _keep_journal(two, logs / "container-restored.journal")
    return rows


@contextlib.contextmanager
def _reached(world: World) -> Iterator[None]:
    """Chain and bootstrap node as the container sees them; its portal as renters do."""
    values: dict[str, Any] = world.node_values  # type: ignore[assignment]
    rpc = int(values["chain"]["rpc_urls"][0].rsplit(":", 1)[1])
    bootstrap = int(values["p2p"]["bootstrap"][0].split("/")[4])
    _, portal = port_of(world)
    pairs = [((HOST, port), ("127.0.0.1", port)) for port in (rpc, bootstrap)]
    with forwarded([*pairs, (("127.0.0.1", portal), (GUEST, portal))]):
        yield


def _write(world: World, config: Path) -> None:
    updater = {
        "restic_repository": SAFE_PLACE,
        "restic_password_file": "restic.password",
        "recovery_password_file": "recovery.password",
    }
    write_config(world, config, outside=HOST, inside=GUEST, channel=None, updater=updater)
    for name in ("restic.password", "recovery.password"):
        (config / name).write_text(f"{name} of the campaign\n")


def _until_ready(one: Container, rows: list[Row], what: str, began: float | None = None) -> None:
    one.until_true("systemctl", "is-active", "fabstir-node.service", seconds=READY_SECONDS)
    seconds = one.seconds() if began is None else time.monotonic() - began
    rows.append(row(f"container: {what} to a ready node", seconds, "s", "<= 300"))
    told = json.loads(_node(one, "status", "--json"))["processes"]
    healthy = sum(1 for process in told if process["ready"])
    name = f"container: programs ready after the {what}"
    rows.append(row(name, healthy, "", f"== {PROGRAMS}", _words(told)))


def _words(told: list[dict[str, Any]]) -> str:
    return " ".join(str(process["process"]) for process in told if process["ready"])


def _node(one: Container, *words: str, seconds: float = 120.0) -> str:
    command = ("runuser", "-u", "fabstir", "--", CLI, *words, *CONFIG)
    done = one.run("env", "FABSTIR_NODE__RUN_DIR=/run/fabstir", *command, seconds=seconds)
    assert done.code == 0, f"{words}: {done.out[-600:]} {done.err[-1200:]}"
    return done.out


def _answered(tokens: int, seconds: float, when: str) -> Row:
    note = f"renter and chain outside, over veth; session and answer in {seconds:.1f} s"
    return answered("container", when, tokens, TOKENS, note)


def _backed_up(said: str) -> Row:
    found = re.search(r"(\d+) records", said)
    note = said.strip().splitlines()[-1][:150]
    return row("container: records backed up", int(found[1]) if found else 0, "", ">= 1", note)


def _equal(name: str, found: object, wanted: object) -> Row:
    return row(name, int(found == wanted), "", "== 1", "" if found == wanted else str(found)[:200])


def _secrets_gone(config: Path) -> Row:
    left = [path.name for path in config.iterdir() if "password" in path.name]
    return row("container: secrets left on CONFIG", len(left), "", "== 0", " ".join(left))


def _keep_journal(one: Container, target: Path) -> None:
    said = one.run("journalctl", "-b", "-o", "short-monotonic", "--no-pager")
    target.write_text(said.out)
