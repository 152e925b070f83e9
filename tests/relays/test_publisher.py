"""Durable delivery and live sends, over relays that exist only in the test."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.relays.answers import Answer, Verdict
from pylon.relays.connection import RelayListener
from pylon.relays.publisher import OutboxPublisher, PublisherState
from pylon.relays.state import PoolConfig

A, B, GUEST = "wss://a", "wss://b", "wss://guest"


@cache  # signatures are random: the same text must give the same event
def event(text: str) -> Event:
    return Draft(kind=6050, content=text).sign(SecretKey(b"\x07" * 32), 1_800_000_000)


class FakeRelay:
    def __init__(self, connected: bool = True) -> None:
        self.connected = connected
        self.room = 10**9
        self.frames: list[tuple[str, bytes]] = []

    def publish(self, event_id: str, frame: bytes, *, live: bool = False) -> bool:
        if not self.connected or self.room <= 0:
            return False
        self.room -= 1
        self.frames.append((event_id, frame))
        return True

    def ids(self) -> list[str]:
        return [event_id for event_id, _ in self.frames]


class FakePool:
    def __init__(self, **relays: FakeRelay) -> None:
        self.relays = {f"wss://{name}": relay for name, relay in relays.items()}
        self.guests: dict[str, FakeRelay | str] = {}

    def attach(self, listener: RelayListener) -> None:
        self.listener = listener

    def targets(self, named: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*self.relays, *named]))

    def outlet(self, url: str) -> FakeRelay | str:
        return self.relays.get(url) or self.guests[url]


class Sink:
    def __init__(self) -> None:
        self.ok: list[tuple[str, str]] = []
        self.gave: list[tuple[str, str]] = []

    def confirmed(self, event_id: str, relay_url: str) -> None:
        self.ok.append((event_id, relay_url))

    def gave_up(self, event_id: str, why: str) -> None:
        self.gave.append((event_id, why))


class Bench:
    """A publisher over fake relays, with a clock that the test turns."""

    def __init__(self, pool: FakePool, **options: Any) -> None:
        self.now = 1000.0
        self.pool = pool
        self.sink = Sink()
        self.publisher = OutboxPublisher(
            pool, self.sink, PoolConfig(urls=(), **options), clock=lambda: self.now, rng=random.Random(1)
        )

    def deliver(self, text: str = "result", relays: Sequence[str] = (), within_s: float = 600) -> str:
        one = event(text)
        self.publisher.deliver(one.id, one.to_json(), relays, self.now + within_s)
        return one.id

    def answer(self, url: str, event_id: str, verdict: Verdict = Verdict.ACCEPTED, text: str = "") -> None:
        self.publisher.answered(url, Answer(event_id, verdict, text))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.2)
            self.publisher.sweep()


def test_the_first_ok_confirms_once_and_every_relay_gets_it() -> None:
    a, b = FakeRelay(), FakeRelay()
    bench = Bench(FakePool(a=a, b=b))
    one = bench.deliver()
    assert a.frames == b.frames == [(one, f'["EVENT",{event("result").to_json()}]'.encode())]
    bench.answer(B, one)
    assert bench.sink.ok == [(one, B)]
    assert bench.publisher.states() == PublisherState(unconfirmed=0, lingering=1, live_sent=0, live_dropped=0)
    bench.answer(A, one, Verdict.DUPLICATE)
    bench.wait(700)
    assert bench.sink.ok == [(one, B)]
    assert bench.sink.gave == []
    assert bench.publisher.states().lingering == 0


def test_a_relay_that_comes_back_within_the_time_still_gets_it() -> None:
    a, b = FakeRelay(), FakeRelay(connected=False)
    bench = Bench(FakePool(a=a, b=b), linger_s=60)
    one = bench.deliver()
    bench.answer(A, one)
    bench.wait(30)
    b.connected = True
    bench.publisher.ready(B)
    assert b.ids() == [one]

    late = FakeRelay(connected=False)
    bench = Bench(FakePool(a=FakeRelay(), b=late), linger_s=60)
    bench.answer(A, bench.deliver())
    bench.wait(61)
    late.connected = True
    bench.publisher.ready(B)
    assert late.ids() == []


def test_a_broken_connection_opens_what_it_had_not_answered() -> None:
    a = FakeRelay()
    bench = Bench(FakePool(a=a))
    ids = [bench.deliver(str(i)) for i in range(3)]
    bench.answer(A, ids[1])
    a.connected = False
    bench.publisher.lost(A, "gone")
    last = bench.deliver("last")
    assert a.ids() == ids
    a.connected, a.frames = True, []
    bench.publisher.ready(A)
    assert a.ids() == [ids[0], ids[2], last]


def test_no_answer_and_transient_refusals_are_tried_again_ever_later_with_the_same_bytes() -> None:
    for verdict in (Verdict.NO_ANSWER, Verdict.RATE_LIMITED, Verdict.ERROR, Verdict.OTHER, Verdict.RESTRICTED):
        a = FakeRelay()
        bench = Bench(FakePool(a=a), retry_min_s=1, retry_max_s=8)
        one = bench.deliver(within_s=100_000)
        pauses = []
        for sends in range(1, 8):
            assert len(a.frames) == sends
            bench.answer(A, one, verdict, f"{verdict}: x")
            before = bench.now
            while len(a.frames) == sends:
                bench.wait(0.2)
            pauses.append(bench.now - before)
        assert set(a.frames) == {a.frames[0]}
        assert pauses[0] < 1.5
        assert 4 <= pauses[-1] < 8.5
        bench.answer(A, one)
        assert bench.sink.ok == [(one, A)]


def test_a_final_refusal_is_final_for_that_relay_only() -> None:
    for verdict in (Verdict.INVALID, Verdict.BLOCKED, Verdict.POW):
        a, b = FakeRelay(), FakeRelay()
        bench = Bench(FakePool(a=a, b=b))
        one = bench.deliver()
        bench.answer(A, one, verdict, f"{verdict}: no")
        bench.answer(B, one, Verdict.NO_ANSWER)
        bench.wait(30)
        assert len(a.frames) == 1
        assert len(b.frames) == 2
        assert bench.sink.gave == []
        bench.answer(B, one, verdict, f"{verdict}: neither")
        assert bench.sink.gave == []
        bench.wait(0.2)
        assert bench.sink.gave == [
            (one, f"every relay refused it (wss://a: {verdict}: no; wss://b: {verdict}: neither)"),
        ]
        assert bench.publisher.states().unconfirmed == 0


def test_the_deadline_ends_it_once_and_late_answers_change_nothing() -> None:
    a = FakeRelay()
    bench = Bench(FakePool(a=a))
    one = bench.deliver(within_s=10)
    bench.wait(9.8)
    assert bench.sink.gave == []
    bench.wait(0.4)
    ((given_up, why),) = bench.sink.gave
    assert given_up == one
    assert why == "no relay confirmed before the deadline (none answered)"
    bench.answer(A, one)
    bench.wait(100)
    assert bench.sink.ok == []
    assert len(bench.sink.gave) == 1


def test_a_relay_that_is_away_past_the_deadline_keeps_nothing() -> None:
    away = FakeRelay(connected=False)
    bench = Bench(FakePool(a=away))
    for i in range(100):
        bench.deliver(str(i), within_s=10)
    bench.wait(11)
    assert len(bench.sink.gave) == 100
    away.connected = True
    bench.publisher.ready(A)
    assert away.frames == []


def test_without_any_relay_it_gives_up_after_the_call() -> None:
    bench = Bench(FakePool())
    one = bench.deliver()
    assert bench.sink.gave == []
    bench.publisher.sweep()
    assert bench.sink.gave == [(one, "there is no relay to send it to")]


def test_delivering_an_id_under_way_again_changes_nothing() -> None:
    a = FakeRelay()
    bench = Bench(FakePool(a=a))
    one = bench.deliver()
    assert bench.deliver() == one
    assert len(a.frames) == 1
    bench.answer(A, one)
    assert len(bench.sink.ok) == 1


def test_what_a_full_relay_does_not_take_waits_in_order() -> None:
    a = FakeRelay()
    a.room = 2
    bench = Bench(FakePool(a=a))
    ids = [bench.deliver(str(i)) for i in range(5)]
    assert a.ids() == ids[:2]
    a.room = 1
    bench.answer(A, ids[0])
    assert a.ids() == ids[:3]
    a.room = 10
    bench.publisher.sweep()
    assert a.ids() == ids


def test_a_customers_relay_may_confirm_and_an_unreachable_one_is_written_off() -> None:
    pool = FakePool(a=FakeRelay(connected=False))
    pool.guests = {GUEST: FakeRelay(), "wss://10.0.0.1": "10.0.0.1 is a private address"}
    bench = Bench(pool)
    one = bench.deliver(relays=[GUEST, "wss://10.0.0.1"])
    bench.answer(GUEST, one)
    assert bench.sink.ok == [(one, GUEST)]

    bench = Bench(pool)
    one = bench.deliver(relays=["wss://10.0.0.1"], within_s=5)
    bench.wait(6)
    assert bench.sink.gave == [
        (one, "no relay confirmed before the deadline (wss://10.0.0.1: 10.0.0.1 is a private address)")
    ]


def test_lingering_is_bounded_by_number_and_bytes() -> None:
    for options in (
        {"max_lingering": 10},
        {"max_lingering_bytes": 10 * len(f'["EVENT",{event("1000").to_json()}]')},
    ):
        away = FakeRelay(connected=False)
        bench = Bench(FakePool(a=FakeRelay(), b=away), **options)
        ids = [bench.deliver(str(i)) for i in range(1000, 1100)]
        for one in ids:
            bench.answer(A, one)
        bench.publisher.sweep()
        assert bench.publisher.states().lingering == 10
        away.connected = True
        bench.publisher.ready(B)
        assert away.ids() == ids[-10:]


def test_live_events_go_once_to_whoever_is_there() -> None:
    a, b = FakeRelay(), FakeRelay(connected=False)
    bench = Bench(FakePool(a=a, b=b))
    bench.pool.guests["wss://bad"] = "no"
    bench.publisher.publish_live(event("partial"), ["wss://bad"])
    bench.wait(100)
    assert a.ids() == [event("partial").id]
    assert b.ids() == []
    bench.answer(A, event("partial").id)
    assert bench.sink.ok == []
    assert bench.publisher.states() == PublisherState(unconfirmed=0, lingering=0, live_sent=1, live_dropped=2)


@pytest.mark.alone
def test_ten_thousand_deliveries_while_every_relay_is_away() -> None:
    a, b = FakeRelay(connected=False), FakeRelay(connected=False)
    bench = Bench(FakePool(a=a, b=b))
    for number in range(10_000):
        bench.publisher.deliver(f"{number:064x}", "{}", (), bench.now + 600)
    started = time.perf_counter()
    bench.publisher.sweep()
    assert time.perf_counter() - started < 0.2
    a.connected = True
    bench.publisher.ready(A)
    assert len(a.frames) == 10_000
    for number in range(10_000):
        bench.answer(A, f"{number:064x}")
    assert len(bench.sink.ok) == 10_000
    bench.wait(61)
    assert bench.publisher.states() == PublisherState(unconfirmed=0, lingering=0, live_sent=0, live_dropped=0)
