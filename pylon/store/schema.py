"""The tables as SQLAlchemy Core sees them; `migrations.py` builds them, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    # Hashes are random: only this one index has them. All other tables know a job by its number, so that their new
    # rows go to their ends and a commit touches few pages.
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("customer", Text, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("backend", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("price_msats", Integer, nullable=False),
    Column("postpaid", Integer, nullable=False),
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
    Column("deposit_msats", Integer, nullable=False, server_default="0"),
    CheckConstraint("price_msats >= 0"),
)
# Only unfinished jobs and those with text left to erase are indexed: the rest of the table is history.
Index("jobs_unfinished", jobs.c.number, sqlite_where=jobs.c.purge_at.is_(None))
Index("jobs_purge", jobs.c.purge_at, sqlite_where=jobs.c.purge_at > 0)
Index("jobs_postpaid", jobs.c.number, sqlite_where=jobs.c.postpaid > 0)
Index("jobs_deposit", jobs.c.number, sqlite_where=jobs.c.deposit_msats > 0)

requests = Table(
    "requests",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("request_json", Text, nullable=False),
)

# The text of a postpaid job, from its end until it is erased: its result is made when its invoice is.
outputs = Table(
    "outputs",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("text", Text, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", Integer, nullable=False),
    Column("ended_at", Integer),
    Column("outcome", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("estimated", Integer, nullable=False),
    Column("first_token_ms", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    sqlite_with_rowid=False,
)

invoices = Table(
    "invoices",
    metadata,
    Column("own_id", Text, primary_key=True),
    Column("job", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("amount_msats", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("payment_hash", Text, unique=True),
    Column("bolt11", Text),
    UniqueConstraint("job", "number"),
)
# At most one live invoice is ever published for a job; the database refuses a second.
Index("invoices_one_live", invoices.c.job, unique=True, sqlite_where=invoices.c.state == "open")
Index("invoices_undecided", invoices.c.state, sqlite_where=invoices.c.state.in_(("wanted", "open", "closing")))

settlements = Table(
    "settlements",
    metadata,
    Column("payment_hash", Text, primary_key=True),
    Column("job", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("amount_msats", Integer, nullable=False),
    Column("earned_msats", Integer, nullable=False),
    Column("settled_at", Integer, nullable=False),
    Column("deposit_msats", Integer, nullable=False, server_default="0"),
    Column("tip_msats", Integer, nullable=False, server_default="0"),
    Column("zap", Integer, nullable=False, server_default="0"),
    CheckConstraint("earned_msats >= 0 AND earned_msats <= amount_msats"),
)
Index("settlements_job", settlements.c.job)
Index("settlements_deposit", settlements.c.job, sqlite_where=settlements.c.deposit_msats > 0)

# What is paid back, and what the operator decided not to pay back (a row without invoice).
refunds = Table(
    "refunds",
    metadata,
    Column("own_id", Text, primary_key=True),
    Column("job", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("amount_msats", Integer, nullable=False),
    Column("destination", Text, nullable=False),
    Column("bolt11", Text),
    Column("payment_hash", Text, unique=True),
    Column("expires_at", Integer),
    Column("state", Text, nullable=False),
    Column("fee_msats", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
    CheckConstraint("amount_msats > 0 AND fee_msats >= 0"),
    UniqueConstraint("job", "number"),
)
# Another invoice is committed only when the one before is known to have ended; the database refuses a second.
Index("refunds_one_committed", refunds.c.job, unique=True, sqlite_where=refunds.c.state == "committed")
Index("refunds_created", refunds.c.created_at)

# Where the refund of a job is to go, as far as somebody has said it.
payees = Table(
    "payees",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("destination", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("said_at", Integer, nullable=False),
    Column("ordered", Integer, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("job", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("topic", Text, nullable=False),
    Column("event_json", Text),
    Column("relays", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("deadline_at", Integer, nullable=False),
    Column("state", Text, nullable=False),
)
Index("outbox_pending", outbox.c.state, sqlite_where=outbox.c.state == "pending")
Index("outbox_one_result", outbox.c.job, unique=True, sqlite_where=outbox.c.topic == "result")
Index("outbox_job", outbox.c.job)

journal = Table(
    "journal",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("topic", Text, nullable=False),
    Column("job", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("entry", Text, nullable=False),
)
Index("journal_job", journal.c.job)

marks = Table(
    "marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)
