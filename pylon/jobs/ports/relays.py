"""Relays as jobs, and wallets that speak over relays, see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # whoever reads the settings needs the ports of backends, and no elliptic curves
    from pylon.nostr.event import Event
    from pylon.nostr.messages import Filter


class EventSink(Protocol):
    """What receives events from relays. Nothing about them was checked but their shape."""

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take an event. Returns None when it was taken, else the drop's reason (for that relay's counters).

        Synchronous, cheap and never raises: the reading loop of a relay calls it.
        """
        ...


class Publisher(Protocol):
    """What gets events out to relays."""

    def publish_live(self, event: Event, relays: Sequence[str]) -> None:
        """Send once to whoever is connected; dropped rather than queued without bound. Never raises."""
        ...

    def deliver(self, event_id: str, event_json: str, relays: Sequence[str], deadline_at: float) -> None:
        """Send until a relay confirms or `deadline_at` passes; the outcome goes to the `DeliverySink`."""
        ...


class DeliverySink(Protocol):
    """What hears how durable deliveries ended; each is called at most once per event id and process."""

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay answered OK true (or `duplicate:`)."""
        ...

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay confirmed before the deadline, or every relay refused it for good."""
        ...


class LineDown(Exception):
    """An event certainly reached no relay of the line; the message is one sentence fit for the operator."""


class RelayLine(Protocol):
    """Relays that a wallet is spoken with over, under a key of that conversation's own. One object, one run."""

    def running(
        self, filters: Callable[[int], Sequence[Filter]], sink: EventSink
    ) -> AbstractAsyncContextManager[None]:
        """Stay connected to every relay and hand what `filters` ask for to `sink`, unverified, from each of them.

        `filters` is called with the `since` (unix seconds) to ask from, at every connection.
        """
        ...

    def fault(self) -> str:
        """Return why no relay can be used now, in one sentence; "" while one can."""
        ...

    async def ready(self, within_s: float) -> None:
        """Wait until a relay is connected and has sent what it stores. Raises `LineDown`, early when hopeless."""
        ...

    async def publish(self, event: Event) -> bool:
        """Send to every relay that is ready; True when one confirmed, False when none did but one may have it.

        Raises `LineDown` when none was sent to, or every one refused.
        """
        ...

    async def broken(self) -> None:
        """Wait until no relay can be used."""
        ...
