"""Announcing by hand: what `pylon announce` does over the relays itself, when no daemon runs.

It takes its times from the same marks as the daemon's announcer, under the home's lock. What is published without a
daemon is marked as paused, since nobody would serve the jobs; the daemon takes the mark away when it starts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from pylon.customer.visit import Reading, Visit, visiting
from pylon.jobs.announcement import IDENTIFIER, AnnounceConfig, announcement_now, drafts_now, is_foreign
from pylon.jobs.announcer import AnnouncingOff, kind_mark, take_time
from pylon.jobs.catalogue import Offer
from pylon.lock import instance_lock
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.nostr.nip89 import (
    ANNOUNCEMENT_KIND,
    PROFILE_KIND,
    RELAY_LIST_KIND,
    Announcement,
    Measured,
    newest,
    withdrawal_draft,
)
from pylon.paths import Paths, private_folder
from pylon.relays.state import PoolConfig
from pylon.store.tx import Tx
from pylon.store.writer import Store

PUBLISH_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What it takes to announce by hand; `timeout_s` is how long the relays may take to tell what they have."""

    config: AnnounceConfig
    offers: Sequence[Offer]
    relays: PoolConfig
    key: SecretKey
    paths: Paths
    timeout_s: float = 8.0
    measured: Mapping[str, Measured] | None = None

    def announcement(self) -> Announcement:
        """Return what would be announced: everything that is for sale, and paused, since no daemon runs."""
        return announcement_now(self.config, self.offers, None, paused=True, measured=self.measured)

    async def look(self) -> Reading:
        """Return what the relays have of us: announcement, profile and relay list."""
        async with self._visit() as visit:
            return await self._read(visit)

    async def publish(self) -> Event:
        """Publish everything and return the announcement.

        Raises `AnnouncingOff`, `NotPublished`, `AlreadyRunning`.
        """
        if not self.config.enabled:
            raise AnnouncingOff
        drafts = drafts_now(self.config, self.announcement())
        async with self._visit() as visit:
            found = await self._read(visit)
            events = {event.kind: event for event in await self._signed(drafts, found, withdrawn=False)}
            await visit.publish(tuple(events.values()), PUBLISH_S)
        return events[ANNOUNCEMENT_KIND]

    async def withdraw(self) -> Event:
        """Delete every version that a relay still has. Raises `NotPublished`, `AlreadyRunning`."""
        async with self._visit() as visit:
            found = await self._read(visit)
            ids = [event.id for event in found.events if event.kind == ANNOUNCEMENT_KIND]
            draft = withdrawal_draft(self.key.public_hex, IDENTIFIER, ids, "withdrawn by the operator")
            (event,) = await self._signed({draft.kind: draft}, found, withdrawn=True)
            await visit.publish([event], PUBLISH_S)
            return event

    async def _read(self, visit: Visit) -> Reading:
        mine: Filter = {"authors": [self.key.public_hex]}
        announced = {**mine, "kinds": [ANNOUNCEMENT_KIND], "#d": [IDENTIFIER]}
        return await visit.read([announced, {**mine, "kinds": [PROFILE_KIND, RELAY_LIST_KIND]}], self.timeout_s)

    async def _signed(self, drafts: Mapping[int, Draft], found: Reading, *, withdrawn: bool) -> list[Event]:
        """Return the events of now, without those kinds of which the key has one published elsewhere."""
        now = time.time()

        def mark(tx: Tx) -> tuple[int, list[Draft]]:
            marks = tx.marks()
            ours = {kind: draft for kind, draft in drafts.items() if not self._is_foreign(kind, found, marks)}
            return take_time(tx, now, ours, withdrawn=withdrawn), list(ours.values())

        private_folder(self.paths.state_dir)
        with instance_lock(self.paths.lock_file):
            store = await Store.open(self.paths.database)
            try:
                created_at, ours = await store.write(mark)
            finally:
                await store.aclose()
        return [draft.sign(self.key, created_at) for draft in ours]

    def _is_foreign(self, kind: int, found: Reading, marks: Mapping[str, int]) -> bool:
        there = standing(found, kind)
        return is_foreign(self.config, kind, there.created_at if there else None, marks.get(kind_mark(kind), 0))

    def _visit(self) -> AbstractAsyncContextManager[Visit]:
        rng = random.Random()  # noqa: S311 - jitter, not secrets
        return visiting(self.relays, key=self.key, clock=time.time, rng=rng)


def standing(reading: Reading, kind: int) -> Event | None:
    """Return the newest version of a kind that a reading found."""
    return next(iter(newest(event for event in reading.events if event.kind == kind)), None)
