"""A copy of the database of one moment, while the daemon may be writing to it; and one that came back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pylon.store.errors import StoreUnavailable
from pylon.store.integrity import find_damage
from pylon.store.records import RESTORED_MARK

_PATIENCE_S: Final = 30.0
_CHECK_S: Final = 600.0


def take_snapshot(database: Path, copy: Path) -> None:
    """Write a consistent copy to `copy`, an empty file or none. Blocks; the daemon goes on writing meanwhile.

    `VACUUM INTO` reads in one transaction and leaves behind what was erased: the free pages of the file may still
    hold the text of customers. Raises `StoreUnavailable`.
    """
    try:
        with closing(_open(database)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the database {database} cannot be copied: {error}") from error


def prepare_restored(copy: Path, taken_at: int) -> None:
    """Check a copy that came from a backup, and mark it as one. Blocks.

    Raises `StoreUnavailable` when it is damaged, or `StoreTooNew`.
    """
    try:
        damage = find_damage(copy, _CHECK_S)
    except TimeoutError as error:
        raise StoreUnavailable(str(error)) from error
    if damage:
        raise StoreUnavailable(f"the database in the backup is damaged: {damage}")
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            (older,) = connection.execute(
                "SELECT min(value) FROM (SELECT value FROM marks WHERE name = ? UNION SELECT ?)",
                (RESTORED_MARK, taken_at),
            ).fetchone()
            connection.execute("INSERT OR REPLACE INTO marks VALUES (?,?)", (RESTORED_MARK, older))
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the database in the backup is none of pylon: {error}") from error
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=_PATIENCE_S)
