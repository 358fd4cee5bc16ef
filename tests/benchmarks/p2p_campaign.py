"""The network under strain: `make campaign-p2p` writes build/reports/p2p-campaign.json.

3 bootstrap nodes, 16 nodes (the real p2p process, real ledgers behind it) and 8 renters (the renter
library), each in a network namespace of its own with 100 ms one way and 2 % loss. Then layers of
discovery die, nodes come and go, the network parts, and strangers do what they should not.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nodeapp.network.settings import PROCESS_ENVIRONMENT

os.environ.update(PROCESS_ENVIRONMENT)  # before libp2p is imported

import psutil

from tests.benchmarks.p2p_hostile import hostile
from tests.benchmarks.p2p_lab import Child, Lab, missing
from tests.benchmarks.p2p_market import LAYERS, run_passer_by
from tests.benchmarks.p2p_world import Market
from tests.benchmarks.report import ROOT, Row, machine, row, table, write

DELAY_SECONDS, LOSS = 0.1, 0.02
NODES, RENTERS = 16, 8
FIND_SECONDS = 5.0
CHURN_SECONDS, CHURN_A_SECOND, STAY_SECONDS = 60.0, 5, 4.0
ANNOUNCE_EVERY = 10
PARTITION_SECONDS = 60.0
HEALED_SECONDS = 15.0
Turn = dict[str, Any]


def spread(values: Sequence[float]) -> str:
    """Least, median, most."""
    if not values:
        return "none"
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def rate(good: Sequence[object], of: Sequence[object]) -> float:
    return len(good) / len(of) if of else 0.0


def finding(market: Market) -> list[Row]:
    """Each renter in turn, knowing nobody, then all at once: that measures the processor here."""
    alone = [market.ask("find", [number], 90)[0] for number in market.everybody]
    answers = [market.ask("answer", [number], 120)[0] for number in market.everybody]
    spent = _cpu_seconds(market)
    together = market.ask("find", market.everybody, 90)
    spent = _cpu_seconds(market) - spent
    answers += market.ask("answer", market.everybody, 120)
    done = [one for one in answers if one["ok"]]
    quick = [one for one in alone if one["second"] < FIND_SECONDS]
    return [
        row("renters that find 2 hosts in 5 s", rate(quick, alone), "", ">= 1", _times(alone)),
        row("second host found, slowest renter", max(one["second"] for one in alone), "s", "<= 5"),
        row("all renters at once: second host found, median",
            statistics.median(one["second"] for one in together), "s", "",
            f"{_times(together)}; {spent:.0f} s of processor time for {len(together)} renters"),
        row("answers completed", rate(done, answers), "", ">= 1",
            f"s {spread([one['seconds'] for one in done])}, first token"
            f" {spread([one['first'] for one in done])}; faults {_faults(answers)}"),
    ]  # fmt: skip


def _times(found: Sequence[Turn]) -> str:
    first = [one["first"] for one in found if one["first"] < 1e9]
    second = [one["second"] for one in found if one["second"] < 1e9]
    counts = [len(one["wallets"]) for one in found]
    return (
        f"first host s {spread(first)}; second {spread(second)}; hosts {spread(counts)}"
        " (least / median / most)"
    )


def _cpu_seconds(market: Market) -> float:
    """Of every program of the network so far."""
    total = 0.0
    for child in market.lab.children:
        if child.process.is_alive():
            times = psutil.Process(child.pid).cpu_times()
            total += times.user + times.system
    return total


def _faults(answers: Sequence[Turn]) -> str:
    errors = [error[:100] for one in answers for error in one["errors"]]
    return f"{len(errors)}" + (f", such as {errors[0]}" if errors else "")


def layers(market: Market) -> list[Row]:
    """Two of three sources dead, each pair; the registry alone also with every bootstrap frozen."""
    rows: list[Row] = []
    for alive in LAYERS:
        if alive == "registry":
            for child in market.bootstraps:
                child.send_signal(signal.SIGSTOP)
        found = market.ask("find", market.everybody, 90, alive=(alive,))
        answers = market.ask("answer", market.everybody, 120)
        for child in market.bootstraps:
            child.send_signal(signal.SIGCONT)
        good = [
            one for one, got in zip(found, answers, strict=True) if one["wallets"] and got["ok"]
        ]
        many = [one for one in found if len(one["wallets"]) >= 2]
        first = [one["first"] for one in found if one["wallets"]]
        rows.append(
            row(
                f"renters served with {alive} alone"
                + (" (every bootstrap node frozen)" if alive == "registry" else ""),
                rate(good, found),
                "",
                ">= 1",
                f"first host s {spread(first)}; 2 hosts or more: {len(many)} of {len(found)};"
                f" {_reasons(found)}",
            )
        )
    return rows


def _reasons(found: Sequence[Turn]) -> str:
    errors = [one["error"] for one in found if one["error"]]
    return f"such as {errors[0][:160]}" if errors else "no error"


def churn(market: Market) -> list[Row]:
    """5 DHT nodes a second come and are killed; every 6 s a real node is killed and started again."""
    alive: list[tuple[float, Child]] = []
    number = killed = joined = 0
    market.begin("go_on", market.everybody, seconds=CHURN_SECONDS)
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < CHURN_SECONDS:
        if passed > 6 * (killed + 1):
            victim = market.rng.randrange(market.count)
            market.nodes[victim].end()
            market.nodes[victim] = market.start_node(victim)
            killed += 1
        elif alive and passed - alive[0][0] > STAY_SECONDS:
            child = alive.pop(0)[1]
            joined += child.process.is_alive() and child.pipe.poll()
            child.end()
            market.lab.children.remove(child)
        elif number <= passed * CHURN_A_SECOND:
            alive.append((passed, _passer_by(market, number)))
            number += 1
        else:
            time.sleep(0.005)
    for _at, child in alive:
        joined += child.process.is_alive() and child.pipe.poll()
        child.end()
        market.lab.children.remove(child)
    turns = [turn for turns in market.end(market.everybody, 180) for turn in turns]
    return [
        row("churn: DHT nodes that came and were killed", number / CHURN_SECONDS, "1/s", ">= 5",
            f"{number} in {CHURN_SECONDS:g} s, {joined} joined within their"
            f" {STAY_SECONDS:g} s; {killed} real nodes killed and started again"),
        *_turn_rows("churn", turns),
    ]  # fmt: skip


def _turn_rows(when: str, turns: Sequence[Turn]) -> list[Row]:
    found = [turn for turn in turns if len(turn["wallets"]) >= 2]
    served = [turn for turn in turns if turn["answer"]["ok"]]
    second = [turn["second"] for turn in found]
    quick = [s for s in second if s < FIND_SECONDS]
    answers = [turn["answer"] for turn in turns]
    return [
        row(f"{when}: turns of renters that found 2 hosts", rate(found, turns), "", ">= 0.99",
            f"{len(turns)} turns; second host s {spread(second)}; {len(quick)} inside 5 s;"
            f" {_reasons(turns)}"),
        row(f"{when}: turns that got a whole answer", rate(served, turns), "", ">= 0.99",
            f"s {spread([turn['answer']['seconds'] for turn in served])};"
            f" hosts passed over {_faults(answers)}"),
    ]  # fmt: skip


def _passer_by(market: Market, number: int) -> Child:
    place = market.churn_places[number % len(market.churn_places)]
    directory = market.lab.directory / f"c{number}"
    directory.mkdir()
    known = market.known[number % len(market.known)]
    work = partial(run_passer_by, announces=number % ANNOUNCE_EVERY == 0)
    return market.lab.start(place, f"churn{number % 20}", work, directory, place, known)


def partition(market: Market) -> list[Row]:
    """Two halves do not hear each other for a minute; each half is served, then all is one again."""
    half = {
        place: number % 2
        for places in (market.bootstrap_places, market.node_places, market.renter_places)
        for number, place in enumerate(places)
    }
    market.lab.part(half)
    begun = time.monotonic()
    market.begin("go_on", market.everybody, seconds=PARTITION_SECONDS - 5)
    turns = [turn for turns in market.end(market.everybody, 180) for turn in turns]
    time.sleep(max(0.0, PARTITION_SECONDS - (time.monotonic() - begun)))
    lasted = time.monotonic() - begun
    market.lab.part({})
    healed = time.monotonic()
    market.begin("go_on", market.everybody, seconds=30.0, alive=("dht", "gossip"))
    after = market.end(market.everybody, 180)
    times = [_across(market, number, seen, healed) for number, seen in enumerate(after)]
    found = [t for t in times if t < 1e9]
    return [
        *_turn_rows(f"partition of {lasted:.0f} s, own half", turns),
        row("after it: hosts of the other half found by DHT or gossip, slowest renter",
            max(times), "s", f"<= {HEALED_SECONDS:g}", f"{spread(found)}; {len(found)} of {len(times)} renters"),
        *_turn_rows("after the partition, registry dead", [turn for seen in after for turn in seen]),
    ]  # fmt: skip


def _across(market: Market, number: int, turns: Sequence[Turn], healed: float) -> float:
    """When a renter had found a host of the other half, after the healing."""
    others = {one.wallet for place, one in enumerate(market.listed) if place % 2 != number % 2}
    for turn in turns:
        if others & set(turn["wallets"]):
            return float(turn["at"] + turn["seconds"] - healed)
    return 1e9


def run(asked: argparse.Namespace, facts: dict[str, Any]) -> list[Row]:
    stages: dict[str, Callable[[Market], list[Row]]] = {
        "find": finding,
        "layers": layers,
        "churn": churn,
        "partition": partition,
        "hostile": hostile,
    }
    rows: list[Row] = []
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fb") as text,
        Lab(Path(text), asked.delay_ms / 1000, asked.loss, asked.seed) as lab,
    ):
        market = Market(lab, asked.seed, asked.nodes, asked.renters)
        market.start()
        rows.append(row("network started", time.monotonic() - begun, "s"))
        for name in asked.stages.split(","):
            try:
                told = stages[name](market)
                rows += told
                for one in told:
                    say(f"  {one.name}: {one.value:g} {one.unit} {one.ok} {one.note}")
            finally:
                _save(lab, asked)
            load = f"load {os.getloadavg()[0]:.1f}"
            say(f"{name} done after {time.monotonic() - begun:.0f} s, {load}")
            write(asked.out, facts, rows)  # a campaign that is cut short has shown so much
        counts = lab.counts()
        rows.append(row("packets switched", counts["packets"], "", "", str(counts)))
    rows.append(row("whole campaign", time.monotonic() - begun, "s", "<= 720"))
    return rows


def _save(lab: Lab, asked: argparse.Namespace) -> None:
    """Logs outlive the campaign when they were asked for."""
    if asked.logs is not None:
        asked.logs.mkdir(parents=True, exist_ok=True)
        for log in lab.directory.glob("*.log"):
            (asked.logs / log.name).write_bytes(log.read_bytes()[-200_000:])


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/reports/p2p-campaign.json")
    parser.add_argument("--seed", type=int, default=20_261_123)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--renters", type=int, default=RENTERS)
    parser.add_argument("--delay-ms", type=float, default=DELAY_SECONDS * 1000, help="one way")
    parser.add_argument("--loss", type=float, default=LOSS)
    parser.add_argument("--stages", default="find,layers,churn,partition,hostile")
    parser.add_argument("--logs", type=Path, help="keep the programs' logs here")
    asked = parser.parse_args()
    if reason := missing():
        say(f"skipped: {reason}")
        return
    say(f"seed {asked.seed}; {asked.delay_ms:g} ms one way, {100 * asked.loss:g} % loss")
    facts = machine() | {
        "seed": asked.seed,
        "delay_ms_one_way": asked.delay_ms,
        "loss": asked.loss,
        "nodes": asked.nodes,
        "renters": asked.renters,
    }
    gc.freeze()  # the forked programs share what was imported here
    rows = run(asked, facts)
    write(asked.out, facts, rows)
    table("p2p campaign", rows)


if __name__ == "__main__":
    main()
