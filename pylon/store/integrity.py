"""Whether a database file is sound, found without changing it and within a time limit."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pylon.store.errors import StoreTooNew, StoreUnavailable
from pylon.store.migrations import MIGRATIONS

_STEPS: Final = 20_000  # of SQLite's virtual machine between two looks at the clock, some milliseconds


def find_damage(path: Path, limit_s: float) -> str:
    """Return the first damage that SQLite finds, "" when there is none. Blocks.

    Raises `StoreUnavailable` when it cannot be read, `StoreTooNew`, and `TimeoutError` after `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=limit_s)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the database was not checked within {limit_s:g} s") from error
        raise StoreUnavailable(f"the database {path} cannot be read: {error}") from error
    if version > len(MIGRATIONS):
        raise StoreTooNew(f"the database {path} was written by a newer Pylon: upgrade this one")
    return "" if said == "ok" else str(said)
