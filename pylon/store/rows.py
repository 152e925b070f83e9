"""Rows of the tables as records, and back: the column lists, in one place and one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from pylon.store.batch import Insert, Update
from pylon.store.records import (
    Attempt,
    InvoiceRow,
    InvoiceState,
    Job,
    Money,
    OutboxItem,
    OutboxState,
    OutboxTopic,
    Settlement,
    Work,
)

JOB_COLUMNS: Final = (
    "id",
    "customer",
    "kind",
    "model",
    "postpaid",
    "max_tokens",
    "accepted_at",
    "deadline_at",
    "relays",
    "backend",
    "price_msats",
    "work",
    "money",
    "version",
    "attempts",
    "partial_sent",
    "invoices",
    "deposit_msats",
    "result_id",
    "reason",
    "updated_at",
    "purge_at",
)
_CHANGING: Final = JOB_COLUMNS[9:]
ATTEMPT_COLUMNS: Final = (
    "number",
    "started_at",
    "ended_at",
    "outcome",
    "prompt_tokens",
    "output_tokens",
    "estimated",
    "first_token_ms",
    "duration_ms",
)
INVOICE_COLUMNS: Final = (
    "own_id",
    "number",
    "amount_msats",
    "created_at",
    "expires_at",
    "state",
    "payment_hash",
    "bolt11",
)
OUTBOX_COLUMNS: Final = (
    "event_id",
    "topic",
    "event_json",
    "relays",
    "created_at",
    "deadline_at",
    "state",
)
SETTLEMENT_COLUMNS: Final = (
    "payment_hash",
    "amount_msats",
    "earned_msats",
    "settled_at",
    "deposit_msats",
    "tip_msats",
    "zap",
)

INSERT_JOB: Final = Insert("jobs", ("number", *JOB_COLUMNS))
INSERT_REQUEST: Final = Insert("requests", ("job", "request_json"))
INSERT_OUTPUT: Final = Insert("outputs", ("job", "text"))
INSERT_ATTEMPT: Final = Insert("attempts", ("job", *ATTEMPT_COLUMNS))
INSERT_JOURNAL: Final = Insert("journal", ("seq", "at", "topic", "job", "entry"))
INSERT_OUTBOX: Final = Insert("outbox", ("number", "job", *OUTBOX_COLUMNS))
INSERTS: Final = (INSERT_JOB, INSERT_REQUEST, INSERT_OUTPUT, INSERT_ATTEMPT, INSERT_JOURNAL, INSERT_OUTBOX)
"""All of them; jobs first, which the others refer to."""

UPDATE_JOB: Final = Update("jobs", keys=("number", "version"), values=_CHANGING)
UPDATE_ATTEMPT: Final = Update("attempts", keys=("job", "number"), values=ATTEMPT_COLUMNS[2:])
UPDATE_OUTBOX: Final = Update("outbox", keys=("number",), values=("state",))


def job_of(row: Sequence[Any]) -> Job:
    """Return the job in a row of `JOB_COLUMNS`."""
    return Job(
        id=row[0],
        customer=row[1],
        kind=row[2],
        model=row[3],
        postpaid=bool(row[4]),
        max_tokens=row[5],
        accepted_at=row[6],
        deadline_at=row[7],
        relays=_texts(row[8]),
        backend=row[9],
        price_msats=row[10],
        work=Work(row[11]),
        money=Money(row[12]),
        version=row[13],
        attempts=row[14],
        partial_sent=bool(row[15]),
        invoices=row[16],
        deposit_msats=row[17],
        result_id=row[18],
        reason=row[19],
        updated_at=row[20],
        purge_at=row[21],
    )


def job_row(job: Job) -> tuple[Any, ...]:
    """Return a job as a row of `JOB_COLUMNS`."""
    return (
        job.id,
        job.customer,
        job.kind,
        job.model,
        int(job.postpaid),
        job.max_tokens,
        job.accepted_at,
        job.deadline_at,
        _json(job.relays),
        *job_state(job),
    )


def job_state(job: Job) -> tuple[Any, ...]:
    """Return what changes of a job, as the values of `UPDATE_JOB`."""
    return (
        job.backend,
        job.price_msats,
        str(job.work),  # a quarter of the time of `.value`, and a plain string all the same
        str(job.money),
        job.version,
        job.attempts,
        int(job.partial_sent),
        job.invoices,
        job.deposit_msats,
        job.result_id,
        job.reason,
        job.updated_at,
        job.purge_at,
    )


def attempt_of(job_id: str, row: Sequence[Any]) -> Attempt:
    """Return the attempt in a row of `ATTEMPT_COLUMNS`."""
    return Attempt(
        job_id=job_id,
        number=row[0],
        started_at=row[1],
        ended_at=row[2],
        outcome=row[3],
        prompt_tokens=row[4],
        output_tokens=row[5],
        estimated=bool(row[6]),
        first_token_ms=row[7],
        duration_ms=row[8],
    )


def attempt_end(attempt: Attempt) -> tuple[Any, ...]:
    """Return how an attempt ended, as the values of `UPDATE_ATTEMPT`."""
    return (
        attempt.ended_at,
        attempt.outcome,
        attempt.prompt_tokens,
        attempt.output_tokens,
        int(attempt.estimated),
        attempt.first_token_ms,
        attempt.duration_ms,
    )


def invoice_of(job_id: str, row: Sequence[Any]) -> InvoiceRow:
    """Return the invoice in a row of `INVOICE_COLUMNS`."""
    return InvoiceRow(
        own_id=row[0],
        job_id=job_id,
        number=row[1],
        amount_msats=row[2],
        created_at=row[3],
        expires_at=row[4],
        state=InvoiceState(row[5]),
        payment_hash=row[6],
        bolt11=row[7],
    )


def settlement_of(job_id: str, row: Sequence[Any]) -> Settlement:
    """Return the settlement in a row of `SETTLEMENT_COLUMNS`."""
    return Settlement(
        payment_hash=row[0],
        job_id=job_id,
        amount_msats=row[1],
        earned_msats=row[2],
        settled_at=row[3],
        deposit_msats=row[4],
        tip_msats=row[5],
        zap=bool(row[6]),
    )


def outbox_of(job_id: str, row: Sequence[Any]) -> OutboxItem:
    """Return the item in a row of `OUTBOX_COLUMNS`."""
    return OutboxItem(
        event_id=row[0],
        job_id=job_id,
        topic=OutboxTopic(row[1]),
        event_json=row[2],
        relays=_texts(row[3]),
        created_at=row[4],
        deadline_at=row[5],
        state=OutboxState(row[6]),
    )


def outbox_row(item: OutboxItem) -> tuple[Any, ...]:
    """Return an outbox item as a row of `OUTBOX_COLUMNS`."""
    return (
        item.event_id,
        str(item.topic),
        item.event_json,
        _json(item.relays),
        item.created_at,
        item.deadline_at,
        str(item.state),
    )


def _json(texts: tuple[str, ...]) -> str:
    return orjson.dumps(texts).decode() if texts else "[]"


def _texts(stored: str) -> tuple[str, ...]:
    return () if stored == "[]" else tuple(orjson.loads(stored))
