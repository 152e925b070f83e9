"""What processes take of this machine's memory, by Linux's procfs, or `ps` where there is none."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

PROC: Final = Path("/proc")
_PS_TIMEOUT_S: Final = 2.0


async def resident_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Return the resident memory of a process, None when it cannot be told; never raises."""
    if (proc / "self").exists():
        return parse_status(_read(proc / str(pid) / "status"))
    return await _ask_ps(pid)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # it has ended


def descendants(pid: int, proc: Path = PROC) -> frozenset[int]:
    """Return a process and all that it started, and those in turn, as far as procfs tells. Blocks."""
    parents = dict(_parents(proc))
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found)


def _parents(proc: Path) -> Iterator[tuple[int, int]]:
    try:
        entries = [entry for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError:
        return
    for entry in entries:
        # `12 (a name with ) in it) S 1 …`
        fields = _read(entry / "stat").rpartition(")")[2].split()
        if len(fields) > 1 and fields[1].isdigit():
            yield int(entry.name), int(fields[1])


def parse_status(text: str) -> int | None:
    """Return the `VmRSS` of a `/proc/<pid>/status`, None when it has none: the process has ended."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return _kibibytes(value.removesuffix("kB"))
    return None


async def _ask_ps(pid: int) -> int | None:
    try:
        with anyio.fail_after(_PS_TIMEOUT_S):
            done = await anyio.run_process(
                ["ps", "-o", "rss=", "-p", str(pid)], stderr=subprocess.DEVNULL, check=False
            )
    except (OSError, TimeoutError):
        return None
    return _kibibytes(done.stdout.decode("ascii", "replace"))


def _kibibytes(text: str) -> int | None:
    digits = text.strip()
    return int(digits) * 1024 if digits.isascii() and digits.isdigit() and len(digits) < 16 else None
