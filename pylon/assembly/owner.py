"""The owner's rules and what reads this machine for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from zoneinfo import ZoneInfo

from pylon.backends.gpu_memory import read_gpu_memory
from pylon.jobs.ports import Backend, Clock
from pylon.owner.hours import Hours, Wall, parse_window, wall_of
from pylon.owner.rules import MB, OwnerRules, Unknown
from pylon.owner.sensors import MachineSensors
from pylon.settings import Settings, WhenUnknown


def make_owner_rules(settings: Settings) -> OwnerRules:
    """Return when this machine may work for customers."""
    owner = settings.owner
    return OwnerRules(
        hours=Hours(tuple(parse_window(text) for text in owner.hours)) if owner.hours else None,
        idle_s=owner.idle_after_s if owner.idle_only else None,
        ac_only=owner.ac_only,
        gpu_floor_bytes=owner.gpu_memory_floor_mb * MB or None,
        unknown_allows=owner.when_unknown is WhenUnknown.RUN,
        settle_s=owner.settle_s,
        put_back=owner.put_back,
    )


def make_wall(settings: Settings) -> Wall:
    """Return the clock that the hours are told by."""
    zone = settings.owner.time_zone
    return wall_of(None if zone is None else ZoneInfo(zone))


def make_sensors(
    clock: Clock, environ: Mapping[str, str], backends: Callable[[], Collection[Backend]]
) -> MachineSensors:
    """Return what reads this machine. What `backends` tell of their GPU memory is not somebody else's."""

    async def gpu_bytes() -> int | Unknown:
        memory = await read_gpu_memory()
        if memory is None:
            return Unknown("no GPU tells its memory")
        told = sum(backend.state().gpu_bytes or 0 for backend in backends())
        return memory.free_bytes + memory.ours_bytes + told

    return MachineSensors(clock, environ, gpu_bytes)
