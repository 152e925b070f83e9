"""Looks at the machine, as far as the rules ask for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import anyio

from pylon.owner import idleness, power
from pylon.owner.rules import OwnerRules, Readings, Unknown


class Sensors(Protocol):
    """What reads the state of the machine."""

    async def read(self, rules: OwnerRules) -> Readings:
        """Return what the rules need to know. Never raises, and does not block the loop."""
        ...


class MachineSensors:
    """Reads this machine. `gpu_bytes` returns the GPU memory that is free, with what our own models hold."""

    def __init__(
        self,
        clock: Callable[[], float],
        environ: Mapping[str, str],
        gpu_bytes: Callable[[], Awaitable[int | Unknown]],
    ) -> None:
        self._clock = clock
        self._environ = environ
        self._gpu_bytes = gpu_bytes

    async def read(self, rules: OwnerRules) -> Readings:
        """Return what the rules need to know; see `Sensors`."""
        idle: list[float | Unknown] = [Unknown("no rule asks for it")]
        mains: list[bool | Unknown] = [Unknown("no rule asks for it")]
        gpu: list[int | Unknown] = [Unknown("no rule asks for it")]

        async def look_idle() -> None:
            idle[0] = await idleness.idle_s(self._clock(), environ=self._environ)

        async def look_power() -> None:
            mains[0] = await power.on_mains()

        async def look_gpu() -> None:
            gpu[0] = await self._gpu_bytes()

        async with anyio.create_task_group() as tasks:
            if rules.idle_s is not None:
                tasks.start_soon(look_idle)
            if rules.ac_only:
                tasks.start_soon(look_power)
            if rules.gpu_floor_bytes is not None:
                tasks.start_soon(look_gpu)
        return Readings(idle[0], mains[0], gpu[0])
