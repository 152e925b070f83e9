"""The line to a wallet that speaks over relays: a pool of its own, under the key of that conversation.

A relay counts as ready once it has sent the stored events of our subscription: what answers us is often not stored,
so nothing is asked where the answer would not be heard.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from pylon.jobs.ports import Clock, EventSink, LineDown
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter, event_frame
from pylon.relays.answers import Answer, Verdict
from pylon.relays.connection import Relay
from pylon.relays.pool import RelayPool
from pylon.relays.socket import canonical_url
from pylon.relays.state import PoolConfig, RelayState, RelayStatus
from pylon.tasks import beside

_NAME: Final = "wallet"
_AWAY: Final = frozenset({RelayStatus.BACKOFF, RelayStatus.REFUSED})

# Words by which a relay says that it has not passed an event on. After any others it may have.
_NOT_TAKEN: Final = frozenset(
    {
        Verdict.INVALID,
        Verdict.BLOCKED,
        Verdict.POW,
        Verdict.RESTRICTED,
        Verdict.RATE_LIMITED,
        Verdict.AUTH_REQUIRED,
    }
)


@dataclass(slots=True)
class _Sending:
    """One publish on its way: which relays have not answered, and what those said that did."""

    open: set[str] = field(default_factory=set)
    done: anyio.Event = field(default_factory=anyio.Event)
    confirmed: bool = False
    unclear: bool = False
    refusal: str = ""

    def answer(self, url: str, answer: Answer) -> None:
        if answer.verdict.confirms:
            self.confirmed = True
        elif answer.verdict in _NOT_TAKEN:
            self.refusal = answer.text or answer.verdict.value
        else:
            self.unclear = True
        self.close(url)

    def close(self, url: str) -> None:
        self.open.discard(url)
        if self.confirmed or not self.open:
            self.done.set()


class _Answers:
    """Hears from the pool how each publish ended."""

    def __init__(self) -> None:
        self.sending: dict[str, _Sending] = {}

    def ready(self, url: str) -> None:
        """Hear that a relay is connected: nothing waits for it."""

    def lost(self, url: str, why: str) -> None:
        """Hear that a connection ended: what it had not answered may have arrived."""
        for sending in self.sending.values():
            if url in sending.open:
                sending.unclear = True
                sending.close(url)

    def answered(self, url: str, answer: Answer) -> None:
        """Hear how a publish ended on one relay."""
        sending = self.sending.get(answer.event_id)
        if sending is not None:
            sending.answer(url, answer)


class PoolLine:
    """A `RelayLine` over a `RelayPool`. Raises `DialRefused` when a URL of `config` is none of a relay."""

    def __init__(self, config: PoolConfig, *, key: SecretKey, clock: Clock, rng: random.Random) -> None:
        self._config = config
        self._key = key
        self._clock = clock
        self._rng = rng
        self._relays = tuple(dict.fromkeys(canonical_url(url) for url in config.urls))
        self._pool: RelayPool | None = None
        self._answers = _Answers()

    @asynccontextmanager
    async def running(self, filters: Callable[[int], Sequence[Filter]], sink: EventSink) -> AsyncIterator[None]:
        """Stay connected; see `RelayLine`."""
        pool = RelayPool(self._config, key=self._key, sink=sink, clock=self._clock, rng=self._rng)
        pool.attach(self._answers)
        # The clocks of others are not ours: what they date a little back is wanted too.
        pool.subscribe(_NAME, filters, since=int(self._clock()) - self._config.overlap_s)
        self._pool = pool
        try:
            async with beside(pool.run):
                yield
        finally:
            self._pool = None

    def fault(self) -> str:
        """Return why no relay can be used now; see `RelayLine`."""
        if self._ready():
            return ""
        if self._pool is None:
            return "not connected to the wallet's relays"
        return f"no relay of the wallet can be used ({'; '.join(map(_describe, self._pool.states()))})"

    async def ready(self, within_s: float) -> None:
        """Wait until a relay can be used; see `RelayLine`."""
        with anyio.move_on_after(within_s):
            while self._pool is not None and not self._ready():
                if all(state.status in _AWAY for state in self._pool.states()):
                    break
                await self._pool.changed()
        if not self._ready():
            raise LineDown(self.fault())

    async def broken(self) -> None:
        """Wait until no relay can be used."""
        while self._pool is not None and self._ready():
            await self._pool.changed()

    async def publish(self, event: Event) -> bool:
        """Send to every relay that is ready; see `RelayLine`."""
        ready = self._ready()
        sending = self._answers.sending[event.id] = _Sending()
        try:
            frame = event_frame(event).encode()
            sending.open |= {relay.canonical for relay in ready if relay.publish(event.id, frame)}
            if not sending.open:
                raise LineDown(self.fault() or "the wallet's relays take nothing more at the moment")
            await sending.done.wait()
        finally:
            del self._answers.sending[event.id]
        if sending.refusal and not sending.confirmed and not sending.unclear:
            raise LineDown(f"the wallet's relays refuse our requests: {sending.refusal}")
        return sending.confirmed

    # --- inside -----------------------------------------------------------------------------------------------

    def _ready(self) -> list[Relay]:
        if self._pool is None:
            return []
        outlets = (self._pool.outlet(url) for url in self._relays)
        return [each for each in outlets if isinstance(each, Relay) and each.connected and each.caught_up(_NAME)]


def _describe(state: RelayState) -> str:
    subscribed = next((each.detail for each in state.subscriptions if each.detail), "")
    words = subscribed or state.last_error or state.status.value
    return f"{state.url}: {words}"
