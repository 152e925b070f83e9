"""The numbered migrations: what each version of the schema adds to the one before.

A migration is frozen once released: a change of schema is a new entry at the end together with the same change
in `schema.py`. The version is SQLite's `user_version`; each migration runs in a transaction of its own.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from pylon.store.errors import StoreTooNew

_V1 = """
CREATE TABLE jobs (
    number INTEGER NOT NULL,
    id TEXT NOT NULL,
    customer TEXT NOT NULL,
    kind INTEGER NOT NULL,
    backend TEXT NOT NULL,
    model TEXT NOT NULL,
    price_msats INTEGER NOT NULL,
    postpaid INTEGER NOT NULL,
    max_tokens INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    deadline_at INTEGER NOT NULL,
    relays TEXT NOT NULL,
    work TEXT NOT NULL,
    money TEXT NOT NULL,
    version INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    partial_sent INTEGER NOT NULL,
    invoices INTEGER NOT NULL,
    result_id TEXT,
    reason TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    purge_at INTEGER,
    PRIMARY KEY (number),
    CHECK (price_msats >= 0),
    UNIQUE (id)
);
CREATE INDEX jobs_postpaid ON jobs (number) WHERE postpaid > 0;
CREATE INDEX jobs_purge ON jobs (purge_at) WHERE purge_at > 0;
CREATE INDEX jobs_unfinished ON jobs (number) WHERE purge_at IS NULL;
CREATE TABLE marks (
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE attempts (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    first_token_ms INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    PRIMARY KEY (job, number),
    FOREIGN KEY(job) REFERENCES jobs (number)
)
 WITHOUT ROWID;
CREATE TABLE invoices (
    own_id TEXT NOT NULL,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    amount_msats INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    state TEXT NOT NULL,
    payment_hash TEXT,
    bolt11 TEXT,
    PRIMARY KEY (own_id),
    UNIQUE (job, number),
    FOREIGN KEY(job) REFERENCES jobs (number),
    UNIQUE (payment_hash)
);
CREATE UNIQUE INDEX invoices_one_live ON invoices (job) WHERE state = 'open';
CREATE INDEX invoices_undecided ON invoices (state) WHERE state IN ('wanted', 'open', 'closing');
CREATE TABLE journal (
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    topic TEXT NOT NULL,
    job INTEGER NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (seq),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE INDEX journal_job ON journal (job);
CREATE TABLE outbox (
    number INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    job INTEGER NOT NULL,
    topic TEXT NOT NULL,
    event_json TEXT,
    relays TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    deadline_at INTEGER NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (number),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE INDEX outbox_job ON outbox (job);
CREATE UNIQUE INDEX outbox_one_result ON outbox (job) WHERE topic = 'result';
CREATE INDEX outbox_pending ON outbox (state) WHERE state = 'pending';
CREATE TABLE outputs (
    job INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE TABLE requests (
    job INTEGER NOT NULL,
    request_json TEXT NOT NULL,
    PRIMARY KEY (job),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE TABLE settlements (
    payment_hash TEXT NOT NULL,
    job INTEGER NOT NULL,
    amount_msats INTEGER NOT NULL,
    earned_msats INTEGER NOT NULL,
    settled_at INTEGER NOT NULL,
    PRIMARY KEY (payment_hash),
    CHECK (earned_msats >= 0 AND earned_msats <= amount_msats),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE INDEX settlements_job ON settlements (job);
"""

_REFUNDS = """
CREATE TABLE refunds (
    own_id TEXT NOT NULL,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    amount_msats INTEGER NOT NULL,
    destination TEXT NOT NULL,
    bolt11 TEXT,
    payment_hash TEXT,
    expires_at INTEGER,
    state TEXT NOT NULL,
    fee_msats INTEGER NOT NULL,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (own_id),
    CHECK (amount_msats > 0 AND fee_msats >= 0),
    UNIQUE (job, number),
    FOREIGN KEY(job) REFERENCES jobs (number),
    UNIQUE (payment_hash)
);
CREATE INDEX refunds_created ON refunds (created_at);
CREATE UNIQUE INDEX refunds_one_committed ON refunds (job) WHERE state = 'committed';
CREATE TABLE payees (
    job INTEGER NOT NULL,
    destination TEXT NOT NULL,
    source TEXT NOT NULL,
    said_at INTEGER NOT NULL,
    ordered INTEGER NOT NULL,
    PRIMARY KEY (job),
    FOREIGN KEY(job) REFERENCES jobs (number)
);
"""

# What a customer paid beyond a price is kept for its next job; zaps.
_DEPOSITS = """
ALTER TABLE jobs ADD COLUMN deposit_msats INTEGER DEFAULT '0' NOT NULL;
CREATE INDEX jobs_deposit ON jobs (number) WHERE deposit_msats > 0;
ALTER TABLE settlements ADD COLUMN deposit_msats INTEGER DEFAULT '0' NOT NULL;
ALTER TABLE settlements ADD COLUMN tip_msats INTEGER DEFAULT '0' NOT NULL;
ALTER TABLE settlements ADD COLUMN zap INTEGER DEFAULT '0' NOT NULL;
CREATE INDEX settlements_deposit ON settlements (job) WHERE deposit_msats > 0;
"""

MIGRATIONS: Final[tuple[str, ...]] = (_V1, _REFUNDS, _DEPOSITS)


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Bring the database to the newest version and return how many migrations ran.

    Raises `StoreTooNew` when it was written by a newer Pylon.
    """
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StoreTooNew(
            f"the database has schema version {version}, this Pylon knows up to {len(migrations)}: upgrade Pylon"
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        # The version moves in the same transaction as the tables: a crash leaves all of a migration or none.
        connection.executescript(f"BEGIN IMMEDIATE;{script};PRAGMA user_version = {number};COMMIT;")
    return len(migrations) - version
