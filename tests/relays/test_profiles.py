"""Kind 0 of customers, asked for at real relays: the newest that holds, or nothing in good time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
import orjson

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.relays.local import local_relay
from pylon.relays.profiles import ProfileReader
from tests.support.events import CUSTOMER, PROVIDER, STRANGER
from tests.support.running_pool import Heard, Running, running_pool
from tests.support.scripted_relay import until


@dataclass
class Door(Heard):
    """Passes what the reader wants to it, as the daemon does."""

    reader: ProfileReader | None = None

    def offer(self, event: Event, relay_url: str) -> str | None:
        super().offer(event, relay_url)
        assert self.reader is not None and self.reader.wants(event)
        return self.reader.hear(event)


def profile(key: SecretKey, address: str, age_s: int = 0) -> Event:
    content = orjson.dumps({"name": "x", "lud16": address}).decode()
    return Draft(kind=0, content=content, tags=()).sign(key, int(time.time()) - age_s)


async def publish(running: Running, *events: Event) -> None:
    for event in events:
        running.deliver(event)
    await until(lambda: all(each.id in running.heard.confirmed_by for each in events), "the relay has them")


async def test_the_newest_of_all_relays_counts() -> None:
    async with local_relay() as one, local_relay() as two, running_pool(one) as first, running_pool(two) as second:
        await publish(first, profile(CUSTOMER, "old@pay.example", 50), profile(STRANGER, "mallory@pay.example"))
        await publish(second, profile(CUSTOMER, "New@pay.example", 5))
        door = Door()
        async with running_pool(one, two, key=PROVIDER, heard=door) as running:
            reader = door.reader = ProfileReader(running.pool, limit_s=10)
            assert await reader.lightning_address(CUSTOMER.public_hex) == "new@pay.example"
            assert await reader.lightning_address(PROVIDER.public_hex) is None
            assert await reader.lightning_address(STRANGER.public_hex) == "mallory@pay.example"


async def test_a_profile_without_a_sound_address_is_none() -> None:
    async with local_relay() as url, running_pool(url) as other:
        await publish(other, profile(CUSTOMER, "root@no host"))
        door = Door()
        async with running_pool(url, key=PROVIDER, heard=door) as running:
            reader = door.reader = ProfileReader(running.pool, limit_s=10)
            assert await reader.lightning_address(CUSTOMER.public_hex) is None
        assert len(door.events) == 1


async def test_what_is_forged_is_not_believed() -> None:
    door = Door()
    async with running_pool("ws://127.0.0.1:9", heard=door) as running:
        reader = ProfileReader(running.pool, limit_s=0.2)
        forged = Event(
            **{**profile(CUSTOMER, "bob@pay.example").as_dict(), "content": '{"lud16":"eve@pay.example"}'}
        )
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                # No relay can be reached: it gives up in time, with nothing.
                assert await reader.lightning_address(CUSTOMER.public_hex) is None

            tasks.start_soon(ask)
            await until(lambda: reader.wants(forged), "the question is open")
            assert reader.hear(forged) == "bad-signature"
        assert not reader.wants(forged)
