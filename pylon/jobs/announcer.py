"""Keeps the provider's announcement true: published on start, on change and again after a while, or withdrawn.

A replaceable event is kept by a relay only when its `created_at` is above that of the one before; in one second
the lowest id wins and the rest is refused. So every version takes a time from the store's marks, one more than the
last at least, committed before anything is signed: two versions never share a second, not even across restarts.

A key has one profile and one relay list, whatever programs use it. Those that relays have are asked for first: one
that is newer than our last was published elsewhere, and is left alone (`ProfileMode.AUTO`).

A relay that is away when something is published gets it when it is connected again, at the latest after
`debounce_s`; one that stays connected and forgets gets it with the next repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol, TypeVar

import anyio
import structlog

from pylon.jobs.announcement import (
    IDENTIFIER,
    SHARED_KINDS,
    AnnounceConfig,
    announcement_now,
    drafts_now,
    is_foreign,
)
from pylon.jobs.catalogue import Offer
from pylon.jobs.ports import BackendHealth, BackendState, Clock, Publisher
from pylon.nostr.event import Draft, Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip89 import ANNOUNCEMENT_KIND, Measured, withdrawal_draft
from pylon.nostr.nip90 import DELETION_KIND
from pylon.store.tx import Tx

log = structlog.get_logger("pylon.announcer")

TICK_S: Final = 0.5
DELIVERY_S: Final = 60.0
"""How long an event is offered to relays that are away; after that it waits for their return."""

FIND_S: Final = 5.0
"""How long the first announcement waits for relays to tell what they have; the profile waits for longer."""

TIME_MARK: Final = "announced at"
WITHDRAWN_MARK: Final = "announcement withdrawn"
LEFT_MARK: Final = "announcement left paused"

T = TypeVar("T")


class AnnounceState(StrEnum):
    """How the announcement stands."""

    OFF = "off"  # switched off in the settings
    WAITING = "waiting"  # nothing published since the start, or a change waits to be published
    ANNOUNCED = "announced"
    WITHDRAWN = "withdrawn"  # by the operator, until it is published again


class AnnouncingOff(Exception):
    """Nothing is published while the settings switch announcing off."""

    def __init__(self) -> None:
        super().__init__("announcing is switched off: set announce.enabled = true")


class MarkKeeper(Protocol):
    """The store's marks, as the engine gives access to them."""

    async def query(self, read: Callable[[Tx], T]) -> T:
        """Run a small read or mark on the writer."""
        ...


def take_time(tx: Tx, now: float, kinds: Iterable[int], *, withdrawn: bool = False, left: bool = False) -> int:
    """Return the `created_at` of the next version of `kinds`, above every one before, and mark it as used.

    `left` marks the last version before the daemon ends.
    """
    created_at = max(int(now), tx.marks().get(TIME_MARK, 0) + 1)
    tx.set_mark(TIME_MARK, created_at)
    tx.set_mark(WITHDRAWN_MARK, int(withdrawn))
    tx.set_mark(LEFT_MARK, int(left))
    for kind in SHARED_KINDS.intersection(kinds):
        tx.set_mark(kind_mark(kind), created_at)
    return created_at


def kind_mark(kind: int) -> str:
    """Return the name of the mark that holds the `created_at` of our last version of a shared kind."""
    return f"published kind {kind}"


class Announcer:
    """Announces one provider; `run` must be running. The other methods may be called from other tasks."""

    def __init__(
        self,
        config: AnnounceConfig,
        offers: Sequence[Offer],
        key: SecretKey,
        publisher: Publisher,
        marks: MarkKeeper,
        clock: Clock,
        *,
        states: Callable[[], Mapping[str, BackendState]],
        paused: Callable[[], bool],
        connected: Callable[[], Iterable[str]],
        all_found: Callable[[], bool],
        measured: Callable[[], Mapping[str, Measured]] = dict,
    ) -> None:
        self._config = config
        self._offers = offers
        self._key = key
        self._publisher = publisher
        self._marks = marks
        self._clock = clock
        self._states = states
        self._paused = paused
        self._connected = connected
        self._all_found = all_found  # whether every relay has told what it has of us
        self._measured = measured  # how fast the models are, by the offers' names
        self._lock = anyio.Lock()
        self._started_at = clock()
        self._settled = False  # whether the backends have said how they are, or had the time to
        self._published_at: float | None = None  # unix seconds; across restarts; None: not read from the store yet
        self._withdrawn = False
        self._shared_at: dict[int, int] = {}  # created_at of our last version of a shared kind
        self._found_at: dict[int, int] = {}  # of the newest version on relays, whoever published it
        self._left_alone: set[int] = set()
        self._drafts: dict[int, Draft] = {}  # what stands on the relays, by kind, as far as this process knows
        self._events: dict[int, Event] = {}
        self._served: frozenset[str] = frozenset()  # relays that were connected when it was sent
        self._sent_at = 0.0
        self._confirmed_by: dict[str, str] = {}  # event id -> the first relay that has it
        self._news = anyio.Event()

    def reconfigure(self, config: AnnounceConfig, offers: Sequence[Offer]) -> None:
        """Take other words, prices and times; what changes by them is published as any change is."""
        self._config, self._offers = config, offers

    @property
    def state(self) -> AnnounceState:
        """How the announcement stands."""
        if not self._config.enabled:
            return AnnounceState.OFF
        if self._withdrawn:
            return AnnounceState.WITHDRAWN
        stands = all(self._drafts.get(kind) == draft for kind, draft in self._wanted().items())
        return AnnounceState.ANNOUNCED if stands else AnnounceState.WAITING

    @property
    def events(self) -> tuple[Event, ...]:
        """What was published last, by this process."""
        return tuple(self._events.values())

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            await self.step()
            await anyio.sleep(TICK_S)

    async def step(self) -> None:
        """Do what is due now. `run` calls it; a test may."""
        async with self._lock:
            await self._load()
            now = self._clock()
            if self._config.enabled and not self._withdrawn and self._ready(now):
                due = self._due(now)
                if due:
                    await self._publish(due)
            self._serve_returned(now)

    async def publish(self) -> None:
        """Publish everything now, whatever was before. Raises `AnnouncingOff`."""
        if not self._config.enabled:
            raise AnnouncingOff
        async with self._lock:
            await self._load()
            await self._publish(self._wanted())

    async def withdraw(self) -> None:
        """Delete the announcement from the relays (NIP-09), and announce nothing until `publish`."""
        async with self._lock:
            await self._load()
            ids = [event.id for event in self._events.values() if event.kind == ANNOUNCEMENT_KIND]
            draft = withdrawal_draft(self._key.public_hex, IDENTIFIER, ids, "withdrawn by the operator")
            self._withdrawn = True
            self._drafts, self._events = {}, {}
            await self._send({DELETION_KIND: draft}, withdrawn=True)
            log.info("the announcement is withdrawn")

    async def leave(self, within_s: float) -> None:
        """Publish that no jobs are taken any more, before the daemon ends, and wait for a relay to have it."""
        async with self._lock:
            wanted = self._wanted()[ANNOUNCEMENT_KIND]
            standing = self._drafts.get(ANNOUNCEMENT_KIND)
            if standing is None or standing == wanted or not list(self._connected()):
                return
            await self._publish({ANNOUNCEMENT_KIND: wanted}, left=True)
        await self.confirmation(within_s)

    def hear(self, event: Event) -> str | None:
        """Take a profile or relay list of our key that a relay has; returns the reason when it is none.

        Never raises.
        """
        if event.kind not in SHARED_KINDS or event.pubkey != self._key.public_hex:
            return "unrelated"
        if event.created_at > self._found_at.get(event.kind, -1):
            if not verify(event):
                return "forged"
            self._found_at[event.kind] = event.created_at
        return None

    async def confirmation(self, within_s: float) -> str | None:
        """Return a relay that has what was published last, waiting for it; None when none confirms in time."""
        with anyio.move_on_after(within_s):
            while True:
                kind = DELETION_KIND if self._withdrawn else ANNOUNCEMENT_KIND
                event = self._events.get(kind)
                if event is not None and event.id in self._confirmed_by:
                    return self._confirmed_by[event.id]
                await self._news.wait()
        return None

    # --- DeliverySink -----------------------------------------------------------------------------------------

    def owns(self, event_id: str) -> bool:
        """Whether an event was published here, lately."""
        return event_id in self._confirmed_by or any(event.id == event_id for event in self._events.values())

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay has an event; see `DeliverySink`."""
        self._confirmed_by.setdefault(event_id, relay_url)
        news, self._news = self._news, anyio.Event()
        news.set()

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay took an event; see `DeliverySink`. It is sent again when one comes back."""
        log.warning("no relay has taken the announcement", reason=why)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._published_at is None:
            marks = await self._marks.query(lambda tx: tx.marks())
            # After a graceful end the mark of the pause must not stay for as long as changes are gathered.
            self._published_at = 0.0 if marks.get(LEFT_MARK, 0) else float(marks.get(TIME_MARK, 0))
            self._withdrawn = bool(marks.get(WITHDRAWN_MARK, 0))
            self._shared_at = {kind: marks.get(kind_mark(kind), 0) for kind in SHARED_KINDS}

    def _ready(self, now: float) -> bool:
        """Tell whether backends and relays have said how they are, or had the time to."""
        if not self._settled:
            age_s = now - self._started_at
            health = {state.health for state in self._states().values()}
            loading = bool(health & {BackendHealth.UNKNOWN, BackendHealth.LOADING})
            told = not loading or age_s >= self._config.debounce_s
            self._settled = told and (self._all_found() or age_s >= FIND_S)
        return self._settled

    def _wanted(self) -> dict[int, Draft]:
        announcement = announcement_now(
            self._config, self._offers, self._states(), paused=self._paused(), measured=self._measured()
        )
        drafts = drafts_now(self._config, announcement)
        return {kind: draft for kind, draft in drafts.items() if kind not in SHARED_KINDS or self._is_ours(kind)}

    def _is_ours(self, kind: int) -> bool:
        if not (self._all_found() or self._clock() >= self._started_at + self._config.debounce_s):
            return False
        if not is_foreign(self._config, kind, self._found_at.get(kind), self._shared_at.get(kind, 0)):
            return True
        if kind not in self._left_alone:
            self._left_alone.add(kind)
            log.info("this key has one that was published elsewhere: left alone (announce.profile)", kind=kind)
        return False

    def _due(self, now: float) -> dict[int, Draft]:
        # A clock that was set back must not silence us until it is where it was.
        self._published_at = min(self._published_at or 0.0, now)
        if now < self._published_at + self._config.debounce_s:
            return {}
        wanted = self._wanted()
        if now >= self._published_at + self._config.republish_s:
            return wanted
        return {kind: draft for kind, draft in wanted.items() if self._drafts.get(kind) != draft}

    async def _publish(self, drafts: Mapping[int, Draft], *, left: bool = False) -> None:
        self._events.pop(DELETION_KIND, None)
        self._withdrawn = False
        await self._send(drafts, left=left)
        self._drafts.update(drafts)
        event = self._events.get(ANNOUNCEMENT_KIND)
        if event is not None and ANNOUNCEMENT_KIND in drafts:
            log.info("announced", event_id=event.id, created_at=event.created_at)

    async def _send(self, drafts: Mapping[int, Draft], *, withdrawn: bool = False, left: bool = False) -> None:
        now = self._clock()
        created_at = await self._marks.query(lambda tx: take_time(tx, now, drafts, withdrawn=withdrawn, left=left))
        self._shared_at |= dict.fromkeys(SHARED_KINDS.intersection(drafts), created_at)
        for kind, draft in drafts.items():
            self._events[kind] = draft.sign(self._key, created_at)
        ids = {event.id for event in self._events.values()}
        self._confirmed_by = {each: relay for each, relay in self._confirmed_by.items() if each in ids}
        self._published_at = now
        self._served = frozenset()
        self._deliver([self._events[kind] for kind in drafts], now)

    def _serve_returned(self, now: float) -> None:
        """Send everything once more when a relay is connected that was not when it was sent."""
        if self._events and now >= self._sent_at + self._config.debounce_s:
            returned = frozenset(self._connected()) - self._served
            if returned:
                self._deliver(list(self._events.values()), now)

    def _deliver(self, events: Iterable[Event], now: float) -> None:
        self._sent_at = now
        self._served |= frozenset(self._connected())
        for event in events:
            self._publisher.deliver(event.id, event.to_json(), (), now + DELIVERY_S)
