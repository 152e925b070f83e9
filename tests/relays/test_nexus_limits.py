"""The pool against a relay with the limits of Nexus: NIP-42, 131,072-byte frames, 50 messages/s, 60 REQs/min."""

from __future__ import annotations

import json
import time
from collections import deque
from functools import cache
from typing import Any

import anyio
import pytest

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.settings import Settings
from tests.support.running_pool import running_pool
from tests.support.scripted_relay import Peer, Script, ScriptedRelay, scripted_relay, until

KEY = SecretKey(b"\x07" * 32)
MAX_FRAME_BYTES = 131_072
EVENTS = 90


class OverTheLimit(AssertionError):
    pass


class Window:
    """Counts what came within the last `length_s`, over all connections."""

    def __init__(self, name: str, most: int, length_s: float) -> None:
        self.name, self.most, self.length_s = name, most, length_s
        self.times: deque[float] = deque()

    def count(self) -> None:
        now = time.monotonic()
        self.times.append(now)
        while self.times[0] <= now - self.length_s:
            self.times.popleft()
        if len(self.times) > self.most:
            raise OverTheLimit(f"{len(self.times)} {self.name} within {self.length_s:g} s")


def nexus() -> Script:
    """Return a script that raises at the first message beyond a limit, and wants AUTH before anything else."""
    messages, subscriptions = Window("messages", 50, 1.0), Window("subscriptions", 60, 60.0)

    async def script(peer: Peer) -> None:
        authenticated = False
        await peer.send("AUTH", "challenge")
        while True:
            frame = await peer.socket.recv()
            if len(frame) > MAX_FRAME_BYTES:
                raise OverTheLimit(f"a frame of {len(frame)} bytes")
            messages.count()
            message: list[Any] = json.loads(frame)
            match message:
                case ["AUTH", {"kind": 22242, "pubkey": KEY.public_hex} as answer]:
                    authenticated = True
                    await peer.ok(answer["id"])
                case ["EVENT", event] if authenticated:
                    await peer.ok(event["id"])
                case ["EVENT", event]:
                    await peer.ok(event["id"], False, "auth-required: who are you")
                case ["REQ", name, *_]:
                    subscriptions.count()
                    if authenticated:
                        await peer.send("EOSE", name)
                    else:
                        await peer.send("CLOSED", name, "auth-required: who are you")

    return script


@cache
def event(number: int) -> Event:
    # One in ten is as large as our own events ever are.
    size = Settings().relays.max_event_bytes - 1000 if number % 10 == 0 else 10
    return Draft(kind=6050, content=f"{number} ".ljust(size, "x")).sign(KEY, int(time.time()))


async def trade(relay: ScriptedRelay, **limits: Any) -> None:
    """Publish many events at once while a filter changes again and again, until all are confirmed."""
    changes = 0

    def filters(since: int) -> list[dict[str, Any]]:
        return [{"kinds": [5], "#e": [f"{changes:064x}"]}]

    # The publisher has the patience of the settings' defaults, for what waits here waits for seconds.
    async with running_pool(relay.url, key=KEY, publish_timeout_s=10.0, **limits) as run:
        run.pool.subscribe("requests", lambda since: [{"kinds": [5050], "since": since}])
        run.pool.subscribe("cancels", filters)
        await run.pool.wait_caught_up("requests")
        for number in range(EVENTS):
            run.deliver(event(number))
        while len(run.heard.confirmed_by) < EVENTS and not relay.faults:
            changes += 1
            run.pool.refresh("cancels")
            await anyio.sleep(0.02)
        if not relay.faults:
            assert run.heard.gave == {}
            assert run.state.authenticated
            assert relay.connections == 1
            await until(lambda: run.state.queued == 0)


async def test_with_the_limits_of_the_settings_the_pool_stays_within_them() -> None:
    relays = Settings().relays
    async with scripted_relay(nexus()) as relay:
        await trade(
            relay,
            messages_per_s=relays.messages_per_s,
            subscriptions_per_minute=relays.subscriptions_per_minute,
        )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"subscriptions_per_minute": 55}, "51 messages within 1 s"),
        ({"messages_per_s": 45}, "61 subscriptions within 60 s"),
    ],
)
async def test_the_relay_would_have_noticed(limits: dict[str, int], said: str) -> None:
    with pytest.raises(OverTheLimit, match=said):
        async with scripted_relay(nexus()) as relay:
            await trade(relay, **limits)


def test_our_frames_fit_and_the_largest_that_it_hands_on_too() -> None:
    relays = Settings().relays
    assert relays.max_event_bytes <= MAX_FRAME_BYTES
    name = "requests"  # what it took as `["EVENT",{…}]` comes as `["EVENT","requests",{…}]`
    assert relays.max_frame_bytes >= MAX_FRAME_BYTES + len(f'"{name}",')
