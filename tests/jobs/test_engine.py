"""The engine with everything around it: crashes at every stage, cancellations, deadlines, full disks, old text."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from pylon.jobs import facts
from pylon.jobs.ports import BackendHealth, PaymentState
from pylon.nostr.event import Draft, Event
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import ENDED, InvoiceState, Job, Money, Work
from pylon.store.tx import Tx
from tests.support.events import CUSTOMER, STRANGER, signed
from tests.support.house import PRICE_MSATS, House, World, open_house, rows, until
from tests.support.stand_ins import FakeBackend, Hang

BIG = "x" * 30_000
"""A prompt that does not fit into a database without a free page."""


def free(path: Path) -> World:
    return World(path / "db", mode=facts.Mode.FREE)


def manual(world: World) -> World:
    world.backend.answer = None
    return world


async def running(house: House, *, paid: bool, number: int = 1) -> Event:
    """Bring a job onto its backend."""
    request = house.ask()
    if paid:
        await house.pay(request.id)
    await house.run(number)
    await house.reaches(request.id, Work.RUNNING)
    return request


async def ends_delivered(house: House, request: Event) -> Job:
    """The job ends with one result event, however often that was sent, and its money is right."""
    job = await house.reaches(request.id, Work.DELIVERED)
    assert {event.id for event in house.world.relays.results(request.id)} == {job.result_id}
    if house.world.mode is facts.Mode.PREPAY:
        assert job.money is Money.SETTLED
        (money,) = await house.settlements(request.id)
        assert (money.amount_msats, money.earned_msats) == (PRICE_MSATS, PRICE_MSATS)
    await check_money(house)
    return job


async def check_money(house: House) -> None:
    await house.check_books()
    assert house.engine.books.received_msats == house.world.wallet.received_msats


# --- crashes --------------------------------------------------------------------------------------------------


async def test_killed_while_the_invoice_is_wanted(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.down = True
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.calls["create"] >= 2)
        assert [row.state for row in await house.invoices(request.id)] == [InvoiceState.WANTED]
    world.wallet.down = False
    async with open_house(world) as house:
        await house.pay(request.id)
        await ends_delivered(house, request)
        assert len(world.wallet.made) == 1


async def test_killed_after_the_wallet_made_the_invoice_and_before_we_knew(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(Hang())
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.made)
    async with open_house(world) as house:
        await house.pay(request.id)
        await ends_delivered(house, request)
        assert len(world.wallet.made) == 1


async def test_killed_while_the_invoice_is_open_and_paid_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
    world.wallet.settle(world.wallet.made[0].payment_hash)
    async with open_house(world) as house:
        await ends_delivered(house, request)
        assert len(world.relays.feedback(request.id, FeedbackStatus.PAYMENT_REQUIRED)) == 1


async def test_a_request_for_payment_that_no_relay_confirmed_is_sent_again_as_it_was(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.relays.confirms = lambda event: False
    async with open_house(world) as house:
        await house.invoiced(house.ask().id)
    async with open_house(world) as house:
        await until(lambda: len(world.relays.durable) == 2)
        assert world.relays.durable[0] == world.relays.durable[1]
        assert house.engine.outbox_pending == 1


async def test_killed_while_queued(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.QUEUED, Money.SETTLED)
    world.backend.health = BackendHealth.READY
    async with open_house(world) as house:
        job = await ends_delivered(house, request)
        assert job.attempts == 1


@pytest.mark.parametrize("paid", [False, True])
async def test_killed_while_running(tmp_path: Path, paid: bool) -> None:
    world = manual(World(tmp_path / "db") if paid else free(tmp_path))
    async with open_house(world) as house:
        request = await running(house, paid=paid)
    assert world.backend.runs[0].closed
    world.backend.answer = FakeBackend.echo
    async with open_house(world) as house:
        job = await ends_delivered(house, request)
        assert job.attempts == 2
        first, second = await house.attempts(request.id)
        assert "stopped" in first.outcome
        assert second.outcome == "output"


async def test_killed_after_a_partial_was_sent(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
        world.backend.runs[0].say("half")
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PARTIAL))
        assert (await house.job(request.id)).partial_sent
    async with open_house(world) as house:
        run = await house.run(2)
        run.say("whole")
        run.finish()
        await ends_delivered(house, request)
        (result,) = world.relays.results(request.id)
        assert result.content == "whole"


@pytest.mark.parametrize("paid", [False, True])
async def test_killed_while_the_result_is_unconfirmed(tmp_path: Path, paid: bool) -> None:
    world = World(tmp_path / "db") if paid else free(tmp_path)
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask()
        if paid:
            await house.pay(request.id)
        await house.reaches(request.id, Work.PRODUCED)
    world.relays.confirms = lambda event: True
    async with open_house(world) as house:
        await ends_delivered(house, request)
        first, second = world.relays.results(request.id)
        assert first == second
        assert len(world.backend.runs) == 1


async def test_killed_when_everything_was_done(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await ends_delivered(house, request)
        await house.engine.outbox_empty()
    told = len(world.relays.durable)
    async with open_house(world) as house:
        await ends_delivered(house, request)
        assert house.offer(request) == "duplicate"
        await house.quiet()
        assert (len(world.relays.durable), len(world.backend.runs)) == (told, 1)
        assert len(house.engine.open_jobs) == 0


async def test_a_prompt_that_kills_us_each_time_ends_in_a_refund(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
    for number in (2, 3):
        async with open_house(world) as house:
            await house.run(number)
            await house.reaches(request.id, Work.RUNNING)
    async with open_house(world) as house:
        job = await house.reaches(request.id, Work.FAILED, Money.REFUND_DUE)
        assert job.attempts == 3
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])
        await check_money(house)
        assert len(world.backend.runs) == 3


async def test_killed_while_cancelling_the_wallet_is_still_asked(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.CANCELLING)
    world.wallet.settle(world.wallet.made[0].payment_hash)
    async with open_house(world) as house:
        await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE)
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])
        await check_money(house)


@pytest.mark.parametrize("seed", range(4))
async def test_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    """Six customers who pay what is asked; the house falls at random moments until all is done."""
    rng = random.Random(seed)
    world = World(tmp_path / "db", limit_s=60)
    world.recorder = replace(world.recorder, rules=replace(world.recorder.rules, max_attempts=4))
    paid: set[str] = set()
    requests: list[Event] = []

    async def customers(house: House) -> None:
        while True:
            for invoice in world.wallet.made:
                asked = {each.bolt11 for each in world.relays.feedback(invoice.own_id)} | published(world)
                if invoice.bolt11 in asked and invoice.payment_hash not in paid and rng.random() < 0.5:
                    paid.add(invoice.payment_hash)
                    world.wallet.settle(invoice.payment_hash, push=rng.random() < 0.5)
            world.clock.advance(0.3)  # so that what was not pushed is looked up
            await anyio.sleep(0.003)

    for _ in range(40):
        async with open_house(world) as house:
            for request in requests:  # relays send what they have again
                house.offer(request)
            if len(requests) < 6:
                requests += [house.ask(f"{seed} {len(requests)} {number}") for number in range(2)]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(customers, house)
                await anyio.sleep(rng.uniform(0, 0.08))
                tasks.cancel_scope.cancel()
            if len(requests) == 6 and not len(house.engine.open_jobs):
                break
    async with open_house(world) as house:
        for request in requests:
            house.offer(request)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(customers, house)
            await until(lambda: not len(house.engine.open_jobs), within_s=20)
            tasks.cancel_scope.cancel()
        for request in requests:
            job = await house.job(request.id)
            sent = {event.id for event in world.relays.results(request.id)}
            if job.work is Work.DELIVERED:
                assert (job.money, sent) == (Money.SETTLED, {job.result_id})
            else:
                assert (job.work, job.money, sent) == (Work.FAILED, Money.REFUND_DUE, set())
        await check_money(house)
        assert house.engine.books.in_work_msats == 0


def published(world: World) -> set[str | None]:
    """Every invoice that a customer was shown."""
    shown = [event.tag("amount") for event in world.relays.durable if event.kind == 7000]
    return {tag[2] for tag in shown if tag is not None and len(tag) > 2}


# --- cancellation ---------------------------------------------------------------------------------------------


async def test_cancelled_before_payment_is_void_after_the_wallet_was_asked(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        assert house.cancel(request.id) is None
        await house.reaches(request.id, Work.CANCELLED, Money.CANCELLING)
        asked = world.wallet.calls["look_up"]
        world.wallet.set_state(world.wallet.made[0].payment_hash, PaymentState.EXPIRED)
        world.clock.advance(3)
        await house.reaches(request.id, Work.CANCELLED, Money.VOID)
        assert world.wallet.calls["look_up"] > asked
        assert len(house.engine.open_jobs) == 0
        assert world.backend.runs == []


async def test_cancelled_before_there_is_an_invoice(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.down = True
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.calls["create"])
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.NONE)
        world.wallet.down = False
        await house.quiet()
        assert [row.state for row in await house.invoices(request.id)] == [InvoiceState.UNUSED]
        assert published(world) == set()


@pytest.mark.parametrize("paid", [False, True])
async def test_cancelled_while_queued(tmp_path: Path, paid: bool) -> None:
    world = World(tmp_path / "db") if paid else free(tmp_path)
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        request = house.ask()
        if paid:
            await house.pay(request.id)
        await house.reaches(request.id, Work.QUEUED)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE if paid else Money.NONE)
        world.backend.health = BackendHealth.READY
        other = house.ask("another")
        if paid:
            await house.pay(other.id)
        await house.reaches(other.id, Work.DELIVERED)
        await check_money(house)
        assert world.backend.prompts() == ["another"]


async def test_cancelled_before_the_first_partial_stops_the_work_and_owes_the_money(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE)
        await until(lambda: world.backend.runs[0].closed)
        await until(lambda: not any(lane.busy for lane in house.runner.lanes.values()))
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])
        assert house.engine.books.refund_due_msats == PRICE_MSATS
        await check_money(house)


async def test_cancelled_after_the_first_partial_the_charge_stands(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
        world.backend.runs[0].say("half")
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PARTIAL))
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.SETTLED)
        await until(lambda: world.backend.runs[0].closed)
        assert house.engine.books.earned_msats == PRICE_MSATS
        await check_money(house)


async def test_what_overpays_a_cancelled_stream_is_kept(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id, PRICE_MSATS + 500)
        (await house.run()).say("half")
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PARTIAL))
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.SETTLED)
        assert house.engine.books.earned_msats == PRICE_MSATS
        assert house.engine.books.deposits_msats == 500
        await check_money(house)


async def test_a_free_job_is_cancelled_without_a_word(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = await running(house, paid=False)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED, Money.NONE)
        await until(lambda: world.backend.runs[0].closed)
        assert world.relays.durable == []


async def test_only_the_customer_can_cancel(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = await running(house, paid=False)
        assert house.cancel(request.id, STRANGER) == "unknown-job"
        forged = signed(Draft(5, "", (("e", request.id),)), STRANGER)
        assert house.offer(replace(forged, pubkey=CUSTOMER.public_hex)) == "bad-signature"
        altered = replace(signed(Draft(5, "", (("e", "00" * 32),))), tags=(("e", request.id),))
        assert house.offer(altered) == "bad-signature"
        world.backend.runs[0].finish()
        await ends_delivered(house, request)


async def test_a_cancellation_after_the_result_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        job = await house.reaches(request.id, Work.PRODUCED)
        house.cancel(request.id)
        await house.quiet()
        assert await house.job(request.id) == job
        assert job.result_id is not None
        world.relays.confirm(job.result_id)
        await ends_delivered(house, request)
        assert house.cancel(request.id) == "unknown-job"


async def test_one_deletion_cancels_several_jobs(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}") for number in range(3)]
        others = house.ask("a stranger's", key=STRANGER)
        tags = tuple(("e", each.id) for each in (*requests, others))
        assert house.offer(signed(Draft(5, "", tags))) is None
        for request in requests:
            await house.reaches(request.id, Work.CANCELLED)
        assert (await house.job(others.id)).work not in ENDED


@pytest.mark.parametrize("partial", [False, True])
async def test_the_operator_cancels_and_always_owes(tmp_path: Path, partial: bool) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
        if partial:
            world.backend.runs[0].say("half")
            await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PARTIAL))
        job = await house.engine.apply(request.id, facts.Cancel(facts.CancelledBy.OPERATOR))
        assert job is not None
        assert (job.work, job.money) == (Work.CANCELLED, Money.REFUND_DUE)
        await until(lambda: world.backend.runs[0].closed)
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])


async def test_the_operator_says_that_a_free_job_is_cancelled(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = await running(house, paid=False)
        await house.engine.apply(request.id, facts.Cancel(facts.CancelledBy.OPERATOR))
        await until(lambda: world.relays.errors(request.id) == ["cancelled"])


# --- deadlines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timeout_s", "expires_in_s", "deadline_in_s"), [(500, 200, 200), (200, 500, 200)])
async def test_the_deadline_is_the_lesser_of_setting_and_expiration(
    tmp_path: Path, timeout_s: int, expires_in_s: int, deadline_in_s: int
) -> None:
    world = manual(free(tmp_path))
    world.intake = replace(world.intake, job_timeout_s=timeout_s)
    now = int(world.clock.now)
    async with open_house(world) as house:
        request = house.ask(expires_at=now + expires_in_s)
        job = await house.reaches(request.id, Work.RUNNING)
        assert job.deadline_at == now + deadline_in_s
        world.clock.advance(deadline_in_s - 1)
        await anyio.sleep(0.05)
        assert (await house.job(request.id)).work is Work.RUNNING
        world.clock.advance(1)
        await house.reaches(request.id, Work.EXPIRED, Money.NONE)
        await until(lambda: world.backend.runs[0].closed)
        await until(lambda: world.relays.errors(request.id) == ["expired"])


async def test_expired_while_waiting_for_the_invoice(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.wallet.create_faults.append(Hang())
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.wallet.made)
        world.clock.advance(3_600)
        await house.reaches(request.id, Work.EXPIRED, Money.NONE)
        await until(lambda: world.relays.errors(request.id) == ["expired"])


async def test_expired_while_waiting_for_payment_is_void_after_the_wallet_was_asked(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask(expires_at=int(world.clock.now) + 120)
        await house.invoiced(request.id)
        world.wallet.down = True
        world.clock.advance(120)
        await house.reaches(request.id, Work.EXPIRED, Money.CANCELLING)
        for number in range(1, 5):  # long past its expiry, it is asked about again and again
            world.clock.advance(600)
            await until(lambda number=number: world.wallet.calls["look_up"] >= number)  # type: ignore[misc]
        assert (await house.job(request.id)).money is Money.CANCELLING
        world.wallet.down = False
        world.clock.advance(600)
        await house.reaches(request.id, Work.EXPIRED, Money.VOID)


async def test_paid_and_expired_while_queued_is_owed_back(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.QUEUED)
        world.clock.advance(3_600)
        await house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await until(lambda: world.relays.errors(request.id) == ["refund-due"])
        await check_money(house)


async def test_expired_while_we_were_away(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
    world.clock.advance(4_000)
    async with open_house(world) as house:
        await house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await check_money(house)


async def test_a_result_that_no_relay_takes_is_owed_back(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.relays.hold_results()
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        job = await house.reaches(request.id, Work.PRODUCED)
        assert job.result_id is not None
        assert world.relays.deadlines[job.result_id] == world.clock.now + world.recorder.delivery_timeout_s
        world.clock.advance(10_000)  # the job's own deadline does not matter any more
        await house.quiet()
        world.relays.give_up(job.result_id)
        await house.reaches(request.id, Work.UNDELIVERABLE, Money.REFUND_DUE)
        assert house.engine.dead_letters == 1
        world.relays.confirm(job.result_id)  # too late
        await house.quiet()
        assert (await house.job(request.id)).work is Work.UNDELIVERABLE
        await check_money(house)
        await until(lambda: house.engine.outbox_pending == 0)  # confirmations are stored a moment later
    async with open_house(world) as house:
        assert house.engine.dead_letters == 1
        assert house.engine.outbox_pending == 0


# --- disks ----------------------------------------------------------------------------------------------------


async def test_a_job_for_which_there_is_no_room_is_refused_and_others_go_on(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        await house.fill_disk()
        lost = house.ask(BIG)
        await until(lambda: world.relays.errors(lost.id) == ["internal"])
        assert house.engine.open_jobs.get(lost.id) is None
        assert await house.read(lambda tx: tx.job(lost.id)) is None
        assert [lane.busy for lane in house.runner.lanes.values()] == [0]
        await house.free_disk()
        await until(lambda: house.intake.paused is None)
        await house.reaches(house.ask(BIG + "again").id, Work.DELIVERED)


async def test_intake_is_paused_with_a_reason_while_nothing_can_be_written(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        world.disk.broken = True
        lost = house.ask("lost")
        await until(lambda: house.intake.paused)
        assert house.intake.paused == "the database cannot be written"
        await until(lambda: world.relays.errors(lost.id) == ["internal"])
        for number in range(30):  # the engine reads meanwhile, which succeeds and says nothing about writing
            refused = house.ask(f"refused {number}")
            assert world.relays.errors(refused.id) == ["paused"]
            await anyio.sleep(0.003)
        assert world.backend.runs == []
        world.disk.broken = False
        await until(lambda: house.intake.paused is None)
        await house.reaches(house.ask("taken").id, Work.DELIVERED)


async def test_money_that_arrives_while_the_disk_is_full_is_booked_when_there_is_room(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.disk.broken = True
        await house.pay(request.id)
        await until(lambda: house.engine.faults["StoreUnavailable"] >= 2)
        assert house.engine.books.received_msats == 0
        assert house.intake.paused
        world.disk.broken = False
        await ends_delivered(house, request)
        assert house.intake.paused is None


async def test_a_result_made_while_the_disk_is_full_is_stored_when_there_is_room(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = await running(house, paid=True)
        await house.fill_disk()
        world.backend.runs[0].say(BIG)
        world.backend.runs[0].finish()
        await until(lambda: house.engine.faults["StoreUnavailable"])
        assert house.intake.paused
        assert world.relays.results(request.id) == []
        await house.free_disk()
        await ends_delivered(house, request)
        assert world.backend.at_once == 0
        assert len(world.backend.runs) == 1


async def test_a_confirmation_and_a_cancellation_wait_for_the_disk(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.relays.hold_results()
    async with open_house(world) as house:
        produced, waiting = house.ask("first"), house.ask("second")
        await house.pay(produced.id)
        await house.invoiced(waiting.id)
        job = await house.reaches(produced.id, Work.PRODUCED)
        assert job.result_id is not None
        world.disk.broken = True
        world.relays.confirm(job.result_id)
        house.cancel(waiting.id)
        await until(lambda: house.engine.faults["StoreUnavailable"] >= 4)
        world.disk.broken = False
        await ends_delivered(house, produced)
        await house.reaches(waiting.id, Work.CANCELLED, Money.CANCELLING)


async def test_a_crash_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        world.disk.broken = True
        await house.pay(request.id)
        await until(lambda: house.engine.faults["StoreUnavailable"])
    world.disk.broken = False
    async with open_house(world) as house:
        await ends_delivered(house, request)


# --- what is kept ---------------------------------------------------------------------------------------------

PROMPT, OUTPUT = "a prompt that nobody else may read", "an answer that nobody else may read"


def texts(path: Path) -> str:
    """Everything that is in any row."""
    tables = [name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return repr([rows(path, f"SELECT * FROM {name}") for name in tables])


async def test_text_is_erased_after_its_time_and_ids_and_amounts_stay(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    world.recorder = replace(world.recorder, retain_plaintext_s=100)
    async with open_house(world) as house:
        request = house.ask(PROMPT)
        await house.pay(request.id)
        run = await house.run()
        run.say(OUTPUT)
        run.finish()
        job = await ends_delivered(house, request)
        await house.engine.outbox_empty()
        world.clock.advance(99)
        await anyio.sleep(0.06)
        assert PROMPT in texts(world.path) and OUTPUT in texts(world.path)
        world.clock.advance(2)
        await until(lambda: PROMPT not in texts(world.path))
        left = texts(world.path)
        assert OUTPUT not in left
        for kept in (request.id, str(job.result_id), str(PRICE_MSATS), world.wallet.made[0].payment_hash):
            assert kept in left
        after = await house.job(request.id)
        assert replace(after, purge_at=None) == replace(job, purge_at=None)
        assert [line.entry for line in await house.read(lambda tx: tx.journal_of(request.id))]
    async with open_house(world) as house:
        assert house.offer(request) == "duplicate"
        await check_money(house)


async def test_the_text_of_an_unfinished_job_stays(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    world.recorder = replace(world.recorder, retain_plaintext_s=0)
    async with open_house(world) as house:
        request = house.ask(PROMPT)
        await house.pay(request.id)
        await house.run()
        world.clock.advance(1_000)
        await anyio.sleep(0.06)
        assert PROMPT in texts(world.path)


async def test_erasing_does_not_spin_on_what_is_still_being_sent(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.recorder = replace(world.recorder, retain_plaintext_s=0)
    world.backend.answer = lambda run: run.break_off()
    world.relays.confirms = lambda event: False
    calls = 0
    purge = Tx.purge

    def counted(tx: Tx, *args: Any) -> int:
        nonlocal calls
        calls += 1
        return purge(tx, *args)

    with patch("pylon.jobs.engine._PURGE_AT_ONCE", 2), patch.object(Tx, "purge", counted):
        async with open_house(world) as house:
            for number in range(4):
                await house.reaches(house.ask(f"number {number}").id, Work.FAILED)
            world.clock.advance(10)
            calls = 0
            await anyio.sleep(0.2)
            assert calls <= 15


# --- memory ---------------------------------------------------------------------------------------------------


async def test_what_memory_counts_is_what_is_stored(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        paid, unpaid, cancelled = house.ask("a"), house.ask("b"), house.ask("c")
        await house.pay(paid.id)
        await house.invoiced(unpaid.id)
        await house.invoiced(cancelled.id)
        house.cancel(cancelled.id)
        await house.reaches(cancelled.id, Work.CANCELLED)
        await ends_delivered(house, paid)
        stored = await house.read(lambda tx: tx.counts())
        assert dict(house.engine.counts) == stored
        await house.engine.outbox_empty()
        assert {job.id for job in house.engine.open_jobs} == {unpaid.id, cancelled.id}
    async with open_house(world) as house:
        assert dict(house.engine.counts) == stored
        assert {job.id for job in house.engine.open_jobs} == {unpaid.id, cancelled.id}
        await house.check_books()


async def test_a_graceful_stop_delivers_what_was_running(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = await running(house, paid=False)
        world.backend.runs[0].finish()
        await house.runner.drain()
        await house.engine.outbox_empty()
        assert world.relays.results(request.id)
        assert (await house.job(request.id)).work is Work.DELIVERED
