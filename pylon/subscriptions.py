"""What the daemon asks of the relays, and keeps asking: requests, and what concerns its own jobs and its money.

Requests are asked for from where each relay was last read; those places are stored every few seconds and on a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio
from anyio.abc import TaskGroup

from pylon.jobs.announcement import SHARED_KINDS
from pylon.jobs.engine import Engine
from pylon.jobs.ports import Clock
from pylon.jobs.refunder import Refunder
from pylon.jobs.zaps import LOOK_BACK_S
from pylon.nostr.messages import Filter
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND
from pylon.nostr.nip90 import FEEDBACK_KIND
from pylon.relays.pool import RelayPool
from pylon.store.records import CURSOR_MARK, ENDED
from pylon.store.tx import Tx
from pylon.store.writer import Store

OWN: Final = "own"
"""The subscription to what we publish ourselves."""

_REQUESTS: Final = "requests"
_CANCELS: Final = "cancels"
_REFUNDS: Final = "refunds"
_ZAPS: Final = "zaps"
_CURSOR_EVERY_S: Final = 15.0
_CANCELS_EVERY_S: Final = 2.0
_IDS_PER_FILTER: Final = 200
_REFUNDS_ASKED: Final = 1_000  # the newest: what customers say of older ones is asked for again when these are gone


class Subscriptions:
    """The subscriptions of one running provider. It sells `kinds`, and wants no requests older than `max_age_s`."""

    def __init__(
        self,
        pool: RelayPool,
        store: Store,
        engine: Engine,
        refunder: Refunder,
        clock: Clock,
        *,
        kinds: Sequence[int],
        pubkey: str,
        max_age_s: int,
        zaps: bool,
    ) -> None:
        self._pool = pool
        self._store = store
        self._engine = engine
        self._refunder = refunder
        self._clock = clock
        self._kinds = sorted(kinds)
        self._pubkey = pubkey
        self._max_age_s = max_age_s
        self._zaps = zaps

    async def open(self) -> None:
        """Ask for requests from where each relay was last read, and for cancellations of open jobs."""
        now = int(self._clock())
        urls = [relay.url for relay in self._pool.states()]

        def load(tx: Tx) -> dict[str, int]:
            marks = tx.marks()
            for url in urls:
                # Reading begins now: should we be killed before a cursor is stored, the next start asks from here.
                if CURSOR_MARK + url not in marks:
                    tx.set_mark(CURSOR_MARK + url, now)
            found = ((name.removeprefix(CURSOR_MARK), value) for name, value in marks.items())
            return {url: value for url, value in found if url in urls}

        cursors = await self._store.write(load)
        oldest = now - self._max_age_s

        def requests(since: int) -> Sequence[Filter]:
            return [{"kinds": self._kinds, "since": max(since, oldest)}]

        self._pool.subscribe(_REQUESTS, requests, cursors=cursors)
        self._pool.subscribe(_CANCELS, self._cancel_filters, since=0)
        self._pool.subscribe(_REFUNDS, self._refund_filters, since=0)
        if self._zaps:
            zapped: Filter = {"kinds": [ZAP_RECEIPT_KIND], "#p": [self._pubkey]}
            self._pool.subscribe(_ZAPS, lambda since: [{**zapped, "since": max(since, now - LOOK_BACK_S)}], since=0)
        mine: Filter = {"kinds": sorted(SHARED_KINDS), "authors": [self._pubkey]}
        self._pool.subscribe(OWN, lambda since: [mine], since=0)

    def sell(self, kinds: Sequence[int]) -> None:
        """Ask for requests of these kinds from now on."""
        if sorted(kinds) != self._kinds:
            self._kinds = sorted(kinds)
            self._pool.refresh(_REQUESTS)

    def keep(self, tasks: TaskGroup) -> None:
        """Keep the filters on the jobs they are about, and the cursors stored, until `tasks` ends."""
        tasks.start_soon(self._refresh, _CANCELS, self._cancellable)
        tasks.start_soon(self._refresh, _REFUNDS, self._refundable)
        tasks.start_soon(self._save_cursors)

    async def store_cursors(self) -> None:
        """Store how far each relay was read. Waits for a store that cannot be written."""
        cursors = self._pool.cursors(_REQUESTS)

        def store(tx: Tx) -> None:
            for url, cursor in cursors.items():
                tx.set_mark(CURSOR_MARK + url, cursor)

        await self._engine.query(store)

    def _cancel_filters(self, since: int) -> Sequence[Filter]:
        ids = self._cancellable()
        parts = [ids[start : start + _IDS_PER_FILTER] for start in range(0, len(ids), _IDS_PER_FILTER)]
        return [{"kinds": [5], "#e": part} for part in parts]

    def _cancellable(self) -> list[str]:
        return sorted(job.id for job in self._engine.open_jobs if job.work not in ENDED)

    def _refund_filters(self, since: int) -> Sequence[Filter]:
        """Return where customers say how they want their money back: only those who are owed any are asked for."""
        customers, ids = self._refunder.customers, self._refundable()
        parts = [ids[start : start + _IDS_PER_FILTER] for start in range(0, len(ids), _IDS_PER_FILTER)]
        return [
            {"kinds": [FEEDBACK_KIND], "#e": part, "authors": sorted({customers[each] for each in part})}
            for part in parts
        ]

    def _refundable(self) -> list[str]:
        return sorted(list(self._refunder.customers)[-_REFUNDS_ASKED:])

    async def _refresh(self, name: str, wanted: Callable[[], list[str]]) -> None:
        """Keep a `#e` filter on the jobs it is about, changed every two seconds at most (Nexus: 60 a minute)."""
        asked: list[str] = []
        while True:
            ids = wanted()
            # A job that came and went in between needs no filter; one that went may stay in it.
            if not set(ids) <= set(asked) or (asked and not ids):
                asked = ids
                self._pool.refresh(name)
            await anyio.sleep(_CANCELS_EVERY_S)

    async def _save_cursors(self) -> None:
        while True:
            await anyio.sleep(_CURSOR_EVERY_S)
            await self.store_cursors()
