"""The life of a job as a pure function: `step(job, fact, rules) -> Step(job, effects)`.

No I/O and no clock. `docs/lifecycle.md` is its specification: one table row per (fact, work, money), and the
property test compares the two cell by cell. Facts carry what happened, effects say what must follow; the engine
stores both in one transaction and carries the effects out after it.

A fact that finds the job elsewhere (a cancel after the result went out, a duplicate confirmation) changes
nothing: that is an ordinary row of the table, not an error.

One handler for each fact and nothing else; it is long because the whole machine is to be read in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from pylon.jobs import effects as do
from pylon.jobs import facts
from pylon.jobs.facts import CancelledBy, Fact, Mode
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.store.records import ENDED, Job, Money, RefundState, Work


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's limits that steps depend on."""

    max_attempts: int = 3
    max_invoices: int = 3


@dataclass(frozen=True, slots=True)
class Step:
    """The job after a fact and what must follow. `changed` is false when the fact moved nothing."""

    job: Job
    effects: tuple[do.Effect, ...] = ()
    changed: bool = True


def begin(job: Job, mode: Mode) -> Step:
    """Return a new job in its first state, with what must follow."""
    if mode is not Mode.PREPAY:
        postpaid = mode is Mode.POSTPAY
        return _move(job, do.Enqueue(), work=Work.QUEUED, money=Money.NONE, postpaid=postpaid)
    if _is_covered(job):
        return _move(job, do.Enqueue(), work=Work.QUEUED, money=Money.SETTLED)
    return _move(job, do.WantInvoice(1), work=Work.AWAITING_PAYMENT, money=Money.NONE, invoices=1)


def step(job: Job, fact: Fact, rules: Rules) -> Step:
    """Return what `fact` makes of `job`. Pure and total: every pair of states has an answer for every fact."""
    handler: Callable[[Job, Any, Rules], Step] = _HANDLERS[type(fact)]
    done = handler(job, fact, rules)
    if done.job.deposit_msats and _is_unpaid_for_good(done.job):
        return replace(done, job=done.job.evolve(deposit_msats=0))
    return done


def _move(job: Job, *effects: do.Effect, **changes: Any) -> Step:
    return Step(job.evolve(**changes), effects)


def _nothing(job: Job) -> Step:
    return Step(job, (), changed=False)


def _is_covered(job: Job) -> bool:
    """Tell whether the customer's deposit pays all of it, so that nothing was received that could be refunded."""
    return 0 < job.price_msats <= job.deposit_msats


def _is_unpaid_for_good(job: Job) -> bool:
    """Tell whether nothing is earned by it, so that what it took of a deposit goes back."""
    gone = job.work in ENDED and job.work is not Work.DELIVERED
    given_away = job.work in _HAS_RESULT and job.money is Money.NONE
    return job.money is not Money.SETTLED and (gone or given_away or job.money is Money.VOID)


def _error(prefix: ErrorPrefix, sentence: str) -> do.Say:
    return do.Say(FeedbackStatus.ERROR, prefix, sentence)


def _refund_due(job: Job, why: str) -> do.Say:
    return _error(
        ErrorPrefix.REFUND_DUE, f"{why}; your payment for this job is recorded as a refund due to {job.customer}"
    )


def _invoice_made(job: Job, fact: facts.InvoiceMade, rules: Rules) -> Step:
    if (job.work, job.money) == (Work.AWAITING_PAYMENT, Money.NONE):
        asked = do.Say(FeedbackStatus.PAYMENT_REQUIRED, invoice=fact.invoice, eta_s=fact.eta_s)
        return _move(job, do.OpenInvoice(fact.invoice), asked, money=Money.INVOICED)
    if job.work is Work.BILLING:
        opened, result = do.OpenInvoice(fact.invoice), do.DeliverBilled(fact.invoice)
        return _move(job, opened, result, work=Work.PRODUCED, money=Money.INVOICED)
    return _move(job, do.RetireInvoice(fact.invoice))


def _invoice_refused(job: Job, fact: facts.InvoiceRefused, rules: Rules) -> Step:
    if (job.work, job.money) == (Work.AWAITING_PAYMENT, Money.NONE):
        refusal = _error(ErrorPrefix.PAYMENT_UNAVAILABLE, fact.sentence)
        return _move(job, do.RetireInvoice(), refusal, work=Work.FAILED, reason=fact.sentence)
    if job.work is Work.BILLING:
        return _give_away(job, fact.sentence)
    return _move(job, do.RetireInvoice())


def _paid(job: Job, fact: facts.Paid, rules: Rules) -> Step:
    if job.work is Work.AWAITING_PAYMENT:
        return _move(job, _book(fact), do.CloseInvoices(), do.Enqueue(), work=Work.QUEUED, money=Money.SETTLED)
    if _is_billed(job):
        return _bill_paid(job, fact, job.price_msats)
    return _paid_otherwise(job, fact, "the payment came after the job had ended")


def _paid_short(job: Job, fact: facts.PaidShort, rules: Rules) -> Step:
    if job.work is Work.AWAITING_PAYMENT:
        asked_msats = job.price_msats - job.deposit_msats
        why = f"the wallet received {fact.amount_msats} msats, less than the {asked_msats} msats asked"
        told = _refund_due(job, why)
        ended = {"work": Work.FAILED, "money": Money.REFUND_DUE, "reason": why}
        return _move(job, _book(fact), do.CloseInvoices(), told, **ended)
    if _is_billed(job):
        # The work is done: the rest is forgiven.
        return _bill_paid(job, fact, fact.amount_msats + job.deposit_msats)
    return _paid_otherwise(job, fact, "the payment came after the job had ended")


def _zapped(job: Job, fact: facts.Zapped, rules: Rules) -> Step:
    wants_money = (
        job.work is Work.AWAITING_PAYMENT or _is_billed(job) or (_ended_unpaid(job) and job.money in _UNPAID)
    )
    unpaid = wants_money and job.price_msats > 0
    if not unpaid or fact.amount_msats < job.price_msats - job.deposit_msats:
        # Anybody may zap anything: less than the price, or beyond it, it moves no job.
        to_deposit = unpaid and fact.by_customer
        return _move(job, do.BookGift(fact.payment_hash, fact.amount_msats, fact.settled_at, to_deposit))
    if job.work is Work.AWAITING_PAYMENT:
        return _move(job, _book(fact), do.CloseInvoices(), do.Enqueue(), work=Work.QUEUED, money=Money.SETTLED)
    if _is_billed(job):
        return _bill_paid(job, fact, job.price_msats)
    return _paid_otherwise(job, fact, "the zap came after the job had ended")


def _book(fact: facts.Paid | facts.PaidShort | facts.Zapped) -> do.BookMoney:
    zap = isinstance(fact, facts.Zapped)
    return do.BookMoney(fact.payment_hash, fact.amount_msats, fact.settled_at, zap)


def _is_billed(job: Job) -> bool:
    """Tell whether the work was done on credit and nothing is paid yet."""
    if job.work is Work.BILLING:
        return True
    given_away = job.postpaid and job.money is Money.NONE
    return job.work in _HAS_RESULT and (given_away or job.money in _BILLED)


def _bill_paid(job: Job, fact: facts.Paid | facts.PaidShort | facts.Zapped, price_msats: int) -> Step:
    book = _book(fact)
    paid = {"money": Money.SETTLED, "price_msats": price_msats}
    if job.work is Work.BILLING:
        return _move(job, book, do.CloseInvoices(), do.DeliverBilled(), work=Work.PRODUCED, **paid)
    if job.work is Work.PRODUCED:
        return _move(job, book, **paid)
    return _move(job, book, do.Earn(), do.Say(FeedbackStatus.SUCCESS), **paid)


def _give_away(job: Job, why: str) -> Step:
    """Deliver a result whose invoice cannot be made: our wallet's fault is not the customer's loss."""
    return _move(job, do.RetireInvoice(), do.DeliverBilled(), work=Work.PRODUCED, reason=why)


def _paid_otherwise(job: Job, fact: facts.Paid | facts.PaidShort | facts.Zapped, why: str) -> Step:
    if _ended_unpaid(job):
        return _move(job, _book(fact), _refund_due(job, why), money=Money.REFUND_DUE)
    return _move(job, _book(fact))


def _ended_unpaid(job: Job) -> bool:
    return job.work in ENDED and job.work is not Work.DELIVERED and job.money in _NOTHING_DUE


def _invoice_dead(job: Job, fact: facts.InvoiceDead, rules: Rules) -> Step:
    ended = do.EndInvoice(fact.payment_hash)
    if job.money is Money.CANCELLING:
        return _move(job, ended, money=Money.VOID)
    if job.work in _HAS_RESULT and job.money is Money.INVOICED:
        return _move(job, ended, money=Money.VOID if fact.lost_early else Money.UNPAID)
    if (job.work, job.money) != (Work.AWAITING_PAYMENT, Money.INVOICED):
        return _move(job, ended)
    if fact.lost_early and job.invoices < rules.max_invoices:
        number = job.invoices + 1
        return _move(job, ended, do.WantInvoice(number), money=Money.NONE, invoices=number)
    why = "the wallet lost the invoice" if fact.lost_early else "the invoice was not paid in time"
    told = _error(ErrorPrefix.EXPIRED, why)
    return _move(job, ended, told, work=Work.EXPIRED, money=Money.VOID, reason=why)


def _started(job: Job, fact: facts.Started, rules: Rules) -> Step:
    if job.work is not Work.QUEUED:
        return _nothing(job)
    number = job.attempts + 1
    backend = fact.backend or job.backend
    begun = do.BeginAttempt(number), do.Announce()
    return _move(job, *begun, work=Work.RUNNING, attempts=number, backend=backend)


def _rerouted(job: Job, fact: facts.Rerouted, rules: Rules) -> Step:
    if job.work is not Work.RUNNING or fact.attempt != job.attempts:
        return _nothing(job)
    return _move(job, backend=fact.backend)


def _partial_sent(job: Job, fact: facts.PartialSent, rules: Rules) -> Step:
    if job.work is not Work.RUNNING or job.partial_sent:
        return _nothing(job)
    return _move(job, partial_sent=True)


def _output(job: Job, fact: facts.Output, rules: Rules) -> Step:
    if job.work is not Work.RUNNING or fact.attempt != job.attempts:
        return _nothing(job)
    ended = do.EndAttempt(fact.attempt, "output", fact.usage)
    result = do.DeliverResult(fact.event_id, fact.event_json)
    price_msats = 0 if job.postpaid else job.price_msats  # postpaid, it used nothing that is paid for
    return _move(job, ended, result, work=Work.PRODUCED, result_id=fact.event_id, price_msats=price_msats)


def _metered(job: Job, fact: facts.Metered, rules: Rules) -> Step:
    on_credit = job.postpaid and job.money is Money.NONE
    if job.work is not Work.RUNNING or fact.attempt != job.attempts or not on_credit:
        return _nothing(job)
    ended, keep = do.EndAttempt(fact.attempt, "output", fact.usage), do.KeepOutput(fact.text)
    price_msats = min(fact.price_msats, job.price_msats)  # never more than was quoted
    if fact.deposit_msats >= price_msats:
        paid = {"money": Money.SETTLED, "price_msats": price_msats, "deposit_msats": price_msats}
        return _move(job, ended, keep, do.DeliverBilled(), work=Work.PRODUCED, **paid)
    number = job.invoices + 1
    billing = {"invoices": number, "price_msats": price_msats, "deposit_msats": fact.deposit_msats}
    return _move(job, ended, keep, do.WantInvoice(number), work=Work.BILLING, **billing)


def _attempt_failed(job: Job, fact: facts.AttemptFailed, rules: Rules) -> Step:
    if job.work is not Work.RUNNING or fact.attempt != job.attempts:
        return _nothing(job)
    ended = do.EndAttempt(job.attempts, fact.detail or fact.sentence)
    return _lose_attempt(job, ended, fact.sentence, rules, fact.prefix, retryable=fact.retryable)


def _put_back(job: Job, fact: facts.PutBack, rules: Rules) -> Step:
    if job.work is not Work.RUNNING or fact.attempt != job.attempts:
        return _nothing(job)
    ended = do.EndAttempt(fact.attempt, fact.sentence)
    return _move(job, ended, do.StopWork(), do.Enqueue(), work=Work.QUEUED, reason=fact.sentence)


def _restarted(job: Job, fact: facts.Restarted, rules: Rules) -> Step:
    if job.work is Work.QUEUED:
        return Step(job, (do.Enqueue(),), changed=False)
    if job.money is Money.REFUNDING:
        return Step(job, (do.AskRefund(),), changed=False)
    if job.work is not Work.RUNNING:
        return _nothing(job)
    why = "the provider stopped while the job was running"
    return _lose_attempt(job, do.EndAttempt(job.attempts, why), why, rules, ErrorPrefix.FAILED, retryable=True)


def _lose_attempt(
    job: Job, ended: do.EndAttempt, why: str, rules: Rules, prefix: ErrorPrefix, *, retryable: bool
) -> Step:
    if retryable and job.attempts < rules.max_attempts:
        return _move(job, ended, do.Enqueue(), work=Work.QUEUED, reason=why)
    if job.money is Money.SETTLED and not _is_covered(job):
        told = _refund_due(job, why)
        return _move(job, ended, told, work=Work.FAILED, money=Money.REFUND_DUE, reason=why)
    return _move(job, ended, _error(prefix, why), work=Work.FAILED, money=_unearned(job), reason=why)


def _unearned(job: Job) -> Money:
    """Return the money state of work that is gone and for which nothing was received."""
    return Money.VOID if job.money is Money.SETTLED else job.money


def _confirmed(job: Job, fact: facts.Confirmed, rules: Rules) -> Step:
    if job.work is not Work.PRODUCED:
        return _nothing(job)
    if job.money is not Money.SETTLED:
        return _move(job, work=Work.DELIVERED)
    return _move(job, do.Earn(), do.Say(FeedbackStatus.SUCCESS), work=Work.DELIVERED)


def _gave_up(job: Job, fact: facts.GaveUp, rules: Rules) -> Step:
    if job.work is not Work.PRODUCED:
        return _nothing(job)
    if job.money is Money.INVOICED:
        money = Money.CANCELLING
        return _move(job, do.CloseInvoices(), work=Work.UNDELIVERABLE, money=money, reason=fact.sentence)
    if job.money is not Money.SETTLED:
        money = Money.NONE if job.money is Money.NONE else Money.VOID  # nothing is asked for what never came
        return _move(job, work=Work.UNDELIVERABLE, money=money, reason=fact.sentence)
    lost = {"work": Work.UNDELIVERABLE, "reason": fact.sentence}
    if _is_covered(job):
        return _move(job, _error(ErrorPrefix.FAILED, fact.sentence), money=Money.VOID, **lost)
    return _move(job, _refund_due(job, fact.sentence), money=Money.REFUND_DUE, **lost)


def _cancel(job: Job, fact: facts.Cancel, rules: Rules) -> Step:
    by_operator = fact.by is CancelledBy.OPERATOR
    why = f"cancelled by the {'provider' if by_operator else 'customer'}"
    # A customer who withdrew a job that cost nothing needs no answer; one whom the operator cancels does.
    told = (_error(ErrorPrefix.CANCELLED, why),) if by_operator else ()
    if job.work is Work.RUNNING and job.money is Money.SETTLED and job.partial_sent and not by_operator:
        ended = do.EndAttempt(job.attempts, why)
        return _move(job, ended, do.StopWork(), do.Earn(), work=Work.CANCELLED, reason=why)
    if not by_operator and (
        job.work is Work.BILLING or (job.work is Work.RUNNING and job.postpaid and job.partial_sent)
    ):
        return _nothing(job)  # the work goes on and is billed: a stream is not had for nothing
    return _end_early(job, Work.CANCELLED, why, told)


def _deadline(job: Job, fact: facts.Deadline, rules: Rules) -> Step:
    if job.work is Work.BILLING:
        return _give_away(job, "no invoice was made before the deadline of the job")
    why = "the deadline of the job passed"
    return _end_early(job, Work.EXPIRED, why, (_error(ErrorPrefix.EXPIRED, why),))


def _end_early(job: Job, work: Work, why: str, told: tuple[do.Say, ...]) -> Step:
    """End a job whose result is not produced yet; money that came in becomes a refund due."""
    if job.work is Work.AWAITING_PAYMENT:
        if job.money is Money.INVOICED:
            return _move(job, do.CloseInvoices(), *told, work=work, money=Money.CANCELLING, reason=why)
        return _move(job, do.RetireInvoice(), *told, work=work, reason=why)
    if job.work is Work.BILLING:
        return _move(job, do.RetireInvoice(), *told, work=work, reason=why)
    if job.work not in (Work.QUEUED, Work.RUNNING):
        return _nothing(job)
    attempt = (do.EndAttempt(job.attempts, why),) if job.work is Work.RUNNING else ()
    if job.money is Money.SETTLED and not _is_covered(job):
        refund = _refund_due(job, why)
        return _move(job, *attempt, do.StopWork(), refund, work=work, money=Money.REFUND_DUE, reason=why)
    return _move(job, *attempt, do.StopWork(), *told, work=work, money=_unearned(job), reason=why)


def _found(job: Job, fact: facts.Found, rules: Rules) -> Step:
    done = {"work": Work.DELIVERED, "result_id": fact.event_id}
    if job.work is Work.AWAITING_PAYMENT:
        return _move(job, do.CloseInvoices(), money=Money.VOID, **done)
    if job.work is Work.BILLING:
        return _move(job, do.RetireInvoice(), **done)
    if job.work not in (Work.QUEUED, Work.RUNNING):
        return _nothing(job)
    why = "a result of it was published already"
    attempt = (do.EndAttempt(job.attempts, why),) if job.work is Work.RUNNING else ()
    earned = (do.Earn(),) if job.money is Money.SETTLED else ()
    return _move(job, *attempt, do.StopWork(), *earned, **done)


def _refund_started(job: Job, fact: facts.RefundStarted, rules: Rules) -> Step:
    if job.money is not Money.REFUND_DUE:
        return _nothing(job)
    return _move(job, do.PayRefund(fact.refund), money=Money.REFUNDING)


def _refund_paid(job: Job, fact: facts.RefundPaid, rules: Rules) -> Step:
    if job.money not in (Money.REFUNDING, Money.REFUND_DUE):
        return _nothing(job)
    ended = do.EndRefund(fact.own_id, RefundState.PAID, fact.fee_msats)
    amount, payment_hash = fact.amount_msats, fact.payment_hash
    told = do.Say(
        FeedbackStatus.ERROR,
        ErrorPrefix.REFUNDED,
        f"{amount} msats were paid back to you, payment hash {payment_hash}",
        tags=(("refunded", str(amount), payment_hash),),
    )
    return _move(job, ended, told, money=Money.REFUND_DUE if fact.left_msats > 0 else Money.REFUNDED)


def _refund_failed(job: Job, fact: facts.RefundFailed, rules: Rules) -> Step:
    if job.money is not Money.REFUNDING:
        return _nothing(job)
    ended = do.EndRefund(fact.own_id, RefundState.FAILED, reason=fact.reason)
    if fact.retryable:
        return _move(job, ended, money=Money.REFUND_DUE)
    told = _error(ErrorPrefix.REFUND_DUE, "your invoice for the refund could not be paid: send another")
    return _move(job, ended, do.DropPayee(fact.destination), told, money=Money.REFUND_DUE)


def _payee_refused(job: Job, fact: facts.PayeeRefused, rules: Rules) -> Step:
    if job.money is not Money.REFUND_DUE:
        return _nothing(job)
    return _move(job, do.DropPayee(fact.destination), _error(ErrorPrefix.REFUND_DUE, fact.sentence))


def _written_off(job: Job, fact: facts.WrittenOff, rules: Rules) -> Step:
    if job.money is not Money.REFUND_DUE:
        return _nothing(job)
    told = _error(ErrorPrefix.WRITTEN_OFF, "the provider closed the refund of this job without paying it")
    return _move(job, do.WriteOff(fact.reason), told, money=Money.WRITTEN_OFF)


_UNPAID: Final = frozenset({Money.NONE, Money.CANCELLING, Money.VOID})
_NOTHING_DUE: Final = _UNPAID | {Money.REFUNDED, Money.WRITTEN_OFF}
_HAS_RESULT: Final = frozenset({Work.PRODUCED, Work.DELIVERED})
_BILLED: Final = frozenset({Money.INVOICED, Money.UNPAID, Money.VOID})

_HANDLERS: Final[dict[type, Callable[[Job, Any, Rules], Step]]] = {
    facts.InvoiceMade: _invoice_made,
    facts.InvoiceRefused: _invoice_refused,
    facts.Paid: _paid,
    facts.PaidShort: _paid_short,
    facts.Zapped: _zapped,
    facts.InvoiceDead: _invoice_dead,
    facts.Started: _started,
    facts.Rerouted: _rerouted,
    facts.PartialSent: _partial_sent,
    facts.Output: _output,
    facts.Metered: _metered,
    facts.AttemptFailed: _attempt_failed,
    facts.PutBack: _put_back,
    facts.Confirmed: _confirmed,
    facts.GaveUp: _gave_up,
    facts.Cancel: _cancel,
    facts.Deadline: _deadline,
    facts.RefundStarted: _refund_started,
    facts.RefundPaid: _refund_paid,
    facts.RefundFailed: _refund_failed,
    facts.PayeeRefused: _payee_refused,
    facts.WrittenOff: _written_off,
    facts.Restarted: _restarted,
    facts.Found: _found,
}
