"""The log file of a child process that writes to it itself: private and bounded.

The child keeps the file open for appending, so it is not renamed but copied aside and emptied.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Final

MAX_LOG_BYTES: Final = 4 << 20


def open_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> io.FileIO:
    """Open `path` for appending, readable by its owner only; its folder is made. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    bound_log(path, max_bytes)
    return open(path, "ab", buffering=0, opener=_private)


def bound_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Empty the file when it is longer than `max_bytes`; its last `max_bytes` go to `path` + `.1`. Never raises."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        if size <= max_bytes:
            return
        with contextlib.suppress(OSError):  # a full disk is one more reason to empty it
            _copy_tail(path, size - max_bytes, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _copy_tail(path: Path, start: int, copy: Path) -> None:
    with path.open("rb") as source, open(copy, "wb", opener=_private) as target:
        source.seek(start)
        shutil.copyfileobj(source, target)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
