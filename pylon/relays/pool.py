"""The set of relays: one supervised task each, the subscriptions, and the relays that customers name.

The pool hands every received event to the sink unverified, and every answer to a publish to its listener. A relay
that is slow, hostile or away changes nothing for the others.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import anyio

from pylon.jobs.ports import Clock, EventSink
from pylon.net.dialer import Dialer, DialPolicy
from pylon.net.urls import DialRefused
from pylon.nostr.keys import SecretKey
from pylon.relays.answers import Answer
from pylon.relays.connection import Filters, Relay, RelayListener, Subscription
from pylon.relays.guests import Guests
from pylon.relays.socket import RelaySocket, canonical_url, open_configured, open_guarded
from pylon.relays.state import PoolConfig, RelayState

TICK_S: Final = 0.25
MAX_NAMED: Final = 16
"""How many relays named by a customer are looked at, whatever they are."""


class RelayPool:
    """Connections to the configured relays, and guarded ones to those that customers name."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        key: SecretKey | None,
        sink: EventSink,
        clock: Clock,
        rng: random.Random,
        dialer: Dialer | None = None,
    ) -> None:
        """Raises `DialRefused` (one sentence) when a configured URL is none of a relay."""
        self.config = config
        # Strangers' relays have nothing to say but short answers, and get little of our memory.
        self._guest_config = replace(
            config,
            max_frame_bytes=16 * 1024,
            hard_frame_bytes=64 * 1024,
            queue_frames=256,
            queue_bytes=512 * 1024,
            max_unanswered=256,
        )
        self._key = key
        self._sink = sink
        self._clock = clock
        self._rng = rng
        self._tls: ssl.SSLContext | None = None
        self._listener: RelayListener | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._change: anyio.Event | None = None
        self._dialer = dialer or Dialer(DialPolicy(allow_private=config.allow_private_hosts))
        self._relays: dict[str, Relay] = {}  # by canonical URL
        for url in config.urls:
            self._relays.setdefault(canonical_url(url), self._make_relay(url))
        self._guests = Guests(config, self._make_guest, clock)

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep every relay connected until cancelled."""
        async with anyio.create_task_group() as tasks:
            for relay in self._relays.values():
                tasks.start_soon(relay.run, name=f"relay {relay.url}")
            tasks.start_soon(self._guests.run)
            while True:
                await anyio.sleep(TICK_S)
                for relay in self._relays.values():
                    relay.tick()
                self._guests.tick()

    def attach(self, listener: RelayListener) -> None:
        """Name the one listener for answers to publishes."""
        self._listener = listener

    async def wait_connected(self, count: int = 1) -> None:
        """Wait until `count` relays are connected."""
        while sum(relay.connected for relay in self._relays.values()) < count:
            await self.changed()

    async def wait_caught_up(self, name: str, count: int = 1) -> None:
        """Wait until `count` relays have sent their stored events of a subscription."""
        while sum(relay.caught_up(name) for relay in self._relays.values()) < count:
            await self.changed()

    def all_caught_up(self, name: str) -> bool:
        """Whether every configured relay has sent its stored events of a subscription."""
        return all(relay.caught_up(name) for relay in self._relays.values())

    async def changed(self) -> None:
        """Wait until the status of some relay or subscription changes."""
        if self._change is None:
            self._change = anyio.Event()
        await self._change.wait()

    @property
    def any_connected(self) -> bool:
        """Whether some configured relay is connected."""
        return any(relay.connected for relay in self._relays.values())

    def connected_urls(self) -> list[str]:
        """Return the canonical URLs of the configured relays that are connected."""
        return [url for url, relay in self._relays.items() if relay.connected]

    def states(self) -> tuple[RelayState, ...]:
        """Return the state of every configured relay, in the configured order."""
        return tuple(relay.state() for relay in self._relays.values())

    def guest_states(self) -> tuple[RelayState, ...]:
        """Return the state of the connections to relays that customers named."""
        return self._guests.states()

    # --- subscriptions ----------------------------------------------------------------------------------------

    def subscribe(
        self, name: str, filters: Filters, *, since: int | None = None, cursors: Mapping[str, int] | None = None
    ) -> None:
        """Keep a subscription open on every configured relay, across reconnects.

        `filters` is called with the `since` (unix seconds) to ask from and returns the filters of now; none close
        the subscription. A relay listed in `cursors` (as `cursors()` gave them) starts `overlap_s` before its
        cursor, any other at `since`, which is now by default. `name` goes over the wire: at most 64 characters.
        """
        start = int(self._clock()) if since is None else since
        self._subscriptions[name] = Subscription(name, filters, start, dict(cursors or {}))
        self.refresh(name)

    def refresh(self, name: str) -> None:
        """Ask for a subscription anew because its filters changed; the caller bounds how often."""
        for relay in self._relays.values():
            relay.resubscribe(self._subscriptions[name])

    def cursors(self, name: str) -> dict[str, int]:
        """Return, per relay, until when (unix seconds) no event of a subscription can have been missed."""
        cursors = ((relay.url, relay.cursor(name)) for relay in self._relays.values())
        return {url: cursor for url, cursor in cursors if cursor is not None}

    # --- publishing (used by the publisher) -------------------------------------------------------------------

    @property
    def configured(self) -> tuple[str, ...]:
        """The canonical URLs of the configured relays."""
        return tuple(self._relays)

    def targets(self, named: Sequence[str]) -> list[str]:
        """Return where an event goes, as canonical URLs.

        That is every configured relay, and what a customer named as far as it is a relay URL and the cap allows.
        """
        targets = list(self._relays)
        room = self.config.customer_relays_per_job
        for url in named[:MAX_NAMED]:
            canonical = _canonical_or_none(url)
            if room > 0 and canonical is not None and canonical not in targets:
                targets.append(canonical)
                room -= 1
        return targets

    def outlet(self, url: str) -> Relay | str:
        """Return the relay of a canonical URL, or why there is none. A customer's relay is dialed on first use;
        it is usable once `connected`."""
        return self._relays.get(url) or self._guests.want(url)

    # --- inside -----------------------------------------------------------------------------------------------

    def ready(self, url: str) -> None:
        """Hear from a relay: the pool stands between the relays and a listener that comes later."""
        if self._listener is not None:
            self._listener.ready(url)

    def lost(self, url: str, why: str) -> None:
        """Hear from a relay."""
        if self._listener is not None:
            self._listener.lost(url, why)

    def answered(self, url: str, answer: Answer) -> None:
        """Hear from a relay."""
        if self._listener is not None:
            self._listener.answered(url, answer)

    async def _open_configured(self, url: str) -> RelaySocket:
        return await open_configured(url, self.config, await self._tls_for(url))

    async def _open_guarded(self, url: str) -> RelaySocket:
        return await open_guarded(url, self.config, await self._tls_for(url), self._dialer)

    async def _tls_for(self, url: str) -> ssl.SSLContext | None:
        if not url.lower().startswith("wss:"):
            return None
        if self._tls is None:
            # Loading the certificates takes 20 ms and more: once, and beside the loop.
            self._tls = await anyio.to_thread.run_sync(ssl.create_default_context)
        return self._tls

    def _notify(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    def _make_relay(self, url: str) -> Relay:
        return Relay(
            url,
            self.config,
            self._open_configured,
            key=self._key,
            sink=self._sink,
            listener=self,
            clock=self._clock,
            rng=self._rng,
            changed=self._notify,
            subscriptions=self._subscriptions,
        )

    def _make_guest(self, url: str) -> Relay:
        return Relay(
            url,
            self._guest_config,
            self._open_guarded,
            key=self._key,
            sink=None,
            listener=self,
            clock=self._clock,
            rng=self._rng,
            changed=self._notify,
            guest=True,
        )


def _canonical_or_none(url: str) -> str | None:
    try:
        return canonical_url(url)
    except DialRefused:
        return None
