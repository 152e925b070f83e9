"""Relays that customers named: publish-only connections through the guarded dialer, few and short-lived.

A guest connects on first use and leaves after `customer_relay_idle_s` without use, or earlier when another one
needs its place. One that could not be reached is not tried again for a minute. Nothing is subscribed to there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from pylon.jobs.ports import Clock
from pylon.relays.connection import Relay
from pylon.relays.socket import describe
from pylon.relays.state import PoolConfig, RelayState
from pylon.tasks import Crew

UNREACHABLE_S: Final = 60.0
MAX_UNREACHABLE: Final = 1024


@dataclass(slots=True)
class _Guest:
    relay: Relay
    used_at: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def evictable(self) -> bool:
        return self.relay.connected and self.relay.unanswered == 0


class Guests:
    """The bounded set of connections to relays that strangers named."""

    def __init__(self, config: PoolConfig, make_relay: Callable[[str], Relay], clock: Clock) -> None:
        self._config = config
        self._make_relay = make_relay
        self._clock = clock
        self._crew = Crew()
        self._guests: OrderedDict[str, _Guest] = OrderedDict()  # least recently used first
        self._unreachable: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def run(self) -> None:
        """Hold the connections until cancelled."""
        async with self._crew.working():
            for url, guest in self._guests.items():  # wanted before we ran
                self._start(url, guest)
            await anyio.sleep_forever()

    def want(self, url: str) -> Relay | str:
        """Return the relay at `url`, dialing it if need be, or the reason why not."""
        guest = self._guests.get(url)
        if guest is not None:
            guest.used_at = self._clock()
            self._guests.move_to_end(url)
            return guest.relay
        until, why = self._unreachable.get(url, (0.0, ""))
        if self._clock() < until:
            return why
        if len(self._guests) >= self._config.customer_relays_total and not self._evict():
            return "too many relays named by customers are in use"
        guest = self._guests[url] = _Guest(self._make_relay(url), self._clock())
        self._start(url, guest)
        return guest.relay

    def tick(self) -> None:
        """Let time pass: answer overdue publishes, let the idle go."""
        idle_since = self._clock() - self._config.customer_relay_idle_s
        for guest in tuple(self._guests.values()):
            guest.relay.tick()
            if guest.used_at < idle_since and guest.evictable:
                guest.scope.cancel()

    def states(self) -> tuple[RelayState, ...]:
        """Return the state of each connection."""
        return tuple(guest.relay.state() for guest in self._guests.values())

    def _start(self, url: str, guest: _Guest) -> None:
        self._crew.start(self._serve, url, guest)

    def _evict(self) -> bool:
        for url, guest in self._guests.items():
            if guest.evictable:
                guest.scope.cancel()
                del self._guests[url]
                return True
        return False

    async def _serve(self, url: str, guest: _Guest) -> None:
        why = "it was not used"
        try:
            with guest.scope:
                await guest.relay.serve()
        except Exception as error:  # noqa: BLE001 - a stranger's relay, whatever it does, ends here
            why = describe(error)
        finally:
            if self._guests.get(url) is guest:
                del self._guests[url]
        if guest.scope.cancelled_caught or guest.relay.counters.accepted:
            return
        self._unreachable[url] = (self._clock() + UNREACHABLE_S, why)
        while len(self._unreachable) > MAX_UNREACHABLE:
            self._unreachable.popitem(last=False)
