"""Work on credit: metered by use, billed with the result, one job at a time, and what a crash leaves of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pylon.jobs import facts
from pylon.jobs.credit import WINDOW_S, CreditRules
from pylon.jobs.ports import (
    BackendHealth,
    BackendRefused,
    Finished,
    FinishReason,
    Invoice,
    InvoiceRequest,
    PaymentState,
)
from pylon.jobs.pricing import Price
from pylon.nostr.bolt11 import check_invoice, read_invoice
from pylon.nostr.event import Event, verify
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_replies import JobResult, parse_result
from pylon.store.records import InvoiceState, Job, Money, Work
from tests.support.events import STRANGER
from tests.support.house import OFFER, House, World, open_house, rows, until
from tests.support.stand_ins import Hang, Lie, Refusal, Run, Unavailable

METERED = replace(OFFER, price=Price(base_msats=1_000, output_msats_per_1k=100_000))
QUOTED_MSATS = 8_000
"""1,000 msats and 64 tokens of 100 each, rounded up to whole sats."""
USED_MSATS = 2_000
"""The same with the 7 tokens that the fake server counts."""


def on_credit(path: Path, **rules: int) -> World:
    given = {"credit_msats": QUOTED_MSATS, "max_credit_msats": 1_000_000, "daily_msats": 1_000_000, **rules}
    return World(path / "db", mode=facts.Mode.POSTPAY, offers=(METERED,), credit=CreditRules(**given))


def manual(world: World) -> World:
    """Let the test say what the backend answers."""
    world.backend.answer = None
    return world


def result_of(world: World, request: Event) -> JobResult:
    found = {event.id: event for event in world.relays.results(request.id)}
    (event,) = found.values()
    assert verify(event)
    return parse_result(event)


async def billed(house: House, request: Event, work: Work = Work.DELIVERED) -> str:
    """Wait for the result and its invoice, which must be right; returns the payment hash."""
    await house.reaches(request.id, work, Money.INVOICED)
    result = result_of(house.world, request)
    assert result.bolt11 is not None and result.amount_msats == USED_MSATS
    read = read_invoice(result.bolt11)
    check_invoice(read, amount_msats=USED_MSATS, network="regtest", now=house.world.clock.now)
    (row,) = await house.invoices(request.id)
    assert (row.state, row.payment_hash, row.amount_msats) == (InvoiceState.OPEN, read.payment_hash, USED_MSATS)
    assert read.expires_at - house.world.clock.now == house.world.cashier.invoice_expiry_s
    return read.payment_hash


async def pay(house: House, payment_hash: str, amount_msats: int | None = None) -> None:
    wallet = house.world.wallet
    await until(lambda: wallet.listeners)
    wallet.settle(payment_hash, amount_msats)


async def ends_paid(house: House, request: Event, msats: int = USED_MSATS) -> Job:
    """The job is delivered, and what it used is earned once."""
    job = await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
    (settlement,) = await house.settlements(request.id)
    assert (settlement.amount_msats, settlement.earned_msats) == (msats, msats)
    assert house.engine.books.earned_msats == house.world.wallet.received_msats
    assert house.engine.books.owed_msats == 0
    await house.check_books()
    return job


async def serves_on_credit(house: House, prompt: str, **asked: Any) -> Job:
    """One more request of the customer is done before it is paid, and then is paid."""
    request = house.ask(prompt, **asked)
    await pay(house, await billed(house, request))
    return await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)


async def must_prepay(house: House, prompt: str, **asked: Any) -> None:
    request = house.ask(prompt, **asked)
    told = await house.invoiced(request.id)
    assert told.amount_msats == QUOTED_MSATS
    assert not (await house.job(request.id)).postpaid


async def goes_by(world: World, seconds: float) -> None:
    """Let the clock run, and the wallet be asked about what it may have changed."""
    before = world.wallet.calls["look_up"]
    world.clock.advance(seconds)
    await until(lambda: world.wallet.calls["look_up"] > before)


def said(world: World, request: Event) -> list[str]:
    return [each.prefix.value if each.prefix else each.status.value for each in world.relays.feedback(request.id)]


# --- one job --------------------------------------------------------------------------------------------------


async def test_it_is_done_first_and_billed_what_it_used(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask("Tell me a joke.")
        payment_hash = await billed(house, request)
        assert result_of(world, request).content == "Echo: Tell me a joke."
        assert [each.amount_msats for each in world.wallet.requests] == [USED_MSATS]
        assert said(world, request) == ["partial"]
        assert house.engine.books.received_msats == 0
        job = await house.job(request.id)
        assert (job.price_msats, job.postpaid, job.purge_at) == (USED_MSATS, True, None)
        assert job.result_id == world.relays.results(request.id)[0].id
        (attempt,) = await house.attempts(request.id)
        assert (attempt.outcome, attempt.output_tokens) == ("output", 7)
        await pay(house, payment_hash)
        assert (await ends_paid(house, request)).price_msats == USED_MSATS
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.SUCCESS))
        assert f"{USED_MSATS} msats" in world.relays.feedback(request.id, FeedbackStatus.SUCCESS)[0].info


async def test_use_below_the_minimum_of_its_kind_is_billed_the_minimum(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    least = replace(METERED.price, min_msats=USED_MSATS + 3_000)
    world.offers = (replace(METERED, price=Price(), kind_prices={5050: least}),)
    async with open_house(world) as house:
        request = house.ask()
        await house.reaches(request.id, Work.DELIVERED, Money.INVOICED)
        assert result_of(world, request).amount_msats == USED_MSATS + 3_000


async def test_use_beyond_what_was_quoted_is_not_billed(tmp_path: Path) -> None:
    world = on_credit(tmp_path)

    def answer(run: Run) -> None:
        run.say("long")
        run._send.send_nowait(Finished(FinishReason.STOP, prompt_tokens=5, output_tokens=10_000))

    world.backend.answer = answer
    async with open_house(world) as house:
        request = house.ask()
        job = await house.reaches(request.id, Work.DELIVERED, Money.INVOICED)
        assert job.price_msats == result_of(world, request).amount_msats == QUOTED_MSATS


async def test_what_used_nothing_that_is_paid_for_is_delivered_without_a_bill(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.offers = (replace(METERED, price=Price(output_msats_per_1k=100_000)),)

    def answer(run: Run) -> None:
        run.say("for nothing")
        run._send.send_nowait(Finished(FinishReason.STOP, prompt_tokens=5, output_tokens=0))

    world.backend.answer = answer
    async with open_house(world) as house:
        request = house.ask()
        job = await house.reaches(request.id, Work.DELIVERED, Money.NONE)
        assert (job.price_msats, job.postpaid) == (0, True)
        result = result_of(world, request)
        assert (result.amount_msats, result.bolt11) == (None, None)
        assert world.wallet.made == []


async def test_a_bill_paid_short_is_earned_as_far_as_it_goes(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask()
        await pay(house, await billed(house, request), USED_MSATS - 1)
        await ends_paid(house, request, USED_MSATS - 1)


async def test_what_is_paid_too_much_is_kept(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask()
        await pay(house, await billed(house, request), USED_MSATS + 5)
        await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        books = house.engine.books
        assert (books.earned_msats, books.deposits_msats) == (USED_MSATS, 5)
        await house.check_books()


async def test_paid_before_a_relay_confirms_it_is_earned_when_one_does(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask()
        await pay(house, await billed(house, request, Work.PRODUCED))
        await house.reaches(request.id, Work.PRODUCED, Money.SETTLED)
        assert house.engine.books.in_work_msats == USED_MSATS
        await house.check_books()
        world.relays.confirm(world.relays.results(request.id)[0].id)
        await ends_paid(house, request)


async def test_a_payment_that_is_told_again_is_earned_once(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask()
        payment_hash = await billed(house, request)
        await pay(house, payment_hash)
        await ends_paid(house, request)
        world.wallet.push(payment_hash, USED_MSATS)
        world.wallet.break_streams()
        await until(lambda: world.wallet.calls["list"] >= 2)
        await house.quiet()
        await ends_paid(house, request)


# --- one at a time --------------------------------------------------------------------------------------------


async def test_the_next_job_is_refused_until_this_one_is_paid(tmp_path: Path) -> None:
    world = manual(on_credit(tmp_path))
    async with open_house(world) as house:
        request = house.ask("first")
        (run, refused) = (await house.run(), house.ask("second"))
        run.say("Here.")
        run.finish()
        payment_hash = await billed(house, request)
        refused_again = house.ask("third")
        for each in (refused, refused_again):
            (told,) = world.relays.feedback(each.id)
            assert told.prefix is not None and told.prefix.value == "unpaid"
            assert request.id in told.info
        assert len(rows(world.path, "SELECT * FROM jobs")) == 1
        await pay(house, payment_hash)
        await ends_paid(house, request)
        world.backend.answer = world.backend.echo
        assert (await serves_on_credit(house, "fourth")).postpaid


async def test_others_are_served_meanwhile(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        await billed(house, house.ask("mine"))
        await billed(house, house.ask("theirs", key=STRANGER))


@pytest.mark.parametrize("rules", [{"credit_msats": QUOTED_MSATS - 1}, {"daily_msats": QUOTED_MSATS - 1}])
async def test_what_may_cost_more_than_the_credit_is_prepaid(tmp_path: Path, rules: dict[str, int]) -> None:
    world = on_credit(tmp_path, **rules)
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await ends_paid(house, request, QUOTED_MSATS)


async def test_a_request_with_a_deadline_of_its_own_is_prepaid(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        now = int(world.clock.now)
        await must_prepay(house, "soon", expires_at=now + world.intake.job_timeout_s - 1)
        await billed(house, house.ask("late", expires_at=now + world.intake.job_timeout_s))


async def test_the_daily_cap_bounds_everybody_and_moves_on(tmp_path: Path) -> None:
    world = on_credit(tmp_path, daily_msats=QUOTED_MSATS)
    async with open_house(world) as house:
        await serves_on_credit(house, "mine")
        await must_prepay(house, "theirs", key=STRANGER)
    async with open_house(world) as house:
        await must_prepay(house, "mine again")
        world.clock.advance(WINDOW_S)
        await serves_on_credit(house, "mine tomorrow")


async def test_what_a_customer_has_paid_raises_the_credit(tmp_path: Path) -> None:
    world = on_credit(tmp_path, credit_msats=0, history_percent=100)
    async with open_house(world) as house:
        request = house.ask("first")
        await house.pay(request.id)
        await ends_paid(house, request, QUOTED_MSATS)
        assert (await serves_on_credit(house, "second")).postpaid
        await must_prepay(house, "theirs", key=STRANGER)
    async with open_house(world) as house:
        assert (await serves_on_credit(house, "third")).postpaid


# --- not paid -------------------------------------------------------------------------------------------------


async def unpaid(house: House, prompt: str = "never paid") -> tuple[Event, str]:
    request = house.ask(prompt)
    payment_hash = await billed(house, request)
    await goes_by(house.world, house.world.cashier.invoice_expiry_s + house.world.cashier.invoice_grace_s)
    job = await house.reaches(request.id, Work.DELIVERED, Money.UNPAID)
    assert job.purge_at is not None
    return request, payment_hash


async def test_who_does_not_pay_in_time_prepays_from_then_on(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        await unpaid(house)
        request = house.ask("the next one")
        await house.pay(request.id)
        await ends_paid(house, request, QUOTED_MSATS)
    async with open_house(world) as house:
        await must_prepay(house, "after a restart")


async def test_who_pays_late_after_all_has_credit_again(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request, payment_hash = await unpaid(house)
        await pay(house, payment_hash)
        await ends_paid(house, request)
        await serves_on_credit(house, "the next one")


async def test_who_pays_when_the_text_is_long_gone_has_paid(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request, payment_hash = await unpaid(house)
        await house.engine.outbox_empty()
        world.clock.advance(world.recorder.retain_plaintext_s)
        await until(lambda: texts(world) == (0, 0, 0))
        await pay(house, payment_hash)
        await ends_paid(house, request)
        await serves_on_credit(house, "the next one")


async def test_paid_late_while_we_were_away_is_found(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request, payment_hash = await unpaid(house)
    world.wallet.settle(payment_hash, push=False)
    async with open_house(world) as house:
        await ends_paid(house, request)
        await serves_on_credit(house, "the next one")


async def test_an_invoice_that_the_wallet_loses_is_not_owed_and_still_can_be_paid(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask("lost")
        payment_hash = await billed(house, request)
        world.wallet.set_state(payment_hash, PaymentState.FAILED)
        await goes_by(world, 60)
        await house.reaches(request.id, Work.DELIVERED, Money.VOID)
        await serves_on_credit(house, "the next one")
        await pay(house, payment_hash)
        await ends_paid(house, request)


# --- the wallet -----------------------------------------------------------------------------------------------


async def billing(house: House, prompt: str = "to be billed") -> Event:
    """A job whose wallet does not answer."""
    house.world.wallet.down = True
    request = house.ask(prompt)
    await until(lambda: house.world.wallet.calls["create"] >= 2)
    job = await house.reaches(request.id, Work.BILLING, Money.NONE)
    assert job.price_msats == USED_MSATS
    return request


async def given_away(house: House, request: Event) -> None:
    """The result came without anything to pay."""
    job = await house.reaches(request.id, Work.DELIVERED, Money.NONE)
    result = result_of(house.world, request)
    assert (result.amount_msats, result.bolt11) == (None, None)
    assert result.content.startswith("Echo: ")
    assert "invoice" in job.reason
    assert [row.state for row in await house.invoices(request.id)] == [InvoiceState.UNUSED]
    house.world.wallet.down = False
    await serves_on_credit(house, "the next one")


async def test_a_wallet_that_is_away_is_waited_for_and_the_invoice_lasts_as_long_as_ever(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house)
        world.clock.advance(2 * world.cashier.invoice_expiry_s)
        world.wallet.down = False
        await pay(house, await billed(house, request))
        await ends_paid(house, request)


async def test_a_wallet_that_is_away_until_the_deadline_is_our_loss(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house)
        world.clock.advance(world.intake.job_timeout_s)
        await given_away(house, request)


async def test_an_invoice_that_comes_after_the_deadline_is_never_asked_for_and_booked_if_it_is_paid(
    tmp_path: Path,
) -> None:
    world = on_credit(tmp_path)

    async def slow(request: InvoiceRequest) -> Invoice:
        world.clock.advance(world.intake.job_timeout_s)
        await until(lambda: world.relays.durable)
        return world.wallet._make(request, Lie())

    async with open_house(world) as house:
        with patch.object(world.wallet, "create_invoice", slow):
            request = house.ask("first")
            await house.reaches(request.id, Work.DELIVERED, Money.NONE)
            await until(lambda: world.wallet.made)
        await house.quiet()
        assert result_of(world, request).bolt11 is None
        payment_hash = world.wallet.made[0].payment_hash
        assert [row.state for row in await house.invoices(request.id)] == [InvoiceState.UNUSED]
        await pay(house, payment_hash)
        await ends_paid(house, request)


async def test_a_job_that_could_not_be_stored_takes_no_credit(tmp_path: Path) -> None:
    world = on_credit(tmp_path, daily_msats=QUOTED_MSATS)
    async with open_house(world) as house:
        world.disk.broken = True
        refused = house.ask("first")
        await until(lambda: "internal" in said(world, refused))
        world.disk.broken = False
        await until(lambda: house.engine.healthy)
        await serves_on_credit(house, "second")


@pytest.mark.parametrize("fault", [Refusal(), Unavailable()])
async def test_a_wallet_that_refuses_is_our_loss_and_one_that_stumbles_is_not(
    tmp_path: Path, fault: Refusal | Unavailable
) -> None:
    world = on_credit(tmp_path)
    world.wallet.create_faults.append(fault)
    async with open_house(world) as house:
        request = house.ask("first")
        if isinstance(fault, Refusal):
            await given_away(house, request)
        else:
            await billed(house, request)


async def test_a_result_that_was_given_away_counts_against_the_daily_cap(tmp_path: Path) -> None:
    world = on_credit(tmp_path, daily_msats=QUOTED_MSATS)
    world.wallet.create_faults.append(Refusal())
    async with open_house(world) as house:
        request = house.ask("first")
        await house.reaches(request.id, Work.DELIVERED, Money.NONE)
        await must_prepay(house, "theirs", key=STRANGER)


# --- crashes --------------------------------------------------------------------------------------------------


async def test_killed_while_queued(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        request = house.ask("first")
        await house.reaches(request.id, Work.QUEUED)
    world.backend.health = BackendHealth.READY
    async with open_house(world) as house:
        await pay(house, await billed(house, request))
        await ends_paid(house, request)


async def test_killed_while_running(tmp_path: Path) -> None:
    world = manual(on_credit(tmp_path))
    async with open_house(world) as house:
        request = house.ask("first")
        await house.run()
    async with open_house(world) as house:
        run = await house.run(2)
        assert "unpaid" in said(world, house.ask("second"))  # one at a time, after a restart too
        run.say("Here.")
        run.finish()
        await pay(house, await billed(house, request))
        assert (await ends_paid(house, request)).attempts == 2


async def test_killed_while_the_invoice_is_wanted(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house)
    world.wallet.down = False
    async with open_house(world) as house:
        await pay(house, await billed(house, request))
        await ends_paid(house, request)
        assert len(world.wallet.made) == 1 and len(world.backend.runs) == 1


@pytest.mark.parametrize("expired", [False, True])
async def test_killed_after_the_wallet_made_the_invoice_and_before_we_knew(tmp_path: Path, expired: bool) -> None:
    world = on_credit(tmp_path)
    world.wallet.create_faults.append(Hang())
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.made)
    if expired:
        world.clock.advance(world.cashier.invoice_expiry_s)
    async with open_house(world) as house:
        await pay(house, await billed(house, request))
        await ends_paid(house, request)
        assert len(world.wallet.made) == (2 if expired else 1)


async def test_killed_before_a_relay_confirmed_the_result(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask()
        payment_hash = await billed(house, request, Work.PRODUCED)
    world.relays.confirms = lambda event: True
    async with open_house(world) as house:
        assert await billed(house, request) == payment_hash
        first, second = world.relays.results(request.id)
        assert first == second
        await pay(house, payment_hash)
        await ends_paid(house, request)


async def test_killed_while_the_bill_is_open_and_paid_meanwhile(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask("first")
        payment_hash = await billed(house, request)
    world.wallet.settle(payment_hash, push=False)
    async with open_house(world) as house:
        await ends_paid(house, request)
        await serves_on_credit(house, "second")


async def test_what_was_refused_before_a_restart_is_not_done_on_credit_after_it(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = house.ask("first")
        payment_hash = await billed(house, request)
        refused = house.ask("second")
        assert said(world, refused) == ["unpaid"]
        await pay(house, payment_hash)
        await ends_paid(house, request)
    world.clock.advance(1)
    async with open_house(world) as house:
        assert house.offer(refused) is None  # relays send it again
        await house.invoiced(refused.id)
        assert not (await house.job(refused.id)).postpaid
        await serves_on_credit(house, "third")


# --- cancelled, failed, not delivered -------------------------------------------------------------------------


async def test_cancelled_before_its_first_word_it_costs_nothing(tmp_path: Path) -> None:
    world = manual(on_credit(tmp_path, daily_msats=QUOTED_MSATS))
    async with open_house(world) as house:
        request = house.ask("first")
        run = await house.run()
        assert house.cancel(request.id) is None
        await house.reaches(request.id, Work.CANCELLED, Money.NONE)
        await until(lambda: run.closed)
        assert not {"partial", "error"} & set(said(world, request))
        world.backend.answer = world.backend.echo
        await serves_on_credit(house, "second")  # nothing of the day's credit is gone


async def test_cancelled_after_its_first_word_it_goes_on_and_is_billed(tmp_path: Path) -> None:
    world = manual(on_credit(tmp_path))
    async with open_house(world) as house:
        request = house.ask("first")
        run = await house.run()
        run.say("Once ")
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PARTIAL))
        assert (await house.job(request.id)).partial_sent
        assert house.cancel(request.id) is None
        await house.quiet()
        run.say("upon a time.")
        run.finish()
        await pay(house, await billed(house, request))
        assert result_of(world, request).content == "Once upon a time."
        await ends_paid(house, request)


async def test_a_customer_cannot_cancel_what_is_being_billed(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house)
        assert house.cancel(request.id) is None
        await house.quiet()
        world.wallet.down = False
        await billed(house, request)


async def test_the_operator_can(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house, "first")
        await house.engine.apply(request.id, facts.Cancel(facts.CancelledBy.OPERATOR))
        await house.reaches(request.id, Work.CANCELLED, Money.NONE)
        assert world.relays.errors(request.id) == ["cancelled"]
        assert [row.state for row in await house.invoices(request.id)] == [InvoiceState.UNUSED]
        world.wallet.down = False
        await serves_on_credit(house, "second")
        assert world.relays.results(request.id) == []


async def test_what_fails_is_not_owed(tmp_path: Path) -> None:
    world = manual(on_credit(tmp_path, daily_msats=QUOTED_MSATS))
    async with open_house(world) as house:
        request = house.ask("first")
        (await house.run()).fail(BackendRefused("no"))
        await house.reaches(request.id, Work.FAILED, Money.NONE)
        assert world.relays.errors(request.id) == ["failed"]
        world.backend.answer = world.backend.echo
        await serves_on_credit(house, "second")


async def test_what_no_relay_takes_is_not_owed(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask("first")
        await billed(house, request, Work.PRODUCED)
        world.relays.give_up(world.relays.results(request.id)[0].id)
        await house.reaches(request.id, Work.UNDELIVERABLE, Money.CANCELLING)
        world.relays.confirms = lambda event: True
        await serves_on_credit(house, "second")
        await goes_by(world, world.cashier.invoice_expiry_s + world.cashier.invoice_grace_s)
        await house.reaches(request.id, Work.UNDELIVERABLE, Money.VOID)


async def test_a_result_that_was_not_paid_before_no_relay_took_it_is_void(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask("first")
        await billed(house, request, Work.PRODUCED)
        await goes_by(world, world.cashier.invoice_expiry_s + world.cashier.invoice_grace_s)
        await house.reaches(request.id, Work.PRODUCED, Money.UNPAID)
        world.relays.give_up(world.relays.results(request.id)[0].id)
        await house.reaches(request.id, Work.UNDELIVERABLE, Money.VOID)
        world.relays.confirms = lambda event: True
        await serves_on_credit(house, "second")


# --- the text -------------------------------------------------------------------------------------------------


def texts(world: World) -> tuple[int, int, int]:
    """How many requests, outputs and stored events still have their text."""
    questions = ("requests", "outputs", "outbox WHERE event_json IS NOT NULL")
    first, second, third = (rows(world.path, f"SELECT count(*) FROM {each}")[0][0] for each in questions)
    return first, second, third


@pytest.mark.parametrize("is_paid", [True, False])
async def test_the_text_is_erased_with_the_request(tmp_path: Path, is_paid: bool) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        if is_paid:
            await serves_on_credit(house, "first")
        else:
            await unpaid(house)
        await house.engine.outbox_empty()
        assert texts(world)[:2] == (1, 1)
        world.clock.advance(world.recorder.retain_plaintext_s)
        await until(lambda: texts(world) == (0, 0, 0))


async def test_a_text_that_fills_the_frame_still_fits_with_its_invoice(tmp_path: Path) -> None:
    world = on_credit(tmp_path)

    def answer(run: Run) -> None:
        run.say(*["x" * 10_000] * 8)
        run.finish()

    world.backend.answer = answer
    async with open_house(world) as house:
        request = house.ask()
        await house.reaches(request.id, Work.DELIVERED, Money.INVOICED)
        (event,) = world.relays.results(request.id)
        assert 60_000 < len(event.to_json()) <= world.runner.limit_bytes
        assert result_of(world, request).bolt11 is not None


async def test_a_limit_that_was_lowered_meanwhile_loses_the_copies_and_no_text(tmp_path: Path) -> None:
    world = on_credit(tmp_path)
    async with open_house(world) as house:
        request = await billing(house)
    world.wallet.down = False
    world.recorder = replace(world.recorder, limit_bytes=10)
    async with open_house(world) as house:
        await billed(house, request)
        (event,) = world.relays.results(request.id)
        assert event.tag("request") is None and event.content == "Echo: to be billed"
