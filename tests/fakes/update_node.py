"""One node's update parts put together on a directory, with a tiny release's set-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nodeapp.core.update import UpdateState
from nodeapp.updater.channel import Channel
from nodeapp.updater.launch import Launcher
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.updater.venv import Layout, VenvBackend
from tests.fakes.release_repository import Published, copy_command, small_release


class PassingGate:
    """A far end that says what it is told to."""

    def __init__(self, failures: dict[str, str] | None = None):
        self.failures = failures or {}
        self.asked = []

    async def failure(self, version: str, least_gpus: int) -> str:
        self.asked.append(version)
        return self.failures.get(version, "")


@dataclass
class UpdateNode:
    base: Path
    shop: Published
    free: int = 1 << 40
    prepare: Callable[[Path, str], None] = copy_command
    done: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "releases")

    @property
    def journal(self) -> UpdateJournal:
        return UpdateJournal(self.layout.journal)

    @property
    def state(self) -> UpdateState:
        return self.journal.read()

    def bootstrap(self, version: str = "0.1.0") -> UpdateNode:
        """A node whose first release is blessed."""
        backend = self.backend()
        release = self.layout.release(version)
        (release / "source").mkdir(parents=True)
        (release / "source" / "fabstir-node").write_text("#!/bin/sh\nexec sleep 600\n")
        copy_command(release, version)
        (release / "complete").write_text("by hand\n")
        backend.bless(version, "")
        self.journal.write(UpdateState(current=version, newest=version))
        return self

    def backend(self) -> VenvBackend:
        return VenvBackend(self.layout, lambda: self.done.append("restart"), self.prepare)

    def flow(self) -> UpdateFlow:
        channel = Channel(self.shop.url, "stable", self.shop.root, self.base / "tuf")
        verbs = NodeVerbs(
            self._does("drain"), self._does("resume"), self._does("snapshot"), lambda _: self.free
        )
        return UpdateFlow(self.journal, self.backend(), channel, self.base / "downloads", verbs)

    def _does(self, what):
        async def act():
            self.done.append(what)

        return act

    async def update(self) -> UpdateState:
        """Check and apply, until it rests or waits for the restart."""
        flow = self.flow()
        await flow.check()
        await flow.apply()
        await flow.work(flow._begun.get_nowait())
        return self.state

    def launcher(self, gate: PassingGate) -> Launcher:
        return Launcher(self.layout, gate, ())


def offer(shop: Published, version: str, **more: str) -> None:
    shop.offer(version, small_release(version), **more)
