"""When it is announced: on a fake clock, with a real store and relays that only listen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from pylon.jobs.announcement import AnnounceConfig, ProfileMode
from pylon.jobs.announcer import TIME_MARK, Announcer, AnnounceState, AnnouncingOff, kind_mark, take_time
from pylon.jobs.catalogue import Offer
from pylon.jobs.ports import BackendHealth, BackendState, ModelInfo
from pylon.jobs.pricing import Price
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip89 import Announcement, Measured, parse_announcement
from pylon.store.tx import Tx
from pylon.store.writer import Store
from tests.support.events import NOW, PROVIDER, STRANGER
from tests.support.stand_ins import RELAY, FakeClock, FakeRelays

T = TypeVar("T")

CONFIG = AnnounceConfig(name="Shop", relays=(RELAY,), debounce_s=30, republish_s=3600)
OFFERS = (Offer("m", "b", "m", Price(1000)), Offer("n", "b", "n", Price(2000)))
READY = BackendState("b", "openai", BackendHealth.READY, "", (ModelInfo("m"), ModelInfo("n")))


class Marks:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def query(self, read: Callable[[Tx], T]) -> T:
        return await self._store.write(read)


@dataclass
class Desk:
    """An announcer, what it sees, and what it has sent."""

    store: Store
    clock: FakeClock = field(default_factory=FakeClock)
    relays: FakeRelays = field(default_factory=FakeRelays)
    config: AnnounceConfig = CONFIG
    offers: tuple[Offer, ...] = OFFERS
    state: BackendState = READY
    paused: bool = False
    connected: set[str] = field(default_factory=lambda: {RELAY})
    all_found: bool = True
    measured: Mapping[str, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Be a new process on the same store and relays."""
        self.announcer = Announcer(
            self.config, self.offers, PROVIDER, self.relays, Marks(self.store), self.clock,
            states=lambda: {"b": self.state}, paused=lambda: self.paused,
            connected=lambda: self.connected, all_found=lambda: self.all_found, measured=lambda: self.measured,
        )  # fmt: skip
        self.relays.sink = self.announcer

    async def after(self, seconds: float) -> list[Event]:
        """Let time pass, and return what was sent by then."""
        before = len(self.relays.durable)
        self.clock.advance(seconds)
        await self.announcer.step()
        return self.relays.durable[before:]

    def standing(self) -> AnnounceState:
        """How the announcement stands."""
        return self.announcer.state

    @property
    def told(self) -> Announcement:
        """The newest announcement."""
        return parse_announcement([event for event in self.relays.durable if event.kind == 31990][-1])


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Desk]:
    store = await Store.open(folder / "db")
    try:
        yield Desk(store)
    finally:
        await store.aclose()


def kinds(events: list[Event]) -> list[int]:
    return [event.kind for event in events]


async def test_it_is_announced_on_start_and_then_left_alone(desk: Desk) -> None:
    assert desk.standing() is AnnounceState.WAITING
    sent = await desk.after(0)
    assert kinds(sent) == [31990, 10002, 0]
    assert {event.created_at for event in sent} == {NOW}
    assert set(desk.relays.deadlines.values()) == {NOW + 60}
    assert desk.standing() is AnnounceState.ANNOUNCED
    assert desk.announcer.events == tuple(sent)
    for _ in range(100):
        assert await desk.after(30) == []


async def test_a_change_waits_for_the_debounce_and_takes_all_changes_with_it(desk: Desk) -> None:
    await desk.after(0)
    desk.state = replace(READY, models=(ModelInfo("m"),))
    assert await desk.after(10) == []
    desk.paused = True
    assert await desk.after(19) == []
    assert desk.standing() is AnnounceState.WAITING
    sent = await desk.after(1)
    assert kinds(sent) == [31990], "what has not changed is not sent"
    assert [model.name for model in desk.told.models] == ["m"] and desk.told.paused
    desk.paused = False
    assert await desk.after(29) == []
    assert kinds(await desk.after(1)) == [31990]
    assert not desk.told.paused


async def test_a_change_that_went_away_again_is_not_told(desk: Desk) -> None:
    await desk.after(0)
    desk.state = replace(READY, health=BackendHealth.DOWN)
    assert await desk.after(29) == []
    desk.state = READY
    assert await desk.after(1) == []


async def test_a_change_after_a_quiet_time_is_told_at_once(desk: Desk) -> None:
    await desk.after(0)
    await desk.after(1000)
    desk.state = replace(READY, health=BackendHealth.DOWN)
    assert kinds(await desk.after(0.5)) == [31990]
    assert desk.told.models == () and desk.told.paused


async def test_everything_is_repeated_after_a_while(desk: Desk) -> None:
    await desk.after(0)
    assert await desk.after(3599) == []
    again = await desk.after(1)
    assert kinds(again) == [31990, 10002, 0]
    assert {event.created_at for event in again} == {NOW + 3600}


@pytest.mark.parametrize("health", [BackendHealth.UNKNOWN, BackendHealth.LOADING])
async def test_the_start_waits_for_the_backends_but_not_for_long(desk: Desk, health: BackendHealth) -> None:
    desk.state = replace(READY, health=health)
    assert await desk.after(0) == []
    assert await desk.after(29) == []
    assert kinds(await desk.after(1)) == [31990, 10002, 0]
    assert desk.told.models == () and desk.told.paused
    desk.restart()
    assert await desk.after(1) == []
    desk.state = READY
    assert kinds(await desk.after(29)) == [31990, 10002, 0], "and not before the debounce, over restarts too"
    assert len(desk.told.models) == 2


async def test_times_only_rise_whatever_the_clock_and_the_restarts(desk: Desk) -> None:
    desk.config = replace(CONFIG, debounce_s=0.0)
    for step_s in (0, 0, 0.25, 0.25, -5000, 0, 10_000, 0):
        desk.restart()
        desk.clock.advance(step_s)
        await desk.announcer.step()
        await desk.announcer.publish()
    times = [event.created_at for event in desk.relays.durable if event.kind == 31990]
    assert len(times) == 16
    assert times == sorted(set(times))
    marks = await desk.store.write(lambda tx: tx.marks())
    assert marks[TIME_MARK] == times[-1]


async def test_a_clock_set_back_silences_nothing(desk: Desk) -> None:
    await desk.after(0)
    desk.paused = True
    assert await desk.after(-100_000) == []
    (sent,) = await desk.after(30)
    assert sent.created_at == NOW + 1


async def test_a_time_is_taken_before_anything_is_sent(desk: Desk) -> None:
    assert await desk.store.write(lambda tx: take_time(tx, NOW + 0.9, (31990, 0), withdrawn=False)) == NOW
    assert await desk.store.write(lambda tx: take_time(tx, NOW + 0.9, (31990, 0), withdrawn=False)) == NOW + 1
    assert await desk.store.write(lambda tx: take_time(tx, NOW + 50, (5,), withdrawn=True)) == NOW + 50
    marks = await desk.store.write(lambda tx: tx.marks())
    assert (marks[TIME_MARK], marks[kind_mark(0)]) == (NOW + 50, NOW + 1)


async def test_a_relay_that_was_away_gets_it_when_it_is_back(desk: Desk) -> None:
    desk.connected = set()
    sent = await desk.after(0)
    assert await desk.after(60) == []
    desk.connected = {RELAY}
    assert await desk.after(0) == sent, "the same events: what a relay has already, it knows by its id"
    assert await desk.after(60) == []
    desk.connected = {RELAY, "wss://two.example"}
    assert await desk.after(0) == sent
    desk.connected = {RELAY}
    await desk.after(60)
    desk.connected = {RELAY, "wss://two.example"}
    assert await desk.after(0) == [], "it has it already"
    desk.connected, desk.paused = {RELAY}, True
    (paused,) = await desk.after(60)
    desk.connected = {RELAY, "wss://two.example"}
    assert paused in await desk.after(30), "but not this one"


async def test_before_the_end_it_is_said_that_no_jobs_are_taken(desk: Desk) -> None:
    await desk.announcer.leave(5)
    assert desk.relays.durable == [], "nothing was announced yet"
    await desk.after(0)
    await desk.announcer.leave(5)
    assert len(desk.relays.durable) == 3, "nothing has changed"
    desk.paused, desk.connected = True, set()
    await desk.announcer.leave(5)
    assert len(desk.relays.durable) == 3, "nobody would hear it"
    desk.connected = {RELAY}
    await desk.announcer.leave(5)
    assert (desk.told.paused, desk.relays.durable[-1].created_at) == (True, NOW + 1)
    desk.paused = False
    desk.restart()
    assert kinds(await desk.after(2)) == [31990, 10002, 0], "at once, although the last version is 2 seconds old"
    assert not desk.told.paused
    desk.restart()
    assert await desk.after(2) == [], "but after a crash only after the debounce"


async def test_withdrawn_nothing_is_said_at_the_end(desk: Desk) -> None:
    await desk.after(0)
    await desk.announcer.withdraw()
    desk.paused = True
    await desk.announcer.leave(5)
    assert kinds(desk.relays.durable) == [31990, 10002, 0, 5]


# --- a key that has a profile already -------------------------------------------------------------------------


def theirs(kind: int, at: int = NOW - 10**6, key: SecretKey = PROVIDER) -> Event:
    """What another program has published under our key."""
    return Draft(kind, '{"name":"A human"}').sign(key, at)


async def test_a_profile_from_elsewhere_is_left_alone(desk: Desk) -> None:
    desk.announcer.hear(theirs(0))
    assert kinds(await desk.after(0)) == [31990, 10002]
    assert desk.standing() is AnnounceState.ANNOUNCED
    desk.restart()
    desk.announcer.hear(theirs(0))
    desk.announcer.hear(desk.relays.durable[1])
    assert kinds(await desk.after(3600)) == [31990, 10002], "the relay list is our own"


async def test_a_profile_that_is_published_elsewhere_later_is_left_alone_from_then_on(desk: Desk) -> None:
    ours = (await desk.after(0))[2]
    desk.announcer.hear(ours)
    assert kinds(await desk.after(3600)) == [31990, 10002, 0]
    desk.announcer.hear(theirs(0, at=NOW + 3601))
    assert kinds(await desk.after(3600)) == [31990, 10002]
    desk.announcer.hear(ours)
    assert kinds(await desk.after(3600)) == [31990, 10002], "an old copy changes nothing"


async def test_the_profile_waits_until_the_relays_have_told_and_the_announcement_not_long(desk: Desk) -> None:
    desk.all_found = False
    assert await desk.after(4) == []
    assert kinds(await desk.after(1)) == [31990]
    assert await desk.after(29) == []
    assert kinds(await desk.after(1)) == [10002, 0], "not for ever: a relay may be away"
    desk.restart()
    desk.all_found = True
    assert kinds(await desk.after(30)) == [31990, 10002, 0]


@pytest.mark.parametrize(("mode", "sent"), [("always", [31990, 10002, 0]), ("never", [31990])])
async def test_the_operator_has_the_last_word(desk: Desk, mode: str, sent: list[int]) -> None:
    desk.config = replace(CONFIG, profile=ProfileMode(mode))
    desk.restart()
    desk.announcer.hear(theirs(0))
    assert kinds(await desk.after(0)) == sent


async def test_nobody_else_can_say_that_we_have_a_profile(desk: Desk) -> None:
    assert desk.announcer.hear(theirs(0, key=STRANGER)) == "unrelated"
    assert desk.announcer.hear(replace(theirs(0), content="forged")) == "forged"
    assert desk.announcer.hear(theirs(1)) == "unrelated"
    assert kinds(await desk.after(0)) == [31990, 10002, 0]


async def test_withdrawn_it_stays_withdrawn_until_it_is_published_again(desk: Desk) -> None:
    announced = (await desk.after(0))[0]
    await desk.announcer.withdraw()
    gone = desk.relays.durable[-1]
    assert gone.kind == 5 and gone.created_at > announced.created_at
    assert ("a", f"31990:{PROVIDER.public_hex}:pylon") in gone.tags
    assert ("e", announced.id) in gone.tags
    assert desk.standing() is AnnounceState.WITHDRAWN
    desk.paused = True
    assert await desk.after(10_000) == []
    desk.connected = {RELAY, "wss://two.example"}
    assert await desk.after(0) == [gone], "a relay that was away hears of it too"
    desk.restart()
    assert await desk.after(10_000) == []
    assert desk.standing() is AnnounceState.WITHDRAWN
    await desk.announcer.publish()
    assert kinds(desk.relays.durable[-3:]) == [31990, 10002, 0]
    assert desk.relays.durable[-1].created_at > gone.created_at
    assert desk.standing() is AnnounceState.ANNOUNCED
    desk.restart()
    assert kinds(await desk.after(30)) == [31990, 10002, 0]


async def test_published_by_hand_it_waits_for_nothing(desk: Desk) -> None:
    await desk.after(0)
    await desk.announcer.publish()
    assert [event.created_at for event in desk.relays.durable] == [NOW] * 3 + [NOW + 1] * 3
    assert await desk.after(29) == []


async def test_switched_off_nothing_is_published(desk: Desk) -> None:
    desk.config = replace(CONFIG, enabled=False)
    desk.restart()
    assert await desk.after(10_000) == []
    with pytest.raises(AnnouncingOff, match=r"announce\.enabled"):
        await desk.announcer.publish()
    assert desk.standing() is AnnounceState.OFF
    await desk.announcer.withdraw()
    assert kinds(desk.relays.durable) == [5], "what was announced before can be withdrawn"


async def test_confirmation_tells_which_relay_has_it(desk: Desk) -> None:
    await desk.announcer.publish()
    assert await desk.announcer.confirmation(5) == RELAY
    assert all(desk.announcer.owns(event.id) for event in desk.announcer.events)
    assert not desk.announcer.owns("ab" * 32)
    await desk.announcer.withdraw()
    assert await desk.announcer.confirmation(5) == RELAY
    desk.relays.confirms = lambda event: False
    await desk.announcer.publish()
    assert await desk.announcer.confirmation(0.01) is None
    desk.announcer.gave_up(desk.announcer.events[0].id, "nobody is there")


async def test_it_runs_until_it_is_cancelled(desk: Desk) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.announcer.run)
        assert await desk.announcer.confirmation(5) == RELAY
        tasks.cancel_scope.cancel()


async def test_a_price_that_was_changed_is_published_on_the_next_start(desk: Desk) -> None:
    await desk.after(0)
    desk.offers = (replace(OFFERS[0], kind_prices={5050: Price(1000, min_msats=9000)}), OFFERS[1])
    desk.restart()
    sent = await desk.after(60)
    assert 31990 in kinds(sent)
    price = desk.told.models[0].price
    assert price is not None and price.min_msats == 9000


async def test_a_new_bench_is_a_change_that_is_announced(desk: Desk) -> None:
    await desk.after(0)
    desk.measured = {"m": Measured(41, 180, NOW)}
    assert kinds(await desk.after(30)) == [31990]
    assert [model.measured for model in desk.told.models if model.name == "m"] == [Measured(41, 180, NOW)]
