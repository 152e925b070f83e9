"""Books that came from a backup, and what can be learned of the history that they lost.

The relays have what we said (invoices asked to be paid, results), the wallet has what was paid. Here is what
follows from both, as reads and writes of the store; `pylon/salvaging.py` does the asking. Every write does nothing
the second time, so a start that is cut off begins again. `docs/lifecycle.md` tells the order and why.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import orjson

from pylon.jobs import facts
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.kinds import parse_job
from pylon.jobs.policy import job_deadline
from pylon.jobs.ports import Invoice, Payment
from pylon.jobs.recorder import Recorder
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, read_invoice
from pylon.nostr.event import BadEvent, Event, is_hex, parse_event, verify
from pylon.nostr.nip90 import FEEDBACK_KIND, BadRequest, FeedbackStatus, JobRequest, parse_request
from pylon.nostr.nip90_replies import BadReply, parse_feedback, parse_result
from pylon.store import refunds
from pylon.store.records import ENDED, HELD_MARK, RESTORED_MARK, InvoiceRow, InvoiceState, Job, Money, Refund, Work
from pylon.store.tx import Tx

_OWN_ID: Final = re.compile(r"pylon-[0-9a-f]{32}")
_REFUNDED: Final = "refunded"  # the tag of a feedback that says what was paid back: amount, payment hash
_JOB_PREFIX: Final = re.compile(r"NIP-90 job ([0-9a-f]{16}) ")


@dataclass(frozen=True, slots=True)
class Published:
    """An invoice that we published: its text, what it says, and the id under which we wanted it ("" if unknown)."""

    bolt11: str
    facts: InvoiceFacts
    own_id: str


@dataclass(frozen=True, slots=True)
class Said:
    """What we said about one job, as relays have it. Times are unix seconds.

    `asked` are the invoices that we asked to be paid beforehand, oldest first, `billed` the one in the result,
    `refunded` the payment hashes of what we said was paid back.
    """

    job_id: str
    first_at: int
    asked: tuple[Published, ...] = ()
    billed: Published | None = None
    result: Event | None = None
    refunded: tuple[str, ...] = ()

    @property
    def bills(self) -> tuple[Published, ...]:
        """What the result asks to be paid: one invoice or none."""
        return () if self.billed is None else (self.billed,)

    @property
    def request(self) -> Event | None:
        """The request as the result repeats it, checked; None where it does not."""
        for text in () if self.result is None else self.result.tag_values("request"):
            try:
                request = parse_event(orjson.loads(text))
            except (orjson.JSONDecodeError, BadEvent, RecursionError):
                continue
            if request.id == self.job_id and verify(request):
                return request
        return None


@dataclass(frozen=True, slots=True)
class Terms:
    """What putting a job back needs of the settings."""

    catalogue: Catalogue
    job_timeout_s: int = 3_600
    customer_relays: int = 3


def read_said(events: Iterable[Event], provider: str) -> dict[str, Said]:
    """Return what a provider's events say, by job: those that ask for payment, results, and refunds.

    Blocks, for 7 ms an invoice.
    """
    replies: dict[str, list[Event]] = defaultdict(list)
    asked: dict[str, dict[str, Published]] = defaultdict(dict)
    results: dict[str, tuple[Event, Published | None]] = {}
    refunded: dict[str, list[str]] = defaultdict(list)
    for event in sorted(events, key=lambda each: (each.created_at, each.id)):
        if event.pubkey != provider:
            continue
        try:
            if event.kind == FEEDBACK_KIND:
                feedback = parse_feedback(event)
                found = _published(feedback.bolt11)
                if feedback.status is FeedbackStatus.PAYMENT_REQUIRED and found is not None:
                    asked[feedback.request_id].setdefault(found.facts.payment_hash, found)
                elif (tag := event.tag(_REFUNDED)) is not None and len(tag) > 2 and is_hex(tag[2], 64):
                    refunded[feedback.request_id].append(tag[2])
                else:
                    continue
                replies[feedback.request_id].append(event)
            else:
                result = parse_result(event)
                results.setdefault(result.request_id, (event, _published(result.bolt11)))
                replies[result.request_id].append(event)
        except BadReply:
            continue
    said = {}
    for job_id, about in replies.items():
        result_event, billed = results.get(job_id, (None, None))
        invoices = tuple(asked[job_id].values())
        paid_back = tuple(dict.fromkeys(refunded[job_id]))
        said[job_id] = Said(job_id, about[0].created_at, invoices, billed, result_event, paid_back)
    return said


def put_back(tx: Tx, recorder: Recorder, said: Said, request: Event | None, terms: Terms, now: int) -> bool:
    """Bring what we said about one job into the books; False when they need the request and there is none.

    A job that they do not know is stored from its request. Of one that they know, invoices are added.
    """
    if (job := tx.job(said.job_id)) is not None:
        for published in (*said.asked, *said.bills):
            _add_invoice(tx, job.id, published)
        return True
    made = None if request is None else _rebuild(said, request, terms)
    if made is None or request is None:
        return False
    recorder.adopt(tx, made, request.to_json(), now)
    invoices = said.asked or said.bills
    for number, published in enumerate(invoices, start=1):
        state = InvoiceState.OPEN if number == len(invoices) else InvoiceState.CLOSING
        _store_invoice(tx, made.id, published, number, state)
    return True


def _rebuild(said: Said, request_event: Event, terms: Terms) -> Job | None:
    """Return a job as it was when we last spoke of it, before what was paid or delivered is told."""
    try:
        request = parse_request(request_event)
        asked = parse_job(request)
    except BadRequest:
        return None
    offer = terms.catalogue.find(asked.model, request.kind)
    newest = said.asked[-1] if said.asked else said.billed
    price_msats = 0 if newest is None else newest.facts.amount_msats or 0
    work, money = Work.DELIVERED, Money.NONE
    if said.asked:
        work, money = Work.AWAITING_PAYMENT, Money.INVOICED
    elif said.billed is not None:
        money = Money.INVOICED
    return Job(
        id=request_event.id,
        customer=request.customer,
        kind=request.kind,
        backend="" if offer is None else offer.backend,
        model=(asked.model or "") if offer is None else offer.name,
        price_msats=price_msats,
        max_tokens=asked.max_tokens or (0 if offer is None else offer.default_output_tokens),
        accepted_at=said.first_at,
        deadline_at=_deadline(said, request, terms),
        relays=request.relays[: terms.customer_relays],
        postpaid=not said.asked and said.billed is not None,
        work=work,
        money=money,
        invoices=len(said.asked) or int(said.billed is not None),
        result_id=None if said.asked or said.result is None else said.result.id,
    )


def _deadline(said: Said, request: JobRequest, terms: Terms) -> int:
    return job_deadline(said.first_at, terms.job_timeout_s, request.expires_at)


def _add_invoice(tx: Tx, job_id: str, published: Published) -> None:
    """Add an invoice that was published for a job after the copy was made."""
    if tx.invoice_by_hash(published.facts.payment_hash) is not None:
        return
    job = tx.job(job_id)
    assert job is not None, "it was looked up before"
    wanted = tx.invoice(published.own_id) if published.own_id else None
    if wanted is not None and wanted.job_id == job.id and wanted.state is InvoiceState.WANTED:
        # The lost history got it and published it: it need not be said again.
        opened = (job.work, job.money) == (Work.AWAITING_PAYMENT, Money.NONE)
        _set_invoice(tx, wanted.own_id, published, InvoiceState.OPEN if opened else InvoiceState.CLOSING)
        if opened:
            tx.save_job(job, job.evolve(money=Money.INVOICED, version=job.version + 1))
        return
    number = 1 + max((row.number for row in tx.invoices_of(job.id)), default=0)
    _store_invoice(tx, job.id, published, number, InvoiceState.CLOSING)
    tx.save_job(job, job.evolve(invoices=max(number, job.invoices), version=job.version + 1))


def _store_invoice(tx: Tx, job_id: str, published: Published, number: int, state: InvoiceState) -> None:
    told = published.facts
    # Its own id as its description has it, as long as no other row goes by that.
    taken = not published.own_id or tx.invoice(published.own_id) is not None
    row = InvoiceRow(
        own_id=_made_up(told.payment_hash) if taken else published.own_id,
        job_id=job_id,
        number=number,
        amount_msats=told.amount_msats or 0,
        created_at=told.created_at,
        expires_at=told.expires_at,
    )
    tx.want_invoice(row)
    _set_invoice(tx, row.own_id, published, state)


def _set_invoice(tx: Tx, own_id: str, published: Published, state: InvoiceState) -> None:
    tx.set_invoice(own_id, state, published.facts.payment_hash, published.bolt11, published.facts.expires_at)


# --- money ----------------------------------------------------------------------------------------------------


def to_ask_about(tx: Tx, since: int) -> tuple[list[str], list[InvoiceRow]]:
    """Return the payment hashes the wallet is to be asked about, and the intents that it may have carried out.

    Whatever is undecided, and every invoice made since a time, whatever its state, unless its money is booked.
    """
    undecided = tx.undecided_invoices()
    wanted = [row for row in undecided if row.state is InvoiceState.WANTED]
    recent = tx.ask(
        "SELECT payment_hash FROM invoices WHERE payment_hash IS NOT NULL"
        " AND (created_at >= ? OR state IN ('open', 'closing'))"
        " AND payment_hash NOT IN (SELECT payment_hash FROM settlements) ORDER BY rowid",
        (since,),
    )
    return [str(row[0]) for row in recent], wanted


def settle(tx: Tx, recorder: Recorder, payment_hash: str, amount_msats: int, settled_at: int, now: int) -> bool:
    """Book what the wallet received, once; False when no invoice of these books has this hash."""
    row = tx.invoice_by_hash(payment_hash)
    if row is None:
        return False
    kind = facts.Paid if amount_msats >= row.amount_msats else facts.PaidShort
    recorder.transact(tx, row.job_id, [kind(payment_hash, amount_msats, settled_at)], now)
    return True


def settle_wanted(tx: Tx, recorder: Recorder, row: InvoiceRow, paid: Invoice, now: int) -> None:
    """Book an invoice that was made for an intent of ours, and paid, without these books having seen it."""
    stored = tx.invoice(row.own_id)
    if stored is not None and stored.payment_hash is None and tx.invoice_by_hash(paid.payment_hash) is None:
        tx.set_invoice(row.own_id, InvoiceState.UNUSED, paid.payment_hash, paid.bolt11, paid.expires_at)
    at = now if paid.settled_at is None else paid.settled_at
    settle_stray(tx, recorder, paid.payment_hash, paid.received_msats, at, row.own_id, now)


def settle_stray(
    tx: Tx,
    recorder: Recorder,
    payment_hash: str,
    amount_msats: int,
    settled_at: int,
    description: str,
    now: int,
) -> bool:
    """Book a payment that no invoice of these books explains, if its description names a job of theirs."""
    if settle(tx, recorder, payment_hash, amount_msats, settled_at, now):
        return True
    job_id = _job_named(tx, description)
    job = None if job_id is None else tx.job(job_id)
    if job is None:
        return False
    number = 1 + max((row.number for row in tx.invoices_of(job.id)), default=0)
    own_id = _made_up(payment_hash)
    tx.want_invoice(InvoiceRow(own_id, job.id, number, job.price_msats, settled_at, settled_at))
    tx.set_invoice(own_id, InvoiceState.UNUSED, payment_hash, "", settled_at)
    tx.save_job(job, job.evolve(invoices=max(number, job.invoices), version=job.version + 1))
    return settle(tx, recorder, payment_hash, amount_msats, settled_at, now)


def _made_up(payment_hash: str) -> str:
    """Return an own id for an invoice whose true one is not known, or was used up."""
    return f"salvaged-{payment_hash[:32]}"


def _job_named(tx: Tx, description: str) -> str | None:
    own_id = _OWN_ID.search(description)
    row = None if own_id is None else tx.invoice(own_id[0])
    if row is not None:
        return row.job_id
    prefix = _JOB_PREFIX.search(description)
    if prefix is None:
        return None
    found = tx.ask("SELECT id FROM jobs WHERE id >= ? AND id < ? LIMIT 2", (prefix[1], prefix[1] + "g"))
    return str(found[0][0]) if len(found) == 1 else None


def give_back(tx: Tx, recorder: Recorder, job_id: str, paid: Payment, now: int) -> bool:
    """Bring a refund into the books that the lost history said it had paid, and the wallet says so too.

    The job is ended by it. False when the books do not owe that much, or have another refund of it under way.
    """
    if refunds.is_used(tx, paid.payment_hash):
        return True
    job = tx.job(job_id)
    if job is None or refunds.committed_refund(tx, job_id) is not None:
        return False
    if job.work not in ENDED:
        recorder.transact(tx, job_id, [facts.Cancel(facts.CancelledBy.OPERATOR)], now)
    own_id = _made_up(paid.payment_hash)
    refund = Refund(own_id, job_id, paid.amount_msats, now, payment_hash=paid.payment_hash)
    recorder.transact(tx, job_id, [facts.RefundStarted(refund)], now)
    if refunds.refund(tx, own_id) is None:
        return False
    done = facts.RefundPaid(own_id, paid.payment_hash, paid.amount_msats, paid.fee_msats)
    recorder.transact(tx, job_id, [done], now)
    return True


def hold_refunds(tx: Tx, now: int) -> int:
    """Let no refund that is due now go before the operator orders it (again); return how many there are."""
    due = len(refunds.jobs_due(tx))
    if due:
        tx.set_mark(HELD_MARK, now)
        tx.change("UPDATE payees SET ordered = 0 WHERE job IN (SELECT number FROM jobs WHERE money = 'refund_due')")
    return due


# --- results, and the end -------------------------------------------------------------------------------------


def tell_result(tx: Tx, recorder: Recorder, said: Said, now: int) -> None:
    """Tell a job that its result is out."""
    if said.result is not None:
        recorder.transact(tx, said.job_id, [facts.Found(said.result.id)], now)


def finish(tx: Tx) -> None:
    """Take the mark away: these books are compared."""
    tx.clear_mark(RESTORED_MARK)


def _published(bolt11: str | None) -> Published | None:
    if bolt11 is None:
        return None
    try:
        told = read_invoice(bolt11)
    except BadInvoice:
        return None
    own_id = _OWN_ID.search(told.description or "")
    return Published(bolt11, told, "" if own_id is None else own_id[0])
