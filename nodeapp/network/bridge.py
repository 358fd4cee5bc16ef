"""The bridge between the asyncio loop and the trio thread that runs libp2p.

Asyncio owns the main thread, signals and the exit; trio runs in one thread of its own. Callables
and values cross, exceptions never do: an error of a call comes back as the future's value, the
end of a stream as an item. This file and its siblings are the only ones importing trio.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

import trio

from nodeapp.core.errors import NodeError, Unavailable

Result = TypeVar("Result")
JOIN_SECONDS = 5.0


class TrioMain(Protocol):
    """What runs on the trio thread: set up, call `started`, return when `stop` is set."""

    async def __call__(
        self, nursery: trio.Nursery, started: Callable[[], None], stop: trio.Event
    ) -> None:
        """Return in an orderly way; raising ends the thread and is reported as its death."""
        ...


def wrapped(what: str, error: BaseException) -> NodeError:
    """Turn a library's exception into ours; groups of trio's nurseries show their first leaf."""
    leaf: BaseException = error
    while True:
        if isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        elif isinstance(leaf, trio.TrioInternalError) and leaf.__cause__ is not None:
            leaf = leaf.__cause__
        else:
            break
    if isinstance(leaf, NodeError):
        return leaf
    text = " ".join(str(leaf).split())[:200]
    failure = Unavailable(f"{what}: {type(leaf).__name__}{': ' + text if text else ''}")
    failure.__cause__ = leaf
    return failure


class _Crossing:
    """What is put here runs on the other thread, in order; one wake-up for all that piled up.

    A wake-up is a system call, and the other loop's turn is not free either.
    """

    __slots__ = ("_is_woken", "_waiting", "_wake")

    def __init__(self, wake: Callable[[Callable[[], object]], object]) -> None:
        """`wake` runs a callable on the other thread, or raises when there is none any more."""
        self._wake = wake
        self._waiting: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._is_woken = False

    def put(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        """From any thread; raises what `wake` raises."""
        # In this order on both sides, so that the taker sees the item or the putter wakes it.
        self._waiting.append((callback, args))
        if not self._is_woken:
            self._wake_up()

    def _wake_up(self) -> None:
        self._is_woken = True
        try:
            self._wake(self._run)
        except RuntimeError:  # trio's RunFinishedError is one
            self._is_woken = False
            self._waiting.clear()
            raise

    def _run(self) -> None:
        self._is_woken = False
        try:
            for _ in range(len(self._waiting)):
                callback, args = self._waiting.popleft()
                callback(*args)
        finally:
            if self._waiting and not self._is_woken:  # one of them failed
                self._wake_up()


class Bridge:
    """One thread, one `trio.run`. Built and used on the asyncio side unless a method says trio."""

    def __init__(self, main: TrioMain, on_death: Callable[[str], None]) -> None:
        """Prepare the thread.

        Args:
            main: runs on the trio thread.
            on_death: called on the loop when the thread ends without having been asked to.
        """
        self._loop = asyncio.get_running_loop()
        self._main = main
        self._on_death = on_death
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._stop_asked = False
        self._to_trio = _Crossing(self._enter_trio)
        self._to_loop = _Crossing(self._loop.call_soon_threadsafe)
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._stop: trio.Event | None = None
        # A daemon: a thread stuck inside the library must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="libp2p-trio", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether calls can still be made."""
        return self._token is not None and not self._ended.is_set()

    async def start(self, deadline_seconds: float) -> None:
        """Start the thread and wait until its main has called `started`.

        Raises:
            NodeError: what main raised, or Unavailable when the deadline passed.
        """
        self._thread.start()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._started
        except TimeoutError as error:
            raise Unavailable(f"libp2p did not start in {deadline_seconds:g} s") from error

    async def stop(self) -> None:
        """Ask main to return, cancel it after half the allowance, wait for the thread's end.

        Raises:
            Unavailable: the thread is still there after JOIN_SECONDS.
        """
        self._stop_asked = True
        if self._token is None:
            return
        try:
            self._try_post(self._set_stop)
            try:
                async with asyncio.timeout(JOIN_SECONDS / 2):
                    await self._ended.wait()
            except TimeoutError:
                self._try_post(self._cancel_all)
                async with asyncio.timeout(JOIN_SECONDS / 2):
                    await self._ended.wait()
        except TimeoutError as error:
            raise Unavailable(f"libp2p thread did not end in {JOIN_SECONDS:g} s") from error
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    async def call(
        self, what: str, function: Callable[[], Awaitable[Result]], deadline_seconds: float
    ) -> Result:
        """Run an async function on the trio thread and wait for its result.

        Cancelling the caller, or the deadline, cancels the function there.

        Args:
            what: names the work in errors.
            function: runs on the trio thread.
            deadline_seconds: for the whole call.
        Raises:
            NodeError: raised by the function, or its other exceptions wrapped as Unavailable.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        scope = trio.CancelScope()
        self.post(self._spawn, what, function, future, scope)
        try:
            async with asyncio.timeout(deadline_seconds):
                return await future
        except TimeoutError as error:
            raise Unavailable(f"{what}: not done in {deadline_seconds:g} s") from error
        finally:
            if future.cancelled():
                self._try_post(scope.cancel)

    def post(self, callback: Callable[..., object], *args: object) -> None:
        """Run a short callable on the trio thread; callable from any thread.

        Raises:
            Unavailable: the thread has ended.
        """
        if not self._try_post(callback, *args):
            raise Unavailable("libp2p thread has ended")

    def to_loop(self, callback: Callable[..., object], *args: object) -> None:
        """Run a short callable on the asyncio loop; callable from any thread."""
        try:
            self._to_loop.put(callback, args)
        except RuntimeError:
            # The loop is closed: the process is past caring about this item.
            return

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Trio side: run a task that ends with the thread."""
        if self._nursery is None:
            raise RuntimeError("spawn before start")
        self._nursery.start_soon(function, *args)

    def _try_post(self, callback: Callable[..., object], *args: object) -> bool:
        if self._token is None:
            return False
        try:
            self._to_trio.put(callback, args)
        except trio.RunFinishedError:
            return False
        return True

    def _enter_trio(self, callback: Callable[[], object]) -> None:
        if self._token is not None:
            self._token.run_sync_soon(callback)

    def _set_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _cancel_all(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _spawn(
        self,
        what: str,
        function: Callable[[], Awaitable[Result]],
        future: asyncio.Future[Result],
        scope: trio.CancelScope,
    ) -> None:
        try:
            self.spawn(self._run_call, what, function, future, scope)
        except RuntimeError:  # the nursery is closed: the thread is about to end
            self.to_loop(_settle, future, Unavailable(f"{what}: libp2p is stopping"), None)

    async def _run_call(
        self,
        what: str,
        function: Callable[[], Awaitable[Result]],
        future: asyncio.Future[Result],
        scope: trio.CancelScope,
    ) -> None:
        failure: NodeError | None = Unavailable(f"{what}: cancelled, libp2p is stopping")
        result: Result | None = None
        try:
            with scope:
                result = await function()
                failure = None
        except Exception as error:  # noqa: BLE001 - crosses as a value; must not end the thread
            failure = wrapped(what, error)
        finally:
            self.to_loop(_settle, future, failure, result)

    def _run(self) -> None:
        reason = "libp2p thread ended"
        try:
            trio.run(self._run_main)
        except BaseException as error:  # noqa: BLE001 - outermost frame: reported to the loop
            reason = str(wrapped("libp2p thread", error))
            self.to_loop(self._fail_start, wrapped("start libp2p", error))
        finally:
            self.to_loop(self._note_end, reason)

    async def _run_main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        if self._stop_asked:
            return
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._main(nursery, lambda: self.to_loop(self._note_start), self._stop)
            nursery.cancel_scope.cancel()

    def _note_start(self) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _fail_start(self, failure: NodeError) -> None:
        if not self._started.done():
            self._started.set_exception(failure)

    def _note_end(self, reason: str) -> None:
        self._ended.set()
        if not self._started.done():
            self._started.set_exception(Unavailable(reason))
        elif not self._stop_asked and self._started.exception() is None:
            self._on_death(reason)


def _settle(
    future: asyncio.Future[Result], failure: NodeError | None, result: Result | None
) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(cast("Result", result))
    else:
        future.set_exception(failure)
