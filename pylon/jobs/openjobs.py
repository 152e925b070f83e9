"""The jobs that are not finished, with the counts that intake's limits ask for.

A job enters when it is offered to the store (so that a burst cannot overfill the queue before the first COMMIT)
and leaves when work and money are finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from pylon.jobs.policy import Load
from pylon.store.records import ENDED, Job, Money, Work

_MAY_BE_PAID: Final = frozenset({Money.INVOICED, Money.CANCELLING})


class OpenJobs:
    """A table of unfinished jobs by id. One instance, changed on the event loop only."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lane: Counter[str] = Counter()  # by the offered model's name
        self._customer: Counter[str] = Counter()
        self._invoices: Counter[str] = Counter()
        self._invoices_in_all = 0

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, job_id: str) -> Job | None:
        """Return the job, or None when it is not open."""
        return self._jobs.get(job_id)

    def put(self, job: Job) -> None:
        """Add a job, or replace what was known of it."""
        before = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if before is not None:
            # Most steps change neither: a job that goes from queued to running keeps its place.
            if _has_place(before) == _has_place(job) and _may_be_paid(before) == _may_be_paid(job):
                return
            self._count(before, -1)
        self._count(job, 1)

    def drop(self, job_id: str) -> None:
        """Forget a job, if it is here."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._count(job, -1)

    def load(self, model: str, customer: str) -> Load:
        """Return how full a model's lane is, and how much of it all is one customer's."""
        return Load(
            queued=self._lane[model],
            queued_of_customer=self._customer[customer],
            open_invoices=self._invoices_in_all,
            open_invoices_of_customer=self._invoices[customer],
        )

    def _count(self, job: Job, by: int) -> None:
        if _has_place(job):
            _add(self._lane, job.model, by)
            _add(self._customer, job.customer, by)
        if _may_be_paid(job):
            _add(self._invoices, job.customer, by)
            self._invoices_in_all += by


def _has_place(job: Job) -> bool:
    """Whether a job takes a place in its lane; one that awaits payment was promised it with the invoice."""
    return job.work not in ENDED


def _may_be_paid(job: Job) -> bool:
    if job.postpaid and job.work not in ENDED and job.money is Money.NONE:
        return True  # its invoice comes with its result
    return job.work is Work.AWAITING_PAYMENT or job.money in _MAY_BE_PAID


def _add(counter: Counter[str], key: str, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]  # strangers choose these keys: none may stay behind
