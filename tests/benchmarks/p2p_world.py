"""The network of the campaign: every program in a namespace of its own, started, asked and ended by number."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.rpc.p2p import P2pClient
from nodeapp.wire.ipc_p2p import NetworkView
from tests.benchmarks.p2p_backend import host_wallet
from tests.benchmarks.p2p_lab import Child, Lab
from tests.benchmarks.p2p_market import (
    PORT,
    Listed,
    Renter,
    run_backends,
    run_bootstrap,
    run_node,
    run_renter,
)
from tests.world import as_toml, until

BOOTSTRAPS = 3
PAID_STRANGERS = 24
"""Hostile renters who have paid: only they can hold streams that cost something."""


class Market:
    """Everything that runs, by number."""

    def __init__(self, lab: Lab, seed: int, nodes: int, renters: int) -> None:
        self.lab, self.rng, self.count = lab, random.Random(seed), nodes
        # Public addresses, each in a /24 of its own: what is exempt in private networks is on.
        self.bootstrap_places = [f"11.1.{n}.1" for n in range(1, BOOTSTRAPS + 1)]
        self.node_places = [f"11.2.{n}.1" for n in range(1, nodes + 1)]
        self.renter_places = [f"11.3.{n}.1" for n in range(1, renters + 1)]
        self.churn_places = [f"11.4.{n}.1" for n in range(1, 9)]
        self.stranger_places = [f"11.9.{n}.1" for n in range(1, 9)]
        lab.add(*self.bootstrap_places, *self.node_places, *self.renter_places)
        lab.add(*self.churn_places, *self.stranger_places)
        lab.connect()
        self.bootstraps: list[Child] = []
        self.nodes: list[Child] = []
        self.renters: list[Child] = []
        self.known: tuple[str, ...] = ()
        self.listed: tuple[Listed, ...] = ()

    def node_directory(self, number: int) -> Path:
        return self.lab.directory / f"n{number}"

    def start(self) -> None:
        """Small groups: each process needs a core for a second or two."""
        names = {f"n{n}": self.node_directory(n) for n in range(self.count)}
        work = (names, len(self.renter_places) + PAID_STRANGERS, 40.0)
        backends = self.lab.start(None, "backends", run_backends, *work)
        for number, place in enumerate(self.bootstrap_places):
            self.bootstraps.append(self.start_bootstrap(number, place))
        ready = [self._bootstrap_directory(n) / "ready" for n in range(BOOTSTRAPS)]
        until(lambda: all(file.exists() for file in ready), "bootstrap nodes", 60)
        self.known = tuple(file.read_text().strip() for file in ready)
        assert backends.heard(60) == "ready"
        for first in range(0, self.count, 4):
            group = range(first, min(first + 4, self.count))
            self.nodes += [self.start_node(number) for number in group]
            until(partial(self._are_up, group), f"nodes {group}", 90)
        self.listed = tuple(self._listed(number) for number in range(self.count))
        until(lambda: all(self.is_announced(n) for n in range(self.count)), "announced", 120)
        for number, place in enumerate(self.renter_places):
            self.renters.append(self._start_renter(number, place))

    def _are_up(self, group: range) -> bool:
        return all(self.view(number) is not None for number in group)

    def start_bootstrap(self, number: int, place: str) -> Child:
        directory = self._bootstrap_directory(number)
        directory.mkdir(exist_ok=True)
        return self.lab.start(place, f"bootstrap{number}", run_bootstrap, place, directory)

    def start_node(self, number: int) -> Child:
        directory, place = self.node_directory(number), self.node_places[number]
        config = directory / "node.toml"
        p2p = {"listen": f"/ip4/{place}/tcp/{PORT}", "bootstrap": self.known}
        node = {"state_dir": str(directory), "run_dir": str(directory / "run")}
        config.write_text(as_toml({"node": node, "p2p": p2p}))
        return self.lab.start(place, f"node{number}", run_node, config)

    def _start_renter(self, number: int, place: str) -> Child:
        directory = self.lab.directory / f"r{number}"
        directory.mkdir()
        rng = random.Random(self.rng.random())
        renter = Renter(
            number + 1, directory, self.listed, self.known, 2 * self.lab.delay_seconds, rng
        )
        return self.lab.start(place, f"renter{number}", run_renter, renter)

    def _bootstrap_directory(self, number: int) -> Path:
        return self.lab.directory / f"b{number}"

    def _listed(self, number: int) -> Listed:
        view = self.view(number)
        assert view is not None
        return Listed(host_wallet(f"n{number}").address, PeerId(view.peer_id), view.addresses[0])

    def view(self, number: int) -> NetworkView | None:
        """What a node says of itself; None while it does not answer."""

        async def ask() -> NetworkView:
            async with P2pClient(self.node_directory(number) / "run" / "p2p.sock") as client:
                return await client.network()

        try:
            return asyncio.run(ask())
        except Unavailable:
            return None

    def is_announced(self, number: int) -> bool:
        view = self.view(number)
        return view is not None and bool(view.announced_models)

    def ask(
        self, method: str, renters: Sequence[int], seconds: float, **words: object
    ) -> list[Any]:
        """Every one of these renters at once; their answers in order."""
        self.begin(method, renters, **words)
        return self.end(renters, seconds)

    def begin(self, method: str, renters: Sequence[int], **words: object) -> None:
        for number in renters:
            self.renters[number].tell((method, words))

    def end(self, renters: Sequence[int], seconds: float) -> list[Any]:
        limit = time.monotonic() + seconds
        return [self.renters[n].heard(max(0.1, limit - time.monotonic())) for n in renters]

    @property
    def everybody(self) -> range:
        return range(len(self.renters))
