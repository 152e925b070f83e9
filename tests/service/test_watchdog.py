"""The watchdog is fed by health: a loop that does not turn, a writer that does not answer, and it goes hungry."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pylon.service.notify import Notifier, SocketManager
from pylon.service.watchdog import feed
from pylon.store.errors import StoreUnavailable
from pylon.store.writer import Store
from tests.support.notify import NotifySocket, notify_socket

ALLOWED_S = 0.6
SILENCE_S = 3 * ALLOWED_S


@asynccontextmanager
async def fed(ask_writer: Callable[[], Awaitable[object]]) -> AsyncIterator[NotifySocket]:
    with notify_socket() as manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, Notifier(SocketManager(manager.address), ALLOWED_S), ask_writer)
            await manager.until("WATCHDOG")
            yield manager
            tasks.cancel_scope.cancel()


async def test_a_blocked_loop_feeds_nothing(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "db")
    turn, heard = threading.Event(), []

    async with fed(lambda: store.write(lambda tx: None)) as manager:

        def watch() -> None:
            while manager.next(0.01) is not None:
                continue  # what was said before the loop stopped turning
            heard.append(manager.next(SILENCE_S))
            turn.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert turn.wait(30), "the loop hangs here, in the middle of its one thread"
        watcher.join()
        assert heard == [None]
        await manager.until("WATCHDOG")
    await store.aclose()


async def test_a_writer_that_hangs_feeds_nothing_and_is_not_asked_twice(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "db")
    go_on, asked = threading.Event(), 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await store.write(lambda tx: None)

    async with fed(ask) as manager:
        store.post(lambda tx: go_on.wait(60))  # the writer's thread hangs in a transaction
        await manager.silence("WATCHDOG", SILENCE_S)
        before = asked
        await manager.silence("WATCHDOG", SILENCE_S)
        assert asked == before, "questions pile up behind a writer that hangs"
        go_on.set()
        await manager.until("WATCHDOG")
    await store.aclose()


async def test_a_writer_that_cannot_write_has_answered() -> None:
    """A full disk: a restart would not help, and would cut off what still works."""

    async def full() -> None:
        raise StoreUnavailable("the disk is full")

    async with fed(full) as manager:
        await manager.until("WATCHDOG")


async def test_a_fault_of_the_feeder_ends_the_daemon() -> None:
    """It is no part whose end could go unnoticed."""

    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await feed(Notifier(None, ALLOWED_S), broken)


async def test_without_a_watchdog_nobody_is_asked() -> None:
    async def never() -> None:
        raise AssertionError

    await feed(Notifier(), never)
