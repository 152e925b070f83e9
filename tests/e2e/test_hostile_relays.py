"""One relay attacks and another one is good: jobs flow over the good one as if nothing were.

The attacker is a process of its own, and floods as fast as the daemon reads. While it does, jobs are served over
the good relay; how long they take is compared with quiet times before and after in the same run.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from tests.support.hostile_relay import HostileRelay, forged, hostile_process
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.scripted_relay import Peer, scripted_relay, silent
from tests.support.shop import Shop, shop

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

PROVIDER = SecretKey.generate()
WARM_UP = 20
QUIET_JOBS = 80
ATTACK_S = 0.8
ATTACK_JOBS = 100
ATTACK_LIMIT_S = 20.0
P99_FACTOR = 2.0
P99_FLOOR_S = 0.05  # what a busy machine may add, whoever attacks
GROWTH_MB = 32.0

SLOWED = r"read slowly: it sends too much that is of no use \(%s\)"
ENDED = r"too many frames that mean nothing \(%s\)"
REASONS = {
    "junk": ENDED % "not-json",
    "empty-frames": ENDED % "not-json",
    "pings": "too many pings",
    "notices": SLOWED % "notice",
    "invalid-signatures": SLOWED % "bad-signature",
    "duplicates": SLOWED % "duplicate",
    "huge-frames": "a frame was larger than the hard limit",
    "oversize-frames": SLOWED % "oversize",
    "half-open": "keepalive ping timeout",
    "stall-in-a-frame": "keepalive ping timeout",
    "challenges": ENDED % "(repeated-closed|auth-unanswered)",
    "lies": r"refused an event: blocked: nobody likes you \\x1b\[2J",
    "unknown-oks": SLOWED % "unknown-ok",
    "closed-storm": ENDED % "repeated-closed",
    "endless-eose": ENDED % "repeated-eose",
    "far-past": SLOWED % "before-since",
    "far-future": "in-future 3000",  # any stranger's doing: counted among the refused, not held against the relay
    "wrong-subscriptions": SLOWED % "unknown-subscription",
    "compression-bombs": "reserved bits",
    "drop-at-a-count": "the connection broke",
}


def settings_with(good: str, bad: str) -> dict[str, Any]:
    quick = {"ping_interval_s": 1, "pong_timeout_s": 1, "backoff_min_s": 0.2, "backoff_max_s": 1}
    return dict(market_settings(good, bad, relays=quick))


async def serve(customer: Shop, count: int, times_s: list[float]) -> None:
    """Have so many jobs done one after another, and note how long each took."""
    for _ in range(count):
        order = customer.follow(customer.draft().sign(customer.key, int(time.time())))
        started_at = time.perf_counter()
        await customer.publish(order.request)
        await order.result()
        times_s.append(time.perf_counter() - started_at)


def p99(times_s: list[float]) -> float:
    return sorted(times_s)[int(len(times_s) * 0.99)]


async def until_told(daemon: Provider, url: str, reason: str) -> None:
    """Wait until the status says what is wrong with the relay."""
    said = ""
    with anyio.move_on_after(ATTACK_LIMIT_S):
        while True:
            status = await daemon.status()
            (line,) = [relay for relay in status.relays if relay.url == url]
            counts = ", ".join(f"{name} {count}" for name, count in status.refused.items())
            said = f"{line.status}: {line.detail}; {counts}"
            if re.search(reason, said):
                return
            await anyio.sleep(0.1)
    raise daemon.failure(f"does not say '{reason}' of the relay but '{said}'")


async def serve_during(attack: HostileRelay, daemon: Provider, customer: Shop, reason: str) -> list[float]:
    """Have jobs done while a relay attacks, until the status names it; return how long each took."""
    times_s: list[float] = []
    told = anyio.Event()
    attack.attack()
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await until_told(daemon, attack.url, reason)
            await anyio.sleep(ATTACK_S)
            told.set()

        tasks.start_soon(watch)
        while not told.is_set() or len(times_s) < ATTACK_JOBS:
            await serve(customer, 5, times_s)
    return times_s


@pytest.mark.parametrize("attack", REASONS)
async def test_jobs_over_another_relay_do_not_notice(attack: str, tmp_path: Path) -> None:
    with relay_process() as good, hostile_process(attack, PROVIDER.public_hex) as bad:
        async with (
            provider(tmp_path, settings_with(good.url, bad.url), key=PROVIDER) as daemon,
            shop(good.url, provider=daemon.pubkey) as customer,
        ):
            before: list[float] = []
            after: list[float] = []
            await serve(customer, WARM_UP, [])
            await serve(customer, QUIET_JOBS, before)
            memory_mb = daemon.rss_mb
            during = await serve_during(bad, daemon, customer, REASONS[attack])
            growth_mb = daemon.rss_mb - memory_mb
            bad.kill()
            await serve(customer, QUIET_JOBS, after)
            quiet_s = max(p99(before), p99(after))
            assert p99(during) <= P99_FACTOR * quiet_s + P99_FLOOR_S
            assert growth_mb < GROWTH_MB


async def test_forged_copies_that_come_first_do_not_keep_the_real_request_out(tmp_path: Path) -> None:
    """The id of the real one is known to the attacker, who sends it with wrong signatures and altered words."""
    requests: list[Event] = []
    ready = anyio.Event()

    async def script(peer: Peer) -> None:
        name = (await peer.get("REQ"))[1]
        await ready.wait()
        for _ in range(200):
            for request in (forged(requests[0]), replace(requests[0], content="altered")):
                await peer.send("EVENT", name, request.as_dict())
        await silent(peer)

    with relay_process() as good:
        async with (
            scripted_relay(script) as bad,
            provider(tmp_path, settings_with(good.url, bad.url)) as daemon,
            shop(good.url, provider=daemon.pubkey) as customer,
        ):
            request = customer.draft("the real one", providers=[daemon.pubkey]).sign(customer.key, int(time.time()))
            order = customer.follow(request)
            requests.append(request)
            ready.set()
            await daemon.until(lambda status: status.refused.get("bad-signature", 0) >= 300, "busy with copies")
            await customer.publish(request)
            assert (await order.result()).content == "the real one"
            assert order.errors == []
            assert (await daemon.status()).intake.accepted == 1
