"""What people ask the database: listings and sums, read-only, through SQLAlchemy Core.

Each question opens its own connection, so a long listing never holds up the writer (WAL). Synchronous: the daemon
asks from a worker thread, the command line directly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, ScalarSelect, Table, create_engine, func, literal_column, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from pylon.store import schema
from pylon.store.errors import StoreUnavailable
from pylon.store.records import (
    CURSOR_MARK,
    Attempt,
    InvoiceRow,
    Job,
    JournalEntry,
    Money,
    Payee,
    Refund,
    Settlement,
    Work,
)
from pylon.store.refunds import PAYEE_COLUMNS, REFUND_COLUMNS, payee_of, refund_of
from pylon.store.rows import (
    ATTEMPT_COLUMNS,
    INVOICE_COLUMNS,
    JOB_COLUMNS,
    SETTLEMENT_COLUMNS,
    attempt_of,
    invoice_of,
    job_of,
    settlement_of,
)


@dataclass(frozen=True, slots=True)
class Detail:
    """One job with everything that happened to it."""

    job: Job
    journal: tuple[JournalEntry, ...]
    invoices: tuple[InvoiceRow, ...]
    attempts: tuple[Attempt, ...]
    request_json: str | None


@dataclass(frozen=True, slots=True)
class Takings:
    """One settlement, with what its job (known by `job`) says about it; all msats.

    What was given back is that of the whole job, the same for each of its settlements.
    """

    job: int
    settled_at: int
    customer: str
    kind: int
    model: str
    work: Work
    money: Money
    price_msats: int
    received_msats: int
    earned_msats: int  # tips included
    deposit_msats: int
    refunded_msats: int = 0  # of the job, as the rest
    refund_fees_msats: int = 0
    written_off_msats: int = 0

    @property
    def rest_msats(self) -> int:
        """What is neither earned nor kept as a deposit."""
        return self.received_msats - self.earned_msats - self.deposit_msats


@dataclass(frozen=True, slots=True)
class GivingBack:
    """One job whose money is given back, or was, with all that its books need."""

    job: Job
    settlements: tuple[Settlement, ...]
    refunds: tuple[Refund, ...]
    payee: Payee | None


class Reports:
    """Read-only questions to the database at `path`, which must exist. Raises `StoreUnavailable`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true", poolclass=NullPool)

    def marks(self) -> dict[str, int]:
        """Return the marks by name."""
        query = select(schema.marks.c.name, schema.marks.c.value)
        with self._connect() as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(query)}

    def jobs(self, *, work: Work | None, money: Money | None, limit: int, after: str | None) -> list[Job]:
        """Return jobs, newest first; `after` is the id of the last one already seen."""
        table = schema.jobs
        query = select(*_columns(table, JOB_COLUMNS)).order_by(table.c.number.desc()).limit(limit)
        if work is not None:
            query = query.where(table.c.work == work.value)
        if money is not None:
            query = query.where(table.c.money == money.value)
        with self._connect() as connection:
            if after is not None:
                found = connection.execute(select(table.c.number).where(table.c.id == after)).scalar()
                if found is None:
                    return []
                query = query.where(table.c.number < found)
            return [job_of(row) for row in connection.execute(query)]

    def ids_like(self, prefix: str, limit: int = 2) -> list[str]:
        """Return up to `limit` job ids that start with `prefix` (hex)."""
        table = schema.jobs
        query = select(table.c.id).where(table.c.id >= prefix, table.c.id < prefix + "g").limit(limit)
        with self._connect() as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def detail(self, job_id: str) -> Detail | None:
        """Return a job and its history, or None."""
        jobs, journal, requests = schema.jobs, schema.journal, schema.requests
        invoices, attempts = schema.invoices, schema.attempts
        with self._connect() as connection:
            row = connection.execute(
                select(jobs.c.number, *_columns(jobs, JOB_COLUMNS)).where(jobs.c.id == job_id)
            ).first()
            if row is None:
                return None
            number = row[0]
            lines = connection.execute(
                select(journal.c.seq, journal.c.at, journal.c.topic, journal.c.entry)
                .where(journal.c.job == number)
                .order_by(journal.c.seq)
            )
            made = connection.execute(
                select(*_columns(invoices, INVOICE_COLUMNS))
                .where(invoices.c.job == number)
                .order_by(invoices.c.number)
            )
            runs = connection.execute(
                select(*_columns(attempts, ATTEMPT_COLUMNS))
                .where(attempts.c.job == number)
                .order_by(attempts.c.number)
            )
            text = connection.execute(select(requests.c.request_json).where(requests.c.job == number)).scalar()
            return Detail(
                job_of(row[1:]),
                tuple(JournalEntry(seq, at, topic, job_id, entry) for seq, at, topic, entry in lines),
                tuple(invoice_of(job_id, each) for each in made),
                tuple(attempt_of(job_id, each) for each in runs),
                text,
            )

    def takings(self, since: int | None, until: int | None = None) -> list[Takings]:
        """Return every settlement since a time and before another, in the order of booking; the caller sums."""
        money, jobs = schema.settlements, schema.jobs

        def given_back(state: str, amount: Column[Any]) -> ScalarSelect[Any]:
            ours = (schema.refunds.c.job == jobs.c.number) & (schema.refunds.c.state == state)
            return select(func.coalesce(func.sum(amount), 0)).where(ours).scalar_subquery()

        query = (
            select(
                jobs.c.number,
                money.c.settled_at,
                jobs.c.customer,
                jobs.c.kind,
                jobs.c.model,
                jobs.c.work,
                jobs.c.money,
                jobs.c.price_msats,
                money.c.amount_msats,
                money.c.earned_msats + money.c.tip_msats,
                money.c.deposit_msats,
                given_back("paid", schema.refunds.c.amount_msats),
                given_back("paid", schema.refunds.c.fee_msats),
                given_back("written_off", schema.refunds.c.amount_msats),
            )
            .join(jobs, jobs.c.number == money.c.job)
            .order_by(literal_column("settlements.rowid"))
        )
        if since is not None:
            query = query.where(money.c.settled_at >= since)
        if until is not None:
            query = query.where(money.c.settled_at < until)
        with self._connect() as connection:
            return [Takings(*row[:5], Work(row[5]), Money(row[6]), *row[7:]) for row in connection.execute(query)]

    def ledger(self) -> tuple[list[InvoiceRow], list[Settlement], list[Refund]]:
        """Return every invoice, settlement and refund, of one moment, each in the order of its coming."""
        invoices, money, back, jobs = schema.invoices, schema.settlements, schema.refunds, schema.jobs
        made = (
            select(jobs.c.id, *_columns(invoices, INVOICE_COLUMNS))
            .join(jobs, jobs.c.number == invoices.c.job)
            .order_by(literal_column("invoices.rowid"))
        )
        booked = (
            select(jobs.c.id, *_columns(money, SETTLEMENT_COLUMNS))
            .join(jobs, jobs.c.number == money.c.job)
            .order_by(literal_column("settlements.rowid"))
        )
        given_back = (
            select(jobs.c.id, *_columns(back, REFUND_COLUMNS))
            .join(jobs, jobs.c.number == back.c.job)
            .order_by(literal_column("refunds.rowid"))
        )
        with self._connect() as connection:
            connection.exec_driver_sql("BEGIN")  # pysqlite begins no transaction for a read
            return (
                [invoice_of(row[0], row[1:]) for row in connection.execute(made)],
                [settlement_of(row[0], row[1:]) for row in connection.execute(booked)],
                [refund_of(row[0], row[1:]) for row in connection.execute(given_back)],
            )

    def giving_back(self, moneys: Collection[Money], limit: int, *, job_id: str | None = None) -> list[GivingBack]:
        """Return the newest jobs (or this one) whose money is in one of these states, oldest first."""
        jobs, money, refunds, payees = schema.jobs, schema.settlements, schema.refunds, schema.payees
        query = (
            select(jobs.c.number, *_columns(jobs, JOB_COLUMNS))
            .where(jobs.c.money.in_([each.value for each in moneys]))
            .order_by(jobs.c.number.desc())
            .limit(limit)
        )
        if job_id is not None:
            query = query.where(jobs.c.id == job_id)
        found = []
        with self._connect() as connection:
            for row in reversed(connection.execute(query).fetchall()):
                number, job = row[0], job_of(row[1:])
                received = connection.execute(
                    select(*_columns(money, SETTLEMENT_COLUMNS)).where(money.c.job == number)
                )
                paid = connection.execute(
                    select(*_columns(refunds, REFUND_COLUMNS))
                    .where(refunds.c.job == number)
                    .order_by(refunds.c.number)
                )
                payee = connection.execute(
                    select(*_columns(payees, PAYEE_COLUMNS)).where(payees.c.job == number)
                ).first()
                found.append(
                    GivingBack(
                        job,
                        tuple(settlement_of(job.id, each) for each in received),
                        tuple(refund_of(job.id, each) for each in paid),
                        None if payee is None else payee_of(job.id, payee),
                    )
                )
        return found

    def last_active_at(self) -> int | None:
        """Return when (unix seconds) the daemon last did or read anything, None if never."""
        marks = schema.marks
        newest_mark = select(func.max(marks.c.value)).where(marks.c.name.startswith(CURSOR_MARK))
        with self._connect() as connection:
            entry = connection.execute(select(func.max(schema.journal.c.at))).scalar()
            mark = connection.execute(newest_mark).scalar()
        return max((int(at) for at in (entry, mark) if at is not None), default=None)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            why = str(error.__cause__ or error)
            hint = " (an older Pylon wrote it: start this one once)" if "no such table" in why else ""
            raise StoreUnavailable(f"the database {self._path} cannot be read: {why}{hint}") from error


def _columns(table: Table, names: tuple[str, ...]) -> list[Column[Any]]:
    return [table.c[name] for name in names]
