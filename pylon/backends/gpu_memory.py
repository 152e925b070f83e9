"""How much GPU memory is free now, and what our own processes hold of it: NVIDIA's library, Linux's sysfs (AMD).

NVIDIA tells what each process holds; for AMD the kernel does, in the process's own `fdinfo`. Where a driver does
not tell it (in a container, whose numbers of processes are others), what is ours counts as somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from pylon.backends.gpus import DRM, GPU_TIMEOUT_S, amd_gpus
from pylon.backends.memory import PROC, descendants

_KEY: Final = "drm-memory-vram:"
_ID_KEYS: Final = ("drm-driver:", "drm-pdev:", "drm-client-id:")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """All of this machine's GPUs together. `ours_bytes` is what processes that this one started hold."""

    total_bytes: int
    free_bytes: int
    ours_bytes: int = 0


async def read_gpu_memory() -> GpuMemory | None:
    """Return the memory of all GPUs that tell it, None when none does; never raises. A thread asks the drivers."""
    with anyio.move_on_after(GPU_TIMEOUT_S):
        return await anyio.to_thread.run_sync(gpu_memory, abandon_on_cancel=True)
    return None


def gpu_memory(nvml: Any = None, *, drm: Path = DRM, proc: Path = PROC, pid: int | None = None) -> GpuMemory | None:
    """Return the memory of all GPUs, what the descendants of `pid` (by default this process) hold told apart.

    `nvml` is the module `pynvml` unless given. Blocks.
    """
    ours = descendants(os.getpid() if pid is None else pid, proc)
    found = [*_nvidia(nvml, ours), *_amd(drm, proc, ours)]
    if not found:
        return None
    return GpuMemory(
        sum(each.total_bytes for each in found),
        sum(each.free_bytes for each in found),
        sum(each.ours_bytes for each in found),
    )


def _nvidia(nvml: Any, ours: frozenset[int]) -> list[GpuMemory]:
    found = []
    try:
        if nvml is None:
            import pynvml

            nvml = pynvml
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: there is none to use
        return []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(GpuMemory(int(memory.total), int(memory.free), _held(nvml, handle, ours)))
    except Exception:  # noqa: BLE001 - one that does not tell, or fell off the bus in between
        return found
    finally:
        with suppress(Exception):
            nvml.nvmlShutdown()
    return found


def _held(nvml: Any, handle: Any, ours: frozenset[int]) -> int:
    """Return what our processes hold; one that computes and draws is listed twice with the same memory."""
    held: dict[int, int] = {}
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        with suppress(Exception):  # a driver that does not tell
            for each in getattr(nvml, name)(handle):
                if each.pid in ours and each.usedGpuMemory:
                    held[each.pid] = max(held.get(each.pid, 0), int(each.usedGpuMemory))
    return sum(held.values())


def _amd(drm: Path, proc: Path, ours: frozenset[int]) -> list[GpuMemory]:
    cards = [gpu for gpu in amd_gpus(drm) if gpu.total_bytes is not None and gpu.free_bytes is not None]
    if not cards:
        return []
    total, free = sum(gpu.total_bytes or 0 for gpu in cards), sum(gpu.free_bytes or 0 for gpu in cards)
    return [GpuMemory(total, free, held_by_fdinfo(proc, ours))]


def held_by_fdinfo(proc: Path, pids: Iterable[int]) -> int:
    """Return the GPU memory that processes hold by what the kernel tells of their open files, each client once."""
    clients: dict[tuple[str, ...], int] = {}
    for pid in pids:
        with suppress(OSError):
            for entry in (proc / str(pid) / "fdinfo").iterdir():
                with suppress(OSError):
                    _count_client(entry.read_text(), clients)
    return sum(clients.values())


def _count_client(text: str, clients: dict[tuple[str, ...], int]) -> None:
    if not text.startswith(("pos:", "drm-")) or "drm-driver:\tamdgpu" not in text:
        return
    lines = [line.split() for line in text.splitlines()]
    told = {words[0]: words[1] for words in lines if len(words) >= 2}
    held = told.get(_KEY, "")
    if held.isascii() and held.isdigit() and len(held) < 16:
        clients[tuple(told.get(key, "") for key in _ID_KEYS)] = int(held) * 1024  # always in KiB
