"""What the `lnurl` wallet must remember: each invoice it got, and how its payment can be learnt of.

An address's host cannot be asked for "the invoices of ours", so this small SQLite file is the wallet's only memory.
A row is on disk before its invoice is handed out. Blocking; the wallet calls it from one worker thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KEEP_S: Final = 90 * 86_400

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE invoices (
    payment_hash TEXT PRIMARY KEY,
    own_id TEXT NOT NULL,
    bolt11 TEXT NOT NULL UNIQUE,
    amount_msats INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    verify_url TEXT,
    zap_request_id TEXT,
    zap_author TEXT,
    settled_at INTEGER
);
CREATE INDEX invoices_own_id ON invoices (own_id);
CREATE INDEX invoices_created_at ON invoices (created_at);
"""
_COLUMNS: Final = (
    "payment_hash, own_id, bolt11, amount_msats, created_at, expires_at, verify_url, zap_request_id, zap_author,"
    " settled_at"
)


@dataclass(frozen=True, slots=True)
class Remembered:
    """One invoice of the address. Its payment shows at `verify_url`, in a receipt by `zap_author`, or in both."""

    payment_hash: str
    own_id: str
    bolt11: str
    amount_msats: int
    created_at: int
    expires_at: int
    verify_url: str | None = field(default=None, repr=False)  # some hosts give the preimage there
    zap_request_id: str | None = None
    zap_author: str | None = None
    settled_at: int | None = None


class LnurlFile:
    """The open file. Raises `sqlite3.Error` where the disk fails."""

    def __init__(self, path: Path, now: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            self._db.execute("BEGIN IMMEDIATE")  # another process may open it at the same time
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={_VERSION}")
            self._db.execute("DELETE FROM invoices WHERE expires_at < ?", (now - KEEP_S,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, row: Remembered) -> bool:
        """Store an invoice; False when it is there already."""
        values = (
            *(row.payment_hash, row.own_id, row.bolt11, row.amount_msats, row.created_at, row.expires_at),
            *(row.verify_url, row.zap_request_id, row.zap_author, row.settled_at),
        )
        marks = ", ".join("?" * len(values))
        statement = f"INSERT OR IGNORE INTO invoices ({_COLUMNS}) VALUES ({marks})"  # noqa: S608 - our own names
        return self._db.execute(statement, values).rowcount == 1

    def settle(self, payment_hash: str, settled_at: int) -> bool:
        """Note that an invoice was paid; False when that was known, or the invoice is not."""
        statement = "UPDATE invoices SET settled_at = ? WHERE payment_hash = ? AND settled_at IS NULL"
        return self._db.execute(statement, (settled_at, payment_hash)).rowcount == 1

    def get(self, payment_hash: str) -> Remembered | None:
        """Return an invoice."""
        return next(iter(self._select("payment_hash = ?", payment_hash)), None)

    def by_own_id(self, own_id: str) -> list[Remembered]:
        """Return the invoices made under an own id, oldest first."""
        return self._select("own_id = ?", own_id)

    def since(self, created_at: int) -> list[Remembered]:
        """Return the invoices from a time on, oldest first."""
        return self._select("created_at >= ?", created_at)

    def awaiting_receipt(self, expires_after: int) -> list[Remembered]:
        """Return the unpaid invoices that a zap receipt may still come for."""
        return self._select("settled_at IS NULL AND zap_author IS NOT NULL AND expires_at > ?", expires_after)

    def _select(self, condition: str, value: str | int) -> list[Remembered]:
        statement = f"SELECT {_COLUMNS} FROM invoices WHERE {condition} ORDER BY created_at, rowid"  # noqa: S608
        return [Remembered(*row) for row in self._db.execute(statement, (value,))]
