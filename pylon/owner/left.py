"""What is still to be done of the jobs that were accepted, counted for those who pause or drain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pylon.store.records import Job, Money, Work

_TO_DELIVER: Final = frozenset({Work.BILLING, Work.PRODUCED})


@dataclass(frozen=True, slots=True)
class Left:
    """Jobs by how far they are. `unpaid` ones are promised to nobody: they run when their invoice is paid.

    `first_deadline_at` is the earliest deadline of those that wait and are paid.
    """

    running: int = 0
    waiting: int = 0
    to_deliver: int = 0
    unpaid: int = 0
    waiting_paid: int = 0
    first_deadline_at: int | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left that was promised."""
        return not (self.running or self.waiting or self.to_deliver)


def count_left(jobs: Iterable[Job]) -> Left:
    """Return what is left of the open jobs."""
    held = list(jobs)
    waiting = [job for job in held if job.work is Work.QUEUED]
    paid = [job for job in waiting if job.money is Money.SETTLED]
    return Left(
        running=sum(job.work is Work.RUNNING for job in held),
        waiting=len(waiting),
        to_deliver=sum(job.work in _TO_DELIVER for job in held),
        unpaid=sum(job.work is Work.AWAITING_PAYMENT for job in held),
        waiting_paid=len(paid),
        first_deadline_at=min((job.deadline_at for job in paid), default=None),
    )
