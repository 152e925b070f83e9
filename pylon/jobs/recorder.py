"""What a step stores: the writer-thread half of the lifecycle's shell.

Given an open transaction, `Recorder` loads the job, asks the pure `lifecycle.step`, and stores the new states and
every effect (invoice intents, signed events, bookings, attempts, the journal) beside them. What is left to do after
COMMIT it returns as a `Moved`; it tells nobody itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

import orjson

from pylon.jobs import effects as do
from pylon.jobs import facts
from pylon.jobs import lifecycle as life
from pylon.jobs.deposits import moves_money, store_money, usable
from pylon.jobs.giving_back import (
    ABOUT_REFUNDS,
    GIVING_BACK,
    NO_BOOKS,
    due_msats,
    job_books,
    keep_named_payee,
    store_refund,
    weighed,
)
from pylon.jobs.ports import Invoice
from pylon.nostr.event import Draft, parse_event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import Denial, ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_fit import ResultTooLarge, fit_result
from pylon.nostr.nip90_replies import error_draft, feedback_draft, payment_required_draft, result_draft
from pylon.store.records import (
    ENDED,
    Attempt,
    Books,
    InvoiceRow,
    InvoiceState,
    Job,
    Money,
    OutboxItem,
    OutboxTopic,
    Refund,
    Work,
)
from pylon.store.tx import Tx

_FINISHED_MONEY: Final = (GIVING_BACK - {Money.REFUNDING}) | {Money.NONE, Money.VOID, Money.SETTLED, Money.UNPAID}
_TOLD_BY_WALLETS: Final = frozenset({facts.Paid, facts.PaidShort, facts.Zapped, facts.InvoiceDead})
_NOTHING_TO_STORE: Final = frozenset({do.Announce, do.Enqueue, do.StopWork, do.KeepOutput})


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What storing a step needs of the settings; times in seconds. `limit_bytes` is the largest frame relays take.

    `relay_hint` goes into `e` tags.
    """

    rules: life.Rules = field(default_factory=life.Rules)
    retain_plaintext_s: int = 86_400
    delivery_timeout_s: int = 3_600
    invoice_expiry_s: int = 600
    min_work_s: int = 30  # what an invoice that is paid at its last moment must leave of the deadline
    limit_bytes: int = 65_536
    success_feedback: bool = True
    relay_hint: str = ""


@dataclass(slots=True)
class Moved:
    """What a transaction did to one job, for after COMMIT. `before` is None for a new one."""

    before: Job | None
    job: Job
    effects: list[do.Effect]
    items: list[OutboxItem] = field(default_factory=list)
    invoices: list[InvoiceRow] = field(default_factory=list)  # wanted: to be made; others: to be watched
    refunds: list[tuple[Refund, bool]] = field(default_factory=list)  # to be paid; False: asked about first
    books: Books = NO_BOOKS  # the change, not the sum


class Recorder:
    """Stores steps. Stateless but for its settings and key; every method may run twice (see `store.writer`)."""

    def __init__(self, key: SecretKey, config: RecorderConfig) -> None:
        self._key = key
        self._config = config

    def reconfigure(self, config: RecorderConfig) -> None:
        """Take other rules, for every step from now on; the writer's thread may be in the middle of one."""
        self._config = config

    def accept(self, tx: Tx, job: Job, mode: facts.Mode, request_json: str, *, start: bool, now: int) -> Moved:
        """Store a new job as `lifecycle.begin` gives it, its first attempt begun if `start`.

        What its customer has as a deposit pays first. Fails with `AlreadyAccepted` if its request was accepted
        before.
        """
        if mode is facts.Mode.PREPAY:
            job = job.evolve(deposit_msats=usable(tx.deposit_of(job.customer), job.price_msats))
        first = life.begin(job, mode)
        job, effects = first.job, list(first.effects)
        if start:
            started = life.step(job, facts.Started(), self._config.rules)
            job = started.job
            effects = [each for each in effects if not isinstance(each, do.Enqueue)]
            effects += started.effects
        job = self._stamp(job, now)
        tx.insert_job(job, request_json)
        tx.journal(job.id, _entry("accepted", job), now)
        return self._store(tx, Moved(None, job, effects), now)

    def adopt(self, tx: Tx, job: Job, request_json: str, now: int) -> None:
        """Store a job in whatever states it is known to have been in, as salvaged from a lost history."""
        job = self._stamp(job, now)
        tx.insert_job(job, request_json)
        tx.journal(job.id, _entry("salvaged", job), now)

    def transact(self, tx: Tx, job_id: str, news: Sequence[facts.Fact], now: int) -> Moved | None:
        """Apply facts to a job; None when there is no such job."""
        before = tx.job(job_id)
        if before is None:
            return None
        job = before
        effects: list[do.Effect] = []
        entries = []
        for fact in news:
            if type(fact) in _TOLD_BY_WALLETS and _is_old(tx, fact):
                continue
            if isinstance(fact, facts.Metered):
                deposit_msats = usable(tx.deposit_of(job.customer), fact.price_msats)
                fact = replace(fact, deposit_msats=deposit_msats)  # noqa: PLW2901
            if isinstance(fact, ABOUT_REFUNDS):
                known = weighed(tx, job, fact)
                if known is None:
                    continue
                fact = known  # noqa: PLW2901
            done = life.step(job, fact, self._config.rules)
            job = done.job
            for effect in done.effects:
                if isinstance(effect, do.KeepOutput):
                    tx.keep_output(job.id, effect.text)  # at once: the result may be made of it in this same step
                elif isinstance(effect, do.DeliverBilled):
                    effect = self._make_result(tx, job, effect.invoice, now)  # noqa: PLW2901
                    job = job.evolve(result_id=effect.event_id)
                effects.append(effect)
            if done.changed:
                entries.append(_entry(facts.fact_name(fact), job))
        if job is not before:
            job = self._stamp(job, now)
            tx.save_job(before, job)
        for entry in entries:
            tx.journal(job_id, entry, now)
        return self._store(tx, Moved(before, job, effects), now)

    def _make_result(self, tx: Tx, job: Job, invoice: Invoice | None, now: int) -> do.DeliverResult:
        """Return the signed result of a postpaid job's stored text, with what is to pay or was paid for it."""
        request_json, text = tx.request_json(job.id), tx.output(job.id)
        assert request_json is not None and text is not None, "both are kept until the job is finished"
        request = parse_event(orjson.loads(request_json))
        due = (job.price_msats - job.deposit_msats or None) if job.money is not Money.NONE else None
        bolt11 = None if invoice is None else invoice.bolt11
        hint = self._config.relay_hint
        try:
            limit_bytes = self._config.limit_bytes
            draft = fit_result(
                request, text, limit_bytes=limit_bytes, amount_msats=due, bolt11=bolt11, relay_hint=hint
            )
        except ResultTooLarge:
            # The limit was lowered since the text was cut: the relays have the last word.
            draft = result_draft(
                request,
                text,
                amount_msats=due,
                bolt11=bolt11,
                relay_hint=hint,
                with_request=False,
                with_inputs=False,
            )
        event = draft.sign(self._key, now)
        return do.DeliverResult(event.id, event.to_json())

    def _stamp(self, job: Job, now: int) -> Job:
        finished = job.work in ENDED and job.money in _FINISHED_MONEY
        purge_at = now + self._config.retain_plaintext_s if finished else None
        return job.evolve(version=job.version + 1, updated_at=now, purge_at=purge_at)

    def _store(self, tx: Tx, moved: Moved, now: int) -> Moved:
        job, before = moved.job, moved.before
        # Free jobs, the fast path, have no money to count.
        has_money = job.money is not Money.NONE or job.deposit_msats or moves_money(moved.effects)
        old = job_books(tx, before) if has_money and before is not None else NO_BOOKS
        for effect in moved.effects:
            if type(effect) not in _NOTHING_TO_STORE:  # the states say it
                self._store_effect(tx, moved, effect, now)
        if has_money:
            moved.books = job_books(tx, job) - old
        return moved

    def _store_effect(self, tx: Tx, moved: Moved, effect: do.Effect, now: int) -> None:
        job = moved.job
        match effect:  # the most frequent first
            case do.BeginAttempt(number):
                tx.begin_attempt(job.id, number, now)
            case do.EndAttempt(number, outcome, usage):
                tx.end_attempt(_ended(job.id, number, now, outcome, usage))
            case do.DeliverResult(event_id, event_json):
                self._send(tx, moved, OutboxTopic.RESULT, event_id=event_id, event_json=event_json, now=now)
            case do.WantInvoice() | do.OpenInvoice() | do.RetireInvoice() | do.CloseInvoices():
                self._store_invoice(tx, moved, effect, now)
            case do.EndInvoice(payment_hash):
                tx.end_invoice(payment_hash, InvoiceState.DEAD)
            case do.BookMoney() | do.BookGift() | do.Earn():
                store_money(tx, job, effect)
            case do.Say():
                self._say(tx, moved, effect, now)
            case do.PayRefund() | do.AskRefund() | do.EndRefund() | do.DropPayee() | do.WriteOff():
                moved.refunds += store_refund(tx, job, effect, now)
            case do.DeliverBilled() | do.KeepOutput() | do.Announce() | do.Enqueue() | do.StopWork():
                raise AssertionError("nothing to store, or stored before")
            case _:
                assert_never(effect)

    def _store_invoice(
        self,
        tx: Tx,
        moved: Moved,
        effect: do.WantInvoice | do.OpenInvoice | do.RetireInvoice | do.CloseInvoices,
        now: int,
    ) -> None:
        job = moved.job
        match effect:
            case do.WantInvoice(number):
                expires_at = now + self._config.invoice_expiry_s
                if job.work is not Work.BILLING:  # the work is still to be done
                    expires_at = min(expires_at, job.deadline_at - self._config.min_work_s)
                row = InvoiceRow(
                    own_id=f"pylon-{uuid.uuid4().hex}",
                    job_id=job.id,
                    number=number,
                    amount_msats=job.price_msats - job.deposit_msats,
                    created_at=now,
                    expires_at=expires_at,
                )
                tx.want_invoice(row)
                moved.invoices.append(row)
            case do.OpenInvoice(invoice):
                moved.invoices.append(_keep(tx, invoice, InvoiceState.OPEN))
            case do.RetireInvoice(None):
                tx.move_invoices(job.id, [(InvoiceState.WANTED, InvoiceState.UNUSED)])
            case do.RetireInvoice(invoice):
                # Its hash is kept: should the wallet settle it regardless, the money finds its job.
                if invoice is not None and tx.invoice_by_hash(invoice.payment_hash) is None:
                    _keep(tx, invoice, InvoiceState.UNUSED)
            case do.CloseInvoices():
                unwanted = (InvoiceState.WANTED, InvoiceState.UNUSED)
                tx.move_invoices(job.id, [(InvoiceState.OPEN, InvoiceState.CLOSING), unwanted])
                moved.invoices += [row for row in tx.invoices_of(job.id) if row.state is InvoiceState.CLOSING]

    def _say(self, tx: Tx, moved: Moved, say: do.Say, now: int) -> None:
        if say.status is FeedbackStatus.SUCCESS and not self._config.success_feedback:
            return
        event = self._feedback(tx, moved.job, say).sign(self._key, now)
        until = say.invoice.expires_at if say.invoice else None
        topic, event_json = OutboxTopic.FEEDBACK, event.to_json()
        self._send(tx, moved, topic, event_id=event.id, event_json=event_json, now=now, until=until)

    def _send(
        self,
        tx: Tx,
        moved: Moved,
        topic: OutboxTopic,
        *,
        event_id: str,
        event_json: str,
        now: int,
        until: int | None = None,
    ) -> None:
        deadline_at = now + self._config.delivery_timeout_s
        if until is not None:
            deadline_at = min(deadline_at, until)
        job = moved.job
        item = OutboxItem(event_id, job.id, topic, event_json, job.relays, now, deadline_at)
        tx.add_outbox(item)
        moved.items.append(item)

    def _feedback(self, tx: Tx, job: Job, say: do.Say) -> Draft:
        hint = self._config.relay_hint
        if say.invoice is not None:
            return payment_required_draft(
                job.id,
                job.customer,
                amount_msats=say.invoice.amount_msats,
                bolt11=say.invoice.bolt11,
                invoice_expires_at=say.invoice.expires_at,
                eta_s=say.eta_s,
                deposit_msats=job.deposit_msats,
                relay_hint=hint,
            )
        if say.prefix is ErrorPrefix.REFUND_DUE:
            # The request's text may be erased long before anybody can pay.
            keep_named_payee(tx, job)
            denial, amount_msats = Denial(say.prefix, say.sentence), due_msats(tx, job)
            return error_draft(job.id, job.customer, denial, amount_msats=amount_msats, relay_hint=hint)
        if say.prefix is not None:
            info = Denial(say.prefix, say.sentence).info
            return feedback_draft(job.id, job.customer, say.status, info=info, relay_hint=hint, extra_tags=say.tags)
        info = f"Delivered; {job.price_msats} msats settled."
        if job.deposit_msats:
            info += f" {job.deposit_msats} of them came from your deposit."
        if deposit_msats := tx.deposit_of(job.customer):
            info += f" {deposit_msats} msats that you paid beyond your prices are kept for your next job here."
        return feedback_draft(job.id, job.customer, say.status, info=info, relay_hint=hint)


def _is_old(tx: Tx, fact: facts.Fact) -> bool:
    """Tell whether a wallet's news were heard before: money already booked, an invoice that has ended."""
    match fact:
        case facts.Paid(payment_hash) | facts.PaidShort(payment_hash) | facts.Zapped(payment_hash):
            return tx.is_booked(payment_hash)
        case facts.InvoiceDead(payment_hash):
            row = tx.invoice_by_hash(payment_hash)
            return row is None or row.state not in (InvoiceState.OPEN, InvoiceState.CLOSING)
        case _:
            return False


def _keep(tx: Tx, invoice: Invoice, state: InvoiceState) -> InvoiceRow:
    tx.set_invoice(invoice.own_id, state, invoice.payment_hash, invoice.bolt11, invoice.expires_at)
    row = tx.invoice(invoice.own_id)
    assert row is not None, "an invoice is made only for an intent that is stored"
    return row


def _ended(job_id: str, number: int, now: int, outcome: str, usage: facts.Usage | None) -> Attempt:
    used = usage or facts.Usage()
    return Attempt(
        job_id=job_id,
        number=number,
        started_at=0,
        ended_at=now,
        outcome=outcome,
        prompt_tokens=used.prompt_tokens,
        output_tokens=used.output_tokens,
        estimated=used.estimated,
        first_token_ms=used.first_token_ms,
        duration_ms=used.duration_ms,
    )


def _entry(what: str, job: Job) -> str:
    return f"{what} -> {job.work}/{job.money}"
