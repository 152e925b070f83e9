"""GPU memory that is free and what of it is ours, of a stand-in for NVIDIA's library and of the kernel's files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pylon.backends.gpu_memory import GpuMemory, gpu_memory, held_by_fdinfo, read_gpu_memory
from pylon.backends.memory import descendants

GB = 10**9


@dataclass
class Nvml:
    """NVIDIA's library with cards of (total, free) and who holds what of each."""

    cards: tuple[tuple[int, int], ...]
    computing: dict[int, int | None]
    drawing: dict[int, int | None]
    broken: str = ""

    def __getattr__(self, name: str) -> Any:
        if name == self.broken:
            raise RuntimeError("NVML_ERROR_NOT_SUPPORTED")
        return {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.cards),
            "nvmlDeviceGetHandleByIndex": lambda index: self.cards[index],
            "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card[0], free=card[1]),
            "nvmlDeviceGetComputeRunningProcesses": lambda card: _processes(self.computing),
            "nvmlDeviceGetGraphicsRunningProcesses": lambda card: _processes(self.drawing),
        }[name]


def _processes(held: dict[int, int | None]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in held.items()]


def process(proc: Path, pid: int, parent: int, *, name: str = "a (strange) name", **files: str) -> None:
    (proc / str(pid) / "fdinfo").mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} {pid} 0\n")
    for file, text in files.items():
        (proc / str(pid) / "fdinfo" / file).write_text(text)


def client(number: int, kib: int, driver: str = "amdgpu") -> str:
    return (
        "pos:\t0\nflags:\t02100002\n"
        f"drm-driver:\t{driver}\ndrm-client-id:\t{number}\ndrm-pdev:\t0000:03:00.0\n"
        f"drm-memory-vram:\t{kib} KiB\ndrm-memory-gtt: \t8 KiB\n"
    )


def test_what_our_children_hold_is_told_apart(tmp_path: Path) -> None:
    process(tmp_path, 10, 1)
    process(tmp_path, 11, 10)
    process(tmp_path, 12, 11)
    process(tmp_path, 99, 1)
    held: dict[int, int | None] = {11: 2 * GB, 12: GB, 99: 5 * GB}
    nvml = Nvml(((24 * GB, 9 * GB),), held, {12: 2 * GB, 99: GB, 11: None})
    # One that computes and draws holds its memory once.
    assert gpu_memory(nvml, drm=tmp_path, proc=tmp_path, pid=10) == GpuMemory(24 * GB, 9 * GB, 4 * GB)
    assert gpu_memory(nvml, drm=tmp_path, proc=tmp_path, pid=99) == GpuMemory(24 * GB, 9 * GB, 5 * GB)


def test_cards_count_together_and_what_is_not_told_is_not_ours(tmp_path: Path) -> None:
    process(tmp_path, 10, 1)
    nvml = Nvml(((24 * GB, 9 * GB), (8 * GB, GB)), {10: GB}, {}, "nvmlDeviceGetComputeRunningProcesses")
    assert gpu_memory(nvml, drm=tmp_path, proc=tmp_path, pid=10) == GpuMemory(32 * GB, 10 * GB, 0)
    for broken in ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"):
        nvml.broken = broken
        assert gpu_memory(nvml, drm=tmp_path, proc=tmp_path, pid=10) is None, broken


def test_amd_is_read_from_the_kernel(tmp_path: Path) -> None:
    card = tmp_path / "drm" / "card0" / "device"
    card.mkdir(parents=True)
    for file, text in (("vendor", "0x1002"), ("mem_info_vram_total", "16000000000"), ("mem_info_vram_used", "6")):
        (card / file).write_text(text + "\n")
    proc = tmp_path / "proc"
    process(proc, 10, 1, **{"3": "pos:\t0\n", "4": client(7, 1_000)})
    process(proc, 11, 10, **{"4": client(7, 1_000), "5": client(8, 500), "6": client(9, 99, "i915")})
    process(proc, 99, 1, **{"4": client(1, 4_000)})
    nvml = Nvml((), {}, {})
    found = gpu_memory(nvml, drm=tmp_path / "drm", proc=proc, pid=10)
    assert found == GpuMemory(16 * GB, 16 * GB - 6, 1_500 * 1024)


@given(st.text())
def test_any_fdinfo_is_read(text: str) -> None:
    from pylon.backends.gpu_memory import _count_client

    clients: dict[tuple[str, ...], int] = {}
    _count_client(f"pos:\t0\ndrm-driver:\tamdgpu\n{text}", clients)
    assert all(held >= 0 for held in clients.values())


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert held_by_fdinfo(tmp_path, [1, 2, 3]) == 0


async def test_this_machine_is_asked_and_nothing_raises() -> None:
    found = await read_gpu_memory()
    assert found is None or found.total_bytes >= found.free_bytes >= 0


def test_descendants_are_children_and_theirs() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        grandchild = int(child.stdout.readline())
        try:
            assert {os.getpid(), child.pid, grandchild} <= descendants(os.getpid())
            assert descendants(child.pid) == {child.pid, grandchild}
        finally:
            os.kill(grandchild, 9)
