"""Who may have a job done before it is paid, and for how much: no I/O and no clock, time is passed in.

Keys cost nothing, so what a stranger gets (`credit_msats`) is bounded by what everybody together gets in a day. A
customer has one job on credit at a time; whoever leaves one unpaid gets no more until it is paid after all. What is
remembered has a fixed size, and where it is full the answer is no: the customer prepays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pylon.jobs.policy import MAX_CUSTOMERS
from pylon.store.records import ENDED, Job, Money, Work

WINDOW_S: Final = 86_400
MAX_UNPAID: Final = 50_000
MAX_GIVEN: Final = 100_000

_GAVE_NOTHING: Final = frozenset({Work.FAILED, Work.CANCELLED, Work.EXPIRED})


@dataclass(frozen=True, slots=True)
class CreditRules:
    """How much credit there is, msats; by default none. `history_percent` of what a customer has paid is added.

    `max_credit_msats` bounds one customer's credit, `daily_msats` everybody's within 24 hours. Raises `ValueError`
    on a negative one.
    """

    credit_msats: int = 0
    history_percent: int = 0
    max_credit_msats: int = 0
    daily_msats: int = 0

    def __post_init__(self) -> None:
        if min(self.credit_msats, self.history_percent, self.max_credit_msats, self.daily_msats) < 0:
            raise ValueError("credit is never negative")


class Credit:
    """What is known of the customers' credit. Changed on the event loop only, after what it follows is stored."""

    def __init__(self, rules: CreditRules) -> None:
        self._rules = rules
        self._paid: OrderedDict[str, int] = OrderedDict()  # customer -> msats; who paid last is at the end
        self._open: dict[str, str] = {}  # customer -> the job that is done on credit, or waits for its payment
        self._unpaid: dict[str, str] = {}  # customer -> the job that was not paid in time
        self._given: OrderedDict[str, tuple[int, int]] = OrderedDict()  # job -> when accepted, msats
        self._given_msats = 0

    @property
    def given_msats(self) -> int:
        """How much credit counted against the daily cap when it was last asked about."""
        return self._given_msats

    def reconfigure(self, rules: CreditRules) -> None:
        """Take other limits; what was given counts on."""
        self._rules = rules

    # --- asked by intake --------------------------------------------------------------------------------------

    def owing(self, customer: str) -> str | None:
        """Return the id of the job that a customer must pay before the next one, or None."""
        return self._open.get(customer)

    def limit_msats(self, customer: str) -> int:
        """Return how much a job on credit may cost for a customer; 0 for one with an unpaid job."""
        if customer in self._unpaid:
            return 0
        rules = self._rules
        earned_trust = self._paid.get(customer, 0) * rules.history_percent // 100
        return min(rules.credit_msats + earned_trust, rules.max_credit_msats)

    def covers(self, customer: str, quoted_msats: int, now: float) -> bool:
        """Tell whether a job that costs at most `quoted_msats` may be done before it is paid."""
        if customer in self._open or quoted_msats > self.limit_msats(customer):
            return False
        self._forget_old(now)
        if len(self._unpaid) >= MAX_UNPAID or len(self._given) >= MAX_GIVEN:
            return False
        return self._given_msats + quoted_msats <= self._rules.daily_msats

    def give(self, job: Job) -> None:
        """Count a job that is accepted on credit; before COMMIT, so that a burst finds the credit given."""
        self._given[job.id] = (job.accepted_at, 0)
        self._follow(job)

    def take_back(self, job: Job) -> None:
        """Forget a job that could not be stored."""
        self._count(job, 0)
        _drop(self._open, job)

    # --- told by the engine -----------------------------------------------------------------------------------

    def load(self, paid: Iterable[tuple[str, int]], jobs: Iterable[Job], now: float) -> None:
        """Take what the database knows: what customers have paid, who paid last at the end, and postpaid jobs."""
        for customer, amount_msats in paid:
            self._add_paid(customer, amount_msats)
        for job in jobs:
            if job.accepted_at > now - WINDOW_S:
                self._given[job.id] = (job.accepted_at, 0)
            self._follow(job)

    def follow(self, job: Job, earned_msats: int) -> None:
        """Take a stored step: the job after it, and what it earned."""
        if earned_msats:
            self._add_paid(job.customer, earned_msats)
        if job.postpaid:
            self._follow(job)

    def _follow(self, job: Job) -> None:
        self._count(job, _given_msats(job))
        _drop(self._open, job)
        _drop(self._unpaid, job)
        if _is_open(job):
            self._open[job.customer] = job.id
        elif job.money is Money.UNPAID:
            self._unpaid[job.customer] = job.id

    def _add_paid(self, customer: str, amount_msats: int) -> None:
        self._paid[customer] = self._paid.pop(customer, 0) + amount_msats
        if len(self._paid) > MAX_CUSTOMERS:
            self._paid.popitem(last=False)

    def _count(self, job: Job, amount_msats: int) -> None:
        before = self._given.get(job.id)
        if before is None:
            return  # it left the window, or gave nothing
        self._given_msats += amount_msats - before[1]
        if amount_msats:
            self._given[job.id] = (job.accepted_at, amount_msats)  # keeps its place in the order
        else:
            del self._given[job.id]

    def _forget_old(self, now: float) -> None:
        while self._given:
            job_id, (accepted_at, amount_msats) = next(iter(self._given.items()))
            if accepted_at > now - WINDOW_S:
                return
            del self._given[job_id]
            self._given_msats -= amount_msats


def _is_open(job: Job) -> bool:
    """Tell whether a job is under way on credit, or its invoice may be paid; not one that nobody can pay."""
    if job.work in (Work.PRODUCED, Work.DELIVERED):
        return job.money is Money.INVOICED
    return job.work not in ENDED and job.money is Money.NONE


def _given_msats(job: Job) -> int:
    """Return the credit that a job was given. What ended before its customer got any of it gave none.

    A result that was given away counts: it is the day's loss that is bounded.
    """
    return 0 if job.work in _GAVE_NOTHING and not job.partial_sent else job.price_msats


def _drop(of_customers: dict[str, str], job: Job) -> None:
    if of_customers.get(job.customer) == job.id:
        del of_customers[job.customer]
