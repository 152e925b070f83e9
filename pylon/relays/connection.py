"""One relay, supervised: connect, feed the session, write what it says, reconnect with backoff.

The reading loop is the relay's only task. Writing needs none: the first frame queued in a turn of the event loop
schedules one flush, which writes everything queued by then in one system call and stops when the peer does not
drain; the pool's ticker looks after time-outs. Nothing here waits for another relay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
from websockets.exceptions import ConnectionClosed

from pylon.jobs.ports import Clock, EventSink
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import ClosedMessage, EoseMessage, EventMessage, Filter
from pylon.relays.answers import Answer, Verdict
from pylon.relays.pace import Patience, RelayPace
from pylon.relays.session import Heard, Session
from pylon.relays.socket import RelaySocket, canonical_url, describe, is_refusal
from pylon.relays.state import Counters, PoolConfig, RelayState, RelayStatus

BURST: Final = 64
"""Frames handled before everyone else gets a turn."""

USEFUL_ACCEPTED: Final = 100
"""A connection on which this many events were accepted was no failure, however short."""

TROUBLE_SHOWN_S: Final = 60.0
"""How long the status tells that a relay was read slowly, or has refused an event."""

_SLICE_S: Final = 0.003
_LEAST_PAUSE_S: Final = 0.005
_FLUSH_BYTES: Final = 64 * 1024
_CLOSE_S: Final = 1.5

Opener = Callable[[str], Awaitable[RelaySocket]]
Filters = Callable[[int], Sequence[Filter]]


@dataclass(slots=True)
class Subscription:
    """What all configured relays are asked for. `since` (unix seconds) starts relays that have no cursor."""

    name: str
    filters: Filters
    since: int
    cursors: Mapping[str, int] = field(default_factory=dict)


class RelayListener(Protocol):
    """What hears how publishing goes: the outbox publisher. Relays are named by their canonical URL."""

    def ready(self, url: str) -> None:
        """Hear that a relay is connected and takes events."""
        ...

    def lost(self, url: str, why: str) -> None:
        """Hear that a connection ended: what it had not answered is open again."""
        ...

    def answered(self, url: str, answer: Answer) -> None:
        """Hear how a publish ended, live ones included."""
        ...


class Relay:
    """One relay for the life of the pool. Every method but `run` and `serve` is synchronous and cheap."""

    def __init__(
        self,
        url: str,
        config: PoolConfig,
        opener: Opener,
        *,
        key: SecretKey | None,
        sink: EventSink | None,
        listener: RelayListener,
        clock: Clock,
        rng: random.Random,
        changed: Callable[[], None],
        subscriptions: Mapping[str, Subscription] | None = None,
        guest: bool = False,
    ) -> None:
        self.url = url  # as configured: AUTH must repeat it
        self.canonical = canonical_url(url)
        self.counters = Counters()
        self._config = config
        self._opener = opener
        self._key = key
        self._sink = sink
        self._listener = listener
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._subscriptions = subscriptions if subscriptions is not None else {}
        self._guest = guest
        self._pace = None
        if config.messages_per_s or config.subscriptions_per_minute:
            self._pace = RelayPace(config.messages_per_s, config.subscriptions_per_minute, config.publish_timeout_s)
        self._patience = Patience(config.useless_share, config.useless_burst_s)  # over all of its connections
        self._slowed, self._slowed_at = "", 0.0
        self._refusal, self._refused_at = "", 0.0
        self._status = RelayStatus.STOPPED
        self._status_since = clock()
        self._last_error = ""
        self._session: Session | None = None
        self._socket: RelaySocket | None = None
        self._end_reason = ""
        self._flush_scheduled = False
        self._last_heard = 0.0  # loop time, as the next
        self._connected_at: float | None = None
        self._known_good: dict[str, int] = {}
        self._caught_up: set[str] = set()

    # --- for the pool and the publisher -----------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether events can be published now."""
        return self._session is not None

    def caught_up(self, name: str) -> bool:
        """Whether the stored events of a subscription are all here."""
        return name in self._caught_up

    @property
    def unanswered(self) -> int:
        """How many events wait for their OK."""
        return self._session.unanswered if self._session is not None else 0

    def publish(self, event_id: str, frame: bytes, *, live: bool = False) -> bool:
        """Queue an event. False when not connected or full; for a live event that is a counted drop."""
        session = self._session
        if session is not None and session.publish(event_id, frame, _now(), live=live):
            self._wake()
            return True
        if live:
            self.counters.drop("live-slow" if session is not None else "live-offline")
        return False

    def resubscribe(self, subscription: Subscription) -> None:
        """Ask anew, with the filters of now."""
        self._remember(subscription.name)
        self._caught_up.discard(subscription.name)
        if self._session is not None:
            self._session.subscribe(subscription.name, subscription.filters(self._since(subscription)))
            self._wake()

    def cursor(self, name: str) -> int | None:
        """Return until when (unix seconds) nothing can have been missed here, None when that was never so."""
        self._remember(name)
        known = self._known_good.get(name)
        if known is None and name in self._subscriptions:
            known = self._subscriptions[name].cursors.get(self.url)
        return known

    def tick(self) -> None:
        """Let time pass: hand on overdue answers, end a connection that is of no use."""
        session, socket = self._session, self._socket
        if session is None or socket is None:
            return
        now = _now()
        for answer in session.tick(now):
            self._listener.answered(self.canonical, answer)
        stalled_since = socket.stalled_since
        if stalled_since is not None and now - stalled_since > self._config.stall_timeout_s:
            self._end("slow: the relay does not read what we send")
        elif session.throttled:
            self._end("slow: the relay answers ever later since it refused an event")
        self._wake()

    def state(self) -> RelayState:
        """Return the relay's line of the status."""
        session, socket, counters = self._session, self._socket, self.counters
        latency_s = socket.latency if socket is not None else 0.0
        return RelayState(
            url=self.url,
            status=self._status,
            since=self._status_since,
            last_error=(session.auth_error if session is not None else "") or self._last_error,
            trouble=self._trouble() if session is not None else "",
            authenticated=session is not None and session.authenticated,
            subscriptions=session.subscriptions() if session is not None else (),
            received=counters.received,
            sent=counters.sent,
            accepted=counters.accepted,
            refused=counters.refused,
            dropped=dict(counters.dropped),
            reconnects=counters.reconnects,
            last_notice=counters.last_notice,
            latency_ms=round(latency_s * 1000, 1) if latency_s else None,
            queued=session.queued if session is not None else 0,
        )

    # --- the life of the connection ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled. Whatever goes wrong is recorded and tried again."""
        failures = 0
        try:
            while True:
                accepted, self._connected_at = self.counters.accepted, None
                try:
                    await self.serve()
                except Exception as error:  # noqa: BLE001 - one relay's fault, of whatever kind, stays its own
                    self._failed(error)
                useful = self._lasted() or self.counters.accepted - accepted >= USEFUL_ACCEPTED
                failures = 0 if useful else failures + 1
                await anyio.sleep(self._pause_s(failures))
                self.counters.reconnects += 1
        finally:
            self._set_status(RelayStatus.STOPPED)

    async def serve(self) -> None:
        """Connect once and serve the connection until it ends. Raises what ended it, as `ConnectionError` if the
        relay or we closed it, else as it came."""
        self._set_status(RelayStatus.CONNECTING)
        socket = await self._opener(self.url)
        try:
            await self._serve(socket)
        except ConnectionClosed as error:
            raise ConnectionError(self._end_reason or socket.fault or describe(error)) from error
        except BaseException:  # cancelled, or a fault of ours: the relay deserves a farewell, but not our time
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await socket.close()
            raise
        finally:
            socket.abort()

    async def _serve(self, socket: RelaySocket) -> None:
        session = Session(
            self.url,
            self._config,
            key=self._key,
            clock=self._clock,
            rng=self._rng,
            counters=self.counters,
            guest=self._guest,
            pace=self._pace,
        )
        for subscription in self._subscriptions.values():
            session.subscribe(subscription.name, subscription.filters(self._since(subscription)))
        self._session, self._socket = session, socket
        self._end_reason = ""
        self._last_heard = self._connected_at = _now()
        socket.on_room = self._wake
        self._wake()
        self._set_status(RelayStatus.CONNECTED)
        try:
            self._listener.ready(self.canonical)
            await self._read(socket, session)
        finally:
            for name in tuple(self._caught_up):
                self._remember(name)
            self._caught_up.clear()
            self._session = self._socket = None
            self._listener.lost(self.canonical, self._end_reason or "disconnected")

    async def _read(self, socket: RelaySocket, session: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frames = await socket.receive(BURST)
            turn_at = self._last_heard = now = loop.time()
            parsed_s = socket.take_spent_s() / len(frames)
            for frame in frames:
                heard = session.receive(frame, now)
                useless = session.useless if heard is None else self._hear(heard)
                before, now = now, loop.time()
                pause_s = self._bear(useless, parsed_s + now - before, now) if useless else 0.0
                if session.hopeless:
                    self._end(f"too many frames that mean nothing ({session.nonsense})")
                    break
                if pause_s >= _LEAST_PAUSE_S or now - turn_at > _SLICE_S:
                    self._wake()
                    await asyncio.sleep(pause_s)
                    turn_at = now = loop.time()
            if session.has_output:
                self._wake()
            if len(frames) == BURST:
                await asyncio.sleep(0)

    def _bear(self, why: str, cost_s: float, now: float) -> float:
        """Return how many seconds to read no further after a frame of no use: they may take a share of our time."""
        self._patience.spend(cost_s, now)
        pause_s = self._patience.pause_s(now)
        if pause_s >= _LEAST_PAUSE_S:
            self._slowed, self._slowed_at = why, now
        return pause_s

    def _hear(self, heard: Heard) -> str:
        """Hand on what was heard; returns why it is of no use, empty when it is."""
        match heard:
            case EventMessage():
                reason = self._sink.offer(heard.event, self.url) if self._sink is not None else None
                if reason is not None:
                    self.counters.drop(reason)
                    return reason
            case Answer():
                if not heard.verdict.confirms and heard.verdict is not Verdict.NO_ANSWER:
                    self._refusal, self._refused_at = heard.text or heard.verdict.value, _now()
                self._listener.answered(self.canonical, heard)
            case EoseMessage():
                self._caught_up.add(heard.subscription)
                self._changed()
            case ClosedMessage():
                self._remember(heard.subscription)
                self._caught_up.discard(heard.subscription)
                self._changed()
        return ""

    # --- inside -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._flush_scheduled and self._session is not None and self._session.has_output:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        session, socket = self._session, self._socket
        while session is not None and socket is not None and socket.stalled_since is None:
            frames = session.take(_FLUSH_BYTES, _now())
            if not frames:
                return
            socket.write_texts(frames)

    def _trouble(self) -> str:
        """Return what is wrong with a relay that is connected."""
        since = _now() - TROUBLE_SHOWN_S
        if self._slowed and self._slowed_at > since:
            return f"read slowly: it sends too much that is of no use ({self._slowed})"
        if self._last_error and not self._lasted():
            return f"ended before: {self._last_error}"
        return f"refused an event: {self._refusal}" if self._refusal and self._refused_at > since else ""

    def _end(self, why: str) -> None:
        self._end_reason = why
        if self._socket is not None:
            self._socket.abort()

    def _failed(self, error: Exception) -> None:
        self._last_error = describe(error)
        self._set_status(RelayStatus.REFUSED if is_refusal(error) else RelayStatus.BACKOFF)

    def _pause_s(self, failures: int) -> float:
        """Exponential, and jittered so that a relay's return is not greeted by everyone at once."""
        full = min(self._config.backoff_max_s, self._config.backoff_min_s * 2.0 ** min(failures, 30))
        return full * self._rng.uniform(0.5, 1.0)

    def _lasted(self) -> bool:
        return self._connected_at is not None and _now() - self._connected_at >= self._config.stable_after_s

    def _set_status(self, status: RelayStatus) -> None:
        if status is not self._status:
            self._status = status
            self._status_since = self._clock()
            self._changed()

    def _since(self, subscription: Subscription) -> int:
        cursor = self.cursor(subscription.name)
        return subscription.since if cursor is None else max(0, cursor - self._config.overlap_s)

    def _remember(self, name: str) -> None:
        """Move the cursor to when the relay was last known to be there.

        Pings answer for silent times: while they are answered, nothing older than one interval and one time-out
        can be missing.
        """
        if self._session is None or name not in self._caught_up:
            return
        now = _now()
        silence_s = min(now - self._last_heard, self._config.ping_interval_s + self._config.pong_timeout_s)
        known = int(self._clock() - silence_s)
        self._known_good[name] = max(known, self._known_good.get(name, known))


def _now() -> float:
    return asyncio.get_running_loop().time()
