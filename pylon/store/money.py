"""The SQL of invoices, settlements and deposits: the half of `Tx` that money needs.

As in `tx.py`, its methods neither begin nor commit. What every customer has as a deposit is kept in memory beside
the database, so that a job that is accepted costs no question.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pylon.store import rows
from pylon.store.records import Books, InvoiceRow, InvoiceState, Job, Settlement

_SETTLEMENT: Final = ", ".join(rows.SETTLEMENT_COLUMNS)
_INVOICE: Final = ", ".join(f"i.{name}" for name in rows.INVOICE_COLUMNS)


class MoneyTx(ABC):
    """What `Tx` can do about money. `_deposits` is what each customer has, in msats, none of them 0."""

    _connection: sqlite3.Connection
    _undo: list[tuple[dict[str, Any], str, Any]]
    _deposits: dict[str, int]

    @abstractmethod
    def job(self, job_id: str) -> Job | None:
        """Return the job, or None."""

    @abstractmethod
    def _execute(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor: ...

    @abstractmethod
    def _executemany(self, sql: str, params: Iterable[Sequence[Any]]) -> None: ...

    @abstractmethod
    def _number(self, job_id: str) -> int: ...

    # --- invoices and settlements -----------------------------------------------------------------------------

    def want_invoice(self, row: InvoiceRow) -> None:
        """Commit the intent to have an invoice made."""
        self._execute(
            "INSERT INTO invoices (own_id, job, number, amount_msats, created_at, expires_at, state)"
            " VALUES (?,?,?,?,?,?,?)",
            (
                row.own_id,
                self._number(row.job_id),
                row.number,
                row.amount_msats,
                row.created_at,
                row.expires_at,
                row.state.value,
            ),
        )

    def set_invoice(
        self, own_id: str, state: InvoiceState, payment_hash: str, bolt11: str, expires_at: int
    ) -> None:
        """Store what the wallet made for one of our intents, and what we do with it."""
        self._execute(
            "UPDATE invoices SET state=?, payment_hash=?, bolt11=?, expires_at=? WHERE own_id=?",
            (state.value, payment_hash, bolt11, expires_at, own_id),
        )

    def move_invoices(self, job_id: str, moves: Iterable[tuple[InvoiceState, InvoiceState]]) -> None:
        """Move a job's invoices from one state to another."""
        number = self._number(job_id)
        self._executemany(
            "UPDATE invoices SET state=? WHERE job=? AND state=?",
            [(after.value, number, before.value) for before, after in moves],
        )

    def end_invoice(self, payment_hash: str, state: InvoiceState) -> None:
        """Store how an invoice ended; a paid one stays paid."""
        self._execute(
            "UPDATE invoices SET state=? WHERE payment_hash=? AND state<>'paid'", (state.value, payment_hash)
        )

    def invoice_by_hash(self, payment_hash: str) -> InvoiceRow | None:
        """Return the invoice with this payment hash, or None."""
        return self._one_invoice("i.payment_hash = ?", payment_hash)

    def invoice(self, own_id: str) -> InvoiceRow | None:
        """Return the invoice with our own id, or None."""
        return self._one_invoice("i.own_id = ?", own_id)

    def _one_invoice(self, where: str, value: str) -> InvoiceRow | None:
        row = self._execute(
            f"SELECT j.id, {_INVOICE} FROM invoices i JOIN jobs j ON j.number = i.job WHERE {where}", (value,)
        ).fetchone()
        return None if row is None else rows.invoice_of(row[0], row[1:])

    def invoices_of(self, job_id: str) -> list[InvoiceRow]:
        """Return a job's invoices in order."""
        found = self._execute(
            f"SELECT {_INVOICE} FROM invoices i WHERE i.job = ? ORDER BY i.number", (self._number(job_id),)
        )
        return [rows.invoice_of(job_id, row) for row in found]

    def undecided_invoices(self) -> list[InvoiceRow]:
        """Return every invoice that is wanted, open or closing."""
        found = self._execute(
            f"SELECT j.id, {_INVOICE} FROM invoices i JOIN jobs j ON j.number = i.job"
            " WHERE i.state IN ('wanted', 'open', 'closing') ORDER BY i.created_at"
        )
        return [rows.invoice_of(row[0], row[1:]) for row in found]

    def book(self, settlement: Settlement) -> bool:
        """Book money once; False when this payment hash is booked already."""
        done = self._execute(
            f"INSERT INTO settlements (job, {_SETTLEMENT}) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            (
                self._number(settlement.job_id),
                settlement.payment_hash,
                settlement.amount_msats,
                settlement.earned_msats,
                settlement.settled_at,
                settlement.deposit_msats,
                settlement.tip_msats,
                int(settlement.zap),
            ),
        )
        if done.rowcount and settlement.deposit_msats:
            self._add_deposit(self._customer(settlement.job_id), settlement.deposit_msats)
        return bool(done.rowcount)

    def is_booked(self, payment_hash: str) -> bool:
        """Tell whether this payment hash is booked."""
        found = self._execute("SELECT 1 FROM settlements WHERE payment_hash = ?", (payment_hash,)).fetchone()
        return found is not None

    def earn(self, job: Job) -> None:
        """Turn what is owed for a job's work into earned, and what is beyond its price into a deposit or a tip.

        The first settlement pays the price, less what a deposit paid of it; whatever else came in is beyond it. May
        be told again when more comes in.
        """
        settlements = self.settlements_of(job.id)
        paid = any(each.earned_msats for each in settlements)
        for number, each in enumerate(settlements):
            due_msats = job.price_msats - job.deposit_msats if number == 0 and not paid else 0
            earned_msats = min(each.rest_msats, due_msats)
            beyond_msats = each.rest_msats - earned_msats
            to_deposit = 0 if each.zap else beyond_msats
            self._execute(
                "UPDATE settlements SET earned_msats = earned_msats + ?, deposit_msats = deposit_msats + ?,"
                " tip_msats = tip_msats + ? WHERE payment_hash = ?",
                (earned_msats, to_deposit, beyond_msats - to_deposit, each.payment_hash),
            )
            self._add_deposit(job.customer, to_deposit)

    def booked(self, payment_hashes: Sequence[str]) -> set[str]:
        """Return those of some payment hashes (at most 1,000) whose payment is booked."""
        marks = ",".join("?" * len(payment_hashes))
        found = self._execute(
            f"SELECT payment_hash FROM settlements WHERE payment_hash IN ({marks})", tuple(payment_hashes)
        )
        return {payment_hash for (payment_hash,) in found}

    def settlements_of(self, job_id: str) -> list[Settlement]:
        """Return what was received for a job, in the order it was booked."""
        found = self._execute(
            f"SELECT {_SETTLEMENT} FROM settlements WHERE job = ? ORDER BY rowid", (self._number(job_id),)
        )
        return [rows.settlement_of(job_id, row) for row in found]

    def books(self) -> Books:
        """Return the sums over all settlements and refunds."""
        received, earned, kept, in_work = self._execute(
            "SELECT coalesce(sum(s.amount_msats), 0), coalesce(sum(s.earned_msats + s.tip_msats), 0),"
            " coalesce(sum(s.deposit_msats), 0), coalesce(sum(CASE WHEN j.money = 'settled' AND j.work IN"
            " ('queued', 'running', 'produced')"
            " THEN s.amount_msats - s.earned_msats - s.tip_msats - s.deposit_msats ELSE 0 END), 0)"
            " FROM settlements s JOIN jobs j ON j.number = s.job"
        ).fetchone()
        taken, spent = self._execute(
            "SELECT coalesce(sum(deposit_msats), 0), coalesce(sum(CASE WHEN money = 'settled'"
            " AND work IN ('delivered', 'cancelled') THEN deposit_msats ELSE 0 END), 0)"
            " FROM jobs WHERE deposit_msats > 0"
        ).fetchone()
        refunded, fees, written_off = self._execute(
            "SELECT coalesce(sum(CASE WHEN state = 'paid' THEN amount_msats END), 0), coalesce(sum(fee_msats), 0),"
            " coalesce(sum(CASE WHEN state = 'written_off' THEN amount_msats END), 0) FROM refunds"
        ).fetchone()
        return Books(
            received_msats=received,
            earned_msats=earned + spent,
            in_work_msats=in_work + taken - spent,
            refund_due_msats=received - earned - kept - in_work - refunded - written_off,
            refunded_msats=refunded,
            refund_fees_msats=fees,
            written_off_msats=written_off,
            deposits_msats=kept - taken,
        )

    # --- deposits ---------------------------------------------------------------------------------------------

    def deposit_of(self, customer: str) -> int:
        """Return what a customer paid beyond its prices and has not used, in msats."""
        return self._deposits.get(customer, 0)

    def _add_deposit(self, customer: str, amount_msats: int) -> None:
        if amount_msats:
            before = self._deposits.get(customer)
            self._undo.append((self._deposits, customer, before))
            self._deposits[customer] = (before or 0) + amount_msats
            if not self._deposits[customer]:
                del self._deposits[customer]

    def _customer(self, job_id: str) -> str:
        job = self.job(job_id)
        assert job is not None, "money is booked for jobs that exist"
        return job.customer

    def _load_deposits(self) -> None:
        for sql in (
            "SELECT j.customer, s.deposit_msats FROM settlements s JOIN jobs j ON j.number = s.job"
            " WHERE s.deposit_msats > 0",
            "SELECT customer, -deposit_msats FROM jobs WHERE deposit_msats > 0",
        ):
            for customer, amount_msats in self._connection.execute(sql):
                self._deposits[customer] = self._deposits.get(customer, 0) + amount_msats
