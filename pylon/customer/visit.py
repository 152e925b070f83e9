"""One visit to relays: ask what they have stored, publish an event, and leave again.

For commands that run without a daemon. What relays send is checked as from strangers: signature, the filter asked
for, and bounds per relay, so that one relay can neither slip anything in nor crowd the others out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import anyio

from pylon.customer.client import NotPublished
from pylon.jobs.ports import Clock
from pylon.nostr.event import Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import OutboxPublisher
from pylon.relays.state import PoolConfig, RelayState, RelayStatus, SubscriptionStatus
from pylon.text import utf8_bytes

MAX_EVENTS: Final = 2_000
"""Events taken from one relay in one reading."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Text taken from one relay in one reading."""

_OTHERS_S: Final = 2.0  # once every event has one confirmation: how long the other relays may still take
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Found:
    """A stored event whose signature holds, and the relays that have it."""

    event: Event
    relays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelayReading:
    """Whether a relay has sent all it has stored; if not, `detail` says why, fit for a terminal."""

    url: str
    complete: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found, and how each relay answered, in the configured order."""

    found: tuple[Found, ...]
    relays: tuple[RelayReading, ...]

    @property
    def events(self) -> list[Event]:
        """The events alone."""
        return [each.event for each in self.found]


class Visit:
    """Relays that are connected while `visiting` is entered. One reading at a time."""

    def __init__(self, relays: PoolConfig, *, key: SecretKey, clock: Clock, rng: random.Random) -> None:
        """Raises `DialRefused` when a URL is none of a relay."""
        self._clock = clock
        self._pool = RelayPool(relays, key=key, sink=self, clock=clock, rng=rng)
        self._publisher = OutboxPublisher(self._pool, self, relays, clock=clock, rng=rng)
        self._asked: tuple[Filter, ...] = ()
        self._readings = 0
        self._events: dict[str, Event] = {}
        self._seen_on: dict[str, set[str]] = {}  # relay -> event ids
        self._taken_bytes: Counter[str] = Counter()  # by relay
        self._confirmed: set[str] = set()
        self._gave_up: dict[str, str] = {}

    async def run(self) -> None:
        """Hold the connections until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pool.run)
            tasks.start_soon(self._publisher.run)

    async def read(self, filters: Sequence[Filter], timeout_s: float) -> Reading:
        """Return the stored events that match, from all relays that answer within `timeout_s`."""
        self._asked = tuple(filters)
        self._events, self._seen_on, self._taken_bytes = {}, {}, Counter()
        self._readings += 1
        name = f"reading {self._readings}"
        self._pool.subscribe(name, lambda since: self._asked, since=0)
        failed: dict[str, str] = {}
        with anyio.move_on_after(timeout_s):
            while True:
                states = self._pool.states()
                failed |= {state.url: why for state in states if (why := _failure(state, name))}
                if all(state.url in failed or _complete(state, name) for state in states):
                    break
                await self._pool.changed()
        relays = tuple(_reading_of(state, name, failed, timeout_s) for state in self._pool.states())
        self._asked = ()
        self._pool.refresh(name)
        found = tuple(
            Found(event, tuple(url for url, seen in self._seen_on.items() if event_id in seen))
            for event_id, event in self._events.items()
        )
        return Reading(found, relays)

    async def publish(self, events: Sequence[Event], timeout_s: float) -> None:
        """Send events until a relay has confirmed each, and wait a little for the others. Raises `NotPublished`."""
        deadline_at = self._clock() + timeout_s
        for event in events:
            self._publisher.deliver(event.id, event.to_json(), (), deadline_at)
        ids = {event.id for event in events}
        with anyio.move_on_after(timeout_s):
            while not ids <= self._confirmed | self._gave_up.keys():  # noqa: ASYNC110 - sinks are not awaited
                await anyio.sleep(_POLL_S)
            with anyio.move_on_after(_OTHERS_S):
                while self._publisher.states().lingering:  # noqa: ASYNC110 - nothing tells of the last one
                    await anyio.sleep(_POLL_S)
        if missing := ids - self._confirmed:
            raise NotPublished(self._gave_up.get(missing.pop(), f"no relay confirmed it within {timeout_s:g} s"))

    # --- what the relays tell -----------------------------------------------------------------------------------

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take a stored event; see `EventSink`."""
        if not any(matches(event, asked) for asked in self._asked):
            return "unrelated"
        seen = self._seen_on.setdefault(relay_url, set())
        tags = "".join(part for tag in event.tags for part in tag)
        self._taken_bytes[relay_url] += utf8_bytes(event.content) + utf8_bytes(tags)
        if len(seen) >= MAX_EVENTS or self._taken_bytes[relay_url] > MAX_BYTES:
            return "crowded"
        known = self._events.get(event.id)
        if known != event:
            if not verify(event):
                return "forged"
            # Two signatures of one id are both good: the first stays.
            self._events.setdefault(event.id, event)
        seen.add(event.id)
        return None

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay has an event of ours; see `DeliverySink`."""
        self._confirmed.add(event_id)

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay took an event of ours; see `DeliverySink`."""
        self._gave_up[event_id] = why


@asynccontextmanager
async def visiting(relays: PoolConfig, *, key: SecretKey, clock: Clock, rng: random.Random) -> AsyncIterator[Visit]:
    """Visit relays until the block ends. Raises `DialRefused` when a URL is none of a relay."""
    visit = Visit(relays, key=key, clock=clock, rng=rng)
    fault: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visit.run)
        try:
            yield visit
        except Exception as error:  # noqa: BLE001 - raised below, as itself and not within a group
            fault = error
        finally:
            tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault


def matches(event: Event, asked: Filter) -> bool:
    """Tell whether an event is what a NIP-01 filter of kinds, authors, ids and tags asks for."""
    for name, wanted in asked.items():
        if name.startswith("#"):
            if set(wanted).isdisjoint(event.tag_values(name[1:])):
                return False
        elif name in _FIELDS and getattr(event, _FIELDS[name]) not in wanted:
            return False
    return True


_FIELDS: Final[dict[str, Any]] = {"kinds": "kind", "authors": "pubkey", "ids": "id"}


def _complete(state: RelayState, name: str) -> bool:
    return any(each.name == name and each.status is SubscriptionStatus.LIVE for each in state.subscriptions)


def _failure(state: RelayState, name: str) -> str:
    """Return why a relay will not answer any more, or nothing while it may."""
    if state.status in (RelayStatus.BACKOFF, RelayStatus.REFUSED):
        return state.last_error or state.status.value
    for each in state.subscriptions:
        if each.name == name and each.status is SubscriptionStatus.CLOSED:
            return each.detail or "it refused the question"
    return ""


def _reading_of(state: RelayState, name: str, failed: dict[str, str], timeout_s: float) -> RelayReading:
    if _complete(state, name):
        return RelayReading(state.url, True)
    late = f"no answer within {timeout_s:g} s"
    return RelayReading(state.url, False, failed.get(state.url) or _failure(state, name) or late)
