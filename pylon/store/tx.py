"""What one transaction can do: the SQL of the hot path, plainly, in one file.

A `Tx` lives on the writer thread. Its methods neither begin nor commit. The SQL is written out because
SQLAlchemy Core costs several times the statement itself here; everything read for people goes through
`reports.py`.

Writes of the hot path are gathered (`batch.py`) and reach SQLite a table at a time when the group ends, or when
something is read that they might change. Unfinished jobs and unconfirmed outbox items are kept in memory beside
it: the process holds the only writer, and the version check in SQL stands behind that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from pylon.store.batch import Batch, Insert, Update
from pylon.store.errors import StaleVersion
from pylon.store.records import (
    Attempt,
    Books,
    InvoiceRow,
    InvoiceState,
    Job,
    JournalEntry,
    Money,
    OutboxItem,
    OutboxState,
    OutboxTopic,
    Settlement,
    Work,
)

JOB_COLUMNS: Final = (
    "id, customer, kind, backend, model, price_msats, max_tokens, accepted_at, deadline_at, relays, work, money,"
    " version, attempts, partial_sent, invoices, result_id, reason, updated_at, purge_at"
)
INVOICE_COLUMNS: Final = "own_id, job_id, number, amount_msats, created_at, expires_at, state, payment_hash, bolt11"
OUTBOX_COLUMNS: Final = "event_id, job_id, topic, event_json, relays, created_at, deadline_at, state"
SETTLEMENT_COLUMNS: Final = "payment_hash, job_id, amount_msats, earned_msats, settled_at"
ATTEMPT_COLUMNS: Final = (
    "job_id, number, started_at, ended_at, outcome, prompt_tokens, output_tokens, estimated, first_token_ms,"
    " duration_ms"
)


def job_of(row: Sequence[Any]) -> Job:
    """Return the job in a row of `JOB_COLUMNS`."""
    return Job(
        id=row[0],
        customer=row[1],
        kind=row[2],
        backend=row[3],
        model=row[4],
        price_msats=row[5],
        max_tokens=row[6],
        accepted_at=row[7],
        deadline_at=row[8],
        relays=_texts(row[9]),
        work=Work(row[10]),
        money=Money(row[11]),
        version=row[12],
        attempts=row[13],
        partial_sent=bool(row[14]),
        invoices=row[15],
        result_id=row[16],
        reason=row[17],
        updated_at=row[18],
        purge_at=row[19],
    )


def invoice_of(row: Sequence[Any]) -> InvoiceRow:
    """Return the invoice in a row of `INVOICE_COLUMNS`."""
    return InvoiceRow(
        own_id=row[0],
        job_id=row[1],
        number=row[2],
        amount_msats=row[3],
        created_at=row[4],
        expires_at=row[5],
        state=InvoiceState(row[6]),
        payment_hash=row[7],
        bolt11=row[8],
    )


def outbox_of(row: Sequence[Any]) -> OutboxItem:
    """Return the item in a row of `OUTBOX_COLUMNS`."""
    return OutboxItem(
        event_id=row[0],
        job_id=row[1],
        topic=OutboxTopic(row[2]),
        event_json=row[3],
        relays=_texts(row[4]),
        created_at=row[5],
        deadline_at=row[6],
        state=OutboxState(row[7]),
    )


def attempt_of(row: Sequence[Any]) -> Attempt:
    """Return the attempt in a row of `ATTEMPT_COLUMNS`."""
    return Attempt(
        job_id=row[0],
        number=row[1],
        started_at=row[2],
        ended_at=row[3],
        outcome=row[4],
        prompt_tokens=row[5],
        output_tokens=row[6],
        estimated=bool(row[7]),
        first_token_ms=row[8],
        duration_ms=row[9],
    )


_JOBS: Final = Insert("jobs", tuple(JOB_COLUMNS.split(", ")))
_REQUESTS: Final = Insert("requests", ("job_id", "request_json"))
_ATTEMPTS: Final = Insert("attempts", tuple(ATTEMPT_COLUMNS.split(", ")))
_JOURNAL: Final = Insert("journal", ("at", "topic", "job_id", "entry"))
_OUTBOX: Final = Insert("outbox", tuple(OUTBOX_COLUMNS.split(", ")))
_JOB_STATE: Final = Update(
    "jobs",
    keys=("id", "version"),
    values=(
        "work",
        "money",
        "version",
        "attempts",
        "partial_sent",
        "invoices",
        "result_id",
        "reason",
        "updated_at",
        "purge_at",
    ),
)
_ATTEMPT_END: Final = Update(
    "attempts",
    keys=("job_id", "number"),
    values=(
        "ended_at",
        "outcome",
        "prompt_tokens",
        "output_tokens",
        "estimated",
        "first_token_ms",
        "duration_ms",
    ),
)
_OUTBOX_END: Final = Update("outbox", keys=("event_id",), values=("state",))


class Tx:
    """The transactions of one writer, one after another, on its connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._batch = Batch(connection)
        self._saves: dict[str, tuple[int, Job]] = {}  # job id -> the version stored, the job to store
        self._jobs: dict[str, Job] = {}
        self._pending: dict[str, tuple[str, OutboxTopic]] = {}
        self._undo: list[Callable[[], object]] = []
        rows = connection.execute("SELECT event_id, job_id, topic FROM outbox WHERE state = 'pending'")
        for event_id, job_id, topic in rows:
            self._pending[event_id] = (job_id, OutboxTopic(topic))

    # --- the group's own ends, called by the writer ------------------------------------------------------------

    def flush(self) -> None:
        """Send what was gathered to SQLite. Raises `StaleVersion` when a job was moved by somebody else."""
        if self._saves:
            rows = [(job.id, version, *_job_state(job)) for version, job in self._saves.values()]
            self._saves.clear()
            if self._batch.update(_JOB_STATE, rows) != len(rows):
                raise StaleVersion("a job is no longer at the version it was read at")
        self._batch.flush()

    def committed(self) -> None:
        """Keep what is in memory: it is stored now."""
        self._undo.clear()

    def rolled_back(self) -> None:
        """Forget what was gathered and put memory back to what is stored."""
        self._saves.clear()
        self._batch.clear()
        while self._undo:
            self._undo.pop()()

    def _execute(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement after everything gathered before it."""
        self.flush()
        return self._connection.execute(sql, params)

    def _executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.flush()
        self._connection.executemany(sql, rows)

    def _remember(self, job: Job) -> None:
        before = self._jobs.get(job.id)
        if before is None:
            self._undo.append(lambda: self._jobs.pop(job.id, None))
        else:
            self._undo.append(lambda: self._jobs.__setitem__(job.id, before))
        if job.purge_at is None:
            self._jobs[job.id] = job
        else:
            self._jobs.pop(job.id, None)

    # --- jobs -------------------------------------------------------------------------------------------------

    def insert_job(self, job: Job, request_json: str) -> None:
        """Store a new job. Its transaction fails with `Conflict` when the request was accepted before."""
        self._batch.insert(
            _JOBS,
            (
                job.id,
                job.customer,
                job.kind,
                job.backend,
                job.model,
                job.price_msats,
                job.max_tokens,
                job.accepted_at,
                job.deadline_at,
                _json(job.relays),
                *_job_state(job),
            ),
        )
        self._batch.insert(_REQUESTS, (job.id, request_json))
        self._remember(job)

    def accepted_since(self, time_s: int) -> list[str]:
        """Return the ids of jobs accepted at or after a time."""
        rows = self._execute("SELECT id FROM jobs WHERE accepted_at >= ?", (time_s,))
        return [str(row[0]) for row in rows]

    def job(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        if (job := self._jobs.get(job_id)) is not None:
            return job
        row = self._execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else job_of(row)

    def save_job(self, before: Job, after: Job) -> None:
        """Store what a step changed, if the stored version is still `before`'s; else `flush` raises."""
        stored_version, _ = self._saves.get(after.id, (before.version, before))
        self._saves[after.id] = (stored_version, after)
        self._remember(after)

    def unfinished_jobs(self) -> list[Job]:
        """Return every job whose work or money is not finished, oldest first."""
        rows = self._execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE purge_at IS NULL ORDER BY accepted_at, id")
        return [job_of(row) for row in rows]

    def request_json(self, job_id: str) -> str | None:
        """Return the stored request event, or None once it was erased."""
        row = self._execute("SELECT request_json FROM requests WHERE job_id = ?", (job_id,)).fetchone()
        return None if row is None else str(row[0])

    def purge(self, now: int, limit: int) -> int:
        """Erase the text of up to `limit` finished jobs whose time has come; return how many."""
        rows = self._execute(
            "SELECT id FROM jobs WHERE purge_at > 0 AND purge_at <= ? LIMIT ?", (now, limit)
        ).fetchall()
        self._executemany("DELETE FROM requests WHERE job_id = ?", rows)
        self._executemany("UPDATE outbox SET event_json = NULL WHERE job_id = ? AND state <> 'pending'", rows)
        # Zero marks a finished job with nothing left to erase; one that still sends something is looked at again.
        self._executemany(
            "UPDATE jobs SET purge_at = 0 WHERE id = ? AND NOT EXISTS"
            " (SELECT 1 FROM outbox WHERE outbox.job_id = jobs.id AND outbox.state = 'pending')",
            rows,
        )
        return len(rows)

    def counts(self) -> dict[tuple[Work, Money], int]:
        """Return how many jobs are in each pair of states."""
        rows = self._execute("SELECT work, money, count(*) FROM jobs GROUP BY work, money")
        return {(Work(work), Money(money)): count for work, money, count in rows}

    # --- attempts and journal ---------------------------------------------------------------------------------

    def begin_attempt(self, job_id: str, number: int, now: int) -> None:
        """Record that an attempt begins."""
        self._batch.insert(_ATTEMPTS, (job_id, number, now, None, "", 0, 0, 0, 0, 0))

    def end_attempt(self, attempt: Attempt) -> None:
        """Record how an attempt ended."""
        self._batch.later(
            _ATTEMPT_END,
            (
                attempt.job_id,
                attempt.number,
                attempt.ended_at,
                attempt.outcome,
                attempt.prompt_tokens,
                attempt.output_tokens,
                int(attempt.estimated),
                attempt.first_token_ms,
                attempt.duration_ms,
            ),
        )

    def attempts(self, job_id: str) -> list[Attempt]:
        """Return a job's attempts in order."""
        rows = self._execute(f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE job_id=? ORDER BY number", (job_id,))
        return [attempt_of(row) for row in rows]

    def journal(self, job_id: str, entry: str, now: int, topic: str = "job") -> None:
        """Append one line."""
        self._batch.insert(_JOURNAL, (now, topic, job_id, entry))

    def journal_of(self, job_id: str) -> list[JournalEntry]:
        """Return a job's lines in order."""
        rows = self._execute(
            "SELECT seq, at, topic, job_id, entry FROM journal WHERE job_id = ? ORDER BY seq", (job_id,)
        )
        return [JournalEntry(*row) for row in rows]

    # --- invoices and money -----------------------------------------------------------------------------------

    def want_invoice(self, row: InvoiceRow) -> None:
        """Commit the intent to have an invoice made."""
        self._execute(
            f"INSERT INTO invoices ({INVOICE_COLUMNS}) VALUES (?,?,?,?,?,?,?,NULL,NULL)",
            (row.own_id, row.job_id, row.number, row.amount_msats, row.created_at, row.expires_at, row.state.value),
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
        self._executemany(
            "UPDATE invoices SET state=? WHERE job_id=? AND state=?",
            [(after.value, job_id, before.value) for before, after in moves],
        )

    def end_invoice(self, payment_hash: str, state: InvoiceState) -> None:
        """Store how an invoice ended; a paid one stays paid."""
        self._execute(
            "UPDATE invoices SET state=? WHERE payment_hash=? AND state<>'paid'", (state.value, payment_hash)
        )

    def invoice_by_hash(self, payment_hash: str) -> InvoiceRow | None:
        """Return the invoice with this payment hash, or None."""
        row = self._execute(
            f"SELECT {INVOICE_COLUMNS} FROM invoices WHERE payment_hash = ?", (payment_hash,)
        ).fetchone()
        return None if row is None else invoice_of(row)

    def invoice(self, own_id: str) -> InvoiceRow | None:
        """Return the invoice with our own id, or None."""
        row = self._execute(f"SELECT {INVOICE_COLUMNS} FROM invoices WHERE own_id = ?", (own_id,)).fetchone()
        return None if row is None else invoice_of(row)

    def invoices_of(self, job_id: str) -> list[InvoiceRow]:
        """Return a job's invoices in order."""
        rows = self._execute(f"SELECT {INVOICE_COLUMNS} FROM invoices WHERE job_id=? ORDER BY number", (job_id,))
        return [invoice_of(row) for row in rows]

    def undecided_invoices(self) -> list[InvoiceRow]:
        """Return every invoice that is wanted, open or closing."""
        rows = self._execute(
            f"SELECT {INVOICE_COLUMNS} FROM invoices WHERE state IN ('wanted', 'open', 'closing')"
            " ORDER BY created_at"
        )
        return [invoice_of(row) for row in rows]

    def book(self, settlement: Settlement) -> bool:
        """Book money once; False when this payment hash is booked already."""
        done = self._execute(
            f"INSERT INTO settlements ({SETTLEMENT_COLUMNS}) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
            (
                settlement.payment_hash,
                settlement.job_id,
                settlement.amount_msats,
                settlement.earned_msats,
                settlement.settled_at,
            ),
        )
        return bool(done.rowcount)

    def is_booked(self, payment_hash: str) -> bool:
        """Tell whether this payment hash is booked."""
        found = self._execute("SELECT 1 FROM settlements WHERE payment_hash = ?", (payment_hash,)).fetchone()
        return found is not None

    def earn(self, job_id: str, price_msats: int) -> int:
        """Turn up to the price of what a job's first settlement holds from owed into earned; return how much.

        Counts once: a job that has earned already earns nothing more.
        """
        rows = self._execute(
            "SELECT payment_hash, amount_msats, earned_msats FROM settlements WHERE job_id=? ORDER BY rowid",
            (job_id,),
        ).fetchall()
        if not rows or any(earned for _, _, earned in rows):
            return 0
        payment_hash, amount_msats, _ = rows[0]
        earned_msats = int(min(amount_msats, price_msats))
        self._execute("UPDATE settlements SET earned_msats=? WHERE payment_hash=?", (earned_msats, payment_hash))
        return earned_msats

    def settlements_of(self, job_id: str) -> list[Settlement]:
        """Return what was received for a job."""
        rows = self._execute(
            f"SELECT {SETTLEMENT_COLUMNS} FROM settlements WHERE job_id=? ORDER BY rowid", (job_id,)
        )
        return [Settlement(*row) for row in rows]

    def books(self) -> Books:
        """Return the sums over all settlements."""
        received, earned, in_work = self._execute(
            "SELECT coalesce(sum(received), 0), coalesce(sum(earned), 0), coalesce(sum(CASE WHEN money = 'settled'"
            " AND work IN ('queued', 'running', 'produced') THEN min(received - earned, price) ELSE 0 END), 0)"
            " FROM (SELECT j.money AS money, j.work AS work, j.price_msats AS price,"
            " sum(s.amount_msats) AS received, sum(s.earned_msats) AS earned"
            " FROM settlements s JOIN jobs j ON j.id = s.job_id GROUP BY s.job_id)"
        ).fetchone()
        return Books(received, earned, in_work, received - earned - in_work)

    # --- outbox -----------------------------------------------------------------------------------------------

    def add_outbox(self, item: OutboxItem) -> None:
        """Store a signed event that must be published."""
        self._pending[item.event_id] = (item.job_id, item.topic)
        self._undo.append(lambda: self._pending.pop(item.event_id, None))
        self._batch.insert(
            _OUTBOX,
            (
                item.event_id,
                item.job_id,
                item.topic.value,
                item.event_json,
                _json(item.relays),
                item.created_at,
                item.deadline_at,
                item.state.value,
            ),
        )

    def end_outbox(self, event_id: str, state: OutboxState) -> tuple[str, OutboxTopic] | None:
        """Store how an item ended; returns its job and topic, or None when it had ended before."""
        item = self._pending.pop(event_id, None)
        if item is None:
            return None
        self._undo.append(lambda: self._pending.__setitem__(event_id, item))
        self._batch.later(_OUTBOX_END, (event_id, state.value))
        return item

    def pending_outbox(self) -> list[OutboxItem]:
        """Return every item that no relay has confirmed."""
        rows = self._execute(f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE state = 'pending' ORDER BY created_at")
        return [outbox_of(row) for row in rows]

    def dead_letters(self) -> int:
        """Return how many items ended unconfirmed."""
        (count,) = self._execute("SELECT count(*) FROM outbox WHERE state = 'dead'").fetchone()
        return int(count)

    # --- marks ------------------------------------------------------------------------------------------------

    def set_mark(self, name: str, value: int) -> None:
        """Remember a number under a name (for example how far a relay was read)."""
        self._execute(
            "INSERT INTO marks VALUES (?,?) ON CONFLICT (name) DO UPDATE SET value=excluded.value", (name, value)
        )

    def marks(self) -> dict[str, int]:
        """Return every remembered number."""
        return dict(self._execute("SELECT name, value FROM marks").fetchall())


def _job_state(job: Job) -> tuple[Any, ...]:
    """Return the columns of a job that change, in the order of `_JOB_STATE` and the end of `JOB_COLUMNS`."""
    return (
        job.work.value,
        job.money.value,
        job.version,
        job.attempts,
        int(job.partial_sent),
        job.invoices,
        job.result_id,
        job.reason,
        job.updated_at,
        job.purge_at,
    )


def _json(texts: tuple[str, ...]) -> str:
    return orjson.dumps(texts).decode() if texts else "[]"


def _texts(stored: str) -> tuple[str, ...]:
    return () if stored == "[]" else tuple(orjson.loads(stored))
