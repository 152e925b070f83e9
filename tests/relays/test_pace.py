"""The pace of a relay: at most so many in any window, however they are asked for."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import event_frame
from pylon.relays.pace import Pace, Patience, RelayPace
from pylon.relays.session import Session
from pylon.relays.state import PoolConfig

KEY = SecretKey(b"\x07" * 32)
BUDGET = 1 << 30


@given(st.integers(1, 200), st.sampled_from([1.0, 60.0]), st.lists(st.floats(0, 20), min_size=1, max_size=300))
def test_no_window_holds_more_than_allowed(most: int, window_s: float, pauses: list[float]) -> None:
    pace = Pace(most, window_s)
    now, passed = 0.0, []
    for pause in pauses:
        now += pause * window_s / 100
        while pace.take(now):
            passed.append(now)
    for at, start in enumerate(passed):
        # Not quite the whole window: what passes exactly at its end belongs to the next.
        assert sum(start <= time < start + window_s * 0.999 for time in passed[at:]) <= most


@pytest.mark.parametrize("most", [1, 2, 3, 45, 1000])
def test_it_goes_on_at_half_the_limit_at_least(most: int) -> None:
    pace = Pace(most, 1.0)
    passed = sum(pace.take(step / 1000) for step in range(60_000))
    assert passed >= 60 * most / 2


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    pace = Pace(3, 1.0)
    assert [pace.take(at) for at in (100.0, 100.0, 50.0, 50.1)] == [True, False, False, False]


def paced(messages: int, subscriptions: int, **options: Any) -> Session:
    config = PoolConfig(urls=(), **options)
    pace = RelayPace(messages, subscriptions, config.publish_timeout_s)
    return Session(
        "ws://relay.example", config, key=KEY, clock=lambda: 1_800_000_000, rng=random.Random(1), pace=pace
    )


def publish(to: Session, number: int, *, live: bool = False) -> bool:
    event = Draft(kind=7000, content=str(number)).sign(KEY, 1_800_000_000)
    return to.publish(event.id, event_frame(event).encode(), 0.0, live=live)


def verbs(frames: list[bytes]) -> list[str]:
    return [json.loads(frame)[0] for frame in frames]


def test_events_wait_for_their_turn_and_keep_their_order() -> None:
    session = paced(30, 0)
    for number in range(25):
        assert publish(session, number)
    contents = []
    for step in range(100):
        frames = session.take(BUDGET, step * 0.1)
        assert len(frames) <= 10
        contents += [int(json.loads(frame)[1]["content"]) for frame in frames]
    assert contents == list(range(25))


def test_control_goes_first_and_counts_too() -> None:
    session = paced(6, 0)
    session.subscribe("a", [{"kinds": [1]}])
    session.receive('["AUTH","challenge"]', 0.0)
    for number in range(3):
        publish(session, number)
    assert verbs(session.take(BUDGET, 0.0)) == ["REQ", "AUTH"]
    assert verbs(session.take(BUDGET, 1.0)) == ["EVENT", "EVENT"]


def test_a_subscription_that_waits_is_replaced_by_its_newer_one() -> None:
    session = paced(0, 3)
    session.subscribe("a", [{"kinds": [1]}])
    assert verbs(session.take(BUDGET, 0.0)) == ["REQ"]
    for kind in range(2, 9):
        session.subscribe("a", [{"kinds": [kind]}])
        assert publish(session, kind)
        assert verbs(session.take(BUDGET, 1.0)) == ["EVENT"]  # only subscriptions wait
    assert session.has_output
    (frame,) = session.take(BUDGET, 31.0)
    assert json.loads(frame) == ["REQ", "a", {"kinds": [8]}]


def test_what_could_not_go_out_in_time_is_not_queued() -> None:
    session = paced(30, 0, publish_timeout_s=3.0)  # 20 a second in the long run, for half of 3 s
    assert [publish(session, number) for number in range(32)] == [True] * 30 + [False] * 2
    live = paced(30, 0, publish_timeout_s=3.0)
    assert sum(publish(live, number, live=True) for number in range(32)) == 15


def test_without_a_limit_everything_goes_at_once() -> None:
    session = paced(0, 0)
    for number in range(500):
        session.subscribe(str(number), [{"kinds": [1]}])
        assert publish(session, number)
    assert len(session.take(BUDGET, 0.0)) == 1000


def test_what_is_of_no_use_gets_its_share_of_the_time_and_no_more() -> None:
    patience, now, spent_s = Patience(0.1, 0.05), 1000.0, 0.0
    while now < 1060.0:
        patience.spend(0.001, now)
        spent_s += 0.001
        now += 0.001 + patience.pause_s(now + 0.001)
    assert spent_s == pytest.approx(0.1 * 60 + 0.05, rel=0.02)


def test_a_halt_of_the_process_is_not_held_against_the_relay() -> None:
    patience = Patience(0.1, 0.05)
    patience.spend(3600.0, 5000.0)
    patience.spend(0.001, 5000.0)
    assert patience.pause_s(5000.0) == pytest.approx(0.01)


def test_a_burst_of_no_use_is_borne_and_forgotten() -> None:
    patience = Patience(0.1, 0.05)
    for number in range(50):
        patience.spend(0.001, 1000.0 + number / 1000)
    assert patience.pause_s(1000.05) == 0.0
    patience.spend(0.05, 1000.05)
    assert patience.pause_s(1000.05) > 0.0
    assert patience.pause_s(1002.0) == 0.0
