"""What strangers do to one node of the campaign while two honest renters go on asking it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks import p2p_strangers as strangers
from tests.benchmarks.p2p_forger import forger
from tests.benchmarks.p2p_lab import Child
from tests.benchmarks.p2p_market import Renter, run_renter
from tests.benchmarks.p2p_world import Market
from tests.benchmarks.report import Row, row

VICTIM, QUIET = 0, 1
"""The node that is attacked, and the one where renters freeze and die."""
REGULAR, NEWCOMER = 0, 1
STEADY_SECONDS = 12.0
SYBILS, SYBIL_SECONDS = 1000, 60.0
GROWTH_MIB = 20.0
HONEST_SECONDS = 8.0
"""A whole honest answer of 8 tokens on a new connection, dialling included, while under attack."""


def hostile(market: Market) -> list[Row]:
    """Every attack in turn, each from an address of its own."""
    for _ in range(5):
        found = market.ask("find", (REGULAR, NEWCOMER), 90)
        if all(market.listed[VICTIM].wallet in one["wallets"] for one in found):
            break
    else:
        raise RuntimeError("the node to be attacked was not found in 5 tries")
    before = market.nodes[VICTIM].rss_mib()
    rows = [*_honest(market, "quiet network", STEADY_SECONDS)]
    for attack in (_idle, _garbage, _stalled, _streams, _sybils, _forged):
        told = attack(market)
        rows += told
        for one in told:
            print(f"  {one.name}: {one.value:g} {one.unit} {one.note}", flush=True)
    rows += _gone(market)
    time.sleep(5.0)
    after = market.nodes[VICTIM].rss_mib()
    rows.append(
        row("memory of the attacked node: growth over all of it", after - before, "MiB",
            f"<= {GROWTH_MIB:g}", f"{before:.1f} before, {after:.1f} after")
    )  # fmt: skip
    rows.append(
        row("attacked node still runs", float(market.nodes[VICTIM].process.is_alive()), "", ">= 1")
    )
    return rows


def _attacked(
    market: Market,
    name: str,
    children: Sequence[Child],
    seconds: float,
    judge: Callable[[list[Any]], list[Row]],
) -> list[Row]:
    """Honest latencies while these strangers are at work, and what became of them."""
    before = market.nodes[VICTIM].rss_mib()
    rows = _honest(market, name, seconds)
    facts = [child.heard(120) for child in children]
    for child in children:
        child.end()
        market.lab.children.remove(child)
    grown = market.nodes[VICTIM].rss_mib() - before
    judged = judge(facts)
    return [*judged, *rows, row(f"memory, {name}", grown, "MiB")]


def _honest(market: Market, name: str, seconds: float) -> list[Row]:
    wallet = market.listed[VICTIM].wallet
    market.begin("visit", [REGULAR], seconds=seconds, wallet=wallet, anew=False)
    market.begin("visit", [NEWCOMER], seconds=seconds, wallet=wallet, anew=True)
    regular, newcomer = market.end([REGULAR, NEWCOMER], seconds + 120)
    rows = []
    for who, seen in (("known peer", regular), ("new peer", newcomer)):
        done, errors = seen["times"], seen["errors"]
        slowest = max(done, default=1e9)
        note = f"{len(done)} answers, {len(errors)} failed" + (
            f", such as {errors[0][:120]}" if errors else ""
        )
        times = sorted(done)
        middle = times[len(times) // 2] if times else 1e9
        rows.append(
            row(
                f"{name}: honest answer to a {who}, median",
                middle,
                "s",
                f"<= {HONEST_SECONDS:g}",
                f"slowest {slowest:.2f} s; {note}",
            )
        )
    return rows  # fmt: skip


def _idle(market: Market) -> list[Row]:
    place = market.stranger_places[0]
    work = (market.node_places[VICTIM], 300, STEADY_SECONDS)
    child = market.lab.start(place, "idle", strangers.idle_sockets, *work)
    return _attacked(market, "300 idle sockets", [child], STEADY_SECONDS, lambda facts: [
        row("300 idle sockets: closed by the node", facts[0]["closed"], "", ">= 1", str(facts[0]))
    ])  # fmt: skip


def _garbage(market: Market) -> list[Row]:
    first, second = market.stranger_places[1:3]
    raw = market.lab.start(first, "garbage", strangers.garbage, market.node_places[VICTIM], 20.0, 7)
    rude = market.lab.start(second, "rude", strangers.rude_streams, market.listed[VICTIM].address)

    def judge(facts: list[Any]) -> list[Row]:
        listened, said = facts
        left = [name for name, seconds in listened.items() if seconds < 0]
        untyped = said.get("?", 0)
        return [
            row("garbage on sockets: connections not closed inside 20 s", len(left), "", "== 0",
                ", ".join(f"{name} {seconds:.1f} s" for name, seconds in listened.items())),
            row("garbage in streams: answered by anything but an error or an end", untyped, "",
                "== 0", str(said)),
        ]  # fmt: skip

    return _attacked(market, "garbage", [raw, rude], STEADY_SECONDS, judge)


def _stalled(market: Market) -> list[Row]:
    place = market.stranger_places[3]
    first = len(market.renters) + 1
    work = (market.listed[VICTIM], list(range(first, first + 16)), 60.0, 4)
    child = market.lab.start(place, "stalled", strangers.stalled_readers, *work)
    return _attacked(market, "16 paid answers never read", [child], STEADY_SECONDS, lambda facts: [
        row("paid answers that nobody reads", facts[0].get("stalled", 0), "", "", str(facts[0]))
    ])  # fmt: skip


def _streams(market: Market) -> list[Row]:
    place = market.stranger_places[4]
    work = (market.listed[VICTIM].address, 200, STEADY_SECONDS)
    child = market.lab.start(place, "streams", strangers.many_streams, *work)

    def judge(facts: list[Any]) -> list[Row]:
        said = facts[0]["said"]
        return [row("200 streams of one peer: let in", said.get("welcome", 0), "", "<= 4",
                    f"{said} in {facts[0]['seconds']:.1f} s")]  # fmt: skip

    return _attacked(market, "200 streams of one peer", [child], STEADY_SECONDS, judge)


def _sybils(market: Market) -> list[Row]:
    place = market.stranger_places[5]
    work = (place, market.listed[VICTIM].address, SYBILS // 2, 12, SYBIL_SECONDS)
    children = [market.lab.start(place, f"sybils{n}", strangers.sybils, *work) for n in range(2)]

    def judge(facts: list[Any]) -> list[Row]:
        total = {key: sum(one.get(key, 0) for one in facts) for one in facts for key in one}
        return [row("Sybil ids from one address", total["ids"], "", f">= {SYBILS}",
                    f"{total} in {SYBIL_SECONDS:g} s")]  # fmt: skip

    rows = _attacked(market, "Sybil ids", children, SYBIL_SECONDS, judge)
    found = market.ask("find", list(market.everybody), 90, alive=("dht",))
    good = [one for one in found if len(one["wallets"]) >= 2]
    reasons = [one["error"][:160] for one in found if one["error"]]
    rows.append(row("after the Sybils: renters that find 2 honest hosts by the DHT alone",
                    len(good) / len(found), "", ">= 1",
                    f"hosts {[len(one['wallets']) for one in found]}; {reasons[:1]}"))  # fmt: skip
    return rows


def _forged(market: Market) -> list[Row]:
    place = market.stranger_places[6]
    work = (place, market.known[0], market.listed[2], 120.0)
    child = market.lab.start(place, "forger", forger, *work)
    facts = child.heard(120)
    found = market.ask("find", list(market.everybody), 90)
    honest = {one.wallet for one in market.listed}
    believed = sum(wallet not in honest for one in found for wallet in one["wallets"])
    good = [one for one in found if len(one["wallets"]) >= 2]
    child.end()
    market.lab.children.remove(child)
    taken = dict(facts["taken"])
    control = taken.pop("control: true")
    return [
        row("forged, expired and misplaced DHT records: peers that took one", sum(taken.values()),
            "", "== 0", f"{taken}; the true record was taken by {control}"),
        row("forged and expired records by gossip: kept by the directory", facts["heard"], "",
            "== 0", f"{facts['listed']} true ones are listed"),
        row("lying providers believed by renters", believed, "", "== 0",
            f"a provider of the model: {facts['is_provider']}"),
        row("renters that found 2 honest hosts beside the liar", len(good) / len(found), "", ">= 1",
            f"second host s {[round(one['second'], 2) for one in found]}"),
    ]  # fmt: skip


def _gone(market: Market) -> list[Row]:
    """A renter that freezes and one that is killed, both in the middle of an answer."""
    rows = []
    for number, (name, sign) in enumerate((("frozen", signal.SIGSTOP), ("killed", signal.SIGKILL))):
        place = market.stranger_places[7]
        directory = market.lab.directory / f"gone{name}"
        directory.mkdir()
        identity = len(market.renters) + 20 + number
        renter = Renter(identity, directory, (market.listed[QUIET],), market.known, 0.1, market.rng)
        child = market.lab.start(place, f"gone{name}", run_renter, renter)
        child.tell(("find", {"alive": ("registry",)}))
        child.heard(60)
        base = _conversations(market)
        child.tell(("freeze", {"wallet": market.listed[QUIET].wallet}))
        end = time.monotonic() + 30
        while _conversations(market) <= base and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(2.0)
        child.send_signal(sign)
        begun = time.monotonic()
        while _conversations(market) > base and time.monotonic() - begun < 90:
            time.sleep(0.1)
        rows.append(row(f"renter {name} in mid-answer: its stream is given up after",
                        time.monotonic() - begun, "s", "<= 45"))  # fmt: skip
        child.end()
        market.lab.children.remove(child)
    return rows


def _conversations(market: Market) -> int:
    view = market.view(QUIET)
    return view.conversations if view is not None else 0
