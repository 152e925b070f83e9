"""A relay pool with a publisher, running in a task group of the test."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from pylon.net.dialer import Dialer
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import OutboxPublisher
from pylon.relays.state import PoolConfig, RelayState

QUICK: dict[str, Any] = {
    "connect_timeout_s": 5.0,
    "backoff_min_s": 0.02,
    "backoff_max_s": 0.1,
    "retry_min_s": 0.05,
    "retry_max_s": 0.2,
    "auth_wait_s": 0.3,
    "publish_timeout_s": 0.5,
}


@dataclass
class Heard:
    """Both sinks: what arrived, and how deliveries ended."""

    events: list[tuple[Event, str]] = field(default_factory=list)
    confirmed_by: dict[str, str] = field(default_factory=dict)
    confirmations: int = 0
    gave: dict[str, str] = field(default_factory=dict)
    drop_reason: str | None = None

    def offer(self, event: Event, relay_url: str) -> str | None:
        self.events.append((event, relay_url))
        return self.drop_reason

    def confirmed(self, event_id: str, relay_url: str) -> None:
        self.confirmations += 1
        self.confirmed_by[event_id] = relay_url

    def gave_up(self, event_id: str, why: str) -> None:
        self.gave[event_id] = why

    def ids(self) -> list[str]:
        return [event.id for event, _ in self.events]


@dataclass
class Running:
    pool: RelayPool
    publisher: OutboxPublisher
    heard: Heard
    key: SecretKey

    def deliver(self, event: Event, relays: tuple[str, ...] = (), within_s: float = 30.0) -> None:
        self.publisher.deliver(event.id, event.to_json(), relays, time.time() + within_s)

    @property
    def state(self) -> RelayState:
        """The state of the first relay."""
        return self.pool.states()[0]


@asynccontextmanager
async def running_pool(
    *urls: str,
    key: SecretKey | None = None,
    dialer: Dialer | None = None,
    heard: Heard | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """Run a pool over `urls` until the block ends."""
    key = key or SecretKey(b"\x07" * 32)
    config = PoolConfig(urls=urls, **(QUICK | options))
    heard = heard or Heard()
    pool = RelayPool(config, key=key, sink=heard, clock=time.time, rng=random.Random(1), dialer=dialer)
    publisher = OutboxPublisher(pool, heard, config, clock=time.time, rng=random.Random(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        tasks.start_soon(publisher.run)
        yield Running(pool, publisher, heard, key)
        tasks.cancel_scope.cancel()
