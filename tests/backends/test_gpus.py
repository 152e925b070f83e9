"""GPUs from samples of each source; what is missing or strange finds nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pylon.backends import gpus
from pylon.backends.gpus import Gpu, amd_gpus, apple_gpus, find_gpus, nvidia_gpus, parse_count, parse_sysctl


class NVMLError(Exception):
    pass


class FakeNvml:
    """The part of `pynvml` that is used; each card is a name and its memory, None where it does not tell."""

    NVMLError = NVMLError

    def __init__(self, *cards: tuple[str | bytes, tuple[int, int] | None], fails_at: str = "") -> None:
        self._cards = cards
        self._fails_at = fails_at
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fails_at:
            raise NVMLError(name)

    def nvmlInit(self) -> None:
        self._call("init")

    def nvmlShutdown(self) -> None:
        self._call("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        self._call("count")
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._call("handle")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self._cards[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        memory = self._cards[handle][1]
        if memory is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=memory[0], free=memory[1])


def test_nvidia() -> None:
    nvml = FakeNvml(("NVIDIA H100", (85_520_809_984, 84_000_000_000)), (b"NVIDIA GB10", None))
    assert nvidia_gpus(nvml) == (
        Gpu("NVIDIA H100", "NVIDIA", 85_520_809_984, 84_000_000_000),
        Gpu("NVIDIA GB10", "NVIDIA", None, None),
    )
    assert nvml.calls[-1] == "shutdown"


@pytest.mark.parametrize(("fails_at", "shut"), [("init", False), ("count", True), ("handle", True)])
def test_nvidia_that_fails_has_none(fails_at: str, shut: bool) -> None:
    nvml = FakeNvml(("NVIDIA H100", (1, 1)), fails_at=fails_at)
    assert nvidia_gpus(nvml) == ()
    assert ("shutdown" in nvml.calls) is shut


def test_nvidia_whose_shutdown_fails_is_listed_all_the_same() -> None:
    assert len(nvidia_gpus(FakeNvml(("NVIDIA T4", (2, 1)), fails_at="shutdown"))) == 1


def card(root: Path, name: str, **files: str) -> None:
    device = root / name / "device"
    device.mkdir(parents=True)
    for file, text in files.items():
        (device / file).write_text(text)


def test_amd(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card10",
        vendor="0x1002\n",
        mem_info_vram_total="17163091968\n",
        mem_info_vram_used="1163091968\n",
        product_name="Radeon RX 7800 XT\n",
    )
    card(tmp_path, "card2", vendor="0x1002\n", mem_info_vram_total="536870912\n", mem_info_vram_used="junk\n")
    card(tmp_path, "card0", vendor="0x8086\n")  # Intel's tells nothing of the kind
    card(tmp_path, "card3", vendor="0x10de\n", mem_info_vram_total="1\n")
    card(tmp_path, "card4", mem_info_vram_total="-5\n")
    card(tmp_path, "card2-DP-1", mem_info_vram_total="1\n")  # a connector
    (tmp_path / "renderD128").mkdir()
    assert amd_gpus(tmp_path) == (
        Gpu("AMD GPU (card2)", "AMD", 536_870_912, None),
        Gpu("Radeon RX 7800 XT", "AMD", 17_163_091_968, 16_000_000_000),
    )
    assert amd_gpus(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("text", "count"), [("42\n", 42), ("", None), ("-1", None), ("1.5", None), ("٣", None), ("9" * 30, None)]
)
def test_counts(text: str, count: int | None) -> None:
    assert parse_count(text) == count


def test_apple() -> None:
    asked: list[Sequence[str]] = []

    def sysctl(names: Sequence[str]) -> str:
        asked.append(names)
        return "Apple M4 Pro\n51539607552\n"

    assert apple_gpus("Darwin", "arm64", sysctl) == (Gpu("Apple M4 Pro", "Apple", 51_539_607_552, None),)
    assert asked == [("machdep.cpu.brand_string", "hw.memsize")]
    assert apple_gpus("Linux", "arm64", sysctl) == apple_gpus("Darwin", "x86_64", sysctl) == ()
    assert len(asked) == 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no sysctl"), subprocess.TimeoutExpired("sysctl", 1)])
def test_apple_without_sysctl_has_none(error: Exception) -> None:
    def sysctl(names: Sequence[str]) -> str:
        raise error

    assert apple_gpus("Darwin", "arm64", sysctl) == ()


@pytest.mark.parametrize("said", ["", "Apple M1", "Apple M1\n", "\n123", "Apple M1\nmuch"])
def test_half_a_sysctl_is_none(said: str) -> None:
    assert parse_sysctl(said) is None


async def test_all_sources_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Gpu("a", "NVIDIA", 1), Gpu("b", "AMD", 2)
    monkeypatch.setattr(gpus, "nvidia_gpus", lambda: (one,))
    monkeypatch.setattr(gpus, "amd_gpus", lambda: (two,))
    monkeypatch.setattr(gpus, "apple_gpus", lambda: ())
    assert await find_gpus() == (one, two)


async def test_the_machine_at_hand_does_not_raise() -> None:
    assert all(isinstance(gpu, Gpu) for gpu in await find_gpus())
