"""What a process takes of the memory, as the kernel or `ps` tells it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pylon.backends.memory import parse_status, resident_bytes


async def test_our_own_memory_is_what_we_take() -> None:
    before = await resident_bytes(os.getpid())
    assert before is not None
    ballast = bytearray(os.urandom(1)) * (64 << 20)
    after = await resident_bytes(os.getpid())
    assert after is not None
    assert after - before > 48 << 20
    del ballast


async def test_a_process_that_is_gone_takes_none_that_could_be_told(tmp_path: Path) -> None:
    assert await resident_bytes(2**22 + 1) is None


@pytest.mark.skipif(sys.platform == "win32", reason="there is no ps")
async def test_without_procfs_ps_is_asked(tmp_path: Path) -> None:
    asked = await resident_bytes(os.getpid(), tmp_path / "none")
    assert asked is None or asked > 10 << 20  # where ps is not installed it is unknown


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("Name:\tx\nVmRSS:\t    2048 kB\nThreads: 1\n", 2048 * 1024),
        ("Name:\tx\nState: Z\n", None),
        ("VmRSS:\tmuch kB\n", None),
        ("VmRSS:\t" + "9" * 40 + " kB\n", None),
        ("", None),
    ],
)
def test_a_status_is_read(text: str, taken: int | None) -> None:
    assert parse_status(text) == taken
