"""Gathers writes and sends them to SQLite many rows at a time.

Every call of sqlite3 gives up the interpreter's lock and must win it back from a busy event loop; that wait
costs more than the statement. One statement with many rows waits once. Statements of every number of rows up to
`MAX_ROWS` stay in sqlite3's cache, which must have room for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

Row = Sequence[Any]

MAX_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Insert:
    """Rows for a table; each row's members are in the order of `columns`."""

    table: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """Changes of rows found by `keys`; each row's members are the keys, then the values."""

    table: str
    keys: tuple[str, ...]
    values: tuple[str, ...]


class Batch:
    """What is gathered for one connection. Inserts go out before updates.

    They go table by table in the order of `tables`: those that others refer to come first.
    """

    def __init__(self, connection: sqlite3.Connection, tables: Sequence[Insert]) -> None:
        self._connection = connection
        self._inserts: dict[Insert, list[Row]] = {table: [] for table in tables}
        self._updates: dict[Update, list[Row]] = {}

    def insert(self, into: Insert, row: Row) -> None:
        """Gather a row for one of the tables."""
        self._inserts[into].append(row)

    def later(self, change: Update, row: Row) -> None:
        """Gather a change. Of two changes of one row in one batch, which comes last is not defined."""
        self._updates.setdefault(change, []).append(row)

    def update(self, change: Update, rows: Sequence[Row]) -> int:
        """Send changes at once, after the inserts gathered before; return how many rows they found."""
        self._send_inserts()
        return self._send(change, rows)

    def flush(self) -> None:
        """Send everything that was gathered."""
        self._send_inserts()
        for change, rows in self._updates.items():
            if rows:
                self._send(change, rows)
                rows.clear()

    def clear(self) -> None:
        """Forget everything that was gathered."""
        for gathered in (*self._inserts.values(), *self._updates.values()):
            gathered.clear()

    def _send_inserts(self) -> None:
        for into, rows in self._inserts.items():
            if rows:
                self._send(into, rows)
                rows.clear()

    def _send(self, what: Insert | Update, rows: Sequence[Row]) -> int:
        done = 0
        for start in range(0, len(rows), MAX_ROWS):
            block = rows[start : start + MAX_ROWS]
            params = [member for row in block for member in row]
            done += self._connection.execute(_sql(what, len(block)), params).rowcount
        return done


@cache
def _sql(what: Insert | Update, rows: int) -> str:
    if isinstance(what, Insert):
        marks = _marks(len(what.columns), rows)
        return f"INSERT INTO {what.table} ({', '.join(what.columns)}) VALUES {marks}"
    if rows == 1:  # joining with a table of one row takes three times as long
        sets = ", ".join(f"{name} = ?{at}" for at, name in enumerate(what.values, start=len(what.keys) + 1))
        found = " AND ".join(f"{name} = ?{at}" for at, name in enumerate(what.keys, start=1))
        return f"UPDATE {what.table} SET {sets} WHERE {found}"
    sets = ", ".join(f"{name} = v.column{len(what.keys) + at}" for at, name in enumerate(what.values, start=1))
    found = " AND ".join(f"{what.table}.{name} = v.column{at}" for at, name in enumerate(what.keys, start=1))
    marks = _marks(len(what.keys) + len(what.values), rows)
    return f"UPDATE {what.table} SET {sets} FROM (VALUES {marks}) AS v WHERE {found}"


def _marks(columns: int, rows: int) -> str:
    return ", ".join(["(" + ", ".join("?" * columns) + ")"] * rows)
