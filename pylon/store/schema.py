"""The tables as SQLAlchemy Core sees them; `migrations.py` builds them, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("customer", Text, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("backend", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("price_msats", Integer, nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("accepted_at", Integer, nullable=False),
    Column("deadline_at", Integer, nullable=False),
    Column("relays", Text, nullable=False),
    Column("work", Text, nullable=False),
    Column("money", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("partial_sent", Integer, nullable=False),
    Column("invoices", Integer, nullable=False),
    Column("result_id", Text),
    Column("reason", Text, nullable=False),
    Column("updated_at", Integer, nullable=False),
    Column("purge_at", Integer),
    CheckConstraint("price_msats >= 0"),
)
# Only unfinished jobs and those with text left to erase are indexed: the rest of the table is history.
Index("jobs_unfinished", jobs.c.work, sqlite_where=jobs.c.purge_at.is_(None))
Index("jobs_purge", jobs.c.purge_at, sqlite_where=jobs.c.purge_at > 0)
Index("jobs_accepted", jobs.c.accepted_at)

requests = Table(
    "requests",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("request_json", Text, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", Integer, nullable=False),
    Column("ended_at", Integer),
    Column("outcome", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("estimated", Integer, nullable=False),
    Column("first_token_ms", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
)

invoices = Table(
    "invoices",
    metadata,
    Column("own_id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("amount_msats", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("payment_hash", Text, unique=True),
    Column("bolt11", Text),
    UniqueConstraint("job_id", "number"),
)
# At most one live invoice is ever published for a job; the database refuses a second.
Index("invoices_one_live", invoices.c.job_id, unique=True, sqlite_where=invoices.c.state == "open")
Index("invoices_undecided", invoices.c.state, sqlite_where=invoices.c.state.in_(("wanted", "open", "closing")))

settlements = Table(
    "settlements",
    metadata,
    Column("payment_hash", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("amount_msats", Integer, nullable=False),
    Column("earned_msats", Integer, nullable=False),
    Column("settled_at", Integer, nullable=False),
    CheckConstraint("earned_msats >= 0 AND earned_msats <= amount_msats"),
)
Index("settlements_job", settlements.c.job_id)

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("topic", Text, nullable=False),
    Column("event_json", Text),
    Column("relays", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("deadline_at", Integer, nullable=False),
    Column("state", Text, nullable=False),
)
Index("outbox_pending", outbox.c.state, sqlite_where=outbox.c.state == "pending")
Index("outbox_one_result", outbox.c.job_id, unique=True, sqlite_where=outbox.c.topic == "result")
Index("outbox_job", outbox.c.job_id)

journal = Table(
    "journal",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Integer, nullable=False),
    Column("topic", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("entry", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index("journal_job", journal.c.job_id)

marks = Table(
    "marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)
