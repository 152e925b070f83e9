"""After a storm: the relay, the wallet and the provider's database must tell one story of every job."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from pylon.control.views import DaemonStatus
from pylon.nostr.event import verify
from pylon.nostr.nip90 import FEEDBACK_KIND, ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import parse_feedback
from pylon.store.records import ENDED, Money, Work
from tests.support.provider import Provider
from tests.support.shop import RESULT_KIND, stored_events
from tests.support.workload import Workload

REFUSALS = {
    prefix.value
    for prefix in (
        ErrorPrefix.INVALID,
        ErrorPrefix.TOO_OLD,
        ErrorPrefix.RATE_LIMITED,
        ErrorPrefix.QUEUE_FULL,
        ErrorPrefix.PAUSED,
        ErrorPrefix.INTERNAL,
    )
}
"""What is said instead of taking a request; none of it may be said of one that was taken."""


def is_quiet(status: DaemonStatus) -> bool:
    """Tell whether every job is finished, work and money, and everything is published."""
    states = [state.split("/") for state in status.jobs_by_state]
    ended = all(work in ENDED and money != Money.CANCELLING for work, money in states)
    return ended and status.outbox_pending == 0


async def every_request_taken(daemon: Provider, work: Workload) -> None:
    """Wait until every request is a job, whether the daemon ran, was dead or half started when it was published."""
    missing = set(work.orders)
    with anyio.move_on_after(20):
        while missing:
            await anyio.sleep(0.1)
            with database(daemon.paths.database) as db:
                missing = (
                    work.orders.keys() - work.cancelled - {row["id"] for row in db.execute("SELECT id FROM jobs")}
                )
        return
    said = {
        job_id: (manner.value, order.errors) for job_id, (order, manner) in work.orders.items() if job_id in missing
    }
    raise daemon.failure(f"has not taken {said}; its last status: {await daemon.status()}")


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        db.row_factory = sqlite3.Row
        yield db


@dataclass
class Job:
    """One job as the provider's database has it, with the relay's and the wallet's side of it."""

    id: str
    work: str
    money: str
    price_msats: int
    result_id: str | None
    partial_sent: bool
    deposit_msats: int = 0  # what of its price was paid before, beyond another job's
    settlements: dict[str, tuple[int, int]] = field(default_factory=dict)  # hash -> received, earned
    results: list[str] = field(default_factory=list)  # event ids that the relay has
    errors: list[str] = field(default_factory=list)
    invoices: list[str] = field(default_factory=list)  # as published, in any order

    @property
    def received_msats(self) -> int:
        return sum(received for received, _ in self.settlements.values())

    @property
    def earned_msats(self) -> int:
        return sum(earned for _, earned in self.settlements.values())

    @property
    def pays(self) -> bool:
        """Whether what was received for it is earned: it was delivered, or cancelled after a partial."""
        return self.money == Money.SETTLED and self.work in (Work.DELIVERED, Work.CANCELLED)


def jobs_of(path: Path) -> dict[str, Job]:
    with database(path) as db:
        assert [tuple(row) for row in db.execute("PRAGMA integrity_check")] == [("ok",)]
        assert list(db.execute("PRAGMA foreign_key_check")) == []
        columns = "id, work, money, price_msats, result_id, partial_sent, deposit_msats"
        jobs = {row["id"]: Job(**row) for row in db.execute(f"SELECT {columns} FROM jobs")}
        money = (
            "SELECT jobs.id, payment_hash, amount_msats, earned_msats FROM settlements JOIN jobs ON number = job"
        )
        for job_id, payment_hash, amount_msats, earned_msats in db.execute(money):
            jobs[job_id].settlements[payment_hash] = (amount_msats, earned_msats)
        return jobs


async def add_published(jobs: dict[str, Job], relay_url: str, provider: str) -> None:
    """Add what the relay has of the provider's results, errors and invoices."""
    for event in await stored_events(relay_url, provider, list(jobs), [RESULT_KIND, FEEDBACK_KIND]):
        job = jobs[event.tag_values("e")[0]]
        assert verify(event)
        if event.kind == RESULT_KIND:
            job.results.append(event.id)
            continue
        said = parse_feedback(event)
        if said.status is FeedbackStatus.ERROR:
            job.errors.append(said.info.partition(":")[0])
        elif said.bolt11 is not None:
            job.invoices.append(said.bolt11)


def check_job(job: Job) -> None:
    """One job's own story: work, money and what the relay has agree."""
    state = (job.work, job.money)
    assert len(job.results) <= 1, f"{job} has more than one result"
    assert not REFUSALS & set(job.errors), f"{job} was taken and refused"
    if job.work == Work.DELIVERED:
        assert job.results == [job.result_id], f"{job} is delivered, and the relay knows otherwise"
        assert job.settlements or job.deposit_msats, f"{job} was delivered for nothing"
    else:
        assert job.results == [], f"{job} has a result although its work is {job.work}"
    if not job.settlements and not job.deposit_msats:
        unpaid = {(Work.CANCELLED, Money.NONE), (Work.FAILED, Money.NONE), (Work.EXPIRED, Money.NONE)}
        unpaid |= {(Work.CANCELLED, Money.VOID), (Work.EXPIRED, Money.VOID)}
        assert state in unpaid, f"{job} is unpaid"
    elif job.pays:
        assert job.work == Work.DELIVERED or job.partial_sent, f"{job} is charged for nothing"
        earned_msats = job.earned_msats + job.deposit_msats
        assert earned_msats == job.price_msats, f"{job} earned another amount than its price"
    else:
        assert job.money == Money.REFUND_DUE, f"{job} is paid and has neither result nor refund"
        assert job.earned_msats == 0, f"{job} earned what is due to its customer"
        assert ErrorPrefix.REFUND_DUE in job.errors, f"the customer of {job} was not told of the refund"


def sums(jobs: dict[str, Job]) -> tuple[int, int, int]:
    """Return what was received, earned and is owed, from what each job should have brought."""
    received_msats = sum(job.received_msats for job in jobs.values())
    earned_msats = sum(job.price_msats for job in jobs.values() if job.pays)
    return received_msats, earned_msats, received_msats - earned_msats
