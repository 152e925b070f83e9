"""What is known of one refund that is due, and whether it may go by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pylon.jobs.giving_back import due_msats
from pylon.jobs.repayment import RepaymentConfig
from pylon.store import refunds
from pylon.store.records import HELD_MARK, Job, Payee, Refund, RefundState
from pylon.store.tx import Tx

_DAY_S: Final = 86_400


class RefundRefused(Exception):
    """A refund cannot be ordered or written off; the message is one sentence for the operator."""


class Waits(Exception):
    """Why a refund cannot be begun now. `again`: time may help, and with `soon` before long.

    Else somebody has to say something.
    """

    def __init__(self, sentence: str, *, again: bool, soon: bool = False) -> None:
        super().__init__(sentence)
        self.again = again
        self.soon = soon


@dataclass(frozen=True, slots=True)
class RefunderConfig:
    """What refunds need of the settings; times in seconds. The caps hold for what nobody ordered."""

    network: str = "bitcoin"
    auto: bool = False
    max_msats_per_job: int = 1_000_000
    max_msats_per_day: int = 10_000_000
    min_expiry_s: int = 30
    retry_min_s: float = 5.0
    retry_max_s: float = 3_600.0
    repayment: RepaymentConfig = field(default_factory=RepaymentConfig)


@dataclass(frozen=True, slots=True)
class RefundCase:
    """What the database knows of one job's refund. `spent_msats` is what all refunds of the last day took.

    `held`: the books came from a backup, and it may have been paid already by what they lost.
    """

    job: Job
    amount_msats: int
    payee: Payee | None = None
    failed: tuple[Refund, ...] = ()
    spent_msats: int = 0
    held: bool = False

    @property
    def ordered(self) -> bool:
        """Whether the operator wants it paid."""
        return self.payee is not None and self.payee.ordered


def read_case(tx: Tx, job_id: str, config: RefunderConfig, now: int) -> RefundCase | None:
    """Return what is known of a job's refund, None when there is no such job."""
    job = tx.job(job_id)
    if job is None:
        return None
    failed = [each for each in refunds.refunds_of(tx, job_id) if each.state is RefundState.FAILED]
    spent_msats = refunds.spent_since(tx, now - _DAY_S, config.repayment.max_fee_msats)
    held = job.updated_at <= tx.marks().get(HELD_MARK, -1)
    return RefundCase(job, due_msats(tx, job), refunds.payee(tx, job_id), tuple(failed), spent_msats, held)


def permit(case: RefundCase, config: RefunderConfig) -> None:
    """Raise `Waits` unless the operator ordered this refund, or it may go by itself."""
    if case.ordered:
        return
    order = f"pylon refunds pay {case.job.id[:12]}"
    if case.held:
        why = "these books came from a backup and the wallet made payments that they lack"
        raise Waits(f"{why}: see that it was not paid (pylon reconcile), then {order}", again=False)
    if not config.auto:
        raise Waits(f"it is for you to order: {order}", again=False)
    if case.amount_msats > config.max_msats_per_job:
        raise Waits(f"more than refunds.max_msats_per_job: {order}", again=False)
    # The routes count too: who pays and cancels again and again may be the one who earns by them.
    most_msats = case.amount_msats + config.repayment.max_fee_msats
    if case.spent_msats + most_msats > config.max_msats_per_day:
        raise Waits(f"refunds.max_msats_per_day is reached: {order}, or it goes by itself later", again=True)


def standing(case: RefundCase | None) -> str:
    """Return how a job's money stands, for a sentence that refuses."""
    return "there is no such job" if case is None else f"the job's money is {case.job.money.value}"
