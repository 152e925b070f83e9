"""The relay half of the outbox: signed events out to relays until one confirms, and live ones out once.

A delivery goes to every configured relay and to those its customer named. The first OK confirms it; the others
are still tried for a while, since the customer may listen only where a connection is just coming back. Sending the
same bytes again is harmless (relays know the id): what is in doubt is sent again, with backoff, until the deadline.

Each relay has a lane: `waiting` (sent as soon as there is room), `sent` (its OK is awaited), `later` (backoff).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio

from pylon.jobs.ports import Clock, DeliverySink
from pylon.nostr.event import Event
from pylon.nostr.messages import event_frame, event_frame_of
from pylon.relays.answers import Answer
from pylon.relays.connection import RelayListener
from pylon.relays.state import PoolConfig

SWEEP_S: Final = 0.2


class Outlet(Protocol):
    """One relay as the publisher needs it."""

    @property
    def connected(self) -> bool:
        """Whether events can be published now."""
        ...

    def publish(self, event_id: str, frame: bytes, *, live: bool = False) -> bool:
        """Queue an event; False when there is no room or no connection."""
        ...


class Outlets(Protocol):
    """The relay pool as the publisher needs it."""

    def attach(self, listener: RelayListener) -> None:
        """Name who hears the answers."""
        ...

    def targets(self, named: Sequence[str]) -> list[str]:
        """Return the canonical URLs where an event goes."""
        ...

    def outlet(self, url: str) -> Outlet | str:
        """Return the relay, or why it cannot be used."""
        ...


@dataclass(frozen=True, slots=True)
class PublisherState:
    """The publisher's line in `pylon status`: deliveries by how they stand."""

    unconfirmed: int
    lingering: int  # confirmed by one relay, still being sent to others
    live_sent: int
    live_dropped: int


@dataclass(slots=True)
class _Delivery:
    event_id: str
    frame: bytes
    deadline_at: float
    open: set[str]  # relays that may still confirm it
    refusals: dict[str, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    lingers_until: float | None = None  # set by the first confirmation


@dataclass(slots=True)
class _Lane:
    waiting: dict[str, None] = field(default_factory=dict)  # event ids in order
    sent: dict[str, None] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)  # event id -> when to send again

    def forget(self, event_id: str) -> None:
        self.waiting.pop(event_id, None)
        self.sent.pop(event_id, None)
        self.later.pop(event_id, None)

    @property
    def empty(self) -> bool:
        return not (self.waiting or self.sent or self.later)


class OutboxPublisher:
    """Implements `Publisher` of `jobs/ports/` over a relay pool; `run` must be running."""

    def __init__(
        self, pool: Outlets, sink: DeliverySink, config: PoolConfig, *, clock: Clock, rng: random.Random
    ) -> None:
        self._pool = pool
        self._sink = sink
        self._config = config
        self._clock = clock
        self._rng = rng
        self._deliveries: dict[str, _Delivery] = {}
        self._lingering: dict[str, None] = {}  # oldest first
        self._lingering_bytes = 0
        self._lanes: dict[str, _Lane] = {}
        self._live_sent = 0
        self._live_dropped = 0
        pool.attach(self)

    # --- Publisher --------------------------------------------------------------------------------------------

    def publish_live(self, event: Event, relays: Sequence[str]) -> None:
        """Send once to whoever is connected now."""
        frame = event_frame(event).encode()
        for url in self._pool.targets(relays):
            outlet = self._pool.outlet(url)
            if not isinstance(outlet, str) and outlet.publish(event.id, frame, live=True):
                self._live_sent += 1
            else:
                self._live_dropped += 1

    def deliver(self, event_id: str, event_json: str, relays: Sequence[str], deadline_at: float) -> None:
        """Send until a relay confirms or `deadline_at` (unix seconds) passes. An id under way is left alone.

        The sink hears the outcome later, never from within this call.
        """
        if event_id in self._deliveries:
            return
        targets = self._pool.targets(relays)
        frame = event_frame_of(event_json).encode()
        self._deliveries[event_id] = _Delivery(event_id, frame, deadline_at, set(targets))
        for url in targets:
            lane = self._lane(url)
            lane.waiting[event_id] = None
            self._pump(url, lane)

    # --- RelayListener ----------------------------------------------------------------------------------------

    def ready(self, url: str) -> None:
        """Send what waited for this relay."""
        lane = self._lanes.get(url)
        if lane is not None:
            self._pump(url, lane)

    def lost(self, url: str, why: str) -> None:
        """Take back what the connection had not answered; it goes out again on the next one."""
        lane = self._lanes.get(url)
        if lane is not None and lane.sent:
            lane.waiting = lane.sent | lane.waiting
            lane.sent = {}

    def answered(self, url: str, answer: Answer) -> None:
        """Hear how one send ended."""
        lane = self._lanes.get(url)
        event_id = answer.event_id
        if lane is None or event_id not in lane.sent:
            return  # a live event
        del lane.sent[event_id]
        delivery = self._deliveries[event_id]
        verdict = answer.verdict
        if verdict.confirms:
            delivery.open.discard(url)
            self._confirmed(delivery, url)
        elif verdict.final:
            self._refused(delivery, url, answer.text or verdict)
        else:
            delivery.refusals[url] = answer.text or verdict
            lane.later[event_id] = self._clock() + self._pause_s(delivery, url)
        if lane.waiting:
            self._pump(url, lane)

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after retries and deadlines until cancelled."""
        while True:
            self.sweep()
            await anyio.sleep(SWEEP_S)

    def sweep(self) -> None:
        """Do what is due now. `run` calls it; a test may."""
        now = self._clock()
        for url, lane in list(self._lanes.items()):
            due = [event_id for event_id, at in lane.later.items() if at <= now]
            for event_id in due:
                del lane.later[event_id]
                lane.waiting[event_id] = None
            if lane.waiting:
                self._pump(url, lane)
            if lane.empty:
                self._lanes.pop(url, None)
        ended = [
            delivery
            for delivery in self._deliveries.values()
            if delivery.lingers_until is None and (delivery.deadline_at <= now or not delivery.open)
        ]
        for delivery in ended:
            self._forget(delivery)
            self._sink.gave_up(delivery.event_id, _why(delivery, delivery.deadline_at <= now))
        self._trim_lingering(now)

    def states(self) -> PublisherState:
        """Return how many deliveries are under way."""
        return PublisherState(
            unconfirmed=len(self._deliveries) - len(self._lingering),
            lingering=len(self._lingering),
            live_sent=self._live_sent,
            live_dropped=self._live_dropped,
        )

    # --- inside -----------------------------------------------------------------------------------------------

    def _lane(self, url: str) -> _Lane:
        lane = self._lanes.get(url)
        if lane is None:
            lane = self._lanes[url] = _Lane()
        return lane

    def _pump(self, url: str, lane: _Lane) -> None:
        """Send what waits, as far as the relay has room."""
        outlet = self._pool.outlet(url)
        if isinstance(outlet, str):
            for event_id in list(lane.waiting):
                del lane.waiting[event_id]
                self._refused(self._deliveries[event_id], url, outlet)
            return
        while lane.waiting and outlet.connected:
            event_id = next(iter(lane.waiting))
            if not outlet.publish(event_id, self._deliveries[event_id].frame):
                return
            del lane.waiting[event_id]
            lane.sent[event_id] = None

    def _confirmed(self, delivery: _Delivery, url: str) -> None:
        first = delivery.lingers_until is None
        if first:
            delivery.lingers_until = self._clock() + self._config.linger_s
            self._lingering[delivery.event_id] = None
            self._lingering_bytes += len(delivery.frame)
        if not delivery.open:
            self._forget(delivery)
        if first:
            self._sink.confirmed(delivery.event_id, url)

    def _refused(self, delivery: _Delivery, url: str, why: str) -> None:
        """Hear that this relay will never confirm it. `gave_up` waits for the sweep, so that a call of `deliver`
        never answers from within."""
        delivery.open.discard(url)
        delivery.refusals[url] = why
        if not delivery.open and delivery.lingers_until is not None:
            self._forget(delivery)

    def _forget(self, delivery: _Delivery) -> None:
        self._deliveries.pop(delivery.event_id, None)
        if delivery.event_id in self._lingering:
            del self._lingering[delivery.event_id]
            self._lingering_bytes -= len(delivery.frame)
        for url in delivery.open:
            lane = self._lanes.get(url)
            if lane is not None:
                lane.forget(delivery.event_id)

    def _trim_lingering(self, now: float) -> None:
        while self._lingering:
            delivery = self._deliveries[next(iter(self._lingering))]
            over = (
                len(self._lingering) > self._config.max_lingering
                or self._lingering_bytes > self._config.max_lingering_bytes
            )
            if not over and delivery.lingers_until is not None and delivery.lingers_until > now:
                return
            self._forget(delivery)

    def _pause_s(self, delivery: _Delivery, url: str) -> float:
        tries = delivery.tries.get(url, 0)
        delivery.tries[url] = tries + 1
        full = min(self._config.retry_max_s, self._config.retry_min_s * 2.0 ** min(tries, 30))
        return full * self._rng.uniform(0.5, 1.0)


def _why(delivery: _Delivery, late: bool) -> str:
    """Return one printable sentence for the dead letter."""
    words = "; ".join(f"{url}: {why}" for url, why in delivery.refusals.items())
    if late:
        return f"no relay confirmed before the deadline ({words or 'none answered'})"
    return f"every relay refused it ({words})" if words else "there is no relay to send it to"
