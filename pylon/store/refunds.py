"""Refunds in the database: what is due, where it goes, what was committed, paid and written off.

Functions on a `Tx`, like its own methods, for a table that a job in a thousand touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pylon.store import rows
from pylon.store.records import Job, Money, Payee, PayeeSource, Refund, RefundState
from pylon.store.tx import Tx

REFUND_COLUMNS: Final = (
    "own_id",
    "number",
    "amount_msats",
    "destination",
    "bolt11",
    "payment_hash",
    "expires_at",
    "state",
    "fee_msats",
    "reason",
    "created_at",
    "updated_at",
)
PAYEE_COLUMNS: Final = ("destination", "source", "said_at", "ordered")

_JOB: Final = "(SELECT number FROM jobs WHERE id = ?)"


def refund_of(job_id: str, row: Sequence[Any]) -> Refund:
    """Return the refund in a row of `REFUND_COLUMNS`."""
    return Refund(
        job_id=job_id,
        own_id=row[0],
        number=row[1],
        amount_msats=row[2],
        destination=row[3],
        bolt11=row[4],
        payment_hash=row[5],
        expires_at=row[6],
        state=RefundState(row[7]),
        fee_msats=row[8],
        reason=row[9],
        created_at=row[10],
        updated_at=row[11],
    )


def payee_of(job_id: str, row: Sequence[Any]) -> Payee:
    """Return the payee in a row of `PAYEE_COLUMNS`."""
    return Payee(job_id, destination=row[0], source=PayeeSource(row[1]), said_at=row[2], ordered=bool(row[3]))


# --- refunds --------------------------------------------------------------------------------------------------


def keep_refund(tx: Tx, refund: Refund) -> Refund:
    """Store a refund under the job's next number, and return it so.

    Its transaction fails with `Conflict` when the payment hash was used before, or another refund of the job is not
    known to have ended.
    """
    job, columns = _JOB, ", ".join(REFUND_COLUMNS)
    ((last,),) = tx.ask(f"SELECT coalesce(max(number), 0) FROM refunds WHERE job = {job}", (refund.job_id,))
    number = int(last) + 1
    tx.change(
        f"INSERT INTO refunds (job, {columns}) VALUES ({job}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            refund.job_id,
            refund.own_id,
            number,
            refund.amount_msats,
            refund.destination,
            refund.bolt11,
            refund.payment_hash,
            refund.expires_at,
            refund.state.value,
            refund.fee_msats,
            refund.reason,
            refund.created_at,
            refund.created_at,
        ),
    )
    return refund_of(refund.job_id, _one(tx, "r.own_id = ?", refund.own_id)[1])


def end_refund(tx: Tx, own_id: str, state: RefundState, *, fee_msats: int, reason: str, now: int) -> None:
    """Store how a refund ended; a paid one stays paid, and carries its order out."""
    tx.change(
        "UPDATE refunds SET state = ?, fee_msats = ?, reason = ?, updated_at = ?"
        " WHERE own_id = ? AND state <> 'paid'",
        (state.value, fee_msats, reason, now, own_id),
    )
    if state is RefundState.PAID:
        # What comes in after it must not go back by an order that was about this one.
        tx.change("UPDATE payees SET ordered = 0 WHERE job = (SELECT job FROM refunds WHERE own_id = ?)", (own_id,))


def refund(tx: Tx, own_id: str) -> Refund | None:
    """Return the refund with our own id, or None."""
    return _refund_or_none(_one(tx, "r.own_id = ?", own_id))


def committed_refund(tx: Tx, job_id: str) -> Refund | None:
    """Return the refund of a job whose end is not known, or None."""
    return _refund_or_none(_one(tx, "r.state = 'committed' AND j.id = ?", job_id))


def is_used(tx: Tx, payment_hash: str) -> bool:
    """Tell whether a refund ever had an invoice with this payment hash."""
    return bool(tx.ask("SELECT 1 FROM refunds WHERE payment_hash = ?", (payment_hash,)))


def refunds_of(tx: Tx, job_id: str) -> list[Refund]:
    """Return a job's refunds in order."""
    columns = ", ".join(REFUND_COLUMNS)
    found = tx.ask(f"SELECT {columns} FROM refunds WHERE job = {_JOB} ORDER BY number", (job_id,))
    return [refund_of(job_id, row) for row in found]


def spent_since(tx: Tx, time_s: int, max_fee_msats: int) -> int:
    """Return what refunds committed after a time took or may take, routes included; those that failed left out."""
    ((spent_msats,),) = tx.ask(
        "SELECT coalesce(sum(amount_msats + CASE state WHEN 'paid' THEN fee_msats ELSE ? END), 0) FROM refunds"
        " WHERE created_at > ? AND state IN ('committed', 'paid')",
        (max_fee_msats, time_s),
    )
    return int(spent_msats)


def jobs_due(tx: Tx) -> list[Job]:
    """Return every job whose money is to be given back and is not on its way, oldest first."""
    columns = ", ".join(rows.JOB_COLUMNS)
    found = tx.ask(f"SELECT {columns} FROM jobs WHERE money = ? ORDER BY number", (Money.REFUND_DUE.value,))
    return [rows.job_of(row) for row in found]


def _one(tx: Tx, where: str, value: str) -> tuple[str, Sequence[Any]]:
    columns = ", ".join(f"r.{name}" for name in REFUND_COLUMNS)
    found = tx.ask(f"SELECT j.id, {columns} FROM refunds r JOIN jobs j ON j.number = r.job WHERE {where}", (value,))
    return (found[0][0], found[0][1:]) if found else ("", ())


def _refund_or_none(found: tuple[str, Sequence[Any]]) -> Refund | None:
    job_id, row = found
    return refund_of(job_id, row) if row else None


# --- payees ---------------------------------------------------------------------------------------------------


def payee(tx: Tx, job_id: str) -> Payee | None:
    """Return what was said about where a job's refund goes, or None."""
    columns = ", ".join(PAYEE_COLUMNS)
    found = tx.ask(f"SELECT {columns} FROM payees WHERE job = {_JOB}", (job_id,))
    return payee_of(job_id, found[0]) if found else None


def put_payee(tx: Tx, new: Payee) -> bool:
    """Store where a refund goes; False when something newer was said before. An order stays one."""
    columns = ", ".join(PAYEE_COLUMNS)
    row = (new.job_id, new.destination, new.source.value, new.said_at, int(new.ordered))
    done = tx.change(
        f"INSERT INTO payees (job, {columns}) VALUES ({_JOB}, ?, ?, ?, ?) ON CONFLICT (job) DO UPDATE SET"
        " destination = excluded.destination, source = excluded.source, said_at = excluded.said_at,"
        " ordered = max(ordered, excluded.ordered) WHERE excluded.said_at > said_at",
        row,
    )
    return bool(done)


def order(tx: Tx, job_id: str, destination: str, now: int) -> None:
    """Store that the operator wants a job's refund paid, to `destination` if that is not empty."""
    before = payee(tx, job_id)
    said_at = now if before is None else max(now, before.said_at + 1)
    if destination:
        put_payee(tx, Payee(job_id, destination, PayeeSource.OPERATOR, said_at, ordered=True))
    elif before is None:
        put_payee(tx, Payee(job_id, "", PayeeSource.OPERATOR, 0, ordered=True))
    else:
        tx.change(f"UPDATE payees SET ordered = 1 WHERE job = {_JOB}", (job_id,))


def drop_payee(tx: Tx, job_id: str, destination: str) -> None:
    """Forget where a refund was to go, and the order to pay it. When it was said stays: relays say it again."""
    tx.change(
        f"UPDATE payees SET destination = '', ordered = 0 WHERE job = {_JOB} AND destination = ?",
        (job_id, destination),
    )
