"""What customers pay beyond a price: kept, used first for their next job, and given back when that one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon.jobs import facts
from pylon.jobs.ports import BackendRefused
from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import Event
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import Money, Work
from tests.support.events import CUSTOMER, STRANGER
from tests.support.house import PRICE_MSATS, House, World, open_house, until

SAT = 1_000


async def deposit(house: House, amount_msats: int) -> None:
    """Have a job done, and pay so much more than its price."""
    before = house.engine.books.deposits_msats
    request = house.ask(f"A job that is paid {amount_msats} msats too much.")
    await house.pay(request.id, PRICE_MSATS + amount_msats)
    await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
    await house.check_books()
    assert house.engine.books.deposits_msats == before + amount_msats


async def kept(house: House) -> int:
    return await house.read(lambda tx: tx.deposit_of(CUSTOMER.public_hex))


def successes(world: World, request: Event) -> list[str]:
    return [each.info for each in world.relays.feedback(request.id, FeedbackStatus.SUCCESS)]


async def test_what_covers_the_next_job_needs_no_invoice(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, PRICE_MSATS + 300)
        made = len(world.wallet.made)
        request = house.ask("next")
        job = await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        assert job.deposit_msats == PRICE_MSATS
        assert len(world.wallet.made) == made
        assert await kept(house) == 300
        books = house.engine.books
        assert (books.earned_msats, books.deposits_msats, books.refund_due_msats) == (2 * PRICE_MSATS, 300, 0)
        assert books.received_msats == 2 * PRICE_MSATS + 300
        await house.check_books()
        await until(lambda: successes(world, request))
        assert f"{PRICE_MSATS} of them came from your deposit" in successes(world, request)[0]
        assert "300 msats" in successes(world, request)[0]


async def test_what_covers_a_part_is_invoiced_for_the_rest_in_whole_sats(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, SAT + 999)
        request = house.ask("next")
        asked = await house.invoiced(request.id)
        assert asked.amount_msats == PRICE_MSATS - SAT
        assert asked.bolt11 is not None and read_invoice(asked.bolt11).amount_msats == PRICE_MSATS - SAT
        assert "Your deposit pays the other 1 sat." in asked.info
        assert house.engine.books.in_work_msats == SAT
        await house.check_books()
        await house.pay(request.id)
        await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        assert house.engine.books.earned_msats == 2 * PRICE_MSATS
        assert await kept(house) == 999
        await house.check_books()


async def test_it_is_used_by_nobody_else(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, PRICE_MSATS)
        other = house.ask("another customer", key=STRANGER)
        assert (await house.invoiced(other.id)).amount_msats == PRICE_MSATS


async def test_two_requests_at_once_use_it_once(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, PRICE_MSATS)
        first, second = house.ask("first"), house.ask("second")
        await house.reaches(first.id, Work.DELIVERED, Money.SETTLED)
        assert (await house.invoiced(second.id)).amount_msats == PRICE_MSATS
        assert await kept(house) == 0
        await house.check_books()


@pytest.mark.parametrize("part", [True, False])
async def test_an_unpaid_or_failed_job_gives_it_back(tmp_path: Path, part: bool) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        held = SAT if part else PRICE_MSATS
        await deposit(house, held)
        world.backend.answer = None
        request = house.ask("next")
        if part:
            await house.invoiced(request.id)
            house.cancel(request.id)
            await house.reaches(request.id, Work.CANCELLED)
        else:
            (await house.run(2)).fail(BackendRefused("the prompt is too long"))
            job = await house.reaches(request.id, Work.FAILED, Money.VOID)
            assert job.deposit_msats == 0
            await until(lambda: world.relays.errors(request.id) == ["failed"])
        assert await kept(house) == held
        assert house.engine.books.deposits_msats == held
        await house.check_books()


async def test_a_paid_part_is_refunded_and_the_rest_given_back(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, SAT)
        world.backend.answer = None
        request = house.ask("next")
        await house.pay(request.id)
        (await house.run(2)).fail(BackendRefused("the prompt is too long"))
        await house.reaches(request.id, Work.FAILED, Money.REFUND_DUE)
        books = house.engine.books
        assert (books.refund_due_msats, books.deposits_msats) == (PRICE_MSATS - SAT, SAT)
        await house.check_books()


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, SAT)
        await house.invoiced(house.ask("holds it").id)
        await deposit(house, 2 * SAT + 5)
    async with open_house(world) as house:
        assert await kept(house) == 2 * SAT + 5
        await house.check_books()


async def test_a_postpaid_job_uses_it_too(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        await deposit(house, PRICE_MSATS)
    world.mode = facts.Mode.POSTPAY
    world.credit = type(world.credit)(credit_msats=10_000, max_credit_msats=10_000, daily_msats=10_000)
    async with open_house(world) as house:
        made = len(world.wallet.made)
        request = house.ask("next")
        job = await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        assert job.deposit_msats == job.price_msats == PRICE_MSATS
        assert len(world.wallet.made) == made
        assert await kept(house) == 0
        await house.check_books()


# --- zaps -----------------------------------------------------------------------------------------------------


async def reply_to(world: World, request: Event) -> str:
    """The id of the event that asked for payment."""

    def found() -> str | None:
        return next((each.id for each in world.relays.durable if each.tag_values("e") == [request.id]), None)

    return await until(found)


async def zap(house: House, event_id: str, amount_msats: int, payer: str, number: int = 1) -> bool:
    return await house.engine.zapped(event_id, f"{number:064x}", amount_msats, int(house.world.clock.now), payer)


async def test_a_zap_of_the_price_pays_for_the_job_and_the_rest_is_a_tip(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        event_id = await reply_to(world, request)
        assert await zap(house, event_id, PRICE_MSATS + 500, STRANGER.public_hex)
        assert await zap(house, event_id, PRICE_MSATS + 500, STRANGER.public_hex)
        await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        (settlement,) = await house.settlements(request.id)
        assert (settlement.earned_msats, settlement.tip_msats) == (PRICE_MSATS, 500)
        assert house.engine.books.earned_msats == PRICE_MSATS + 500
        await house.check_books()


@pytest.mark.parametrize("payer", [CUSTOMER, STRANGER])
async def test_a_zap_below_the_price_moves_nothing(tmp_path: Path, payer: object) -> None:
    by_customer = payer is CUSTOMER
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.invoiced(request.id)
        zapper = CUSTOMER if by_customer else STRANGER
        await zap(house, await reply_to(world, request), PRICE_MSATS - 1, zapper.public_hex)
        job = await house.job(request.id)
        assert (job.work, job.money) == (Work.AWAITING_PAYMENT, Money.INVOICED)
        assert await kept(house) == (PRICE_MSATS - 1 if by_customer else 0)
        assert house.engine.books.earned_msats == (0 if by_customer else PRICE_MSATS - 1)
        await house.check_books()


async def test_a_zap_of_something_else_is_not_ours(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        assert not await zap(house, "ab" * 32, PRICE_MSATS, CUSTOMER.public_hex)
        assert house.engine.books.received_msats == 0
