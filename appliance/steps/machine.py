"""The system that is installed to: each step is done, needed no more, or only told in a dry run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.console import Status
from appliance.steps.layout import write_atomically
from appliance.steps.run import run


@dataclass(frozen=True, slots=True)
class Machine:
    """Where things are put: the running system, or a directory that becomes one."""

    root: Path
    dry: bool

    @property
    def is_running(self) -> bool:
        """The system we run on."""
        return self.root == Path("/")

    def path(self, inside: Path) -> Path:
        """Of a place inside."""
        return self.root / inside

    def say(self, mark: str, text: str) -> None:
        """One line a step."""
        sys.stdout.write(f"  {mark:<8} {text}\n")

    def do(self, text: str, is_done: bool, action: Callable[[], object]) -> None:  # noqa: FBT001
        """Carry a step out, or say that nothing has to be done, or what would be."""
        if is_done:
            self.say("ok", text)
        elif self.dry:
            self.say("would", text)
        else:
            action()
            self.say("done", text)

    def command(self, *words: str | Path) -> None:
        """Of the system.

        Raises:
            SetupFailure: it failed; its last lines are in the text.
        """
        run(Status(str(words[0]), sys.stderr), words, what=" ".join(map(str, words[:2])))

    def put(self, text: str, place: Path, content: str) -> None:
        """A file of ours, whatever was there."""
        target = self.path(place)
        same = target.is_file() and target.read_text("utf-8") == content
        self.do(f"{text}: /{place}", same, lambda: write_atomically(target, content))
