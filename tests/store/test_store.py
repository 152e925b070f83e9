"""The store: groups, failures of one and of all, versions, full disks, kills."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from sqlalchemy import create_engine

from pylon.store import refunds
from pylon.store.errors import Conflict, StaleVersion, StoreTooNew, StoreUnavailable
from pylon.store.migrations import MIGRATIONS, migrate
from pylon.store.records import (
    Attempt,
    Books,
    InvoiceRow,
    InvoiceState,
    Job,
    Money,
    OutboxItem,
    OutboxState,
    OutboxTopic,
    Payee,
    PayeeSource,
    Refund,
    RefundState,
    Settlement,
    Work,
)
from pylon.store.schema import metadata
from pylon.store.tx import Tx
from pylon.store.writer import Store


def job(number: int, **changes: object) -> Job:
    made = Job(
        id=f"{number:064x}",
        customer="c" * 64,
        kind=5050,
        backend="b",
        model="m",
        price_msats=2000,
        max_tokens=16,
        accepted_at=100 + number,
        deadline_at=1000,
        relays=("wss://a.example",),
        version=1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def item(number: int, job_id: str, topic: OutboxTopic = OutboxTopic.FEEDBACK) -> OutboxItem:
    return OutboxItem(f"{number:064x}", job_id, topic, "{}", (), 100, 200)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = await Store.open(path)
    try:
        yield store
    finally:
        await store.aclose()


async def test_a_job_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    stored = job(1, reason="ünïcode \u2028", result_id="ab", attempts=2, partial_sent=True, purge_at=7)
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(stored, "{}"))
        assert await store.write(lambda tx: tx.job(stored.id)) == stored
    async with opened(tmp_path / "db") as store:
        assert await store.write(lambda tx: tx.job(stored.id)) == stored
        assert await store.write(lambda tx: tx.request_json(stored.id)) == "{}"


async def test_a_request_is_accepted_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        with pytest.raises(Conflict):
            await store.write(lambda tx: tx.insert_job(job(1, kind=1), "{}"))
        kept = await store.write(lambda tx: tx.job(job(1).id))
        assert kept is not None and kept.kind == 5050


async def test_what_arrives_together_is_committed_together(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        told: list[int] = []

        def insert(number: int) -> Callable[[Tx], int]:
            def run(tx: Tx) -> int:
                tx.insert_job(job(number), "{}")
                tx.begin_attempt(job(number).id, 1, 100)
                return number

            return run

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(store.write, insert(number), told.append)
        assert told == list(range(200))
        counts = await store.write(lambda tx: tx.counts())
        assert counts == {(Work.QUEUED, Money.NONE): 200}


async def test_one_faulty_member_fails_alone(tmp_path: Path) -> None:
    def good(tx: Tx, number: int) -> None:
        tx.insert_job(job(number), "{}")
        tx.add_outbox(item(number, job(number).id))

    def bad(tx: Tx) -> None:
        tx.insert_job(job(50), "{}")
        raise ValueError("a bug")

    def clashing(tx: Tx) -> None:
        # Only noticed when the group is flushed: a second result for one job.
        tx.insert_job(job(60), "{}")
        tx.add_outbox(item(61, job(60).id, OutboxTopic.RESULT))
        tx.add_outbox(item(62, job(60).id, OutboxTopic.RESULT))

    async with opened(tmp_path / "db") as store:
        blocked, go = hold(store)
        errors: list[BaseException] = []
        committed: list[object] = []
        store.post(lambda tx: good(tx, 1), committed.append, errors.append)
        store.post(bad, committed.append, errors.append)
        store.post(clashing, committed.append, errors.append)
        store.post(lambda tx: good(tx, 2), committed.append, errors.append)
        go()
        await blocked
        ids = await store.write(lambda tx: [each.id for each in tx.unfinished_jobs()])
        assert ids == [job(1).id, job(2).id]
        assert [type(error) for error in errors] == [ValueError, Conflict]
        assert len(committed) == 2
        # Memory went back too: the outbox of the faulty ones is not believed in.
        assert await store.write(lambda tx: tx.end_outbox(f"{61:064x}", OutboxState.SENT)) is None
        assert await store.write(lambda tx: tx.end_outbox(f"{1:064x}", OutboxState.SENT)) is not None
        assert store.health.healthy


def hold(store: Store) -> tuple[asyncio.Future[bool], Callable[[], None]]:
    """Keep the writer busy so that what is posted next forms one group."""
    released = threading.Event()
    task = asyncio.ensure_future(store.write(lambda tx: released.wait(5)))
    return task, released.set


async def test_a_job_moved_by_somebody_else_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        other = sqlite3.connect(tmp_path / "db")
        other.execute("UPDATE jobs SET version = 9")
        other.commit()
        other.close()

        def save(tx: Tx) -> None:
            before = tx.job(job(1).id)
            assert before is not None
            tx.save_job(before, replace(before, work=Work.RUNNING, version=before.version + 1))

        with pytest.raises(StaleVersion):
            await store.write(save)


async def test_a_full_disk_fails_the_group_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        pages = await store.write(lambda tx: tx._execute("PRAGMA page_count").fetchone()[0])
        await store.write(lambda tx: tx._execute(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(StoreUnavailable, match="full"):
            await store.write(lambda tx: tx.insert_job(job(2), "x" * 200_000))
        assert not store.health.healthy
        assert await store.write(lambda tx: [each.id for each in tx.unfinished_jobs()]) == [job(1).id]
        await store.write(lambda tx: tx._execute(f"PRAGMA max_page_count = {pages + 10_000}"))
        await store.write(lambda tx: tx.insert_job(job(2), "x" * 200_000))
        assert store.health.healthy


async def test_money_is_booked_once_and_earned_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        paid = job(1, work=Work.RUNNING, money=Money.SETTLED)
        await store.write(lambda tx: tx.insert_job(paid, "{}"))
        money = Settlement("aa", paid.id, 3000, 0, 120)
        assert await store.write(lambda tx: tx.book(money))
        assert not await store.write(lambda tx: tx.book(money))
        assert await store.write(lambda tx: tx.books()) == Books(3000, 0, 3000, 0)
        delivered = paid.evolve(work=Work.DELIVERED)

        def deliver(tx: Tx) -> None:
            tx.save_job(paid, delivered)
            tx.earn(delivered)

        for _ in range(2):
            await store.write(deliver)
        assert await store.write(lambda tx: tx.books()) == Books(3000, 2000, 0, 0, deposits_msats=1000)
        assert await store.write(lambda tx: tx.deposit_of(paid.customer)) == 1000


async def test_at_most_one_live_invoice(tmp_path: Path) -> None:
    def want(tx: Tx, number: int) -> None:
        tx.want_invoice(InvoiceRow(f"own{number}", job(1).id, number, 2000, 100, 700))
        tx.set_invoice(f"own{number}", InvoiceState.OPEN, f"hash{number}", "lnbcrt1", 700)

    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        await store.write(lambda tx: want(tx, 1))
        with pytest.raises(Conflict):
            await store.write(lambda tx: want(tx, 2))
        moves = [(InvoiceState.OPEN, InvoiceState.CLOSING)]
        await store.write(lambda tx: tx.move_invoices(job(1).id, moves))
        await store.write(lambda tx: want(tx, 2))
        states = await store.write(lambda tx: [each.state for each in tx.invoices_of(job(1).id)])
        assert states == [InvoiceState.CLOSING, InvoiceState.OPEN]


async def test_text_is_erased_when_its_time_has_come(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        done = job(1, work=Work.DELIVERED, purge_at=50)

        def insert(tx: Tx) -> None:
            tx.insert_job(done, '{"secret":"prompt"}')
            tx.add_outbox(item(1, done.id, OutboxTopic.RESULT))

        await store.write(insert)
        # An event that is still to be sent keeps the job's text until it is.
        assert await store.write(lambda tx: tx.purge(51, 10)) == 0
        await store.write(lambda tx: tx.end_outbox(f"{1:064x}", OutboxState.SENT))
        assert await store.write(lambda tx: tx.purge(49, 10)) == 0
        assert await store.write(lambda tx: tx.request_json(done.id)) == '{"secret":"prompt"}'
        assert await store.write(lambda tx: tx.purge(50, 10)) == 1
        assert await store.write(lambda tx: tx.request_json(done.id)) is None
        assert await store.write(lambda tx: tx.purge(51, 10)) == 0
        texts = await store.write(lambda tx: tx._execute("SELECT event_json FROM outbox").fetchall())
        assert texts == [(None,)]


async def test_attempts_and_journal_keep_their_order(tmp_path: Path) -> None:
    def story(tx: Tx) -> None:
        tx.insert_job(job(1), "{}")
        for number in (1, 2):
            tx.begin_attempt(job(1).id, number, 100)
            tx.journal(job(1).id, f"attempt {number}", 100)
            tx.end_attempt(Attempt(job(1).id, number, 0, 110, "broke", 5, 7, True, 30, 90))

    async with opened(tmp_path / "db") as store:
        await store.write(story)
        attempts = await store.write(lambda tx: tx.attempts(job(1).id))
        assert [(each.number, each.started_at, each.outcome, each.estimated) for each in attempts] == [
            (1, 100, "broke", True),
            (2, 100, "broke", True),
        ]
        assert [line.entry for line in await store.write(lambda tx: tx.journal_of(job(1).id))] == [
            "attempt 1",
            "attempt 2",
        ]


async def test_the_file_is_private_from_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path / "home" / "db") as store:
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.write(lambda tx: tx.counts())


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreTooNew, match="99"):
        await Store.open(tmp_path / "db")


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database, but something of the operator's" * 50)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await Store.open(tmp_path / "db")


def test_migrations_build_what_the_tables_say(tmp_path: Path) -> None:
    migrated = sqlite3.connect(":memory:", isolation_level=None)
    assert migrate(migrated) == len(MIGRATIONS)
    assert migrate(migrated) == 0
    engine = create_engine(f"sqlite:///{tmp_path / 'made'}")
    metadata.create_all(engine)
    made = sqlite3.connect(tmp_path / "made")
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"

    def shape(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
        return [(kind, name, "".join(sql.split())) for kind, name, sql in connection.execute(query)]

    assert shape(migrated) == shape(made)


def test_a_migration_that_breaks_leaves_the_old_version() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    with pytest.raises(sqlite3.Error):
        migrate(connection, (*MIGRATIONS, "CREATE TABLE fine (a); CREATE TABLE broken (;"))
    connection.execute("ROLLBACK")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name='fine'").fetchone() == (0,)


KILLED = """
import asyncio, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.store.test_store import job
from pylon.store.writer import Store

async def main():
    store = await Store.open(Path({path!r}))
    number = 0
    while True:
        def run(tx, number=number):
            tx.insert_job(job(number), "{{}}")
            tx.begin_attempt(job(number).id, 1, 100)
        await store.write(run)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_what_was_told_survives_a_kill(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    script = KILLED.format(root=root, path=str(tmp_path / "db"))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = -1
    for line in child.stdout:
        told = int(line)
        if told >= 30:
            child.send_signal(signal.SIGKILL)
            break
    told = max([told, *(int(line) for line in child.stdout)])
    child.wait(5)
    async with opened(tmp_path / "db") as store:
        stored = await store.write(lambda tx: len(tx.unfinished_jobs()))
        assert stored >= told + 1
        last = await store.write(lambda tx: tx.attempts(job(stored - 1).id))
        assert len(last) == 1


# --- refunds --------------------------------------------------------------------------------------------------


def refund(number: int, **changes: object) -> Refund:
    made = Refund(
        own_id=f"own-{number}",
        job_id=job(1).id,
        amount_msats=1000,
        created_at=100 + number,
        destination="alice@pay.example",
        bolt11=f"lnbc{number}",
        payment_hash=f"{number:064x}",
        expires_at=700,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


async def test_one_refund_of_a_job_is_under_way_and_no_invoice_is_used_twice(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        first = await store.write(lambda tx: refunds.keep_refund(tx, refund(1)))
        assert first == replace(refund(1), number=1, updated_at=101)
        assert await store.write(lambda tx: refunds.committed_refund(tx, job(1).id)) == first
        with pytest.raises(Conflict):
            await store.write(lambda tx: refunds.keep_refund(tx, refund(2)))
        ended = RefundState.FAILED
        await store.write(lambda tx: refunds.end_refund(tx, "own-1", ended, fee_msats=0, reason="x", now=150))
        with pytest.raises(Conflict):
            await store.write(lambda tx: refunds.keep_refund(tx, refund(2, payment_hash=refund(1).payment_hash)))
        assert (await store.write(lambda tx: refunds.keep_refund(tx, refund(2)))).number == 2


async def test_a_day_counts_what_may_have_been_paid(tmp_path: Path) -> None:
    states = (RefundState.PAID, RefundState.FAILED, RefundState.WRITTEN_OFF, RefundState.COMMITTED)
    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        for number, state in enumerate(states, 1):
            row = refund(number, state=state, amount_msats=10**number, fee_msats=number == 1)
            await store.write(lambda tx, row=row: refunds.keep_refund(tx, row))  # type: ignore[misc]
        assert await store.write(lambda tx: refunds.spent_since(tx, 100, 7)) == 10 + 1 + 10_000 + 7
        assert await store.write(lambda tx: refunds.spent_since(tx, 101, 7)) == 10_000 + 7
        books = await store.write(lambda tx: tx.books())
        assert (books.refunded_msats, books.refund_fees_msats, books.written_off_msats) == (10, 1, 1_000)


async def test_the_newest_word_about_a_payee_counts(tmp_path: Path) -> None:
    def said(name: str, at: int) -> Payee:
        return Payee(job(1).id, f"{name}@pay.example", PayeeSource.CUSTOMER, at)

    async with opened(tmp_path / "db") as store:
        await store.write(lambda tx: tx.insert_job(job(1), "{}"))
        assert await store.write(lambda tx: refunds.put_payee(tx, said("new", 20)))
        assert not await store.write(lambda tx: refunds.put_payee(tx, said("old", 10)))
        assert not await store.write(lambda tx: refunds.put_payee(tx, said("same", 20)))
        await store.write(lambda tx: refunds.order(tx, job(1).id, "", 15))
        payee = await store.write(lambda tx: refunds.payee(tx, job(1).id))
        assert payee == replace(said("new", 20), ordered=True)
        await store.write(lambda tx: refunds.drop_payee(tx, job(1).id, "another@pay.example"))
        assert await store.write(lambda tx: refunds.payee(tx, job(1).id)) == payee
        await store.write(lambda tx: refunds.drop_payee(tx, job(1).id, "new@pay.example"))
        dropped = await store.write(lambda tx: refunds.payee(tx, job(1).id))
        assert dropped is not None and (dropped.destination, dropped.ordered, dropped.said_at) == ("", False, 20)
