"""What is given away in a day: counted, bounded, forgotten after a day, known again after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs import facts
from pylon.jobs.allowance import WINDOW_S, Allowance, AllowanceRules
from pylon.nostr.nip90 import ErrorPrefix
from pylon.store.customers import free_jobs
from pylon.store.records import Job, Work
from tests.support.events import CUSTOMER, STRANGER
from tests.support.house import House, World, open_house

NOW = 1_000_000


def job(number: int, customer: str = "c", tokens: int = 10, at: int = NOW) -> Job:
    return Job(f"{number:064x}", customer, 5050, "b", "m", 0, tokens, at, at + 60)


def test_each_customer_and_all_together_have_a_limit() -> None:
    allowance = Allowance(AllowanceRules(20, 50))
    assert allowance.covers("a", 20, NOW) and not allowance.covers("a", 21, NOW)
    for number, customer in enumerate("aabb"):
        assert allowance.give(job(number, customer))
    assert not allowance.covers("a", 1, NOW)
    assert allowance.covers("c", 10, NOW) and not allowance.covers("c", 11, NOW)


def test_it_comes_back_after_a_day() -> None:
    allowance = Allowance(AllowanceRules(10, None))
    allowance.give(job(1))
    assert not allowance.covers("c", 1, NOW + WINDOW_S - 1)
    assert allowance.covers("c", 10, NOW + WINDOW_S)
    assert allowance.given_tokens == 0


def test_what_could_not_be_stored_does_not_count_and_nothing_counts_twice() -> None:
    allowance = Allowance(AllowanceRules(10, None))
    assert allowance.give(job(1)) and not allowance.give(job(1))
    allowance.take_back(job(1).id)
    allowance.take_back(job(1).id)
    assert allowance.covers("c", 10, NOW)


def test_a_negative_allowance_is_refused() -> None:
    with pytest.raises(ValueError, match="never negative"):
        AllowanceRules(-1, None)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(0, WINDOW_S)), max_size=40))
def test_no_day_gives_more_than_its_limit(asked: list[tuple[str, int, int]]) -> None:
    allowance = Allowance(AllowanceRules(50, 100))
    given_away: list[tuple[int, str, int]] = []
    now = NOW
    for number, (customer, tokens, later) in enumerate(asked):
        now += later
        if allowance.covers(customer, tokens, now):
            allowance.give(job(number, customer, tokens, now))
            given_away.append((now, customer, tokens))
        day = [each for each in given_away if each[0] > now - WINDOW_S]
        assert sum(each[2] for each in day) == allowance.given_tokens <= 100
        for name in "abc":
            assert sum(each[2] for each in day if each[1] == name) <= 50


# --- through intake -------------------------------------------------------------------------------------------


async def served_free(house: House, prompt: str) -> None:
    request = house.ask(prompt, params=[("max_tokens", ["40"])])
    done = await house.reaches(request.id, Work.DELIVERED)
    assert done.price_msats == 0


async def test_a_free_provider_gives_so_much_a_day(tmp_path: Path) -> None:
    world = World(tmp_path / "db", mode=facts.Mode.FREE, allowance=AllowanceRules(100, None))
    async with open_house(world) as house:
        await served_free(house, "first")
        await served_free(house, "second")
        third = house.ask("third", params=[("max_tokens", ["40"])])
        assert world.relays.errors(third.id) == [ErrorPrefix.FREE_LIMIT]
        other = house.ask("another's", key=STRANGER, params=[("max_tokens", ["40"])])
        await house.reaches(other.id, Work.DELIVERED)


async def test_a_paid_provider_gives_the_first_ones_and_invoices_the_next(tmp_path: Path) -> None:
    world = World(tmp_path / "db", allowance=AllowanceRules(40, 1_000))
    async with open_house(world) as house:
        await served_free(house, "first")
        second = house.ask("second", params=[("max_tokens", ["40"])])
        assert (await house.invoiced(second.id)).amount_msats


async def test_a_restart_forgets_nothing_of_the_day(tmp_path: Path) -> None:
    world = World(tmp_path / "db", mode=facts.Mode.FREE)
    async with open_house(world) as house:
        await served_free(house, "yesterday")
        world.clock.advance(WINDOW_S)
        await served_free(house, "first")
        await served_free(house, "second")
        since = int(world.clock.now) - WINDOW_S
        found = await house.read(lambda tx: free_jobs(tx, since))
    allowance = Allowance(AllowanceRules(100, None))
    allowance.load(found)
    assert allowance.given_tokens == 80
    assert not allowance.covers(CUSTOMER.public_hex, 40, world.clock.now)


async def test_running_jobs_of_one_customer_leave_slots_to_others(tmp_path: Path) -> None:
    world = World(tmp_path / "db", mode=facts.Mode.FREE)
    world.backend.answer = None
    world.offers = tuple(replace(each, slots=3) for each in world.offers)
    world.runner = replace(world.runner, running_per_customer=1)
    async with open_house(world) as house:
        mine = [house.ask(f"number {number}") for number in range(3)]
        other = house.ask("another's", key=STRANGER)
        await house.reaches(mine[0].id, Work.RUNNING)
        await house.reaches(other.id, Work.RUNNING)
        assert [(await house.job(each.id)).work for each in mine[1:]] == [Work.QUEUED, Work.QUEUED]
        (await house.run(1)).finish()
        await house.reaches(mine[1].id, Work.RUNNING)
