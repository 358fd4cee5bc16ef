"""How the commands reach a process: why it takes long is told, and root leaves no files behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nodeapp.cli.owner import refuse_foreign
from nodeapp.service.single import Manner, reachable_process

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nodeapp.service.settings import Settings


def reaching(
    settings: Settings, process: str, *, only_reads: bool = False
) -> AbstractAsyncContextManager[Path]:
    """The socket of a process; see reachable_process.

    Args:
        settings: the node's.
        process: its name.
        only_reads: while the node is down, start it without making a journal.
    """
    manner = Manner(only_reads=only_reads, tell=_tell, before_start=refuse_foreign)
    return reachable_process(settings, process, manner)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
