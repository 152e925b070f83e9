"""The writer on a database that is not empty: what is written first in a process must not matter."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pylon.store.errors import Conflict
from pylon.store.records import Job, OutboxItem, OutboxTopic
from pylon.store.tx import Tx
from pylon.store.writer import Store


def job(number: int) -> Job:
    return Job(
        id=f"{number:064x}",
        customer="c" * 64,
        kind=5050,
        backend="b",
        model="m",
        price_msats=2000,
        max_tokens=16,
        accepted_at=100,
        deadline_at=1000,
    )


def feedback(number: int, job_id: str) -> OutboxItem:
    return OutboxItem(f"{number:064x}", job_id, OutboxTopic.FEEDBACK, "{}", (), 100, 200)


def touch(tx: Tx, number: int) -> None:
    """Write into every table that refers to a job."""
    job_id = job(number).id
    tx.add_outbox(feedback(number, job_id))
    tx.journal(job_id, "touched", 100)
    tx.begin_attempt(job_id, 1, 100)


async def test_new_jobs_after_writes_about_old_ones(tmp_path: Path) -> None:
    """As after a restart: the first thing a process writes is about a job that an earlier one stored."""
    path = tmp_path / "pylon.db"
    store = await Store.open(path)
    await store.write(lambda tx: tx.insert_job(job(1), "{}"))
    await store.aclose()
    store = await Store.open(path)
    await store.write(lambda tx: touch(tx, 1))

    def accept(tx: Tx) -> None:
        tx.insert_job(job(2), "{}")
        touch(tx, 2)

    await store.write(accept)
    assert [each.id for each in await store.write(lambda tx: tx.unfinished_jobs())] == [job(1).id, job(2).id]
    await store.aclose()


async def test_only_what_is_there_already_is_a_conflict(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "pylon.db")
    await store.write(lambda tx: tx.insert_job(job(1), "{}"))
    with pytest.raises(Conflict):
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))

    def refer_to_nothing(tx: Tx) -> None:
        tx._execute("INSERT INTO requests VALUES (99, '{}')")

    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await store.write(refer_to_nothing)
    await store.aclose()
