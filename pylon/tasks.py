"""Work for callers that cannot wait: tasks that synchronous code may start, and that are used again.

Two things of anyio are answered here. Starting a task with its cancel scopes costs more than a short piece of work
does, so a task that has finished its work waits for more. And anyio stops delivering a cancellation once the last
task of a cancelled group has ended: what is started between that moment and the group's own end would never hear
of it, and the group would wait for it for ever. So nothing is started in a group that is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio import TaskHandle
from anyio.abc import TaskGroup

Work = Callable[..., Awaitable[None]]

_MAX_IDLE: Final = 64


@asynccontextmanager
async def beside(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run `work` beside the block, cancelled at its end. What the block raises comes out as it is, in no group."""
    fault: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below
            fault = error
        tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault


class Crew:
    """A task group that takes work from synchronous code while it is `working`, and ends by cancellation only."""

    def __init__(self) -> None:
        self._group: TaskGroup | None = None
        self._idle: dict[Worker, None] = {}

    @asynccontextmanager
    async def working(self) -> AsyncIterator[TaskGroup]:
        """Hold the task group; tasks that never end may be started in it as in any other."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                yield group
        finally:
            self._group = None
            self._idle.clear()

    def start(self, work: Work, *args: Any) -> Worker | None:
        """Have `work(*args)` done by a task; None when the crew is not working (any more): nothing is done then."""
        if self._group is None or self._group.cancel_scope.cancel_called:
            return None
        if self._idle:
            worker, _ = self._idle.popitem()
        else:
            worker = Worker(self._idle)
            worker.hire(self._group)
        worker.give(work, args)
        return worker


class Worker:
    """A task of a crew, as whoever gave it work sees it: valid until that work has ended."""

    __slots__ = ("_args", "_handle", "_idle", "_wake", "_work")

    def __init__(self, idle: dict[Worker, None]) -> None:
        self._idle = idle
        self._wake = anyio.Event()
        self._work: Work | None = None
        self._args: tuple[Any, ...] = ()
        self._handle: TaskHandle[None] | None = None

    def hire(self, group: TaskGroup) -> None:
        """Begin to wait for work, as a task of the group."""
        self._handle = group.create_task(self._run())

    def give(self, work: Work, args: tuple[Any, ...]) -> None:
        """Hand over work."""
        self._work, self._args = work, args
        self._wake.set()

    def cancel(self) -> None:
        """Cancel the work. The task ends with it."""
        assert self._handle is not None
        self._handle.cancel()

    async def _run(self) -> None:
        while self._work is not None:
            work, args, self._work, self._args = self._work, self._args, None, ()
            await work(*args)
            # A cancellation that came too late for this work must not hit the next one.
            assert self._handle is not None
            if self._handle.status is not TaskHandle.Status.PENDING or len(self._idle) >= _MAX_IDLE:
                return
            self._wake = anyio.Event()
            self._idle[self] = None
            try:
                await self._wake.wait()
            finally:
                self._idle.pop(self, None)
