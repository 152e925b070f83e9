"""The graphics processors of this machine, from NVIDIA's library, Linux's sysfs (AMD) and macOS's sysctl.

A source that is missing, or says something strange, finds nothing; the others are not affected.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

GPU_TIMEOUT_S: Final = 1.5
"""How long looking for them may take; a driver that hangs must not hold up the rest."""
DRM: Final = Path("/sys/class/drm")
"""Where Linux lists graphics cards."""
_CARD: Final = re.compile(r"card(\d+)")
_SYSCTL_TIMEOUT_S: Final = 1.0
_AMD_VENDOR_ID: Final = "0x1002"
_MAX_NAME: Final = 128


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them; None is what its driver does not tell. The `total_bytes` of Apple's are the whole machine's."""

    name: str
    vendor: str
    total_bytes: int | None
    free_bytes: int | None = None


Sysctl = Callable[[Sequence[str]], str]
"""Returns the values of macOS's kernel variables, one a line. Raises `OSError` or `subprocess.SubprocessError`."""


async def find_gpus() -> tuple[Gpu, ...]:
    """Return all of them, nothing after `GPU_TIMEOUT_S`; never raises. The libraries block: a thread asks them."""
    with anyio.move_on_after(GPU_TIMEOUT_S):
        return await anyio.to_thread.run_sync(_find, abandon_on_cancel=True)
    return ()


def _find() -> tuple[Gpu, ...]:
    return (*nvidia_gpus(), *amd_gpus(), *apple_gpus())


def nvidia_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """Return what NVML lists; `nvml` is the module `pynvml` unless given."""
    try:
        if nvml is None:
            import pynvml

            nvml = pynvml
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: there is none to use
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(_nvidia_gpu(nvml, handle) for handle in handles)
    except Exception:  # noqa: BLE001 - one that fell off the bus in between
        return ()
    finally:
        with suppress(Exception):
            nvml.nvmlShutdown()


def _nvidia_gpu(nvml: Any, handle: Any) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:  # those that share the machine's memory do not tell
        return Gpu(text[:_MAX_NAME], "NVIDIA", None)
    return Gpu(text[:_MAX_NAME], "NVIDIA", int(memory.total), int(memory.free))


def amd_gpus(root: Path = DRM) -> tuple[Gpu, ...]:
    """Return the cards under sysfs's `root` whose driver tells their memory, which amdgpu does."""
    try:
        cards = sorted(
            (int(number[1]), entry) for entry in root.iterdir() if (number := _CARD.fullmatch(entry.name))
        )
    except OSError:
        return ()
    return tuple(gpu for number, card in cards if (gpu := _amd_gpu(number, card / "device")))


def _amd_gpu(number: int, device: Path) -> Gpu | None:
    total = parse_count(_read(device / "mem_info_vram_total"))
    if total is None or _read(device / "vendor").strip() not in {"", _AMD_VENDOR_ID}:
        return None
    used = parse_count(_read(device / "mem_info_vram_used"))
    name = " ".join(_read(device / "product_name").split())[:_MAX_NAME]
    free = None if used is None else max(0, total - used)
    return Gpu(name or f"AMD GPU (card{number})", "AMD", total, free)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""


def parse_count(text: str) -> int | None:
    """Return the number in one of sysfs's files, None when there is none."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def apple_gpus(system: str = "", machine: str = "", sysctl: Sysctl | None = None) -> tuple[Gpu, ...]:
    """Return Apple's own processor, which holds its GPU; `system` and `machine` are this one's unless given."""
    if (system or platform.system(), machine or platform.machine()) != ("Darwin", "arm64"):
        return ()
    try:
        said = (sysctl or run_sysctl)(("machdep.cpu.brand_string", "hw.memsize"))
    except (OSError, subprocess.SubprocessError):
        return ()
    gpu = parse_sysctl(said)
    return () if gpu is None else (gpu,)


def parse_sysctl(said: str) -> Gpu | None:
    """Return the GPU that a chip's name and the memory's size, one a line, stand for."""
    name, _, size = said.strip().partition("\n")
    total = parse_count(size)
    return Gpu(name.strip()[:_MAX_NAME], "Apple", total) if name.strip() and total else None


def run_sysctl(names: Sequence[str]) -> str:
    """Ask macOS for the values of kernel variables."""
    command = ["/usr/sbin/sysctl", "-n", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_S, check=True)
    return done.stdout
