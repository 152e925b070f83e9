"""What is given away within a day: to one customer, and to all of them together. No I/O, time is passed in.

Keys are free to make, so what a stranger gets for nothing is bounded by what everybody together gets. Counted in
output tokens that were promised (`max_tokens`), which a job's row holds: so the day is known again after a restart.
What is remembered has a fixed size, and where it is full the answer is no.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pylon.store.records import Job

WINDOW_S: Final = 86_400
MAX_GIVEN: Final = 100_000


@dataclass(frozen=True, slots=True)
class AllowanceRules:
    """Output tokens that are free within 24 hours; None for no limit. Raises `ValueError` on a negative one."""

    per_customer: int | None = None
    in_all: int | None = None

    def __post_init__(self) -> None:
        if min(self.per_customer or 0, self.in_all or 0) < 0:
            raise ValueError("an allowance is never negative")


class Allowance:
    """What was given in the last day. Changed on the event loop only."""

    def __init__(self, rules: AllowanceRules) -> None:
        self._rules = rules
        self._given: OrderedDict[str, tuple[int, str, int]] = OrderedDict()  # job -> when, customer, tokens
        self._of_customer: Counter[str] = Counter()
        self._in_all = 0

    @property
    def given_tokens(self) -> int:
        """How much counted when it was last asked about."""
        return self._in_all

    def covers(self, customer: str, tokens: int, now: float) -> bool:
        """Tell whether a job of up to so many output tokens is free for a customer."""
        self._forget_old(now)
        rules = self._rules
        if len(self._given) >= MAX_GIVEN:
            return False
        if rules.per_customer is not None and self._of_customer[customer] + tokens > rules.per_customer:
            return False
        return rules.in_all is None or self._in_all + tokens <= rules.in_all

    def reconfigure(self, rules: AllowanceRules) -> None:
        """Take other limits; what was given counts on."""
        self._rules = rules

    def load(self, jobs: Iterable[Job]) -> None:
        """Count the free jobs of the last day, found on start, oldest first."""
        for job in jobs:
            self.give(job)

    def give(self, job: Job) -> bool:
        """Count a free job that is offered to the store; False when it was counted before."""
        if job.id in self._given:
            return False
        self._given[job.id] = (job.accepted_at, job.customer, job.max_tokens)
        self._of_customer[job.customer] += job.max_tokens
        self._in_all += job.max_tokens
        return True

    def take_back(self, job_id: str) -> None:
        """Count no longer what could not be stored."""
        given = self._given.pop(job_id, None)
        if given is not None:
            self._drop(given)

    def _forget_old(self, now: float) -> None:
        while self._given:
            job_id, given = next(iter(self._given.items()))
            if given[0] > now - WINDOW_S:
                return
            del self._given[job_id]
            self._drop(given)

    def _drop(self, given: tuple[int, str, int]) -> None:
        _, customer, tokens = given
        self._of_customer[customer] -= tokens
        if not self._of_customer[customer]:
            del self._of_customer[customer]
        self._in_all -= tokens
