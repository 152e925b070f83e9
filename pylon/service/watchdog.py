"""Feeds systemd's watchdog with the daemon's own health, never by a timer alone.

The feeder is a task of the daemon's main group, on its event loop: a loop that does not turn and a group that has
ended feed nothing. Each time it asks the store's writer thread for an empty transaction first; one that does not
answer in time feeds nothing either. An answer that says that the database cannot be written is an answer: on a full
disk a restart would help nobody, and intake is shut already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog

from pylon.service.notify import Notifier
from pylon.store.errors import StoreUnavailable

log = structlog.get_logger("pylon.service")

_PARTS: Final = 3
"""Asked three times within what the manager allows, so that one answer may be late."""


async def feed(notifier: Notifier, ask_writer: Callable[[], Awaitable[object]]) -> None:
    """Feed the watchdog until cancelled; returns at once where there is none.

    `ask_writer` returns when the writer thread has answered, or raises `StoreUnavailable`.
    """
    if notifier.watchdog_s is None:
        return
    every_s = notifier.watchdog_s / _PARTS
    while True:
        if await _answers(ask_writer, every_s):
            await notifier.alive()
        await anyio.sleep(every_s)


async def _answers(ask_writer: Callable[[], Awaitable[object]], within_s: float) -> bool:
    """Ask once and wait for the answer, however late: questions must not pile up. Tell whether it came in time."""
    asked_at = anyio.current_time()
    with contextlib.suppress(StoreUnavailable):
        await ask_writer()
    took_s = anyio.current_time() - asked_at
    if took_s <= within_s:
        return True
    log.error("the database's writer was silent for too long", seconds=round(took_s, 1))
    return False
