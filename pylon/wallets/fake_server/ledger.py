"""The books of the fake wallet: invoices, payments, and every msat that moved, in one SQLite file.

Synchronous; the app calls it from one thread at a time. Every method is one transaction (WAL, `synchronous=FULL`),
so what was answered survives `kill -9`. The file is locked for as long as the process lives.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, Network, read_invoice
from pylon.wallets.fake_server.node import Draft, Node

PAGE: Final = 50
FEE_PPM: Final = 1_000
"""What a simulated payment to another node costs: 0.1 percent, rounded up to a msat."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS invoices (
    number INTEGER PRIMARY KEY,
    payment_hash TEXT NOT NULL UNIQUE,
    own_id TEXT NOT NULL,
    preimage TEXT NOT NULL,
    bolt11 TEXT NOT NULL,
    amount_msats INTEGER NOT NULL CHECK (amount_msats > 0),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'settled', 'failed', 'forgotten')),
    reported_msats INTEGER NOT NULL DEFAULT 0,
    settled_at INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS invoices_by_own_id ON invoices (own_id);
CREATE TABLE IF NOT EXISTS payments (
    own_id TEXT PRIMARY KEY,
    payment_hash TEXT NOT NULL UNIQUE,
    bolt11 TEXT NOT NULL,
    amount_msats INTEGER NOT NULL,
    fee_msats INTEGER NOT NULL,
    paid_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('received', 'paid', 'fee')),
    payment_hash TEXT NOT NULL,
    amount_msats INTEGER NOT NULL CHECK (amount_msats >= 0),
    entered_at INTEGER NOT NULL
) STRICT;
"""

_SELECT_INVOICE: Final = """
SELECT number, payment_hash, own_id, bolt11, amount_msats, created_at, expires_at, reported_msats, settled_at, state
FROM invoices WHERE """

_SELECT_PAYMENT: Final = """
SELECT payments.own_id, payment_hash, payments.amount_msats, fee_msats, paid_at, preimage
FROM payments LEFT JOIN invoices USING (payment_hash) WHERE """


class Refused(Exception):
    """The wallet says no: an HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Kept(StrEnum):
    """How an invoice is kept; whether an open one has expired is a matter of the clock."""

    OPEN = "open"
    SETTLED = "settled"
    FAILED = "failed"
    FORGOTTEN = "forgotten"  # still here for the books, but the wallet denies it


@dataclass(frozen=True, slots=True)
class InvoiceRecord:
    """One invoice. `reported_msats` is what the wallet claims to have received; the entries have the truth."""

    number: int
    payment_hash: str
    own_id: str
    bolt11: str
    amount_msats: int
    created_at: int
    expires_at: int
    reported_msats: int
    settled_at: int | None
    state: Kept


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a payer gets for its money."""

    invoice: InvoiceRecord
    preimage: str


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """One payment that the owner made; `settled` is the own invoice that it settled, if it was one.

    The preimage is known of own invoices only: what lies beyond this wallet is not simulated.
    """

    own_id: str
    payment_hash: str
    amount_msats: int
    fee_msats: int
    paid_at: int
    preimage: str | None = field(default=None, repr=False)
    settled: InvoiceRecord | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """All the money that ever moved."""

    received_msats: int
    paid_msats: int
    fees_msats: int

    @property
    def balance_msats(self) -> int:
        """What is left to spend."""
        return self.received_msats - self.paid_msats - self.fees_msats


class Ledger:
    """Opens the database at `path`, making it where it is missing. Raises `sqlite3.Error` when it is in use."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        # The app runs one call at a time, but not always on the same thread.
        self._db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        with self._transaction():
            self.boots = int(self._meta("boots", lambda: "0")) + 1
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'boots'", (str(self.boots),))
            self.node = Node(self._meta("node_key", lambda: secrets.token_hex(32)))

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def create(self, draft: Draft) -> InvoiceRecord:
        """Make an invoice. Not idempotent: the same `own_id` again makes another one, as real wallets do."""
        now = int(self._clock())
        signed = self.node.sign(draft, now)
        row = (signed.payment_hash, draft.own_id, signed.preimage, signed.bolt11, draft.amount_msats, now)
        with self._transaction():
            self._db.execute(
                "INSERT INTO invoices (payment_hash, own_id, preimage, bolt11, amount_msats, created_at,"
                " expires_at, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'open')",
                (*row, now + draft.expiry_s),
            )
            return self._known(signed.payment_hash)

    def look_up(self, payment_hash: str) -> InvoiceRecord | None:
        """Return the invoice unless it is unknown or forgotten."""
        rows = self._invoices("payment_hash = ? AND state != 'forgotten'", (payment_hash,))
        return rows[0] if rows else None

    def find(self, own_id: str) -> list[InvoiceRecord]:
        """Return every invoice made under `own_id`, oldest first."""
        return self._invoices("own_id = ? AND state != 'forgotten' ORDER BY number", (own_id,))

    def page(self, since: int, after: int) -> list[InvoiceRecord]:
        """Return up to `PAGE` invoices created at or after `since` and numbered above `after`, oldest first."""
        where = "created_at >= ? AND number > ? AND state != 'forgotten' ORDER BY number LIMIT ?"
        return self._invoices(where, (since, after, PAGE))

    def last_settled(self, count: int) -> list[InvoiceRecord]:
        """Return the invoices settled last, newest first."""
        return self._invoices("state = 'settled' ORDER BY settled_at DESC, number DESC LIMIT ?", (count,))

    def open_hashes(self) -> list[str]:
        """Return the payment hash of every unpaid invoice that is not expired."""
        where = "state = 'open' AND expires_at > ? ORDER BY number"
        return [invoice.payment_hash for invoice in self._invoices(where, (int(self._clock()),))]

    def lose(self, payment_hashes: Sequence[str], state: Kept) -> None:
        """Fail or forget open invoices; settled ones stay as they are."""
        with self._transaction():
            self._db.executemany(
                "UPDATE invoices SET state = ? WHERE payment_hash = ? AND state = 'open'",
                [(state.value, payment_hash) for payment_hash in payment_hashes],
            )

    def receive(self, bolt11: str, *, expired_too: bool, twice: bool, short: bool) -> Receipt:
        """Let the payer pay an invoice of this wallet. Raises `Refused`.

        The flags are faults: take money for an expired or a settled invoice, report half of it.
        """
        facts = _read(bolt11)
        with self._transaction():
            invoice = self._known(facts.payment_hash)
            if invoice.bolt11 != bolt11.lower():
                raise Refused(400, "this is not the invoice as this wallet made it")
            self._check_payable(invoice, expired_too=expired_too, twice=twice)
            settled = self._settle(invoice, short=short)
            row = self._db.execute(
                "SELECT preimage FROM invoices WHERE payment_hash = ?", (facts.payment_hash,)
            ).fetchone()
            return Receipt(settled, row[0])

    def pay(self, own_id: str, bolt11: str, max_fee_msats: int) -> PaymentRecord:
        """Pay an invoice once per `own_id`, internally when it is this wallet's. Raises `Refused`."""
        facts = _read(bolt11)
        with self._transaction():
            done = self._payment(own_id)
            if done is not None:
                if done.payment_hash != facts.payment_hash:
                    raise Refused(409, "another invoice was paid under this own_id")
                return done
            if self._db.execute("SELECT 1 FROM payments WHERE payment_hash = ?", (facts.payment_hash,)).fetchone():
                raise Refused(409, "this invoice was already paid under another own_id")
            amount_msats, fee_msats, invoice = self._plan(facts, bolt11)
            if fee_msats > max_fee_msats:
                raise Refused(409, f"the route costs {fee_msats} msats, more than the {max_fee_msats} allowed")
            balance = self.totals().balance_msats
            if amount_msats + fee_msats > balance:
                raise Refused(409, f"the balance of {balance} msats is too small")
            now = int(self._clock())
            self._db.execute(
                "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?)",
                (own_id, facts.payment_hash, bolt11.lower(), amount_msats, fee_msats, now),
            )
            self._enter("paid", facts.payment_hash, amount_msats)
            self._enter("fee", facts.payment_hash, fee_msats)
            settled = None if invoice is None else self._settle(invoice, short=False)
            done = self._payment(own_id)
            assert done is not None
            return replace(done, settled=settled)

    def payment(self, payment_hash: str) -> PaymentRecord | None:
        """Return the payment of an invoice, or None when it was not paid from here."""
        found = self._payments("payments.payment_hash = ?", (payment_hash,))
        return found[0] if found else None

    def payments_since(self, since: int, after: int) -> list[tuple[int, PaymentRecord]]:
        """Return up to `PAGE` payments made at or after `since` and numbered above `after`, oldest first."""
        numbers = self._db.execute(
            "SELECT rowid, own_id FROM payments WHERE paid_at >= ? AND rowid > ? ORDER BY rowid LIMIT ?",
            (since, after, PAGE),
        ).fetchall()
        found = [(number, self._payment(own_id)) for number, own_id in numbers]
        return [(number, payment) for number, payment in found if payment is not None]

    def totals(self) -> Totals:
        """Return the sums of all entries."""
        sums = dict(self._db.execute("SELECT kind, SUM(amount_msats) FROM entries GROUP BY kind").fetchall())
        return Totals(sums.get("received", 0), sums.get("paid", 0), sums.get("fee", 0))

    def _plan(self, facts: InvoiceFacts, bolt11: str) -> tuple[int, int, InvoiceRecord | None]:
        """Return amount, fee and, where the invoice is this wallet's own, the invoice."""
        if facts.network is not Network.REGTEST or facts.amount_msats is None:
            raise Refused(400, "this wallet pays regtest invoices that name an amount")
        if facts.expires_at <= self._clock():
            raise Refused(410, "the invoice has expired")
        if facts.payee != self.node.public_hex:
            return facts.amount_msats, -(-facts.amount_msats * FEE_PPM // 1_000_000), None
        invoice = self._known(facts.payment_hash)
        if invoice.bolt11 != bolt11.lower():
            raise Refused(400, "this is not the invoice as this wallet made it")
        self._check_payable(invoice, expired_too=False, twice=False)
        return invoice.amount_msats, 0, invoice

    def _check_payable(self, invoice: InvoiceRecord, *, expired_too: bool, twice: bool) -> None:
        if invoice.state is Kept.FAILED:
            raise Refused(410, "the invoice was cancelled")
        if invoice.state is Kept.SETTLED:
            if not twice:
                raise Refused(409, "the invoice is already paid")
        elif invoice.expires_at <= self._clock() and not expired_too:
            raise Refused(410, "the invoice has expired")

    def _settle(self, invoice: InvoiceRecord, *, short: bool) -> InvoiceRecord:
        self._enter("received", invoice.payment_hash, invoice.amount_msats)
        reported = invoice.reported_msats + (invoice.amount_msats // 2 if short else invoice.amount_msats)
        self._db.execute(
            "UPDATE invoices SET state = 'settled', reported_msats = ?, settled_at = COALESCE(settled_at, ?)"
            " WHERE payment_hash = ?",
            (reported, int(self._clock()), invoice.payment_hash),
        )
        return self._known(invoice.payment_hash)

    def _enter(self, kind: str, payment_hash: str, amount_msats: int) -> None:
        self._db.execute(
            "INSERT INTO entries (kind, payment_hash, amount_msats, entered_at) VALUES (?, ?, ?, ?)",
            (kind, payment_hash, amount_msats, int(self._clock())),
        )

    def _known(self, payment_hash: str) -> InvoiceRecord:
        invoice = self.look_up(payment_hash)
        if invoice is None:
            raise Refused(404, "this wallet knows no such invoice")
        return invoice

    def _invoices(self, where: str, values: tuple[Any, ...]) -> list[InvoiceRecord]:
        # `where` is one of the constants above, never text from outside.
        cursor = self._db.execute(_SELECT_INVOICE + where, values)
        return [_record(row) for row in cursor]

    def _payment(self, own_id: str) -> PaymentRecord | None:
        found = self._payments("payments.own_id = ?", (own_id,))
        return found[0] if found else None

    def _payments(self, where: str, values: tuple[Any, ...]) -> list[PaymentRecord]:
        # `where` is a constant too.
        return [PaymentRecord(*row) for row in self._db.execute(_SELECT_PAYMENT + where, values)]

    def _meta(self, name: str, make: Callable[[], str]) -> str:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, make()))
        return str(self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _record(row: Sequence[Any]) -> InvoiceRecord:
    columns = [*row[:-1], Kept(row[-1])]
    return InvoiceRecord(*columns)


def _read(bolt11: str) -> InvoiceFacts:
    try:
        return read_invoice(bolt11)
    except BadInvoice as error:
        raise Refused(400, str(error)) from error
