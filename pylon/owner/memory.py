"""Has backends give their memory back, whatever kind they are: a plug-in may know nothing of it, or break it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio
import structlog

from pylon.jobs.ports import Backend
from pylon.text import printable

log = structlog.get_logger("pylon.owner")

UNLOAD_S: Final = 60.0
"""How long one backend may take; what waits is not held up for longer."""


def keeps_memory(backend: Backend) -> bool:
    """Tell whether a backend cannot give its memory back: it says so, or is a plug-in that was written before."""
    return backend.state().keeps_memory or not hasattr(backend, "unload")


def held_bytes(backends: Iterable[Backend]) -> int:
    """Return what backends take of the memory together, as far as they tell."""
    return sum(backend.state().memory_bytes or 0 for backend in backends)


async def give_back(backends: Iterable[Backend]) -> None:
    """Have all of them give their memory back, beside each other. Never raises."""
    async with anyio.create_task_group() as tasks:
        for backend in backends:
            if hasattr(backend, "unload"):
                tasks.start_soon(_unload, backend)


async def _unload(backend: Backend) -> None:
    try:
        with anyio.fail_after(UNLOAD_S):
            await backend.unload()
    except TimeoutError:
        log.warning("a backend has not given its memory back", backend=backend.name, within_s=UNLOAD_S)
    except Exception as error:  # noqa: BLE001 - a plug-in that breaks its word must not end the daemon
        detail = printable(f"{type(error).__name__}: {error}", limit=300)
        log.error("a backend broke giving its memory back", backend=backend.name, error=detail)
