"""Restored books: what the lost history said and was paid comes back, once, and nothing else does."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from pylon.jobs import facts
from pylon.jobs.cashier import describe
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.ports import Invoice, Payment, PaymentState
from pylon.jobs.recorder import Recorder, RecorderConfig
from pylon.jobs.refund_case import RefunderConfig, Waits, permit, read_case
from pylon.jobs.salvage import (
    Said,
    Terms,
    finish,
    give_back,
    hold_refunds,
    put_back,
    read_said,
    settle,
    settle_stray,
    settle_wanted,
    tell_result,
    to_ask_about,
)
from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import Event
from pylon.nostr.nip90 import Denial, ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import error_draft, feedback_draft, payment_required_draft, result_draft
from pylon.store import refunds
from pylon.store.records import (
    RESTORED_MARK,
    Books,
    InvoiceRow,
    InvoiceState,
    Job,
    Money,
    Refund,
    RefundState,
    Work,
)
from pylon.store.tx import Tx
from pylon.store.writer import Store
from tests.support.events import CUSTOMER, NOW, PROVIDER, STRANGER, job_request, signed
from tests.support.house import OFFER, PRICE_MSATS
from tests.support.stand_ins import sign_bolt11

T = TypeVar("T")

TERMS = Terms(Catalogue([OFFER]), job_timeout_s=3_600, customer_relays=1)
RECORDER = Recorder(PROVIDER, RecorderConfig())
REQUEST = job_request(
    "Tell me a joke.", providers=[PROVIDER.public_hex], relays=["wss://a.example", "wss://b.example"]
)
LATER = NOW + 1_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(tmp_path / "db")
    yield made
    await made.aclose()


def bolt11(number: int = 1, *, amount_msats: int = PRICE_MSATS, own_id: str = "", at: int = NOW) -> str:
    payment_hash = hashlib.sha256(f"{number}".encode()).hexdigest()
    named = own_id or f"pylon-{number:032x}"
    text = f"NIP-90 job {REQUEST.id[:16]} ({named})"
    return sign_bolt11(amount_msats, payment_hash, created_at=at, expiry_s=600, description=text)


def asked(text: str, at: int = NOW) -> Event:
    draft = payment_required_draft(
        REQUEST.id, CUSTOMER.public_hex, amount_msats=PRICE_MSATS, bolt11=text, invoice_expires_at=at + 600, eta_s=1
    )
    return signed(draft, PROVIDER, at)


def result(
    text: str | None = None, *, at: int = NOW + 10, with_request: bool = True, request: Event = REQUEST
) -> Event:
    amount_msats = None if text is None else PRICE_MSATS
    draft = result_draft(request, "Ha.", amount_msats=amount_msats, bolt11=text, with_request=with_request)
    return signed(draft, PROVIDER, at)


def said(*events: Event) -> Said:
    return read_said(events, PROVIDER.public_hex)[REQUEST.id]


def hash_of(text: str) -> str:
    return read_invoice(text).payment_hash


async def bring(store: Store, about: Said, request: Event | None = REQUEST) -> bool:
    return await store.write(lambda tx: put_back(tx, RECORDER, about, request, TERMS, LATER))


async def pay(store: Store, text: str, amount_msats: int = PRICE_MSATS) -> bool:
    return await store.write(lambda tx: settle(tx, RECORDER, hash_of(text), amount_msats, NOW + 5, LATER))


async def tell(store: Store, about: Said) -> None:
    await store.write(lambda tx: tell_result(tx, RECORDER, about, LATER))


async def job_of(store: Store, job_id: str = REQUEST.id) -> Job:
    job = await store.write(lambda tx: tx.job(job_id))
    assert job is not None
    return job


async def state_of(store: Store) -> tuple[Work, Money]:
    job = await job_of(store)
    return job.work, job.money


async def invoices_of(store: Store) -> list[InvoiceRow]:
    return await store.write(lambda tx: tx.invoices_of(REQUEST.id))


async def books(store: Store) -> Books:
    return await store.write(lambda tx: tx.books())


async def old_copy(store: Store, *news: facts.Fact, mode: facts.Mode = facts.Mode.PREPAY) -> None:
    """Have the job as an old copy has it: accepted, and what `news` made of it."""
    job = Job(REQUEST.id, CUSTOMER.public_hex, 5050, "local", "small", PRICE_MSATS, 64, NOW, NOW + 3_600)

    def run(tx: Tx) -> None:
        RECORDER.accept(tx, job, mode, REQUEST.to_json(), start=False, now=NOW)
        RECORDER.transact(tx, job.id, news, NOW)

    await store.write(run)


async def wanted(store: Store) -> InvoiceRow:
    (row,) = await invoices_of(store)
    return row


def made(text: str, own_id: str, state: PaymentState = PaymentState.PENDING, received_msats: int = 0) -> Invoice:
    settled_at = NOW + 5 if state is PaymentState.SETTLED else None
    return Invoice(own_id, hash_of(text), text, PRICE_MSATS, NOW, NOW + 600, state, received_msats, settled_at)


# --- what we said -----------------------------------------------------------------------------------------------


def test_what_we_said_is_read_by_job() -> None:
    first, second = bolt11(1), bolt11(2)
    events = [result(), asked(second, NOW + 2), asked(first, NOW + 1), asked(first, NOW + 3)]
    about = said(*events)
    assert [each.bolt11 for each in about.asked] == [first, second]
    assert about.asked[0].own_id == f"pylon-{1:032x}"
    assert (about.first_at, about.result, about.billed) == (NOW + 1, events[0], None)
    assert about.request == REQUEST
    billed = said(result(first, with_request=False))
    assert (billed.bills[0].bolt11, billed.asked, billed.request) == (first, (), None)


def test_only_what_asks_for_money_or_is_a_result_counts_and_only_ours() -> None:
    refusal = error_draft(REQUEST.id, CUSTOMER.public_hex, Denial(ErrorPrefix.PAUSED, "later"))
    foreign = result_draft(REQUEST, "Mine.")
    events = [signed(refusal, PROVIDER), signed(foreign, STRANGER), REQUEST]
    assert read_said(events, PROVIDER.public_hex) == {}


def test_a_request_that_a_result_repeats_is_checked() -> None:
    forged = replace(REQUEST, content="something else")
    tags = tuple(("request", forged.to_json()) if tag[0] == "request" else tag for tag in result().tags)
    assert said(signed(replace(result_draft(REQUEST, "Ha."), tags=tags), PROVIDER)).request is None


# --- jobs that the copy does not know ---------------------------------------------------------------------------


async def test_a_lost_job_that_was_paid_and_delivered(store: Store) -> None:
    text = bolt11()
    about = said(asked(text), result())
    assert await bring(store, about)
    assert await state_of(store) == (Work.AWAITING_PAYMENT, Money.INVOICED)
    assert await pay(store, text)
    await tell(store, about)
    job = await job_of(store)
    assert (job.work, job.money, job.result_id) == (Work.DELIVERED, Money.SETTLED, result().id)
    assert (job.price_msats, job.model, job.backend, job.relays) == (
        PRICE_MSATS,
        "small",
        "local",
        ("wss://a.example",),
    )
    assert (job.accepted_at, job.deadline_at, job.postpaid) == (NOW, NOW + 3_600, False)
    assert await books(store) == Books(PRICE_MSATS, PRICE_MSATS, 0, 0)
    assert await store.write(lambda tx: tx.request_json(REQUEST.id)) == REQUEST.to_json()


async def test_a_lost_job_that_was_paid_and_not_delivered_is_run(store: Store) -> None:
    text = bolt11()
    await bring(store, said(asked(text)))
    await pay(store, text)
    assert await state_of(store) == (Work.QUEUED, Money.SETTLED)
    assert await books(store) == Books(PRICE_MSATS, 0, PRICE_MSATS, 0)


async def test_a_lost_job_that_was_not_paid_waits_for_its_payment(store: Store) -> None:
    older, newer = bolt11(1), bolt11(2, at=NOW + 5)
    await bring(store, said(asked(older), asked(newer, NOW + 5)))
    assert await state_of(store) == (Work.AWAITING_PAYMENT, Money.INVOICED)
    rows = await invoices_of(store)
    assert [(row.number, row.bolt11, row.state) for row in rows] == [
        (1, older, InvoiceState.CLOSING),
        (2, newer, InvoiceState.OPEN),
    ]
    assert (await job_of(store)).invoices == 2
    assert await pay(store, older)  # whichever is paid
    assert await state_of(store) == (Work.QUEUED, Money.SETTLED)


async def test_a_lost_free_job_that_was_delivered_is_finished(store: Store) -> None:
    await bring(store, said(result()))
    job = await job_of(store)
    assert (job.work, job.money, job.price_msats, job.result_id) == (Work.DELIVERED, Money.NONE, 0, result().id)
    assert job.purge_at == LATER + RecorderConfig().retain_plaintext_s


async def test_a_lost_job_on_credit_is_billed_as_before(store: Store) -> None:
    text = bolt11()
    about = said(result(text))
    await bring(store, about)
    await tell(store, about)
    assert await state_of(store) == (Work.DELIVERED, Money.INVOICED)
    assert (await job_of(store)).postpaid
    await pay(store, text)
    assert await books(store) == Books(PRICE_MSATS, PRICE_MSATS, 0, 0)


async def test_a_lost_job_whose_model_is_not_offered_any_more(store: Store) -> None:
    request = job_request(params=[("model", ["gone"])])
    about = read_said([result(request=request)], PROVIDER.public_hex)[request.id]
    assert await bring(store, about, request)
    job = await job_of(store, request.id)
    assert (job.model, job.backend) == ("gone", "")


async def test_without_its_request_a_lost_job_cannot_come_back(store: Store) -> None:
    assert not await bring(store, said(asked(bolt11())), None)
    assert not await bring(store, said(asked(bolt11())), replace(REQUEST, kind=5999))
    assert await store.write(lambda tx: tx.job(REQUEST.id)) is None


# --- jobs that the copy knows -----------------------------------------------------------------------------------


async def test_an_intent_that_was_carried_out_is_open_again_without_being_said_again(store: Store) -> None:
    await old_copy(store)
    row = await wanted(store)
    text = bolt11(own_id=row.own_id)
    await bring(store, said(asked(text)))
    (stored,) = await invoices_of(store)
    assert (stored.own_id, stored.bolt11, stored.state) == (row.own_id, text, InvoiceState.OPEN)
    assert await state_of(store) == (Work.AWAITING_PAYMENT, Money.INVOICED)
    assert await store.write(lambda tx: tx.pending_outbox()) == []


async def test_a_later_invoice_of_a_known_job_is_watched_too(store: Store) -> None:
    await old_copy(store)
    row = await wanted(store)
    await bring(store, said(asked(bolt11(1, own_id=row.own_id))))
    later = bolt11(2, own_id=row.own_id)  # a second one under the same id
    await bring(store, said(asked(bolt11(1, own_id=row.own_id)), asked(later, NOW + 1)))
    rows = await invoices_of(store)
    assert [(each.number, each.bolt11, each.state) for each in rows[1:]] == [(2, later, InvoiceState.CLOSING)]
    assert (await job_of(store)).invoices == 2
    await pay(store, later)
    assert await state_of(store) == (Work.QUEUED, Money.SETTLED)


async def test_a_paid_intent_is_found_by_our_own_id(store: Store) -> None:
    await old_copy(store)
    row = await wanted(store)
    first, second = bolt11(1, own_id=row.own_id), bolt11(2, own_id=row.own_id)
    hashes, intents = await store.write(lambda tx: to_ask_about(tx, 0))
    assert (hashes, intents) == ([], [row])
    for text in (first, second, first):  # both that were made are paid, and one is told twice
        paid = made(text, row.own_id, PaymentState.SETTLED, PRICE_MSATS)
        await store.write(lambda tx, paid=paid: settle_wanted(tx, RECORDER, row, paid, LATER))  # type: ignore[misc]
    assert await state_of(store) == (Work.QUEUED, Money.SETTLED)
    assert await books(store) == Books(2 * PRICE_MSATS, 0, 2 * PRICE_MSATS, 0)


@pytest.mark.parametrize("state", ["open", "closing", "dead"])
async def test_every_invoice_is_asked_about_whatever_its_state(store: Store, state: str) -> None:
    await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id)
    invoice = made(text, (await wanted(store)).own_id)
    ends: dict[str, list[facts.Fact]] = {
        "open": [],
        "closing": [facts.Cancel(facts.CancelledBy.CUSTOMER)],
        "dead": [facts.InvoiceDead(invoice.payment_hash, lost_early=False)],
    }
    for news in ([facts.InvoiceMade(invoice)], ends[state]):
        await store.write(lambda tx, news=news: RECORDER.transact(tx, REQUEST.id, news, NOW))  # type: ignore[misc]
    assert [row.state.value for row in await invoices_of(store)] == [state]
    assert await store.write(lambda tx: to_ask_about(tx, NOW - 1)) == ([invoice.payment_hash], [])
    old, _ = await store.write(lambda tx: to_ask_about(tx, NOW + 1))
    assert old == ([] if state == "dead" else [invoice.payment_hash])  # what is undecided is asked about always
    await pay(store, text)
    expected = (Work.QUEUED, Money.SETTLED) if state == "open" else None
    assert expected in (None, await state_of(store))
    assert (await books(store)).received_msats == PRICE_MSATS
    assert await store.write(lambda tx: to_ask_about(tx, 0)) == ([], [])  # booked


async def test_a_result_that_is_out_is_never_produced_again(store: Store) -> None:
    await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id)
    about = said(asked(text), result())
    await bring(store, about)
    await pay(store, text)
    await tell(store, about)
    assert await state_of(store) == (Work.DELIVERED, Money.SETTLED)
    assert await store.write(lambda tx: tx.unfinished_jobs()) == []


async def test_a_running_attempt_ends_where_the_result_is_out(store: Store) -> None:
    await old_copy(store, facts.Started(), mode=facts.Mode.FREE)
    await tell(store, said(result()))
    assert await state_of(store) == (Work.DELIVERED, Money.NONE)
    (attempt,) = await store.write(lambda tx: tx.attempts(REQUEST.id))
    assert attempt.outcome == "a result of it was published already"


# --- what no look-up explains -----------------------------------------------------------------------------------


async def stray(store: Store, description: str, amount_msats: int = PRICE_MSATS) -> bool:
    def run(tx: Tx) -> bool:
        return settle_stray(tx, RECORDER, "77" * 32, amount_msats, NOW + 5, description, LATER)

    return await store.write(run)


@pytest.mark.parametrize("how", ["own id", "job"])
async def test_a_stray_payment_finds_its_job_by_its_description(store: Store, how: str) -> None:
    await old_copy(store)
    row = await wanted(store)
    description = describe(row) if how == "own id" else f"NIP-90 job {REQUEST.id[:16]} (pylon-{'0' * 32})"
    assert await stray(store, description)
    assert await stray(store, description)  # told again, it is booked once
    assert await state_of(store) == (Work.QUEUED, Money.SETTLED)
    assert (await books(store)).received_msats == PRICE_MSATS


async def test_a_stray_payment_below_the_price_is_short(store: Store) -> None:
    await old_copy(store)
    assert await stray(store, describe(await wanted(store)), PRICE_MSATS - 1)
    assert await state_of(store) == (Work.FAILED, Money.REFUND_DUE)


async def test_what_names_no_job_of_ours_is_left_alone(store: Store) -> None:
    await old_copy(store)
    for description in ("", "rent", "NIP-90 job 0123456789abcdef (x)", f"pylon-{'9' * 32}"):
        assert not await stray(store, description)
    assert await books(store) == Books(0, 0, 0, 0)


# --- refunds ----------------------------------------------------------------------------------------------------

BACK = Payment("55" * 32, PaymentState.SETTLED, PRICE_MSATS, 7)


def paid_back(at: int = NOW + 20) -> Event:
    draft = feedback_draft(
        REQUEST.id, CUSTOMER.public_hex, FeedbackStatus.ERROR, extra_tags=(("refunded", "2000", BACK.payment_hash),)
    )
    return signed(draft, PROVIDER, at)


async def give(store: Store) -> bool:
    return await store.write(lambda tx: give_back(tx, RECORDER, REQUEST.id, BACK, LATER))


def test_a_refund_that_we_announced_is_read() -> None:
    assert said(paid_back(), paid_back(NOW + 21)).refunded == (BACK.payment_hash,)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_refund_of_the_lost_history_is_not_paid_again(store: Store, ended: bool) -> None:
    await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id)
    await bring(store, said(asked(text), paid_back()))
    await pay(store, text)
    if ended:
        await store.write(lambda tx: RECORDER.transact(tx, REQUEST.id, [facts.Deadline()], NOW))
    for _ in range(2):  # a start that is cut off begins again
        assert await give(store)
        assert await state_of(store) == (Work.EXPIRED if ended else Work.CANCELLED, Money.REFUNDED)
        sums = await books(store)
        assert (sums.received_msats, sums.refunded_msats, sums.refund_due_msats) == (PRICE_MSATS, PRICE_MSATS, 0)
    assert await store.write(refunds.jobs_due) == []
    (row,) = await store.write(lambda tx: refunds.refunds_of(tx, REQUEST.id))
    assert (row.state, row.fee_msats, row.payment_hash) == (RefundState.PAID, 7, BACK.payment_hash)


async def test_a_refund_of_what_these_books_do_not_owe_is_left_to_the_operator(store: Store) -> None:
    assert not await give(store)
    await old_copy(store, facts.Deadline())
    assert not await give(store)
    assert (await books(store)).refunded_msats == 0


async def test_a_refund_that_is_under_way_here_is_asked_about_by_its_own_row(store: Store) -> None:
    await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id)
    await bring(store, said(asked(text)))
    await pay(store, text)
    under_way = Refund("own", REQUEST.id, PRICE_MSATS, NOW, payment_hash="66" * 32)
    for fact in (facts.Deadline(), facts.RefundStarted(under_way)):
        await store.write(lambda tx, fact=fact: RECORDER.transact(tx, REQUEST.id, [fact], NOW))  # type: ignore[misc]
    assert not await give(store)
    assert await state_of(store) == (Work.EXPIRED, Money.REFUNDING)


async def test_refunds_that_may_have_been_paid_wait_for_an_order(store: Store) -> None:
    assert await store.write(lambda tx: hold_refunds(tx, LATER)) == 0
    await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id)
    await bring(store, said(asked(text)))
    await pay(store, text)
    await store.write(lambda tx: RECORDER.transact(tx, REQUEST.id, [facts.Deadline()], NOW))

    rules = RefunderConfig(auto=True)

    async def allowed() -> bool:
        case = await store.write(lambda tx: read_case(tx, REQUEST.id, rules, LATER))
        assert case is not None
        try:
            permit(case, rules)
        except Waits as why:
            assert "came from a backup" in str(why)
            return False
        return True

    assert await allowed()
    await store.write(lambda tx: refunds.order(tx, REQUEST.id, "alice@pay.example", NOW))
    assert await store.write(lambda tx: hold_refunds(tx, LATER)) == 1
    assert not await allowed()  # the order of before the backup may have been carried out
    await store.write(lambda tx: refunds.order(tx, REQUEST.id, "", LATER))
    assert await allowed()


# --- again and again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
async def test_a_start_that_is_cut_off_begins_again_and_changes_nothing(store: Store, known: bool) -> None:
    if known:
        await old_copy(store)
    text = bolt11(own_id=(await wanted(store)).own_id if known else "")
    about = said(asked(text), result())
    steps: list[Callable[[], object]] = [
        lambda: bring(store, about),
        lambda: pay(store, text),
        lambda: tell(store, about),
    ]
    seen = []
    for cut in (1, 2, 3, 3):
        for step in steps[:cut]:
            await step()  # type: ignore[misc]
        seen.append((await state_of(store), await books(store), len(await invoices_of(store))))
    assert seen[2] == seen[3] == ((Work.DELIVERED, Money.SETTLED), Books(PRICE_MSATS, PRICE_MSATS, 0, 0), 1)


async def test_the_mark_goes_when_all_is_done(store: Store) -> None:
    await store.write(lambda tx: tx.set_mark(RESTORED_MARK, 1))
    await store.write(finish)
    assert RESTORED_MARK not in await store.write(lambda tx: tx.marks())
