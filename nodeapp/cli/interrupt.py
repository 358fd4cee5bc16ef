"""Ctrl-C and SIGTERM as cancellation: the coroutine's own `finally` blocks do the cleaning up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from nodeapp.core.errors import NodeError, leaves

Result = TypeVar("Result")


def run_interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end; the first signal cancels, later ones are ignored while it cleans up.

    Raises:
        KeyboardInterrupt: it was cancelled by SIGINT or SIGTERM.
        NodeError: the first one, taken out of any TaskGroup's wrapping.
    """
    try:
        return asyncio.run(_guarded(work))
    except* NodeError as group:
        raise leaves(group)[0] from None


async def _guarded(work: Coroutine[Any, Any, Result]) -> Result:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)  # noqa: TID251  # owned and awaited right here
    asked = False

    def cancel() -> None:
        nonlocal asked
        if not asked:
            asked = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, cancel)
    try:
        return await task
    except asyncio.CancelledError as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
