"""What one transaction can do: the SQL of the hot path, plainly, in one file.

A `Tx` lives on the writer thread; what it does about money stands in `money.py`. Its methods neither begin nor
commit. The SQL is written out because SQLAlchemy Core costs several times the statement itself here; everything
read for people goes through `reports.py`.

Writes of the hot path are gathered (`batch.py`) and reach SQLite a table at a time when the group ends, or when
something is read that they might change. Unfinished jobs and unconfirmed outbox items are kept in memory beside
it: the process holds the only writer, and the version check in SQL stands behind that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from pylon.store import rows
from pylon.store.batch import Batch
from pylon.store.errors import StaleVersion
from pylon.store.money import MoneyTx
from pylon.store.records import (
    Attempt,
    Job,
    JournalEntry,
    Money,
    OutboxItem,
    OutboxState,
    OutboxTopic,
    Work,
)

REPLIES_SEARCHED: Final = 200_000

_JOB: Final = ", ".join(rows.JOB_COLUMNS)
_ATTEMPT: Final = ", ".join(rows.ATTEMPT_COLUMNS)
_OUTBOX: Final = ", ".join(f"o.{name}" for name in rows.OUTBOX_COLUMNS)


class Tx(MoneyTx):
    """The transactions of one writer, one after another, on its connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._batch = Batch(connection, rows.INSERTS)
        self._saves: dict[str, tuple[int, Job]] = {}  # job id -> the version stored, the job to store
        self._jobs: dict[str, Job] = {}  # unfinished ones
        self._numbers: dict[str, int] = {}  # of those, and of whatever this group touched
        self._touched: set[str] = set()
        self._pending: dict[str, tuple[int, str, OutboxTopic]] = {}
        self._deposits: dict[str, int] = {}
        self._undo: list[tuple[dict[str, Any], str, Any]] = []  # a memory, a key, what was there (None: nothing)
        self._next_job = self._next("jobs")
        self._next_item = self._next("outbox")
        self._next_entry = self._next("journal", "seq")
        found = connection.execute(
            "SELECT o.event_id, o.number, j.id, o.topic FROM outbox o JOIN jobs j ON j.number = o.job"
            " WHERE o.state = 'pending'"
        )
        for event_id, number, job_id, topic in found:
            self._pending[event_id] = (number, job_id, OutboxTopic(topic))
        self._load_deposits()

    def _next(self, table: str, number: str = "number") -> int:
        (last,) = self._connection.execute(f"SELECT coalesce(max({number}), 0) FROM {table}").fetchone()
        return int(last) + 1

    # --- the group's own ends, called by the writer ------------------------------------------------------------

    def flush(self) -> None:
        """Send what was gathered to SQLite. Raises `StaleVersion` when a job was moved by somebody else."""
        if self._saves:
            changes = [
                (self._numbers[job.id], version, *rows.job_state(job)) for version, job in self._saves.values()
            ]
            self._saves.clear()
            if self._batch.update(rows.UPDATE_JOB, changes) != len(changes):
                raise StaleVersion("a job is no longer at the version it was read at")
        self._batch.flush()

    def committed(self) -> None:
        """Keep what is in memory: it is stored now."""
        self._undo.clear()
        self._let_go()

    def rolled_back(self) -> None:
        """Forget what was gathered and put memory back to what is stored."""
        self._saves.clear()
        self._batch.clear()
        while self._undo:
            memory, key, before = self._undo.pop()
            if before is None:
                memory.pop(key, None)
            else:
                memory[key] = before
        self._let_go()

    def _let_go(self) -> None:
        for job_id in self._touched:
            if job_id not in self._jobs:
                self._numbers.pop(job_id, None)
        self._touched.clear()

    def _execute(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement after everything gathered before it."""
        self.flush()
        return self._connection.execute(sql, params)

    def _executemany(self, sql: str, params: Iterable[Sequence[Any]]) -> None:
        self.flush()
        self._connection.executemany(sql, params)

    def ask(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a question that is asked too seldom to have a method here."""
        return self._execute(sql, params).fetchall()

    def walk(self, sql: str, params: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of such a question one by one: whoever asks may stop early."""
        return iter(self._execute(sql, params))

    def change(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Make a change that is made too seldom to have a method here; returns how many rows it touched."""
        return self._execute(sql, params).rowcount

    # --- jobs -------------------------------------------------------------------------------------------------

    def insert_job(self, job: Job, request_json: str) -> None:
        """Store a new job. Its transaction fails with `AlreadyAccepted` when the request was accepted before."""
        number = self._numbers[job.id] = self._next_job
        self._next_job += 1
        self._batch.insert(rows.INSERT_JOB, (number, *rows.job_row(job)))
        self._batch.insert(rows.INSERT_REQUEST, (number, request_json))
        self._add_deposit(job.customer, -job.deposit_msats)
        self._remember(job)

    def job(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        if (job := self._jobs.get(job_id)) is not None:
            return job
        row = self._execute(f"SELECT number, {_JOB} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            return None
        self._numbers[job_id] = row[0]
        self._touched.add(job_id)
        return rows.job_of(row[1:])

    def save_job(self, before: Job, after: Job) -> None:
        """Store what a step changed, if the stored version is still `before`'s; else `flush` raises."""
        self._number(after.id)
        stored_version, _ = self._saves.get(after.id, (before.version, before))
        self._saves[after.id] = (stored_version, after)
        self._add_deposit(after.customer, before.deposit_msats - after.deposit_msats)
        self._remember(after)

    def _remember(self, job: Job) -> None:
        self._undo.append((self._jobs, job.id, self._jobs.get(job.id)))
        self._touched.add(job.id)
        if job.purge_at is None:
            self._jobs[job.id] = job
        else:
            self._jobs.pop(job.id, None)

    def _number(self, job_id: str) -> int:
        """Return the number under which the other tables know a job. Raises `LookupError`."""
        number = self._numbers.get(job_id)
        if number is None:
            row = self._execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise LookupError(f"there is no job {job_id}")
            number = self._numbers[job_id] = int(row[0])
            self._touched.add(job_id)
        return number

    def unfinished_jobs(self) -> list[Job]:
        """Return every job whose work or money is not finished, oldest first."""
        found = self._execute(f"SELECT {_JOB} FROM jobs WHERE purge_at IS NULL ORDER BY number")
        return [rows.job_of(row) for row in found]

    def accepted_since(self, time_s: int) -> list[str]:
        """Return the ids of the newest jobs, back to the first one that was accepted before a time."""
        ids = []
        for job_id, accepted_at in self._execute("SELECT id, accepted_at FROM jobs ORDER BY number DESC"):
            if accepted_at < time_s:
                break
            ids.append(str(job_id))
        return ids

    def request_json(self, job_id: str) -> str | None:
        """Return the stored request event, or None once it was erased."""
        number = self._number(job_id)
        row = self._execute("SELECT request_json FROM requests WHERE job = ?", (number,)).fetchone()
        return None if row is None else str(row[0])

    def keep_output(self, job_id: str, text: str) -> None:
        """Store what a job gave, until its result can be made."""
        self._batch.insert(rows.INSERT_OUTPUT, (self._number(job_id), text))

    def output(self, job_id: str) -> str | None:
        """Return the stored text of a postpaid job, or None before there is one and once it was erased."""
        row = self._execute("SELECT text FROM outputs WHERE job = ?", (self._number(job_id),)).fetchone()
        return None if row is None else str(row[0])

    def purge(self, now: int, limit: int) -> int:
        """Erase the text of up to `limit` finished jobs whose time has come; return how many.

        A job with something left to send keeps its text until that has ended.
        """
        due = self._execute(
            "SELECT number FROM jobs WHERE purge_at > 0 AND purge_at <= ? AND NOT EXISTS"
            " (SELECT 1 FROM outbox WHERE outbox.job = jobs.number AND outbox.state = 'pending') LIMIT ?",
            (now, limit),
        ).fetchall()
        self._executemany("DELETE FROM requests WHERE job = ?", due)
        self._executemany("DELETE FROM outputs WHERE job = ?", due)
        self._executemany("UPDATE outbox SET event_json = NULL WHERE job = ?", due)
        self._executemany("UPDATE jobs SET purge_at = 0 WHERE number = ?", due)  # nothing left to erase
        return len(due)

    def counts(self) -> dict[tuple[Work, Money], int]:
        """Return how many jobs are in each pair of states."""
        found = self._execute("SELECT work, money, count(*) FROM jobs GROUP BY work, money")
        return {(Work(work), Money(money)): count for work, money, count in found}

    # --- attempts and journal ---------------------------------------------------------------------------------

    def begin_attempt(self, job_id: str, number: int, now: int) -> None:
        """Record that an attempt begins."""
        self._batch.insert(rows.INSERT_ATTEMPT, (self._number(job_id), number, now, None, "", 0, 0, 0, 0, 0))

    def end_attempt(self, attempt: Attempt) -> None:
        """Record how an attempt ended."""
        keys = (self._number(attempt.job_id), attempt.number)
        self._batch.later(rows.UPDATE_ATTEMPT, (*keys, *rows.attempt_end(attempt)))

    def attempts(self, job_id: str) -> list[Attempt]:
        """Return a job's attempts in order."""
        found = self._execute(
            f"SELECT {_ATTEMPT} FROM attempts WHERE job = ? ORDER BY number", (self._number(job_id),)
        )
        return [rows.attempt_of(job_id, row) for row in found]

    def journal(self, job_id: str, entry: str, now: int, topic: str = "job") -> None:
        """Append one line."""
        seq, self._next_entry = self._next_entry, self._next_entry + 1
        self._batch.insert(rows.INSERT_JOURNAL, (seq, now, topic, self._number(job_id), entry))

    def journal_of(self, job_id: str) -> list[JournalEntry]:
        """Return a job's lines in order."""
        found = self._execute(
            "SELECT seq, at, topic, entry FROM journal WHERE job = ? ORDER BY seq", (self._number(job_id),)
        )
        return [JournalEntry(seq, at, topic, job_id, entry) for seq, at, topic, entry in found]

    # --- outbox -----------------------------------------------------------------------------------------------

    def add_outbox(self, item: OutboxItem) -> None:
        """Store a signed event that must be published."""
        number, self._next_item = self._next_item, self._next_item + 1
        self._pending[item.event_id] = (number, item.job_id, item.topic)
        self._undo.append((self._pending, item.event_id, None))
        self._batch.insert(rows.INSERT_OUTBOX, (number, self._number(item.job_id), *rows.outbox_row(item)))

    def end_outbox(self, event_id: str, state: OutboxState) -> tuple[str, OutboxTopic] | None:
        """Store how an item ended; returns its job and topic, or None when it had ended before."""
        item = self._pending.pop(event_id, None)
        if item is None:
            return None
        number, job_id, topic = item
        self._undo.append((self._pending, event_id, item))
        self._batch.later(rows.UPDATE_OUTBOX, (number, str(state)))
        return job_id, topic

    def pending_outbox(self) -> list[OutboxItem]:
        """Return every item that no relay has confirmed."""
        found = self._execute(
            f"SELECT j.id, {_OUTBOX} FROM outbox o JOIN jobs j ON j.number = o.job"
            " WHERE o.state = 'pending' ORDER BY o.number"
        )
        return [rows.outbox_of(row[0], row[1:]) for row in found]

    def job_of_reply(self, event_id: str) -> Job | None:
        """Return the job to which one of our newest `REPLIES_SEARCHED` events belongs, or None.

        There is no index on event ids, which every job would pay for: this is asked of paid zaps alone.
        """
        row = self._execute(
            "SELECT j.id FROM outbox o JOIN jobs j ON j.number = o.job WHERE o.number > ? AND o.event_id = ?",
            (self._next_item - REPLIES_SEARCHED, event_id),
        ).fetchone()
        return None if row is None else self.job(row[0])

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

    def clear_mark(self, name: str) -> None:
        """Forget the number under a name."""
        self._execute("DELETE FROM marks WHERE name = ?", (name,))

    def marks(self) -> dict[str, int]:
        """Return every remembered number."""
        return dict(self._execute("SELECT name, value FROM marks").fetchall())
