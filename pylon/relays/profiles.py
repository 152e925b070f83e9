"""Lightning addresses of customers, from their kind 0 on our own relays: one small question at a time."""

from __future__ import annotations

from typing import Final

import anyio

from pylon.nostr.event import Event, verify
from pylon.nostr.messages import Filter
from pylon.nostr.refunds import PROFILE_KIND, profile_address
from pylon.relays.pool import RelayPool

_NAME: Final = "profile"
_EVENTS_PER_RELAY: Final = 2


class ProfileReader:
    """Implements `Profiles` over the pool. Who gets the relays' events passes those it `wants` to `hear`."""

    def __init__(self, pool: RelayPool, *, limit_s: float = 5.0) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._wanted: str | None = None
        self._found: Event | None = None
        self._one_at_a_time = anyio.Lock()

    async def lightning_address(self, pubkey: str) -> str | None:
        """Return the address in a key's newest kind 0; None when there is none or no relay answers in time."""
        async with self._one_at_a_time:
            self._wanted, self._found = pubkey, None
            try:
                self._pool.subscribe(_NAME, self._filters, since=0)
                with anyio.move_on_after(self._limit_s):
                    while not self._pool.all_caught_up(_NAME):
                        await self._pool.changed()
                return None if self._found is None else profile_address(self._found)
            finally:
                self._wanted = None
                self._pool.refresh(_NAME)

    def wants(self, event: Event) -> bool:
        """Tell whether this is an answer to the question that is open."""
        return event.kind == PROFILE_KIND and event.pubkey == self._wanted

    def hear(self, event: Event) -> str | None:
        """Keep the newest answer; returns the drop's reason. Never raises."""
        if self._found is not None and event.created_at <= self._found.created_at:
            return "duplicate"
        if not verify(event):
            return "bad-signature"
        self._found = event
        return None

    def _filters(self, since: int) -> list[Filter]:
        if self._wanted is None:
            return []
        return [{"kinds": [PROFILE_KIND], "authors": [self._wanted], "limit": _EVENTS_PER_RELAY}]
