"""The owner's desk over a real database, runner and intake, with a backend and a wallet that the test drives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from pylon.jobs import facts
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Closed, Intake
from pylon.jobs.runner import Runner
from pylon.nostr.nip90 import FeedbackStatus
from pylon.owner import memory
from pylon.owner.desk import PUT_BACK, DeskConfig, OrdersNotKept, OwnerDesk, Stance
from pylon.owner.hours import Hours, parse_window, wall_of
from pylon.owner.orders import Order, Orders, Will, read_orders
from pylon.owner.rules import OwnerRules, Readings, Rule, Unknown
from pylon.owner.words import Held
from pylon.store.records import Money, Work
from tests.support.house import House, World, open_house, until
from tests.support.stand_ins import FakeBackend

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC).timestamp()
NIGHT = OwnerRules(hours=Hours((parse_window("18:00-08:00"),)))
NO_RULES, NOT_LOOKED = OwnerRules(), Readings()
WALL = wall_of(UTC)


@dataclass
class Machine:
    """Sensors that tell what the test says."""

    seen: Readings = field(default_factory=Readings)
    looks: int = 0

    async def read(self, rules: OwnerRules) -> Readings:
        self.looks += 1
        await anyio.lowlevel.checkpoint()
        return self.seen


@dataclass
class Office:
    """A house with its owner."""

    house: House
    desk: OwnerDesk
    machine: Machine
    path: Path
    stopped: anyio.Event
    refusals: int = 0

    async def is_(self, stance: Stance) -> None:
        await until(lambda: self.desk.stance is stance)

    def is_now(self, stance: Stance) -> bool:
        return self.desk.stance is stance

    async def freed(self) -> None:
        await until(lambda: self.desk.freed is not None)

    def refused(self) -> str:
        """Ask for a job that must be refused, and return what the customer is told."""
        self.refusals += 1
        request = self.house.ask(f"Refuse number {self.refusals}, please.")
        assert self.house.intake.counters.as_dict()["paused"] == self.refusals
        (feedback,) = self.house.world.relays.feedback(request.id, FeedbackStatus.ERROR)
        return feedback.info


@asynccontextmanager
async def office(world: World, rules: OwnerRules = NO_RULES, seen: Readings = NOT_LOOKED) -> AsyncIterator[Office]:
    """Open the house as the daemon does: the owner's orders first."""
    machine, stopped = Machine(seen), anyio.Event()
    path = world.path.with_name("pylon.orders.json")
    desks: list[OwnerDesk] = []

    async def prepare(engine: Engine, runner: Runner, intake: Intake) -> None:
        def close(held: Held | None) -> None:
            intake.held = None if held is None else Closed(held.shown, held.told)

        desk = OwnerDesk(
            rules,
            machine,
            path,
            runner,
            list(world.backends.values()),
            lambda: engine.open_jobs,
            world.clock,
            WALL,
            close=close,
            stop=stopped.set,
            config=DeskConfig(tick_s=0.005, sense_s=0.005),
        )
        desks.append(desk)
        await desk.begin()

    async with open_house(world, prepare) as house:
        (desk,) = desks
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.run)
            yield Office(house, desk, machine, path, stopped)
            tasks.cancel_scope.cancel()


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "db")
    world.clock.now = NOON
    return world


# --- pause ------------------------------------------------------------------------------------------------------


async def test_what_runs_finishes_what_waits_waits_and_then_the_memory_is_given_back(world: World) -> None:
    world.backend.answer = None
    async with office(world) as it:
        house = it.house
        running, waiting = house.ask("first"), house.ask("second")
        await house.pay(running.id)
        run = await house.run(1)
        await house.pay(waiting.id)
        await house.reaches(waiting.id, Work.QUEUED, Money.SETTLED)
        await it.desk.pause(why="lunch")
        left = it.desk.left()
        assert (it.desk.stance, left.running, left.waiting_paid) == (Stance.PAUSED, 1, 1)
        assert left.first_deadline_at == (await house.job(waiting.id)).deadline_at
        assert it.refused() == "paused: no jobs are taken now: the provider is paused"
        assert house.intake.paused == "paused by your order of 12:00: lunch"
        await house.quiet()
        assert it.desk.freed is None and world.backend.unloads == 0
        run.say("done")
        run.finish()
        await house.reaches(running.id, Work.DELIVERED, Money.SETTLED)
        await it.freed()
        assert world.backend.unloads == 1
        assert len(world.backend.runs) == 1, "nothing was started"
        await it.desk.pause(why="still lunch")
        assert it.desk.since == NOON
        await it.desk.resume()
        assert it.desk.freed is None
        (await house.run(2)).finish()
        await house.reaches(waiting.id, Work.DELIVERED, Money.SETTLED)


async def test_it_ends_with_its_time_and_tells_customers_when(world: World) -> None:
    async with office(world) as it:
        await it.desk.pause(until=int(NOON) + 7_200)
        assert it.refused().endswith("the provider is paused, until 2026-11-26 14:00 UTC at the earliest")
        assert it.house.intake.paused == "paused by your order of 12:00 until 14:00"
        world.clock.now = NOON + 7_199
        for _ in range(20):
            await anyio.sleep(0.002)
        assert it.is_now(Stance.PAUSED)
        world.clock.now = NOON + 7_200
        await it.is_(Stance.OPEN)
        await until(lambda: not it.path.exists())


@pytest.mark.parametrize("fails_last", [False, True])
async def test_put_back_at_once_and_delivered_afterwards_whatever_attempt_it_was(
    world: World, fails_last: bool
) -> None:
    world.backend.answer = None
    if fails_last:
        world.recorder = replace(world.recorder, rules=replace(world.recorder.rules, max_attempts=1))
    async with office(world) as it:
        house = it.house
        request = house.ask()
        await house.pay(request.id)
        run = await house.run()
        run.say("half of")
        await it.desk.pause(at_once=True)
        await house.reaches(request.id, Work.QUEUED, Money.SETTLED)
        await it.freed()
        assert world.backend.at_once == 0
        assert [each.outcome for each in await house.attempts(request.id)] == [PUT_BACK]
        await it.desk.resume()
        again = await house.run(2)
        again.say("all of it")
        again.finish()
        job = await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        assert job.attempts == 2
        await house.check_books()


async def test_a_pause_that_outlasts_the_deadline_of_a_paid_job_makes_its_money_a_refund_due(world: World) -> None:
    async with office(world) as it:
        request = it.house.ask()
        await it.house.invoiced(request.id)
        await it.desk.pause()
        await it.house.pay(request.id)  # money that arrives in a pause is booked
        job = await it.house.reaches(request.id, Work.QUEUED, Money.SETTLED)
        world.clock.now = job.deadline_at
        await it.house.reaches(request.id, Work.EXPIRED, Money.REFUND_DUE)
        await it.house.check_books()
        assert world.backend.runs == []


async def test_it_outlives_the_daemon(world: World) -> None:
    async with office(world) as it:
        request = it.house.ask()
        await it.house.invoiced(request.id)
        await it.desk.pause(until=int(NOON) + 1_800, why="away")
        await it.house.pay(request.id)
        await it.house.reaches(request.id, Work.QUEUED, Money.SETTLED)
    unloads = world.backend.unloads
    async with office(world) as it:
        assert it.is_now(Stance.PAUSED)
        assert world.backend.unloads > unloads, "nothing may be loaded by a daemon that is paused"
        assert it.desk.order == Order(Will.PAUSE, int(NOON), int(NOON) + 1_800, "away")
        assert it.refused()
        assert world.backend.runs == []
        world.clock.now = NOON + 1_800
        await it.house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
    async with office(world) as it:
        assert it.is_now(Stance.OPEN)


async def test_an_order_that_cannot_be_kept_is_followed_and_said(world: World) -> None:
    async with office(world) as it:
        it.path.mkdir()
        with pytest.raises(OrdersNotKept, match="a restart would forget it"):
            await it.desk.pause()
        assert it.is_now(Stance.PAUSED)
        it.path.rmdir()
        await until(lambda: it.path.is_file())
        assert read_orders(it.path, 0) == Orders(it.desk.order)


async def test_resumed_while_the_memory_is_being_given_back_nothing_starts_before_it_is(world: World) -> None:
    go_on, began = anyio.Event(), anyio.Event()

    async def unload() -> None:
        began.set()
        await go_on.wait()
        assert world.backend.at_once == 0

    world.backend.unload = unload  # type: ignore[method-assign]
    async with office(world) as it:
        await it.desk.pause()
        await began.wait()
        await it.desk.resume()
        request = it.house.ask()
        await it.house.pay(request.id)
        await it.house.reaches(request.id, Work.QUEUED, Money.SETTLED)
        await it.house.quiet()
        assert world.backend.runs == []
        go_on.set()
        await it.house.reaches(request.id, Work.DELIVERED, Money.SETTLED)


async def test_a_plug_in_that_knows_nothing_of_it_or_breaks_its_word_holds_nothing_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "UNLOAD_S", 0.01)

    async def broken() -> None:
        raise LookupError("no model \x1b[31mhere")

    old, bad, slow = FakeBackend("old"), FakeBackend("bad"), FakeBackend("slow")
    old.unload = bad.unload = broken  # type: ignore[method-assign]
    slow.unload = anyio.sleep_forever  # type: ignore[method-assign]
    world.backends |= {"old": Before(old), "bad": bad, "slow": slow}  # type: ignore[dict-item]
    async with office(world) as it:
        await it.desk.pause()
        await it.freed()
        assert world.backend.unloads == 1
        assert [name for name, each in world.backends.items() if memory.keeps_memory(each)] == ["old"]
        await it.desk.resume()
        request = it.house.ask()
        await it.house.pay(request.id)
        await it.house.reaches(request.id, Work.DELIVERED, Money.SETTLED)


class Before:
    """A backend of the time before `unload`."""

    def __init__(self, backend: FakeBackend) -> None:
        self.name, self.running, self.state = backend.name, backend.running, backend.state
        self.check, self.generate = backend.check, backend.generate


# --- drain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exits", [False, True])
async def test_a_drain_finishes_what_runs_and_waits_and_takes_nothing(world: World, exits: bool) -> None:
    world.backend.answer = None
    async with office(world) as it:
        house = it.house
        jobs = [house.ask("first"), house.ask("second"), house.ask("never paid")]
        for each in jobs[:2]:
            await house.pay(each.id)
        await house.invoiced(jobs[2].id)
        await house.run(1)
        await it.desk.drain(exits=exits)
        assert (it.desk.stance, it.desk.left().unpaid) == (Stance.DRAINING, 1)
        assert "finishes what it has and takes nothing new" in it.refused()
        for number in (1, 2):
            (await house.run(number)).finish()
        for each in jobs[:2]:
            await house.reaches(each.id, Work.DELIVERED, Money.SETTLED)
        if exits:
            with anyio.fail_after(5):
                await it.stopped.wait()
            house.runner.start_nothing_more()  # as the daemon does that was told to stop
            assert not it.path.exists(), "the next start takes jobs"
            assert it.refused(), "and this one none until it has ended"
        else:
            await it.is_(Stance.PAUSED)
            await it.freed()
            assert it.desk.order is not None and it.desk.order.why == "drained"
        # Money for what was never paid is booked all the same, and waits.
        await house.pay(jobs[2].id)
        await house.reaches(jobs[2].id, Work.QUEUED, Money.SETTLED)
    world.backend.answer = world.backend.echo
    async with office(world) as it:
        assert it.desk.stance is (Stance.OPEN if exits else Stance.PAUSED)
        await it.desk.resume()
        await it.house.reaches(jobs[2].id, Work.DELIVERED, Money.SETTLED)


async def test_a_drain_that_was_to_end_a_daemon_which_is_stopped_is_over(world: World) -> None:
    world.mode, world.backend.answer = facts.Mode.FREE, None
    async with office(world) as it:
        it.house.ask()
        await it.house.run()
        await it.desk.drain(exits=True)
    async with office(world) as it:
        assert it.is_now(Stance.DRAINING), "a crash does not end it"
        await it.desk.leave()
        assert not it.path.exists()
        await it.desk.leave()
    async with office(world) as it:
        assert it.is_now(Stance.OPEN)
        await it.desk.pause()
        await it.desk.leave()
    async with office(world) as it:
        assert it.is_now(Stance.PAUSED), "a pause is not over"


async def test_a_drain_of_what_was_paused_runs_it_first(world: World) -> None:
    async with office(world) as it:
        request = it.house.ask()
        await it.house.invoiced(request.id)
        await it.desk.pause()
        await it.house.pay(request.id)
        await it.house.reaches(request.id, Work.QUEUED, Money.SETTLED)
        await it.desk.drain(why="a new disk")
        await it.house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        await it.is_(Stance.PAUSED)
        assert it.desk.order is not None and it.desk.order.why == "drained: a new disk"


# --- rules ------------------------------------------------------------------------------------------------------


async def test_hours_pause_and_open_by_themselves(world: World) -> None:
    async with office(world, NIGHT) as it:
        assert it.is_now(Stance.PAUSED), "from the first moment on"
        assert it.house.intake.paused == "paused: outside the hours of [owner] (again at 18:00)"
        assert it.refused().endswith("until 2026-11-26 18:00 UTC at the earliest")
        world.clock.now = NOON + 6 * 3_600
        await it.is_(Stance.OPEN)
        world.clock.now = NOON + 20 * 3_600
        await it.is_(Stance.PAUSED)
        world.clock.now = NOON + 6 * 3_600 + 60  # a clock that is set back
        await it.is_(Stance.OPEN)


async def test_who_sits_down_has_the_machine_at_once_and_customers_learn_nothing_of_it(world: World) -> None:
    world.mode, world.backend.answer = facts.Mode.FREE, None
    rules = OwnerRules(idle_s=600, put_back=True)
    async with office(world, rules, Readings(idle_s=601.0)) as it:
        assert it.is_now(Stance.OPEN)
        request = it.house.ask()
        await it.house.run()
        it.machine.seen = Readings(idle_s=0.5)
        await it.is_(Stance.PAUSED)
        assert it.refused() == "paused: no jobs are taken now: the provider is paused"
        assert "somebody used this machine within the last 600 s" in (it.house.intake.paused or "")
        await it.house.reaches(request.id, Work.QUEUED)
        await it.freed()
        it.machine.seen = Readings(idle_s=600.0)
        await it.is_(Stance.OPEN)
        (await it.house.run(2)).finish()
        await it.house.reaches(request.id, Work.DELIVERED)


async def test_an_order_outranks_the_rules_and_a_waiver_silences_them(world: World) -> None:
    async with office(world, NIGHT) as it:
        await it.desk.resume()
        assert it.is_now(Stance.PAUSED)
        await it.desk.resume(ignore_rules=True)
        assert it.is_now(Stance.OPEN)
        await it.desk.pause()
        assert (it.desk.stance, it.desk.waiver) == (Stance.PAUSED, None)
        await it.desk.resume(ignore_rules=True, until=int(NOON) + 60)
        assert it.is_now(Stance.OPEN)
        world.clock.now = NOON + 60
        await it.is_(Stance.PAUSED)
        # Without a time it lasts until they allow it anyway.
        await it.desk.resume(ignore_rules=True)
        world.clock.now = NOON + 6 * 3_600
        await until(lambda: it.desk.waiver is None)
        assert it.is_now(Stance.OPEN)
        world.clock.now = NOON + 20 * 3_600
        await it.is_(Stance.PAUSED)


async def test_a_drain_is_not_stopped_by_a_rule(world: World) -> None:
    world.mode, world.backend.answer = facts.Mode.FREE, None
    async with office(world, OwnerRules(ac_only=True), Readings(on_mains=True)) as it:
        waiting = [it.house.ask("first"), it.house.ask("second")]
        await it.desk.drain()
        it.machine.seen = Readings(on_mains=False)
        await until(lambda: it.desk.pausing)
        assert it.is_now(Stance.DRAINING)
        for number in (1, 2):
            (await it.house.run(number)).finish()
        for each in waiting:
            await it.house.reaches(each.id, Work.DELIVERED)


async def test_rules_are_replaced_while_it_runs(world: World) -> None:
    async with office(world, NIGHT) as it:
        assert it.is_now(Stance.PAUSED)
        looks = it.machine.looks
        await it.desk.set_rules(OwnerRules(), WALL)
        assert it.is_now(Stance.OPEN)
        it.machine.seen = Readings(gpu_bytes=Unknown("no GPU tells its memory"))
        await it.desk.set_rules(OwnerRules(gpu_floor_bytes=1), WALL)
        assert [each.rule for each in it.desk.pausing] == [Rule.GPU], "it looks before the new rules hold"
        assert it.machine.looks > looks
        assert it.is_now(Stance.PAUSED)
        await it.desk.set_rules(OwnerRules(), WALL)
        await it.desk.set_rules(OwnerRules(gpu_floor_bytes=1, unknown_allows=True), WALL)
        assert it.is_now(Stance.OPEN)


async def test_a_house_without_rules_looks_at_nothing(world: World) -> None:
    async with office(world) as it:
        looks = it.machine.looks
        for _ in range(10):
            await anyio.sleep(0.005)
        assert it.machine.looks == looks
