"""How the commands reach a process: why it takes long is told, and root leaves no files behind."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from nodeapp.cli.owner import refuse_foreign
from nodeapp.core.errors import Unavailable
from nodeapp.service.single import Manner, reachable_process
from nodeapp.service.supervisor_client import SupervisorClient
from nodeapp.service.supervisord import supervisor_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nodeapp.service.paths import Paths
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


@contextlib.contextmanager
def running_node(paths: Paths) -> Iterator[None]:
    """For questions that only a running node answers.

    Raises:
        Unavailable: there is none, or what was asked of it failed.
    """
    try:
        yield
    except Unavailable as error:
        try:
            SupervisorClient(supervisor_socket(paths)).programs()
        except Unavailable:
            raise no_node(paths) from error
        raise


def no_node(paths: Paths) -> Unavailable:
    """What every command says of it."""
    return Unavailable(
        f"no node runs on state directory {paths.state}; start it with `fabstir-node run`"
    )
