"""The pool and the publisher against relays that misbehave as scripted, over real websockets."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream
from websockets.utils import accept_key

from pylon.net.urls import DialRefused
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.relays.pool import RelayPool
from pylon.relays.state import PoolConfig, RelayStatus, SubscriptionStatus
from tests.support.running_pool import Heard, running_pool
from tests.support.scripted_relay import Peer, polite, scripted_relay, silent, until

REFUSAL = "auth-required: you must auth"
PATIENT: dict[str, Any] = {"backoff_min_s": 5.0, "backoff_max_s": 5.0}


@cache
def event(text: str, kind: int = 5050) -> Event:
    return Draft(kind=kind, content=text).sign(SecretKey(b"\x05" * 32), int(time.time()))


def requests(since: int) -> list[dict[str, Any]]:
    return [{"kinds": [5050], "since": since}]


# --- subscriptions ------------------------------------------------------------------------------------------------


async def test_events_reach_the_sink_with_their_relay_and_drops_are_counted() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        for number in range(200):  # more than one burst
            await peer.send("EVENT", "requests", event(str(number)).as_dict())
        await peer.send("EOSE", "requests")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.heard.drop_reason = "not-wanted"
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        assert run.heard.events == [(event(str(number)), relay.url) for number in range(200)]
        assert run.state.received == 200
        assert run.state.dropped == {"not-wanted": 200}
        assert run.state.status is RelayStatus.CONNECTED
        assert run.pool.any_connected


async def test_a_subscription_is_restored_after_a_break_from_before_the_break() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        await peer.send("EOSE", "requests")
        if peer.number == 0:
            await peer.hang_up()
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, overlap_s=60) as run:
        run.pool.subscribe("requests", requests, since=1000)
        await until(lambda: len(relay.heard) == 2)
        first, second = relay.heard
        assert first == ["REQ", "requests", {"kinds": [5050], "since": 1000}]
        assert abs(second[2]["since"] - (time.time() - 60)) < 5
        assert run.state.reconnects == 1


async def test_without_eose_nothing_counts_as_seen() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        if peer.number < 2:
            await peer.hang_up()
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.pool.subscribe("requests", requests, since=1000)
        await until(lambda: len(relay.heard) == 3)
        assert [message[2]["since"] for message in relay.heard] == [1000, 1000, 1000]
        assert run.pool.cursors("requests") == {}


async def test_cursors_start_a_subscription_where_an_earlier_run_ended() -> None:
    async with scripted_relay() as known, scripted_relay() as unknown, running_pool(known.url, unknown.url) as run:
        run.pool.subscribe("requests", requests, since=5000, cursors={known.url: 10_000})
        await run.pool.wait_caught_up("requests", 2)
        assert known.heard[0][2]["since"] == 10_000 - 60
        assert unknown.heard[0][2]["since"] == 5000
        cursors = run.pool.cursors("requests")
        assert set(cursors) == {known.url, unknown.url}
        assert all(abs(cursor - time.time()) < 5 for cursor in cursors.values())


async def test_a_rolling_filter_is_refreshed_and_closed_when_empty() -> None:
    jobs: list[str] = []

    def deletions(since: int) -> list[dict[str, Any]]:
        return [{"kinds": [5], "#e": list(jobs)}] if jobs else []

    async with scripted_relay() as relay, running_pool(relay.url) as run:
        run.pool.subscribe("deletions", deletions)
        await run.pool.wait_connected()
        jobs.append("a")
        run.pool.refresh("deletions")
        await until(lambda: len(relay.heard) == 1)
        jobs.clear()
        run.pool.refresh("deletions")
        await until(lambda: len(relay.heard) == 2)
        assert relay.heard == [["REQ", "deletions", {"kinds": [5], "#e": ["a"]}], ["CLOSE", "deletions"]]


async def test_a_relay_that_demands_auth_for_everything_gets_it() -> None:
    async def script(peer: Peer) -> None:
        req = await peer.get("REQ")
        await peer.send("CLOSED", req[1], REFUSAL)
        await peer.send("AUTH", "challenge-1")
        auth = await peer.get("AUTH")
        assert ["relay", relay.url] in auth[1]["tags"]
        await peer.ok(auth[1]["id"])
        assert (await peer.get("REQ"))[1] == "requests"
        await peer.send("EOSE", "requests")
        await polite(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        assert run.state.authenticated
        assert [sub.status for sub in run.state.subscriptions] == [SubscriptionStatus.LIVE]


async def test_a_relay_that_challenges_on_connect_and_confirms_nothing() -> None:
    # PyPI's nostr-relay.
    authenticated = False

    async def script(peer: Peer) -> None:
        nonlocal authenticated
        await peer.send("AUTH", "challenge-1")
        while True:
            match await peer.get():
                case ["AUTH", _]:
                    authenticated = True
                case ["EVENT", one] if authenticated:
                    await peer.ok(one["id"])
                case ["EVENT", one]:
                    await peer.ok(one["id"], False, REFUSAL)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.deliver(event("result"))
        await until(lambda: run.heard.confirmations == 1)


# --- publishing ---------------------------------------------------------------------------------------------------


async def test_ok_false_then_true() -> None:
    answers = iter([(False, "rate-limited: slow down"), (False, "error: busy"), (True, "")])

    async def script(peer: Peer) -> None:
        while True:
            one = (await peer.get("EVENT"))[1]
            await peer.ok(one["id"], *next(answers))

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.deliver(event("result"))
        await until(lambda: run.heard.confirmations == 1)
        assert relay.events() == [event("result").id] * 3
        assert (run.state.sent, run.state.accepted, run.state.refused) == (3, 1, 2)


async def test_a_lost_ok_makes_it_send_the_same_event_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("EVENT")
        one = (await peer.get("EVENT"))[1]
        await peer.ok(one["id"], True, "duplicate: have it")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, publish_timeout_s=0.1) as run:
        run.deliver(event("result"))
        await until(lambda: run.heard.confirmations == 1)
        assert relay.heard[0] == relay.heard[1]


async def test_a_break_between_event_and_ok_loses_nothing() -> None:
    async def script(peer: Peer) -> None:
        if peer.number < 3:
            await peer.get("EVENT")
            await peer.hang_up()
        await polite(peer)

    ids = [event(f"result {number}").id for number in range(20)]
    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        for number in range(20):
            run.deliver(event(f"result {number}"))
        await until(lambda: run.heard.confirmations == 20)
        assert set(relay.events()) == set(ids)
        assert relay.connections == 4


async def test_a_relay_that_drops_every_connection_after_a_few_messages() -> None:
    # LocalRelay does so at the 6,001st.
    async def script(peer: Peer) -> None:
        for _ in range(7):
            one = (await peer.get("EVENT"))[1]
            await peer.ok(one["id"])
        await peer.hang_up()

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        for number in range(50):
            run.deliver(event(str(number)))
        await until(lambda: run.heard.confirmations == 50)
        assert relay.connections >= 8
        assert run.heard.gave == {}


async def test_attempts_come_ever_later() -> None:
    attempts: list[float] = []

    async def script(peer: Peer) -> None:
        attempts.append(time.perf_counter())
        await peer.hang_up()

    quick: dict[str, Any] = {"backoff_min_s": 0.02, "backoff_max_s": 0.3, "stable_after_s": 5.0}
    async with scripted_relay(script) as relay, running_pool(relay.url, **quick):
        await until(lambda: len(attempts) == 7)
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert gaps[4] > 0.14  # the first was 0.02 to 0.04
    assert gaps[5] < 0.6


async def test_a_relay_that_never_completes_a_handshake_is_not_called_stable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stalled:
        url = f"ws://127.0.0.1:{stalled.getsockname()[1]}"
        options: dict[str, Any] = {"connect_timeout_s": 0.1, "stable_after_s": 0.05, "backoff_min_s": 0.1}
        async with running_pool(url, **options, backoff_max_s=60.0) as run:
            await until(lambda: run.state.reconnects == 2)
            started = time.perf_counter()
            await until(lambda: run.state.reconnects == 3)
            assert time.perf_counter() - started > 0.4  # the third pause, not the first


async def test_the_first_relay_is_dead_and_the_second_works() -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead_url = f"ws://127.0.0.1:{dead.getsockname()[1]}"
        async with scripted_relay() as relay, running_pool(dead_url, relay.url) as run:
            run.pool.subscribe("requests", requests)
            await run.pool.wait_caught_up("requests")
            run.deliver(event("result"))
            await until(lambda: run.heard.confirmations == 1)
            assert run.heard.confirmed_by == {event("result").id: relay.url}
            bad, good = run.pool.states()
            assert bad.status in {RelayStatus.BACKOFF, RelayStatus.CONNECTING}
            assert "refused" in bad.last_error.lower()
            assert good.status is RelayStatus.CONNECTED


async def test_every_relay_refusing_for_good_ends_a_delivery() -> None:
    async def script(peer: Peer) -> None:
        one = (await peer.get("EVENT"))[1]
        await peer.ok(one["id"], False, "blocked: \x1b[31mgo away")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.deliver(event("result"))
        await until(lambda: bool(run.heard.gave))
        assert run.heard.gave == {
            event("result").id: f"every relay refused it ({relay.url}: blocked: \\x1b[31mgo away)"
        }


async def test_live_events_are_dropped_rather_than_kept() -> None:
    async with scripted_relay() as relay, running_pool(relay.url) as run:
        run.publisher.publish_live(event("early"), ())
        await run.pool.wait_connected()
        run.publisher.publish_live(event("now"), ())
        await until(lambda: run.state.accepted == 1)
        assert relay.events() == [event("now").id]
        assert run.state.dropped == {"live-offline": 1}


# --- relays that harm ---------------------------------------------------------------------------------------------


async def test_a_stalled_handshake_ends_in_time() -> None:
    with socket.socket() as stalled:
        stalled.bind(("127.0.0.1", 0))
        stalled.listen()
        url = f"ws://127.0.0.1:{stalled.getsockname()[1]}"
        async with running_pool(url, connect_timeout_s=0.2) as run:
            await until(lambda: run.state.reconnects >= 1)
            assert run.state.last_error == "no answer in time"


async def test_a_half_open_connection_is_noticed_by_ping() -> None:
    async def script(peer: Peer) -> None:
        peer.socket.transport.pause_reading()  # pings arrive nowhere
        await anyio.sleep_forever()

    async with (
        scripted_relay(script) as relay,
        running_pool(relay.url, ping_interval_s=0.1, pong_timeout_s=0.2) as run,
    ):
        await until(lambda: relay.connections >= 2)
        assert "keepalive ping timeout" in run.state.last_error


async def test_a_relay_that_does_not_read_is_disconnected_and_delays_nobody() -> None:
    async def script(peer: Peer) -> None:
        peer.socket.transport.pause_reading()
        await anyio.sleep_forever()

    async with (
        scripted_relay(script) as slow,
        scripted_relay() as good,
        running_pool(slow.url, good.url, stall_timeout_s=0.3, queue_bytes=2_000_000, publish_timeout_s=60.0) as run,
    ):
        await run.pool.wait_connected(2)
        big = "x" * 60_000
        for number in range(400):  # 24 MB: more than the sockets and the queue hold
            run.publisher.publish_live(event(f"{number} {big}"), ())
            await anyio.lowlevel.checkpoint()
        run.deliver(event("result"))
        await until(lambda: run.heard.confirmed_by.get(event("result").id) == good.url)
        await until(lambda: "slow" in run.pool.states()[0].last_error)
        slow_state, good_state = run.pool.states()
        assert slow_state.dropped["live-slow"] > 0
        assert good_state.status is RelayStatus.CONNECTED


async def test_a_large_frame_is_dropped_and_a_huge_one_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        await peer.send("NOTICE", "x" * 2000)
        await peer.send("EVENT", "requests", event("after").as_dict())
        await peer.get("EVENT")
        await peer.send("NOTICE", "x" * 20_000)
        await silent(peer)

    async with (
        scripted_relay(script) as relay,
        running_pool(relay.url, max_frame_bytes=1000, hard_frame_bytes=10_000, publish_timeout_s=60.0) as run,
    ):
        run.pool.subscribe("requests", requests)
        await until(lambda: run.heard.ids() == [event("after").id])
        assert run.state.dropped == {"oversize": 1}
        run.publisher.publish_live(event("go on"), ())
        await until(lambda: relay.connections == 2)
        assert run.state.last_error == "a frame was larger than the hard limit"


async def test_rubbish_is_counted_and_too_much_of_it_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.send("rubbish")
        for _ in range(30):
            await peer.socket.send("rubbish")
            await peer.socket.send(b"\x00\x01")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, max_bad_frames=50) as run:
        await until(lambda: relay.connections >= 2)
        assert run.state.last_error == "too many frames that mean nothing (not-json)"
        # It ends with the first frame too many, not with what came along with it.
        assert run.state.dropped["not-json"] + run.state.dropped["binary"] <= 52 * relay.connections
        assert run.state.dropped["binary"] >= 25


async def test_a_relay_whose_frames_are_of_no_use_is_read_slowly_and_the_state_says_so() -> None:
    useless = f'["EVENT","requests",{event("seen before").to_json()}]'

    async def flood(peer: Peer) -> None:
        await peer.get("REQ")
        await peer.send("EOSE", "requests")
        while True:
            await peer.socket.send(useless)

    async with (
        scripted_relay(flood) as bad,
        running_pool(bad.url, useless_share=0.001, useless_burst_s=0.001) as run,
    ):
        run.heard.drop_reason = "duplicate"
        run.pool.subscribe("requests", requests)
        await until(lambda: run.state.trouble != "")
        assert run.state.trouble == "read slowly: it sends too much that is of no use (duplicate)"
        assert run.state.status is RelayStatus.CONNECTED
        # At a thousandth of the time, what is left to it after this is a few events, whatever it sends.
        received, since = run.state.received, time.perf_counter()
        await anyio.sleep(0.3)
        assert run.state.received - received < 100 * (time.perf_counter() - since)


async def test_a_relay_whose_events_are_taken_is_read_at_full_speed() -> None:
    async def flood(peer: Peer) -> None:
        await peer.get("REQ")
        frame = f'["EVENT","requests",{event("taken").to_json()}]'
        for _ in range(3000):
            await peer.socket.send(frame)
        await peer.send("EOSE", "requests")
        await silent(peer)

    async with (
        scripted_relay(flood) as relay,
        running_pool(relay.url, useless_share=0.001, useless_burst_s=0.001) as run,
    ):
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        assert run.state.received == 3000
        assert run.state.trouble == ""


async def test_a_relay_that_refuses_is_in_the_state_with_its_words() -> None:
    async def script(peer: Peer) -> None:
        message = await peer.get("EVENT")
        await peer.ok(message[1]["id"], False, "blocked: nobody likes you \x1b[2J")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.deliver(event("result"))
        await until(lambda: run.state.trouble != "")
        assert run.state.trouble == "refused an event: blocked: nobody likes you \\x1b[2J"


async def test_what_ended_the_last_connection_is_told_while_the_next_is_young() -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 0:
            await peer.socket.send("rubbish")
            await peer.socket.close(1013, "busy")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, stable_after_s=60.0) as run:
        await until(lambda: relay.connections == 2 and run.state.status is RelayStatus.CONNECTED)
        assert run.state.trouble == "ended before: closed by the relay: 1013 busy"


async def test_a_relay_that_answers_ever_later_after_a_refusal_is_connected_to_anew() -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 0:  # as nostr-relay does: no id, and then it is silent for longer and longer
            await peer.get("EVENT")
            await peer.ok("", False, "invalid: 280 characters should be enough for anybody")
            await silent(peer)
        else:
            await polite(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, publish_timeout_s=0.3) as run:
        run.deliver(event("too long"))
        run.deliver(event("short"))
        await until(lambda: run.heard.confirmed_by.keys() == {event("short").id})
        assert run.heard.gave.keys() == {event("too long").id}
        assert "280 characters" in run.heard.gave[event("too long").id]
        assert run.state.last_error == "slow: the relay answers ever later since it refused an event"
        assert relay.connections == 2


async def test_invalid_utf8_costs_only_that_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        if peer.number == 0:
            await peer.socket.send(b"\xff\xfe", text=True)
            await silent(peer)
        await peer.send("EOSE", "requests")
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url) as run:
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        assert relay.connections == 2


async def test_a_flood_from_one_relay_leaves_the_loop_to_others() -> None:
    frame = f'["EVENT","requests",{event("flood").to_json()}]'

    async def flood(peer: Peer) -> None:
        await peer.get("REQ")
        with anyio.move_on_after(1.0):
            while True:
                await peer.socket.send(frame)
        await silent(peer)

    async with scripted_relay(flood) as bad, scripted_relay() as good, running_pool(bad.url, good.url) as run:
        run.pool.subscribe("requests", requests)
        await until(lambda: run.pool.states()[0].received > 100)
        started = time.perf_counter()
        run.deliver(event("result"))
        await until(lambda: run.heard.confirmations == 1)
        assert time.perf_counter() - started < 0.5
        assert run.pool.states()[0].received < 100_000


@asynccontextmanager
async def http_server(head: str) -> AsyncIterator[str]:
    """Answer every connection with one HTTP head; yields the websocket URL."""

    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(f"{head}Content-Length: 0\r\n\r\n".encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        yield f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def test_a_refused_handshake_shows_as_refused() -> None:
    async with http_server("HTTP/1.1 403 Forbidden\r\n") as url, running_pool(url, **PATIENT) as run:
        await until(lambda: bool(run.state.last_error))
        assert run.state.status is RelayStatus.REFUSED
        assert run.state.last_error == "the relay answered HTTP 403"


async def test_redirects_are_not_followed() -> None:
    async with scripted_relay() as elsewhere:
        head = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}\r\n"
        async with http_server(head) as url, running_pool(url, **PATIENT) as run:
            await until(lambda: bool(run.state.last_error))
            assert run.state.last_error == "the relay answered HTTP 302"
        assert elsewhere.connections == 0


class FaultyOnce(Heard):
    """A sink with a bug that the first event brings out."""

    def offer(self, event: Event, relay_url: str) -> str | None:
        super().offer(event, relay_url)
        if len(self.events) == 1:
            raise RuntimeError("a bug")
        return None


async def test_compression_that_was_not_offered_is_not_agreed_to() -> None:
    async def agree(stream: SocketStream) -> None:
        async with stream:
            (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", await stream.receive())
            head = (
                f"Sec-WebSocket-Accept: {accept_key(key.decode())}\r\nSec-WebSocket-Extensions: permessage-deflate"
            )
            upgrade = "Upgrade: websocket\r\nConnection: Upgrade"
            await stream.send(f"HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n{head}\r\n\r\n".encode())
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, agree)
        url = f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        async with running_pool(url, **PATIENT) as run:
            await until(lambda: run.state.status is RelayStatus.BACKOFF)
            assert "extension" in run.state.last_error
        tasks.cancel_scope.cancel()


async def test_a_fault_of_ours_in_the_sink_costs_only_that_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.get("REQ")
        await peer.send("EVENT", "requests", event(str(peer.number)).as_dict())
        await silent(peer)

    async with scripted_relay(script) as relay, running_pool(relay.url, heard=FaultyOnce()) as run:
        run.pool.subscribe("requests", requests)
        await until(lambda: run.heard.ids() == [event("0").id, event("1").id])
        assert run.state.last_error == "a bug"


async def test_stopping_does_not_wait_for_a_relay_that_does_not_answer() -> None:
    async def script(peer: Peer) -> None:
        peer.socket.transport.pause_reading()
        await anyio.sleep_forever()

    async with scripted_relay(script) as relay:
        async with running_pool(relay.url) as run:
            await run.pool.wait_connected()
            started = time.perf_counter()
        assert time.perf_counter() - started < 3
        assert run.state.status is RelayStatus.STOPPED


def test_a_configured_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(DialRefused, match=r"https://relay\.example does not start with ws:// or wss://"):
        RelayPool(
            PoolConfig(urls=("https://relay.example",)),
            key=None,
            sink=Heard(),
            clock=time.time,
            rng=random.Random(1),
        )


async def test_two_spellings_of_one_relay_are_one_connection() -> None:
    async with scripted_relay() as relay, running_pool(relay.url, relay.url + "/") as run:
        await run.pool.wait_connected()
        run.deliver(event("result"), (relay.url + "/",))
        await until(lambda: run.heard.confirmations == 1)
        assert relay.connections == 1
        assert relay.events() == [event("result").id]
