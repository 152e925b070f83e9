"""Whether our key is at work elsewhere: events signed with it that this pylon cannot have sent."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from pylon import assembly
from pylon.doctor.findings import Finding, Scene, fail, ok, warn
from pylon.jobs.ports import Clock
from pylon.lock import LockFailed, lock_holder
from pylon.nostr.event import Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.relays.pool import RelayPool
from pylon.relays.state import PoolConfig, RelayState, RelayStatus, SubscriptionStatus
from pylon.store.errors import StoreError
from pylon.store.reports import Reports
from pylon.text import printable

WATCHED_KINDS: Final = (
    *(0, 7000, 31990),
    *(6000, 6001, 6002, 6005, 6050, 6100, 6200, 6201, 6202, 6250, 6300, 6301, 6302, 6303, 6400, 6900, 6905, 6970),
)
"""Profile, job feedback, announcement, and the results of the job kinds that are in use."""

GRACE_S: Final = 60
"""How long after our last stored sign of life something of our own may be dated (a crash loses some seconds)."""

LOOK_BACK_S: Final = 86_400
"""How far back is looked when this home has no history."""

PATIENCE_S: Final = 5.0
"""How long is waited for relays that do not answer; their own findings take longer and say why."""

_NAME: Final = "doctor"
_MAX_EVENTS: Final = 200


async def check_twin(scene: Scene, limit_s: float) -> list[Finding]:
    """Look on the configured relays for events of our key since this pylon was last active."""
    if scene.key is None:
        return []
    if scene.daemon is not None or _is_held(scene):
        return [
            ok(
                "elsewhere",
                "not looked for: pylon runs, and events of another with its key would look like its own",
            )
        ]
    now = int(scene.clock())
    try:
        last_at = await anyio.to_thread.run_sync(_last_active_at, scene, abandon_on_cancel=True)
    except StoreError as error:
        return [fail("database", printable(error, limit=500), "restore a backup, or move the file away")]
    since = now - LOOK_BACK_S if last_at is None else last_at + GRACE_S
    config = assembly.make_pool_config(scene.settings)
    seen, asked = await find_events(config, scene.key, since, clock=scene.clock, limit_s=min(limit_s, PATIENCE_S))
    if not asked:
        return [warn("elsewhere", "not looked for: no relay answered", "see the relays' own findings")]
    return [twin_finding(seen, last_at)]


def twin_finding(seen: Mapping[str, tuple[Event, ...]], last_at: int | None) -> Finding:
    """Return what events of our key (by relay) mean, none of which this pylon can have sent."""
    events = {event.id: event for found in seen.values() for event in found}
    if not events:
        return ok("elsewhere", "no sign of the same key at work elsewhere")
    newest = max(events.values(), key=lambda event: event.created_at)
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(newest.created_at))
    relays = sum(bool(found) for found in seen.values())
    why = "this home has no history of its own" if last_at is None else "they are newer than this pylon's last run"
    what = (
        f"{len(events)} events signed with this key were probably not sent from here: {why} "
        f"(seen on {relays} relays; the newest is of kind {newest.kind}, dated {when})"
    )
    fix = "use this key on one pylon only; if nothing of yours uses it elsewhere, others know it: make a new one"
    return warn("elsewhere", what, fix)


async def find_events(
    config: PoolConfig, key: SecretKey, since: int, *, clock: Clock, limit_s: float
) -> tuple[dict[str, tuple[Event, ...]], bool]:
    """Return the watched events of a key since a time (unix seconds), by relay, and whether any relay was asked.

    Signatures are checked; relays that do not answer within `limit_s` are left out.
    """
    sink = _Sink(key.public_hex, since)
    pool = RelayPool(config, key=key, sink=sink, clock=clock, rng=random.Random())  # noqa: S311 - jitter

    def wanted(at: int) -> Sequence[Filter]:
        return [{"authors": [key.public_hex], "kinds": list(WATCHED_KINDS), "since": at, "limit": _MAX_EVENTS}]

    pool.subscribe(_NAME, wanted, since=since)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.move_on_after(limit_s):
            while not all(map(_answered_or_failed, pool.states())):
                await pool.changed()
        asked = any(
            each.status is SubscriptionStatus.LIVE for state in pool.states() for each in state.subscriptions
        )
        tasks.cancel_scope.cancel()
    return {url: tuple(found.values()) for url, found in sink.events.items()}, asked


def _answered_or_failed(state: RelayState) -> bool:
    ended = (SubscriptionStatus.LIVE, SubscriptionStatus.CLOSED)
    failed = state.status in (RelayStatus.BACKOFF, RelayStatus.REFUSED)
    return failed or any(each.status in ended for each in state.subscriptions)


class _Sink:
    def __init__(self, pubkey: str, since: int) -> None:
        self.events: dict[str, dict[str, Event]] = defaultdict(dict)
        self._pubkey = pubkey
        self._since = since

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Keep an event that is really of our key; relays send what they like."""
        found = self.events[relay_url]
        if len(found) >= _MAX_EVENTS:
            return "enough"
        wanted = event.pubkey == self._pubkey and event.kind in WATCHED_KINDS and event.created_at >= self._since
        if not wanted or not verify(event):
            return "not-asked-for"
        found[event.id] = event
        return None


def _is_held(scene: Scene) -> bool:
    """Tell whether a daemon runs that did not answer; a lock that cannot be read is a finding of its own."""
    try:
        return lock_holder(scene.paths.lock_file) is not None
    except LockFailed:
        return False


def _last_active_at(scene: Scene) -> int | None:
    database = scene.paths.database
    return Reports(database).last_active_at() if database.exists() else None
