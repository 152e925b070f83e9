"""Relays that customers name: reached through the guarded dialer only, few, publish-only, and soon gone."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from pylon.net.dialer import Dialer, DialPolicy
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.relays.state import RelayStatus
from tests.support.running_pool import running_pool
from tests.support.scripted_relay import Peer, polite, scripted_relay, silent, until

KEY = SecretKey(b"\x05" * 32)
OPEN: dict[str, Any] = {"allow_private_hosts": True}


def event(text: str) -> Event:
    return Draft(kind=6050, content=text).sign(KEY, int(time.time()))


async def test_a_result_reaches_the_relay_that_the_customer_named() -> None:
    async with scripted_relay() as ours, scripted_relay() as theirs, running_pool(ours.url, **OPEN) as run:
        one = event("result")
        run.deliver(one, (theirs.url, ours.url))
        await until(lambda: theirs.events() == [one.id] and ours.events() == [one.id])
        await until(lambda: run.heard.confirmations == 1)
        assert theirs.verbs() == ["EVENT"]  # nothing is subscribed to there
        assert [state.status for state in run.pool.guest_states()] == [RelayStatus.CONNECTED]


async def test_a_private_address_is_not_contacted() -> None:
    async with scripted_relay() as ours, scripted_relay() as inside, running_pool(ours.url) as run:
        one = event("result")
        run.deliver(one, (inside.url, inside.url.replace("127.0.0.1", "localhost")))
        await until(lambda: run.heard.confirmations == 1)
        await until(lambda: run.publisher.states().lingering == 0)  # both were written off
        assert inside.connections == 0


async def test_a_name_that_resolves_inside_is_not_contacted() -> None:
    async with scripted_relay() as inside:
        port = inside.url.rpartition(":")[2]

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async with running_pool(dialer=Dialer(DialPolicy(), resolver)) as run:
            one = event("result")
            run.deliver(one, (f"ws://rebind.example:{port}",))
            await until(lambda: one.id in run.heard.gave)
            assert "rebind.example is at 127.0.0.1, a loopback address" in run.heard.gave[one.id]
        assert inside.connections == 0


async def test_only_so_many_per_job_and_rubbish_does_not_count() -> None:
    async with (
        scripted_relay() as a,
        scripted_relay() as b,
        scripted_relay() as c,
        running_pool(customer_relays_per_job=2, **OPEN) as run,
    ):
        run.deliver(event("result"), ("not a url", "http://x.example", "", a.url, a.url + "/", b.url, c.url))
        await until(lambda: len(a.heard) == 1 and len(b.heard) == 1)
        assert c.connections == 0
        assert len(a.heard) == 1


async def test_the_total_is_bounded_and_the_longest_unused_makes_room() -> None:
    async with (
        scripted_relay() as a,
        scripted_relay() as b,
        scripted_relay() as c,
        running_pool(customer_relays_total=2, **OPEN) as run,
    ):
        for number, relay in enumerate((a, b, c), start=1):
            run.deliver(event(str(number)), (relay.url,))
            await until(lambda number=number: run.heard.confirmations == number)  # type: ignore[misc]
        assert {state.url for state in run.pool.guest_states()} == {b.url, c.url}


async def test_a_guest_that_is_busy_is_not_evicted() -> None:
    options: dict[str, Any] = {"customer_relays_total": 1, "publish_timeout_s": 60.0}
    async with (
        scripted_relay(silent) as mute,
        scripted_relay() as second,
        running_pool(**options, **OPEN) as run,
    ):
        run.deliver(event("for mute"), (mute.url,))
        await until(lambda: len(mute.heard) == 1)
        one = event("for second")
        run.deliver(one, (second.url,))
        await until(lambda: one.id in run.heard.gave)
        assert "too many relays named by customers are in use" in run.heard.gave[one.id]
        assert second.connections == 0


async def test_an_idle_guest_is_let_go() -> None:
    async with scripted_relay() as theirs, running_pool(customer_relay_idle_s=0.2, **OPEN) as run:
        run.deliver(event("result"), (theirs.url,))
        await until(lambda: run.heard.confirmations == 1)
        await until(lambda: run.pool.guest_states() == ())
        run.deliver(event("another"), (theirs.url,))
        await until(lambda: run.heard.confirmations == 2)
        assert theirs.connections == 2


async def test_a_guest_that_breaks_midway_is_dialed_again_once_it_was_of_use() -> None:
    async def script(peer: Peer) -> None:
        first = (await peer.get("EVENT"))[1]
        await peer.ok(first["id"])
        if peer.number == 0:
            await peer.get("EVENT")
            await peer.hang_up()
        await polite(peer)

    async with scripted_relay(script) as theirs, running_pool(**OPEN) as run:
        run.deliver(event("one"), (theirs.url,))
        await until(lambda: run.heard.confirmations == 1)
        run.deliver(event("two"), (theirs.url,))
        await until(lambda: run.heard.confirmations == 2)
        assert theirs.connections == 2


async def test_an_unreachable_guest_is_not_dialed_again_soon() -> None:
    async def script(peer: Peer) -> None:
        await peer.hang_up()

    async with scripted_relay(script) as theirs, running_pool(**OPEN) as run:
        for number in range(3):
            one = event(str(number))
            run.deliver(one, (theirs.url,))
            await until(lambda one=one: one.id in run.heard.gave)  # type: ignore[misc]
        assert theirs.connections == 1


async def test_auth_is_answered_once_per_connection() -> None:
    async def script(peer: Peer) -> None:
        for number in range(5):
            await peer.send("AUTH", f"challenge-{number}")
        await polite(peer)

    async with scripted_relay(script) as theirs, running_pool(**OPEN) as run:
        run.deliver(event("result"), (theirs.url,))
        await until(lambda: run.heard.confirmations == 1)
        assert theirs.verbs().count("AUTH") == 1


async def test_a_guest_that_floods_is_dropped() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("EVENT")
        for number in range(1000):
            await peer.send("EVENT", f"sub{number}", event("flood").as_dict())
        await silent(peer)

    async with scripted_relay(script) as theirs, running_pool(**OPEN) as run:
        run.deliver(event("result"), (theirs.url,))
        await until(lambda: theirs.connections == 1 and run.pool.guest_states() == ())
        assert run.heard.events == []


@pytest.mark.alone
async def test_a_guest_that_never_answers_delays_nobody() -> None:
    async with scripted_relay() as ours, running_pool(ours.url, connect_timeout_s=0.3, **OPEN) as run:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        async with listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            started = time.perf_counter()
            run.deliver(event("result"), (f"ws://127.0.0.1:{port}",))
            await until(lambda: run.heard.confirmations == 1)
            assert time.perf_counter() - started < 0.3
            await until(lambda: run.pool.guest_states() == ())
