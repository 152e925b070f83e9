"""What the database knows of customers who may be given credit: asked once, on start."""

from __future__ import annotations

from pylon.store import rows
from pylon.store.records import Job
from pylon.store.tx import Tx


def earned_of_customers(tx: Tx, limit: int) -> list[tuple[str, int]]:
    """Return what was earned from each of `limit` customers, msats; who paid last comes last."""
    found = tx.ask(
        "SELECT j.customer, sum(s.earned_msats) FROM settlements s JOIN jobs j ON j.number = s.job"
        " GROUP BY j.customer ORDER BY max(s.rowid) DESC LIMIT ?",
        (limit,),
    )
    return [(customer, earned_msats) for customer, earned_msats in reversed(found)]


def free_jobs(tx: Tx, since: int) -> list[Job]:
    """Return the jobs accepted after a time that cost nothing, oldest first."""
    columns = ", ".join(rows.JOB_COLUMNS)
    found = []
    # Without an index on the time: from the newest back.
    for row in tx.walk(f"SELECT {columns} FROM jobs ORDER BY number DESC"):  # noqa: S608 - our own names
        job = rows.job_of(row)
        if job.accepted_at <= since:
            break
        if job.price_msats == 0 and not job.postpaid:
            found.append(job)
    return found[::-1]


def postpaid_jobs(tx: Tx, since: int) -> list[Job]:
    """Return the postpaid jobs that were accepted after a time, are not finished or not paid; oldest first."""
    columns = ", ".join(rows.JOB_COLUMNS)
    found = tx.ask(
        f"SELECT {columns} FROM jobs WHERE postpaid > 0"  # noqa: S608 - our own names
        " AND (accepted_at > ? OR purge_at IS NULL OR money = 'unpaid') ORDER BY number",
        (since,),
    )
    return [rows.job_of(row) for row in found]
