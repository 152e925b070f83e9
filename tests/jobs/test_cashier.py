"""The till: invoices made once whatever the wallet does, money booked once however it is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from pylon.jobs import facts
from pylon.jobs.cashier import judge
from pylon.jobs.engine import Engine
from pylon.jobs.ports import Invoice, InvoiceRequest, PaymentState
from pylon.nostr.event import Event
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import InvoiceRow, InvoiceState, Money, Work
from tests.support.events import CUSTOMER, STRANGER
from tests.support.house import PRICE_MSATS, House, World, open_house, rows, until
from tests.support.stand_ins import RELAY, Ambiguous, Bug, CreateFault, FakeBackend, Hang, Lie, Refusal, Unavailable


async def ends_paid(house: House, request: Event, *, received_msats: int = PRICE_MSATS) -> None:
    """The job is delivered, and its price is earned once."""
    await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
    assert house.engine.books.received_msats == received_msats
    assert house.engine.books.earned_msats == PRICE_MSATS
    assert len(house.world.backend.runs) == 1
    await house.check_books()


def published(world: World, request: Event) -> list[str | None]:
    """The invoices that a customer was asked to pay."""
    return [each.bolt11 for each in world.relays.feedback(request.id, FeedbackStatus.PAYMENT_REQUIRED)]


async def asked_again(world: World, times: int = 1) -> None:
    """Let the clock run until the wallet was asked about its invoices so many times more."""
    calls = world.wallet.calls
    for wanted in range(calls["look_up"] + 1, calls["look_up"] + times + 1):
        world.clock.advance(world.cashier.lookup_max_s * 2)
        await until(partial(lambda number: calls["look_up"] >= number, wanted))


async def states(house: House, request: Event) -> list[InvoiceState]:
    return [row.state for row in await house.invoices(request.id)]


# --- asking for payment ---------------------------------------------------------------------------------------


async def test_the_intent_is_committed_before_the_wallet_is_called(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    seen: list[tuple[object, ...]] = []

    def look(request: InvoiceRequest) -> None:
        sql = "SELECT own_id, state, amount_msats FROM invoices"
        seen.extend(rows(world.path, sql))
        assert request.own_id == seen[-1][0]

    world.wallet.on_create = look
    async with open_house(world) as house:
        await house.invoiced(house.ask().id)
    assert [row[1:] for row in seen] == [("wanted", PRICE_MSATS)]


async def test_a_customer_is_told_amount_invoice_eta_and_expiry(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        asked = await house.invoiced(request.id)
        (event,) = world.relays.durable
        assert event.tag("e") == ("e", request.id, RELAY)
        assert event.tag("p") == ("p", CUSTOMER.public_hex)
        assert asked.amount_msats == PRICE_MSATS
        assert asked.bolt11 == world.wallet.made[0].bolt11
        assert "2 sats" in asked.info
        assert re.search(r"before 2027-01-15 08:10:00 UTC", asked.info)  # ten minutes from now
        assert world.wallet.requests[0].expiry_s == 600
        # Nobody needs the request for payment any longer than the invoice.
        assert world.relays.deadlines[event.id] == world.wallet.made[0].expires_at
        assert world.backend.runs == []


async def test_the_eta_counts_those_who_wait(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        (lane,) = house.runner.lanes.values()
        lane.attempt_s = 7.0
        assert "7 s" in (await house.invoiced(house.ask("first").id)).info
        lane.places[0].busy = 1
        assert "14 s" in (await house.invoiced(house.ask("second").id)).info
        lane.places[0].busy = 0


async def test_an_invoice_leaves_time_to_work_before_the_deadline(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await house.invoiced(house.ask(expires_at=int(world.clock.now) + 200).id)
        assert world.wallet.requests[0].expiry_s == 200 - world.recorder.min_work_s


# --- being paid -----------------------------------------------------------------------------------------------


async def test_paid_by_push(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        payment_hash = await house.pay(request.id)
        await ends_paid(house, request)
        assert world.wallet.calls["look_up"] == 0
        (money,) = await house.settlements(request.id)
        assert money.payment_hash == payment_hash
        assert await states(house, request) == [InvoiceState.PAID]
        await until(lambda: house.cashier is not None and house.cashier.watching == 0)


async def test_paid_and_found_only_by_looking(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id, push=False)
        world.clock.advance(2)
        await ends_paid(house, request)


async def test_told_again_and_again_it_is_booked_once(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        payment_hash = await house.pay(request.id, push=False)
        world.clock.advance(2)  # a look-up is due
        for _ in range(3):
            world.wallet.push(payment_hash, PRICE_MSATS)
        world.wallet.break_streams()  # the wallet's own list comes on top
        await ends_paid(house, request)
        world.wallet.push(payment_hash, PRICE_MSATS)
        await until(lambda: world.wallet.calls["list"] >= 2)
        await house.quiet()
        assert len(await house.settlements(request.id)) == 1
        await ends_paid(house, request)
    async with open_house(world) as house:
        await until(lambda: world.wallet.calls["list"] >= 3)
        await house.quiet()
        await ends_paid(house, request)


async def test_what_is_too_much_is_kept_for_the_next_job(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id, PRICE_MSATS + 1)
        await ends_paid(house, request, received_msats=PRICE_MSATS + 1)
        assert house.engine.books.deposits_msats == 1


@pytest.mark.parametrize("push", [False, True])
async def test_too_little_is_owed_back_and_nothing_runs(tmp_path: Path, push: bool) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id, PRICE_MSATS - 1, push=push)
        world.clock.advance(2)
        await house.reaches(request.id, Work.FAILED, Money.REFUND_DUE)
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])
        (said,) = world.relays.feedback(request.id, FeedbackStatus.ERROR)
        assert "1999" in said.info and "2000" in said.info
        assert house.engine.books.refund_due_msats == PRICE_MSATS - 1
        assert world.backend.runs == []
        await house.check_books()


async def test_a_settlement_that_is_not_ours_is_ignored_and_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        await until(lambda: world.wallet.listeners)
        world.wallet.push("ee" * 32, 5_000)
        assert house.cashier is not None
        await until(lambda: house.cashier is not None and house.cashier.counters["foreign settlement"])
        assert house.engine.books.received_msats == 0
        await house.pay(request.id)
        await ends_paid(house, request)


async def test_a_push_that_breaks_is_opened_again_and_what_was_missed_is_found(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        await until(lambda: world.wallet.listeners)
        world.wallet.settle(world.wallet.made[0].payment_hash, push=False)
        world.wallet.break_streams()
        await ends_paid(house, request)
        assert world.wallet.calls["settlements"] >= 2


async def test_money_seen_while_nothing_can_be_stored_survives_a_broken_push(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        await until(lambda: world.wallet.listeners)
        lists = world.wallet.calls["list"]
        world.disk.broken = True
        world.wallet.settle(world.wallet.made[0].payment_hash, push=False)
        world.wallet.break_streams()
        await until(lambda: world.wallet.calls["list"] > lists)  # the list has told it; it cannot be stored
        await until(lambda: house.engine.faults["StoreUnavailable"])
        world.wallet.made[0] = replace(world.wallet.made[0], created_at=0)  # and will not tell it again
        await until(lambda: world.wallet.listeners)
        world.wallet.break_streams()
        await until(lambda: world.wallet.calls["list"] > lists + 1)
        world.disk.broken = False
        world.clock.advance(5)
        await ends_paid(house, request)


# --- making ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_after_an_ambiguous_answer_our_own_id_is_looked_for_first(tmp_path: Path, times: int) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(Ambiguous(times))
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await ends_paid(house, request)
        assert len(published(world, request)) == 1
        assert len(world.wallet.made) == max(times, 1)
        assert len({each.own_id for each in world.wallet.made}) == 1
        assert world.wallet.calls["find"] == 1


async def test_while_the_wallet_cannot_say_no_second_invoice_is_made(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(Ambiguous(1))
    world.wallet.down_for_find = True
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.calls["find"] >= 4)
        assert world.wallet.calls["create"] == 1
        world.wallet.down_for_find = False
        await house.pay(request.id)
        await ends_paid(house, request)
        assert len(world.wallet.made) == 1


async def test_a_bug_in_a_wallet_costs_neither_the_daemon_nor_the_job(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.cashier = replace(world.cashier, retry_max_s=0.01)
    world.wallet.create_faults.append(Bug())
    async with open_house(world) as house:
        request = house.ask()
        invoice = await house.invoiced(request.id)
        assert invoice.bolt11 is not None
        assert house.cashier is not None
        assert house.cashier.counters["fault"] == 1
        world.wallet.settle(world.wallet.made[0].payment_hash)
        await ends_paid(house, request)


async def test_a_wallet_that_is_down_makes_the_invoice_later(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.extend([Unavailable(), Unavailable(), Unavailable()])
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await ends_paid(house, request)
        assert world.wallet.calls["create"] == 4
        assert house.cashier is not None
        assert house.cashier.counters["WalletUnavailable"] == 3


async def test_a_wallet_that_stays_down_ends_the_job_in_time(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.extend([Unavailable()] * 10_000)
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.calls["create"] >= 2)
        world.clock.advance(590)
        await house.reaches(request.id, Work.FAILED, Money.NONE)
        await until(lambda: world.relays.errors(request.id) == ["payment-unavailable"])
        assert await states(house, request) == [InvoiceState.UNUSED]


HOUR_OLD = Lie(age_s=3_600)


@pytest.mark.parametrize(
    "fault",
    [
        Refusal(),
        Lie(amount_msats=PRICE_MSATS + 1_000),
        Lie(amount_msats=PRICE_MSATS - 1_000),
        Lie(no_amount=True),
        Lie(currency="bc"),
        Lie(currency="tb"),
        Lie(other_hash=True),
        HOUR_OLD,
        Lie(text="lnbcrt1garbage"),
        Lie(text=""),
        Lie(text="\x1b[2J not an invoice"),
        Lie(description="longer than a relay's event should carry " * 30),
    ],
    ids=lambda fault: repr(fault)[:60],
)
async def test_an_invoice_that_is_not_what_was_asked_for_is_never_published(
    tmp_path: Path, fault: CreateFault
) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(fault)
    async with open_house(world) as house:
        request = house.ask()
        await house.reaches(request.id, Work.FAILED, Money.NONE)
        await until(lambda: world.relays.errors(request.id) == ["payment-unavailable"])
        assert published(world, request) == []
        assert await states(house, request) == [InvoiceState.UNUSED]
        assert len(house.engine.open_jobs) == 0
        again = house.ask("another")
        await house.pay(again.id)
        await ends_paid(house, again)


async def test_an_invoice_in_upper_case_is_published_as_clients_read_it(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(Lie(upper_case=True))
    async with open_house(world) as house:
        request = house.ask()
        asked = await house.invoiced(request.id)
        assert asked.bolt11 is not None
        assert asked.bolt11.startswith("lnbcrt")
        world.wallet.settle(world.wallet.made[0].payment_hash, push=True)
        await ends_paid(house, request)


async def test_an_invoice_that_is_another_jobs_is_never_published(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        first = house.ask("first")
        await house.invoiced(first.id)
        world.wallet.create_faults.append(Lie(repeats=True))
        second = house.ask("second", key=STRANGER)
        await house.reaches(second.id, Work.FAILED, Money.NONE)
        await until(lambda: world.relays.errors(second.id) == ["payment-unavailable"])
        assert published(world, second) == []
        await house.pay(first.id)
        await ends_paid(house, first)


async def test_an_invoice_made_for_a_job_that_ended_meanwhile_is_not_published(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    gate = anyio.Event()
    create = world.wallet.create_invoice

    async def slowly(request: InvoiceRequest) -> Invoice:
        invoice = await create(request)
        await gate.wait()
        return invoice

    world.wallet.create_invoice = slowly  # type: ignore[method-assign]
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.made)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.NONE)
        gate.set()
        (row,) = await until_row(house, request)
        assert row.state is InvoiceState.UNUSED
        assert published(world, request) == []
        # Should the wallet settle it regardless, the money finds its job.
        await until(lambda: world.wallet.listeners)
        world.wallet.settle(world.wallet.made[0].payment_hash)
        await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE)
        await house.check_books()


async def until_row(house: House, request: Event) -> list[InvoiceRow]:
    """Wait until the invoice's payment hash is stored."""
    with anyio.fail_after(5):
        while True:
            found = await house.invoices(request.id)
            if found[0].payment_hash is not None:
                return found
            await anyio.sleep(0.002)


async def test_slow_invoices_do_not_hold_up_the_others(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.extend([Hang(), Hang()])
    async with open_house(world) as house:
        for number in range(2):
            house.ask(f"hangs {number}")
        await until(lambda: len(world.wallet.made) == 2)
        request = house.ask("goes on")
        await house.pay(request.id)
        await ends_paid(house, request)


# --- ends -----------------------------------------------------------------------------------------------------


async def test_an_invoice_that_expires_is_void_once_the_wallet_was_asked(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.clock.advance(599)
        await until(lambda: world.wallet.calls["look_up"])
        assert (await house.job(request.id)).money is Money.INVOICED
        world.wallet.down = True
        await asked_again(world, 3)  # long expired, and nobody knows whether it was paid
        assert (await house.job(request.id)).money is Money.INVOICED
        world.wallet.down = False
        await asked_again(world)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)
        await until(lambda: world.relays.errors(request.id) == ["expired"])
        assert await states(house, request) == [InvoiceState.DEAD]
        assert len(house.engine.open_jobs) == 0


async def test_paid_at_the_last_moment_and_told_after_the_expiry(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.clock.advance(599)
        await house.pay(request.id, push=False)
        world.clock.advance(50)  # expired, within the grace
        await ends_paid(house, request)


async def test_paid_after_it_was_void_is_owed_and_said(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.clock.advance(700)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)
        await house.pay(request.id)
        await house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await until(lambda: world.relays.errors(request.id) == ["expired", "refund-due"])
        assert house.engine.books.refund_due_msats == PRICE_MSATS
        assert world.backend.runs == []
        await house.check_books()


async def test_paid_after_it_was_void_and_told_by_nobody(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.cashier = replace(world.cashier, catch_up_s=0.01)
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.clock.advance(700)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)
        await house.pay(request.id, push=False)
        await house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await house.check_books()


async def test_paid_after_it_was_void_while_we_were_away(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.clock.advance(700)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)
    world.wallet.settle(world.wallet.made[0].payment_hash)
    async with open_house(world) as house:
        await house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await house.check_books()


async def test_a_forgotten_invoice_counts_as_lost_after_three_answers(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.wallet.forgotten.add(world.wallet.made[0].payment_hash)
        await asked_again(world, 2)
        await house.quiet()
        assert await states(house, request) == [InvoiceState.OPEN]
        await asked_again(world)
        asked = await house.invoiced(request.id, number=2)
        assert asked.bolt11 == world.wallet.made[1].bolt11
        assert await states(house, request) == [InvoiceState.DEAD, InvoiceState.OPEN]
        await house.pay(request.id, number=2)
        await ends_paid(house, request)


async def test_an_invoice_forgotten_for_a_moment_is_not_lost(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        payment_hash = world.wallet.made[0].payment_hash
        for _ in range(2):
            world.wallet.forgotten.add(payment_hash)
            await asked_again(world, 2)
            world.wallet.forgotten.discard(payment_hash)
            await asked_again(world)
        await house.pay(request.id)
        await ends_paid(house, request)
        assert len(published(world, request)) == 1


async def test_a_wallet_that_forgets_every_invoice_is_asked_for_so_many_and_no_more(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.cashier = replace(world.cashier, lookup_min_s=0.2, lookup_max_s=1.0)
    async with open_house(world) as house:
        request = house.ask()
        for number in (1, 2, 3):
            await house.invoiced(request.id, number)
            world.wallet.forgotten.add(world.wallet.made[-1].payment_hash)
            await asked_again(world, 3)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)
        await until(lambda: world.relays.errors(request.id) == ["expired"])
        assert len(world.wallet.made) == 3
        assert await states(house, request) == [InvoiceState.DEAD] * 3


async def test_an_invoice_that_the_wallet_closed_early_is_replaced(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.wallet.set_state(world.wallet.made[0].payment_hash, PaymentState.FAILED)
        await asked_again(world)
        await house.pay(request.id, number=2)
        await ends_paid(house, request)


async def test_the_second_invoice_of_a_job_pays_for_the_next_when_it_is_paid_too(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        first = world.wallet.made[0].payment_hash
        world.wallet.set_state(first, PaymentState.FAILED)
        await asked_again(world)
        await house.pay(request.id, number=2)
        await ends_paid(house, request)
        world.wallet.settle(first)
        await until(lambda: house.engine.books.received_msats == 2 * PRICE_MSATS)
        await ends_paid(house, request, received_msats=2 * PRICE_MSATS)
        assert house.engine.books.deposits_msats == PRICE_MSATS


async def test_a_lost_invoice_that_is_paid_after_all_is_taken(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        first = world.wallet.made[0].payment_hash
        world.wallet.set_state(first, PaymentState.FAILED)
        await asked_again(world)
        await house.invoiced(request.id, number=2)
        world.wallet.settle(first)
        await ends_paid(house, request)
        assert await states(house, request) == [InvoiceState.PAID, InvoiceState.CLOSING]
        # The second one is watched to its end, although nobody wants it any more.
        world.clock.advance(700)
        await until(lambda: house.cashier is not None and house.cashier.watching == 0)
        assert await states(house, request) == [InvoiceState.PAID, InvoiceState.DEAD]


async def test_a_job_that_no_longer_wants_its_invoice_has_the_wallet_asked_at_once(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.wallet.set_state(world.wallet.made[0].payment_hash, PaymentState.EXPIRED)
        house.cancel(request.id)  # the clock stands still
        await house.reaches(request.id, Work.CANCELLED, Money.VOID)


async def test_a_wallet_error_closes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.wallet.down = True
        await asked_again(world, 8)
        assert await states(house, request) == [InvoiceState.OPEN]
        assert (await house.job(request.id)).money is Money.INVOICED


async def test_many_invoices_are_looked_up_side_by_side(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.policy = replace(world.policy, max_open_invoices_per_customer=100)
    world.backend.answer = FakeBackend.echo
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}") for number in range(30)]
        for request in requests:
            await house.pay(request.id, push=False)
        assert house.cashier is not None
        await until(lambda: house.cashier is not None and house.cashier.watching == 30)
        world.clock.advance(2)
        for request in requests:
            await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        assert house.engine.books.earned_msats == 30 * PRICE_MSATS
        assert house.cashier.watching == 0
        await house.check_books()


# --- what an answer means -------------------------------------------------------------------------------------

ROW = InvoiceRow("own", "01" * 32, 1, 2_000, 100, 700, InvoiceState.OPEN, "ab" * 32, "lnbcrt1")
GRACE_S = 60.0
ALIVE: Sequence[tuple[int, float, PaymentState | None]] = [
    (0, 700 - 1, PaymentState.PENDING),
    (9, 700 - 1, PaymentState.PENDING),
    (0, 700 + 59, PaymentState.PENDING),
    (0, 700 + 59, PaymentState.EXPIRED),
    (0, 700 + 59, PaymentState.FAILED),
    (0, 100, PaymentState.UNKNOWN),
    (1, 100, None),
    (2, 700, None),
    (9, 700 + 59, PaymentState.UNKNOWN),
]
LOST: Sequence[tuple[int, float, PaymentState | None]] = [
    (2, 100, None),
    (2, 699, PaymentState.UNKNOWN),
    (0, 699, PaymentState.EXPIRED),
    (0, 100, PaymentState.FAILED),
]
EXPIRED: Sequence[tuple[int, float, PaymentState | None]] = [
    (0, 760, PaymentState.PENDING),
    (0, 760, PaymentState.EXPIRED),
    (0, 760, PaymentState.FAILED),
    (0, 760, PaymentState.UNKNOWN),
    (0, 760, None),
    (5, 10_000, None),
]


@pytest.mark.parametrize(
    ("unknown_before", "now", "state", "verdict"),
    [
        *((*case, None) for case in ALIVE),
        *((*case, facts.InvoiceDead("ab" * 32, lost_early=True)) for case in LOST),
        *((*case, facts.InvoiceDead("ab" * 32, lost_early=False)) for case in EXPIRED),
    ],
)
def test_what_an_unpaid_answer_means(
    unknown_before: int, now: float, state: PaymentState | None, verdict: facts.InvoiceDead | None
) -> None:
    answer = None if state is None else Invoice("own", "ab" * 32, "lnbcrt1", 2_000, 100, 700, state)
    assert judge(ROW, answer, unknown_before=unknown_before, now=now, grace_s=GRACE_S) == verdict


async def test_the_list_is_read_whole_and_what_is_booked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        for number in range(5):
            await house.pay(house.ask(f"paid {number}").id)
        last = house.ask("paid while we are dead")
        asked = await house.invoiced(last.id)
        await until(lambda: house.engine.books.received_msats == 5 * PRICE_MSATS)
    late = next(each.payment_hash for each in world.wallet.made if each.bolt11 == asked.bolt11)
    world.wallet.settle(late, push=False)
    handed_on: list[str] = []
    received = Engine.received

    async def noted(self: Engine, payment_hash: str, amount_msats: int, settled_at: int) -> bool:
        handed_on.append(payment_hash)
        return await received(self, payment_hash, amount_msats, settled_at)

    monkeypatch.setattr(Engine, "received", noted)
    world.cashier = replace(world.cashier, catch_up_s=0.01)
    async with open_house(world) as house:
        await house.reaches(last.id, Work.DELIVERED, Money.SETTLED)
        lists = world.wallet.calls["list"]
        await until(lambda: world.wallet.calls["list"] > lists + 3)
        assert set(handed_on) == {late}
