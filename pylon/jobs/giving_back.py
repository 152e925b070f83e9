"""What steps store about money that is given back, and a job's share of the books: a part of the recorder."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import orjson

from pylon.jobs import effects as do
from pylon.jobs import facts
from pylon.nostr.event import BadEvent, parse_event
from pylon.nostr.refunds import request_address
from pylon.store import refunds
from pylon.store.records import (
    ENDED,
    UNDER_WAY,
    Books,
    Job,
    Money,
    Payee,
    PayeeSource,
    Refund,
    RefundState,
    Settlement,
)
from pylon.store.tx import Tx

NO_BOOKS: Final = Books(0, 0, 0, 0)

GIVING_BACK: Final = frozenset({Money.REFUND_DUE, Money.REFUNDING, Money.REFUNDED, Money.WRITTEN_OFF})
"""Where the money of a job is that is given back, or was to be."""

ABOUT_REFUNDS: Final = (facts.RefundStarted, facts.RefundPaid, facts.RefundFailed, facts.PayeeRefused)
Refunding = facts.RefundStarted | facts.RefundPaid | facts.RefundFailed | facts.PayeeRefused


def books_of(job: Job, settlements: Sequence[Settlement], given_back: Sequence[Refund] = ()) -> Books:
    """Return what one job adds to the books: its rest is in work while the work is, else it is to be refunded."""
    received = sum(each.amount_msats for each in settlements)
    earned = sum(each.earned_msats + each.tip_msats for each in settlements)
    rest = sum(each.rest_msats for each in settlements)
    under_way = job.money is Money.SETTLED and job.work in UNDER_WAY
    in_work, due = (rest, 0) if under_way else (0, rest)
    if job.money is Money.SETTLED and job.work in ENDED:
        earned += job.deposit_msats
    else:
        in_work += job.deposit_msats
    paid = [each for each in given_back if each.state is RefundState.PAID]
    refunded, fees = sum(each.amount_msats for each in paid), sum(each.fee_msats for each in paid)
    written_off = sum(each.amount_msats for each in given_back if each.state is RefundState.WRITTEN_OFF)
    return Books(
        received_msats=received,
        earned_msats=earned,
        in_work_msats=in_work,
        refund_due_msats=due - refunded - written_off,
        refunded_msats=refunded,
        refund_fees_msats=fees,
        written_off_msats=written_off,
        deposits_msats=sum(each.deposit_msats for each in settlements) - job.deposit_msats,
    )


def due_msats(tx: Tx, job: Job) -> int:
    """Return what a job's customer is to get back, a refund under way included."""
    return job_books(tx, job).refund_due_msats


def job_books(tx: Tx, job: Job) -> Books:
    """Return what a stored job adds to the books."""
    given_back = refunds.refunds_of(tx, job.id) if job.money in GIVING_BACK else ()
    return books_of(job, tx.settlements_of(job.id), given_back)


def weighed(tx: Tx, job: Job, fact: Refunding) -> Refunding | None:
    """Return a fact about a refund with what only the database knows; None when it is none (any more)."""
    match fact:
        case facts.RefundStarted(refund):
            payment_hash = refund.payment_hash
            assert payment_hash is not None
            used = refunds.is_used(tx, payment_hash) or tx.invoice_by_hash(payment_hash) is not None
            return None if used or refund.amount_msats > due_msats(tx, job) else fact
        case facts.PayeeRefused(destination):
            payee = refunds.payee(tx, job.id)
            return fact if payee is not None and payee.destination == destination else None
    row = refunds.refund(tx, fact.own_id)
    if row is None or row.job_id != job.id:
        return None
    if isinstance(fact, facts.RefundFailed):
        return fact if row.state is RefundState.COMMITTED else None
    if row.state not in (RefundState.COMMITTED, RefundState.FAILED):
        return None
    return replace(fact, left_msats=due_msats(tx, job) - row.amount_msats)


def store_refund(
    tx: Tx,
    job: Job,
    effect: do.PayRefund | do.AskRefund | do.EndRefund | do.DropPayee | do.WriteOff,
    now: int,
) -> list[tuple[Refund, bool]]:
    """Store an effect; return the refunds that are now to be paid, each with whether nothing was tried before."""
    match effect:
        case do.PayRefund(refund):
            return [(refunds.keep_refund(tx, refund), True)]
        case do.AskRefund():
            under_way = refunds.committed_refund(tx, job.id)
            assert under_way is not None, "a job is refunding while a refund of its is committed"
            return [(under_way, False)]
        case do.EndRefund(own_id, state, fee_msats, reason):
            refunds.end_refund(tx, own_id, state, fee_msats=fee_msats, reason=reason, now=now)
        case do.DropPayee(destination):
            refunds.drop_payee(tx, job.id, destination)
        case do.WriteOff(reason):
            own_id = f"pylon-{uuid.uuid4().hex}"
            amount_msats, state = due_msats(tx, job), RefundState.WRITTEN_OFF
            refunds.keep_refund(tx, Refund(own_id, job.id, amount_msats, now, state=state, reason=reason))
    return []


def keep_named_payee(tx: Tx, job: Job) -> None:
    """Keep the lightning address that a job's request names, unless somebody has named a payee."""
    request_json = tx.request_json(job.id)
    if request_json is None or refunds.payee(tx, job.id) is not None:
        return
    try:
        address = request_address(parse_event(orjson.loads(request_json)))
    except BadEvent:
        return  # what was stored is what was accepted; a refund must not fail for it
    if address is not None:
        refunds.put_payee(tx, Payee(job.id, address, PayeeSource.REQUEST, said_at=0))
