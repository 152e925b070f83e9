"""The owner's desk: takes the owner's orders, watches the rules, and has the daemon follow.

There are three stances. Open: jobs are taken. Paused: none is taken and none starts; what runs finishes (or is put
back into the queue), and then the backends give their memory back. Draining: none is taken, what was accepted is
finished, and then the daemon pauses or ends. An order outranks the rules; a rule pauses as an order does.

Nothing of a job is decided here: a paid job that waits keeps its deadline, and money that arrives is booked and its
job waits, as the lifecycle has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
import structlog

from pylon.jobs.ports import Backend, Clock
from pylon.owner.hours import Wall
from pylon.owner.left import Left, count_left
from pylon.owner.memory import give_back, held_bytes
from pylon.owner.orders import NONE, Order, Orders, Waiver, Will, read_orders, write_orders
from pylon.owner.rules import OwnerRules, Readings, Rule, Track, Verdict, judge, settle
from pylon.owner.sensors import Sensors
from pylon.owner.words import Held, end_of, of_order, of_rules
from pylon.store.records import Job

log = structlog.get_logger("pylon.owner")

PUT_BACK: Final = "put back: the owner wants the machine"
"""Why an attempt ended that was broken off."""


class Stance(StrEnum):
    """What the daemon does with jobs."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


class OrdersNotKept(Exception):
    """An order is followed and would not outlive a restart; the message says why."""


class Floor(Protocol):
    """Where jobs run: what the desk needs of it."""

    def hold(self) -> None:
        """Start nothing; what runs goes on."""
        ...

    def release(self) -> None:
        """Start what waits again."""
        ...

    def put_back(self, sentence: str) -> None:
        """Hold, and have what runs broken off and put back into the queue."""
        ...

    async def empty(self) -> None:
        """Return when nothing runs."""
        ...


@dataclass(frozen=True, slots=True)
class DeskConfig:
    """How often time is looked at, and the machine; seconds."""

    tick_s: float = 0.5
    sense_s: float = 5.0


@dataclass(frozen=True, slots=True)
class _Cause:
    """What the stance comes from: an order, or the rules that pause."""

    stance: Stance
    order: Order | None = None
    rules: tuple[Rule, ...] = ()


class OwnerDesk:
    """Follows the owner. `begin` before anything runs, then `run`; the rest may be called from other tasks."""

    def __init__(
        self,
        rules: OwnerRules,
        sensors: Sensors,
        path: Path,
        floor: Floor,
        backends: Sequence[Backend],
        open_jobs: Callable[[], Iterable[Job]],
        clock: Clock,
        wall: Wall,
        *,
        close: Callable[[Held | None], None],
        stop: Callable[[], None],
        config: DeskConfig = DeskConfig(),
    ) -> None:
        self._rules = rules
        self._wall = wall
        self._sensors = sensors
        self._path = path
        self._floor = floor
        self._backends = backends
        self._open_jobs = open_jobs
        self._clock = clock
        self._close = close
        self._stop = stop
        self._config = config
        self._orders = NONE
        self._unsaved = False
        self._saving = anyio.Lock()
        self._seen = Readings()
        self._verdicts: tuple[Verdict, ...] = ()
        self._judged = (0.0, 0.0)  # when, and until when that holds unless something is seen
        self._tracks: Mapping[Rule, Track] = {}
        self._cause = _Cause(Stance.OPEN)
        self._since = int(clock())
        self._unloading = False
        self._freed_at: int | None = None
        self._freed_bytes = 0
        self._ended = False  # a drain is done and the daemon is on its way out
        self._news = anyio.Event()

    # --- what others look at ----------------------------------------------------------------------------------

    @property
    def stance(self) -> Stance:
        """What the daemon does with jobs now."""
        return self._cause.stance

    @property
    def order(self) -> Order | None:
        """The owner's order that stands."""
        return self._orders.order

    @property
    def waiver(self) -> Waiver | None:
        """Whether, and for how long, the rules say nothing."""
        return self._orders.waiver

    @property
    def held(self) -> Held | None:
        """Why no job is taken, None while some are."""
        now, order = self._clock(), self._cause.order
        if order is not None:
            return of_order(order, now, self._wall)
        return of_rules(self.pausing, now, self._wall) if self._cause.rules else None

    @property
    def since(self) -> int:
        """Since when the stance is what it is, unix seconds."""
        return self._since

    @property
    def until(self) -> int | None:
        """When it ends by itself, as far as that is known."""
        if self._cause.order is not None:
            return self._cause.order.until
        return end_of(self.pausing) if self._cause.rules else None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What each rule says."""
        return self._verdicts

    @property
    def pausing(self) -> tuple[Verdict, ...]:
        """The rules that pause, or would if no order or waiver stood above them."""
        return tuple(each for each in self._verdicts if self._tracks[each.rule].pauses)

    @property
    def freed(self) -> tuple[int, int] | None:
        """When the memory was given back, unix seconds, and how much of it, in bytes; None while it is not."""
        return None if self._freed_at is None else (self._freed_at, self._freed_bytes)

    def left(self) -> Left:
        """Return what is still to be done."""
        return count_left(self._open_jobs())

    # --- orders -----------------------------------------------------------------------------------------------

    async def pause(self, *, until: int | None = None, why: str = "", at_once: bool = False) -> None:
        """Take and start nothing more; with `at_once` put back what runs. Raises `OrdersNotKept`."""
        before = self._orders.order
        since = before.since if before is not None and before.will is Will.PAUSE else int(self._clock())
        await self._follow(Orders(Order(Will.PAUSE, since, until, why)), at_once=at_once)

    async def resume(self, *, ignore_rules: bool = False, until: int | None = None) -> None:
        """End what was ordered; the rules hold again, or say nothing for a while. Raises `OrdersNotKept`."""
        await self._follow(Orders(None, Waiver(until) if ignore_rules else None))

    async def drain(self, *, exits: bool = False, why: str = "") -> None:
        """Take nothing more, finish what is there, then pause or end. Raises `OrdersNotKept`."""
        before = self._orders.order
        since = before.since if before is not None and before.will is Will.DRAIN else int(self._clock())
        await self._follow(Orders(Order(Will.DRAIN, since, None, why, exits)))

    async def set_rules(self, rules: OwnerRules, wall: Wall) -> None:
        """Let other rules hold from now on, of a clock that may be another's."""
        seen = await self._sensors.read(rules)
        self._rules, self._wall, self._seen = rules, wall, seen
        self._judge_again()
        self._decide()

    async def _follow(self, orders: Orders, *, at_once: bool = False) -> None:
        self._orders, self._unsaved = orders, True
        self._decide()
        if at_once:
            self._floor.put_back(PUT_BACK)
        try:
            await self._save()
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise OrdersNotKept(
                f"it is done, and a restart would forget it: {self._path} cannot be written ({why})"
            ) from error

    async def _save(self) -> None:
        async with self._saving:
            if self._unsaved:
                orders = NONE if self._ended else self._orders
                await anyio.to_thread.run_sync(write_orders, self._path, orders)
                self._unsaved = not self._ended and orders is not self._orders

    # --- running ----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Take up what stood when the daemon ended, before anything is loaded or taken."""
        self._orders = await anyio.to_thread.run_sync(read_orders, self._path, int(self._clock()))
        self._seen = await self._sensors.read(self._rules)
        self._decide()
        if self.stance is Stance.PAUSED:
            await give_back(self._backends)

    async def run(self) -> None:
        """Watch time, machine and jobs until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_machine)
            tasks.start_soon(self._give_back)
            while True:
                self._decide()
                self._look_at_drain()
                try:
                    await self._save()
                except OSError as error:
                    log.warning("the owner's orders cannot be kept", error=error.strerror or type(error).__name__)
                if self._ended:
                    self._stop()  # not before the next start is known to take jobs
                with anyio.move_on_after(self._config.tick_s):
                    await self._news.wait()

    async def leave(self) -> None:
        """Hear that the daemon ends gracefully: a drain that was to end it has nothing left to say."""
        order = self._orders.order
        if order is not None and order.exits and not self._ended:
            self._ended, self._unsaved = True, True
            with suppress(OSError):
                await self._save()

    async def _watch_machine(self) -> None:
        while True:
            if self._rules.named not in ((), (Rule.HOURS,)):
                seen = await self._sensors.read(self._rules)
                if seen != self._seen:
                    self._seen = seen
                    self._judge_again()
            await anyio.sleep(self._config.sense_s)

    async def _give_back(self) -> None:
        """Have the backends give their memory back whenever nothing runs in a pause."""
        while True:
            if self.stance is not Stance.PAUSED or self._freed_at is not None:
                await self._news.wait()
                continue
            await self._floor.empty()
            if self.stance is Stance.PAUSED:
                await self._unload()

    async def _unload(self) -> None:
        before = held_bytes(self._backends)
        self._unloading = True
        await give_back(self._backends)
        self._unloading = False
        if self.stance is Stance.PAUSED:
            freed_bytes = max(0, before - held_bytes(self._backends))
            self._freed_at, self._freed_bytes = int(self._clock()), freed_bytes
            log.info("the models' memory is given back", freed_mb=round(self._freed_bytes / 1e6))
        else:
            self._floor.release()  # it was resumed meanwhile
        self._tell()

    # --- deciding ---------------------------------------------------------------------------------------------

    def _judge_again(self) -> None:
        self._judged = (0.0, 0.0)
        self._tell()

    def _judge(self, now: float) -> None:
        """Ask the rules, when what they say may have changed."""
        since, until = self._judged
        if since <= now < until:
            return
        self._verdicts = judge(self._rules, self._seen, now, self._wall)
        times = [each.until for each in self._verdicts if each.until is not None]
        self._judged = (now, float(min(times, default=2**53)))

    def _decide(self) -> None:
        now = self._clock()
        self._judge(now)
        self._tracks = settle(self._tracks, self._verdicts, anyio.current_time(), self._rules)
        self._expire(now)
        self._enter(self._wanted(), int(now))

    def _expire(self, now: float) -> None:
        """Forget what is over."""
        order, waiver = self._orders.order, self._orders.waiver
        if order is not None and order.until is not None and order.until <= now:
            order = None
        if waiver is not None and (not self.pausing if waiver.until is None else waiver.until <= now):
            waiver = None
        if (order, waiver) != (self._orders.order, self._orders.waiver):
            self._orders, self._unsaved = Orders(order, waiver), True

    def _wanted(self) -> _Cause:
        order = self._orders.order
        if order is not None:
            return _Cause(Stance.PAUSED if order.will is Will.PAUSE else Stance.DRAINING, order)
        pausing = self.pausing
        if pausing and self._orders.waiver is None:
            return _Cause(Stance.PAUSED, rules=tuple(each.rule for each in pausing))
        return _Cause(Stance.OPEN)

    def _enter(self, cause: _Cause, now: int) -> None:
        before, self._cause = self._cause, cause
        held = self.held
        self._close(held)
        if cause == before:
            return
        if cause.stance is not before.stance or (cause.order is None) is not (before.order is None):
            self._since = now if cause.order is None else cause.order.since
        log.info(
            f"the provider is {cause.stance}", reason="" if held is None else held.shown, was=before.stance.value
        )
        if cause.stance is Stance.PAUSED:
            self._floor.hold()
            if cause.rules and self._rules.put_back and before.stance is not Stance.PAUSED:
                self._floor.put_back(PUT_BACK)
        else:
            self._freed_at = None
            if not self._unloading:
                self._floor.release()
        self._tell()

    def _look_at_drain(self) -> None:
        """End a drain that is done; the daemon that ends takes jobs again when it is started."""
        order = self._orders.order
        if self._ended or order is None or order.will is not Will.DRAIN or not self.left().done:
            return
        if order.exits:
            log.info("drained: the daemon ends")
            self._ended, self._unsaved = True, True
        else:
            why = f"drained{f': {order.why}' if order.why else ''}"
            self._orders, self._unsaved = Orders(Order(Will.PAUSE, int(self._clock()), why=why)), True
            self._decide()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
