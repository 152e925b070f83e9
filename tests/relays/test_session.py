"""The protocol of one connection, without a socket."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.nostr.event import Draft, Event, parse_event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import EoseMessage, EventMessage, event_frame
from pylon.relays.answers import Answer, Verdict
from pylon.relays.session import DATE_SLACK_S, MAX_AUTHS, RESUBSCRIBE_MIN_S, Session
from pylon.relays.state import PoolConfig, SubscriptionStatus

URL = "ws://relay.example"
KEY = SecretKey(b"\x07" * 32)
NOW = 1_800_000_000
AUTH_REFUSAL = "auth-required: you must auth"


@cache  # signatures are random: the same text must give the same event
def event(text: str = "hello") -> Event:
    return Draft(kind=5050, content=text).sign(KEY, NOW)


def session(key: SecretKey | None = KEY, **options: Any) -> Session:
    config = PoolConfig(urls=(URL,), **options)
    return Session(URL, config, key=key, clock=lambda: NOW, rng=random.Random(1))


def publish(to: Session, one: Event, now: float = 0.0, *, live: bool = False) -> bool:
    return to.publish(one.id, event_frame(one).encode(), now, live=live)


def sent(by: Session) -> list[Any]:
    return [json.loads(frame) for frame in by.take(1 << 30)]


def say(to: Session, *message: Any, now: float = 0.0) -> Any:
    return to.receive(json.dumps(message), now)


def auth_of(frames: list[Any]) -> Event:
    (auth,) = [parse_event(frame[1]) for frame in frames if frame[0] == "AUTH"]
    return auth


# --- subscriptions ------------------------------------------------------------------------------------------------


def test_events_of_an_open_subscription_are_handed_on() -> None:
    one = session()
    one.subscribe("requests", [{"kinds": [5050]}])
    assert sent(one) == [["REQ", "requests", {"kinds": [5050]}]]
    heard = say(one, "EVENT", "requests", event().as_dict())
    assert isinstance(heard, EventMessage)
    assert heard.event == event()
    assert one.counters.received == 1


def test_events_of_other_subscriptions_are_dropped_and_counted() -> None:
    one = session()
    one.subscribe("requests", [{}])
    assert say(one, "EVENT", "requests2", event().as_dict()) is None
    assert say(one, "EOSE", "requests2") is None
    assert one.counters.dropped == {"unknown-subscription": 2}
    assert one.counters.received == 0


def test_eose_makes_a_subscription_live() -> None:
    one = session()
    one.subscribe("requests", [{}])
    assert one.subscriptions()[0].status is SubscriptionStatus.WAITING
    assert say(one, "EOSE", "requests") == EoseMessage("requests")
    assert one.subscriptions()[0].status is SubscriptionStatus.LIVE


def test_a_newer_request_replaces_an_unsent_one() -> None:
    one = session()
    one.subscribe("jobs", [{"#e": ["a"]}])
    one.subscribe("jobs", [{"#e": ["a", "b"]}])
    assert sent(one) == [["REQ", "jobs", {"#e": ["a", "b"]}]]


def test_no_filters_close_a_subscription_and_late_events_are_dropped() -> None:
    one = session()
    one.subscribe("jobs", [{}])
    sent(one)
    one.subscribe("jobs", [])
    one.subscribe("jobs", [])
    assert sent(one) == [["CLOSE", "jobs"]]
    assert say(one, "EVENT", "jobs", event().as_dict()) is None
    one.subscribe("jobs", [{}])
    assert sent(one) == [["REQ", "jobs", {}]]


def test_a_closed_subscription_is_asked_for_again_ever_later() -> None:
    one = session()
    one.subscribe("requests", [{}])
    sent(one)
    now, pauses = 0.0, []
    for _ in range(4):
        assert say(one, "CLOSED", "requests", "error: shutting\x1b[2Jdown", now=now) is not None
        (state,) = one.subscriptions()
        assert state.status is SubscriptionStatus.CLOSED
        assert state.detail == "error: shutting\\x1b[2Jdown"
        closed_at = now
        while not one.has_output:
            now += 0.5
            one.tick(now)
        assert sent(one) == [["REQ", "requests", {}]]
        pauses.append(now - closed_at)
    assert pauses == sorted(pauses)
    assert RESUBSCRIBE_MIN_S * 0.5 <= pauses[0] <= RESUBSCRIBE_MIN_S + 1
    assert pauses[3] > 2 * pauses[0]


def test_restricted_shows_in_the_state() -> None:
    one = session()
    one.subscribe("requests", [{}])
    say(one, "CLOSED", "requests", "restricted: not on the list")
    assert one.subscriptions()[0].detail == "restricted: not on the list"


# --- publishing ---------------------------------------------------------------------------------------------------


def test_an_ok_answers_its_event() -> None:
    one = session()
    assert publish(one, event())
    assert sent(one) == [["EVENT", event().as_dict() | {"tags": []}]]
    assert say(one, "OK", event().id, True, "") == Answer(event().id, Verdict.ACCEPTED)
    assert (one.counters.sent, one.counters.accepted, one.counters.refused) == (1, 1, 0)
    assert one.unanswered == 0


def test_duplicate_counts_as_accepted_whichever_way_it_is_said() -> None:
    for accepted in (True, False):
        one = session()
        publish(one, event())
        answer = say(one, "OK", event().id, accepted, "duplicate: have it")
        assert answer.verdict is Verdict.DUPLICATE
        assert answer.verdict.confirms
        assert one.counters.accepted == 1


def test_refusals_are_told_apart_by_prefix() -> None:
    for text, verdict, final in (
        ("rate-limited: slow down", Verdict.RATE_LIMITED, False),
        ("error: disk full", Verdict.ERROR, False),
        ("restricted: members only", Verdict.RESTRICTED, False),
        ("invalid: bad sig", Verdict.INVALID, True),
        ("blocked: you", Verdict.BLOCKED, True),
        ("pow: 28 bits", Verdict.POW, True),
        ("accepted: not really", Verdict.OTHER, False),
        ("no-answer: not really", Verdict.OTHER, False),
        ("no prefix at all", Verdict.OTHER, False),
        ("", Verdict.OTHER, False),
    ):
        one = session()
        publish(one, event())
        answer = say(one, "OK", event().id, False, text)
        assert answer == Answer(event().id, verdict, text)
        assert answer.verdict.final is final
        assert not answer.verdict.confirms
        assert one.counters.refused == 1


def test_strange_oks_are_counted_and_ignored() -> None:
    one = session()
    publish(one, event())
    assert say(one, "OK", "f" * 64, True, "") is None
    assert say(one, "OK", "", False, "invalid: whatever") is None
    assert say(one, "OK", event().id, "true", "") is None
    assert one.counters.dropped == {"unknown-ok": 1, "empty-ok": 1, "unknown-message": 1}
    assert one.unanswered == 1


def test_an_ok_that_does_not_come_ends_as_no_answer() -> None:
    one = session(publish_timeout_s=10.0)
    publish(one, event("a"), now=0.0)
    publish(one, event("b"), now=5.0)
    assert one.tick(9.9) == []
    assert one.tick(10.0) == [Answer(event("a").id, Verdict.NO_ANSWER, "no answer")]
    assert one.tick(10.1) == []
    assert one.unanswered == 1


def test_publishing_the_same_id_twice_sends_it_once() -> None:
    one = session()
    assert publish(one, event())
    assert publish(one, event())
    assert len(sent(one)) == 1


def test_bounds_refuse_events_and_keep_half_for_durable_ones() -> None:
    one = session(queue_frames=4)
    assert [publish(one, event(str(i)), live=True) for i in range(3)] == [True, True, False]
    assert [publish(one, event(str(i))) for i in range(10, 13)] == [True, True, False]
    assert one.queued == 4
    sent(one)
    assert publish(one, event("later"))

    one = session(queue_bytes=1000)
    assert publish(one, event("x" * 300))
    assert not publish(one, event("y" * 600))

    one = session(max_unanswered=1)
    assert publish(one, event("x"))
    sent(one)
    assert not publish(one, event("y"))


def test_take_honours_its_budget_and_puts_control_first() -> None:
    one = session()
    for i in range(10):
        publish(one, event(str(i)))
    one.subscribe("requests", [{}])
    frames = one.take(1)
    assert [json.loads(frame)[0] for frame in frames] == ["REQ"]
    assert [json.loads(frame)[0] for frame in one.take(500)] == ["EVENT", "EVENT"]
    assert one.queued == 8


# --- AUTH ---------------------------------------------------------------------------------------------------------


def test_a_challenge_on_connect_is_answered_at_once() -> None:
    one = session()
    assert say(one, "AUTH", "c1") is None
    auth = auth_of(sent(one))
    assert verify(auth)
    assert auth.kind == 22242
    assert auth.pubkey == KEY.public_hex
    assert set(auth.tags) == {("relay", URL), ("challenge", "c1")}
    assert auth.created_at == NOW
    assert not one.authenticated
    assert say(one, "OK", auth.id, True, "") is None
    assert one.authenticated


def test_a_refused_request_is_asked_again_after_auth() -> None:
    one = session()
    one.subscribe("requests", [{}])
    sent(one)
    assert say(one, "CLOSED", "requests", AUTH_REFUSAL) is None
    assert one.subscriptions()[0].status is SubscriptionStatus.AUTH
    say(one, "AUTH", "c1")
    auth = auth_of(sent(one))
    say(one, "OK", auth.id, True, "")
    assert sent(one) == [["REQ", "requests", {}]]


def test_refused_events_are_sent_again_once_per_challenge() -> None:
    one = session()
    for i in range(5):
        publish(one, event(str(i)))
    sent(one)
    # As LocalRelay does: a new challenge beside each refusal.
    for i in range(5):
        say(one, "AUTH", f"c{i}")
        assert say(one, "OK", event(str(i)).id, False, AUTH_REFUSAL) is None
    auth = auth_of(sent(one))
    say(one, "OK", auth.id, True, "")
    again = [frame[1]["id"] for frame in sent(one)]
    assert again == [event(str(i)).id for i in range(5)]
    for i in range(5):
        assert say(one, "OK", event(str(i)).id, True, "").verdict is Verdict.ACCEPTED
    assert one.counters.refused == 0


def test_a_refusal_that_comes_after_the_auth_it_did_not_see_is_repaired() -> None:
    one = session()
    publish(one, event())
    sent(one)
    say(one, "AUTH", "c1")
    say(one, "OK", auth_of(sent(one)).id, True, "")
    assert say(one, "OK", event().id, False, AUTH_REFUSAL) is None
    assert [frame[0] for frame in sent(one)] == ["EVENT"]


def test_a_relay_that_confirms_no_auth_is_believed_after_a_while() -> None:
    one = session(auth_wait_s=1.0)
    publish(one, event(), now=0.0)
    sent(one)
    say(one, "AUTH", "c1")
    say(one, "OK", event().id, False, AUTH_REFUSAL)
    auth_of(sent(one))
    one.tick(0.9)
    assert sent(one) == []
    one.tick(1.0)
    assert one.authenticated
    assert [frame[0] for frame in sent(one)] == ["EVENT"]


def test_a_request_refused_in_a_notice_alone_is_asked_again_after_auth() -> None:
    """As nostr-relay does: a challenge on connect, a NOTICE for the REQ that was faster, and no OK for the AUTH."""
    one = session(auth_wait_s=1.0)
    one.subscribe("requests", [{}])
    one.subscribe("answered", [{}])
    say(one, "AUTH", "c1")
    assert [frame[0] for frame in sent(one)] == ["REQ", "REQ", "AUTH"]
    say(one, "NOTICE", "restricted: permission denied")
    say(one, "EOSE", "answered")
    one.tick(1.0)
    assert sent(one) == [["REQ", "requests", {}]]
    assert say(one, "EOSE", "requests") is not None
    one.tick(9.0)
    assert sent(one) == []


def test_an_auth_refused_ends_what_waited_for_it() -> None:
    one = session()
    one.subscribe("requests", [{}])
    publish(one, event())
    sent(one)
    say(one, "OK", event().id, False, AUTH_REFUSAL)
    say(one, "CLOSED", "requests", AUTH_REFUSAL)
    say(one, "AUTH", "c1")
    say(one, "OK", auth_of(sent(one)).id, False, "restricted: unknown key")
    assert "restricted: unknown key" in one.auth_error
    assert one.tick(0.5) == [Answer(event().id, Verdict.AUTH_REQUIRED, one.auth_error)]
    assert one.subscriptions()[0].status is SubscriptionStatus.CLOSED


def test_an_expired_authentication_is_renewed() -> None:
    one = session()
    say(one, "AUTH", "c1")
    say(one, "OK", auth_of(sent(one)).id, True, "")
    publish(one, event())
    sent(one)
    assert say(one, "OK", event().id, False, AUTH_REFUSAL) is None
    say(one, "AUTH", "c2")
    say(one, "OK", auth_of(sent(one)).id, True, "")
    assert [frame[0] for frame in sent(one)] == ["EVENT"]
    assert say(one, "OK", event().id, True, "").verdict is Verdict.ACCEPTED


def test_auth_loops_are_bounded() -> None:
    one = session()
    auths = 0
    for round_number in range(100):
        publish(one, event(), now=float(round_number))
        say(one, "AUTH", f"c{round_number}", now=round_number)
        for verb, body in sent(one):
            if verb == "AUTH":
                auths += 1
                say(one, "OK", body["id"], True, "", now=round_number)
            elif verb == "EVENT":
                say(one, "OK", body["id"], False, AUTH_REFUSAL, now=round_number)
        one.tick(round_number)
    assert auths == MAX_AUTHS
    assert publish(one, event("more"), now=200.0)
    sent(one)
    assert say(one, "OK", event("more").id, False, AUTH_REFUSAL, now=200.0).verdict is Verdict.AUTH_REQUIRED


def test_without_a_key_no_auth_is_made_and_refusals_stand() -> None:
    one = session(key=None)
    publish(one, event())
    sent(one)
    say(one, "AUTH", "c1")
    assert sent(one) == []
    assert one.counters.dropped == {"auth-unanswered": 1}
    assert say(one, "OK", event().id, False, AUTH_REFUSAL).verdict is Verdict.AUTH_REQUIRED


def test_an_event_parked_for_a_challenge_that_never_comes_ends() -> None:
    one = session(publish_timeout_s=10.0)
    publish(one, event())
    sent(one)
    assert say(one, "OK", event().id, False, AUTH_REFUSAL, now=1.0) is None
    assert one.tick(11.0) == [Answer(event().id, Verdict.AUTH_REQUIRED, AUTH_REFUSAL)]


def test_a_guest_is_answered_one_auth_and_allowed_little_noise() -> None:
    config = PoolConfig(urls=(), max_bad_frames=10)
    one = Session(URL, config, key=KEY, clock=lambda: NOW, rng=random.Random(1), guest=True)
    auths = 0
    for number in range(3):
        say(one, "AUTH", f"c{number}")
        for _, body in sent(one):
            auths += 1
            say(one, "OK", body["id"], False, "no")
    assert auths == 1
    assert not one.hopeless
    for _ in range(10):
        say(one, "NOTICE", "buy now")
    assert one.hopeless


# --- hostile frames -----------------------------------------------------------------------------------------------


def test_bad_frames_are_counted_by_reason() -> None:
    one = session(max_frame_bytes=100)
    one.subscribe("requests", [{}])
    for frame in ("{", "[]", '{"a":1}', '["PING"]', "[1]", b"\x00\xff", '["EVENT","requests",{}]', "[" + "1" * 200):
        assert one.receive(frame, 0.0) is None
    assert one.counters.dropped == {
        "not-json": 1,
        "not-a-message": 2,
        "unknown-message": 2,
        "binary": 1,
        "bad-event": 1,
        "oversize": 1,
    }


def test_too_many_bad_frames_are_hopeless_but_a_few_over_time_are_not() -> None:
    one = session(max_bad_frames=10)
    for second in range(100):
        one.receive("nonsense", float(second))
        one.tick(float(second))
    assert not one.hopeless
    for _ in range(12):
        one.receive("nonsense", 100.0)
    assert one.hopeless


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("repeated-eose", ("EOSE", "requests")),
        ("repeated-closed", ("CLOSED", "requests", "error: again")),
        ("unknown-closed", ("CLOSED", "nothing of ours", "")),
    ],
)
def test_what_is_said_again_and_again_is_hopeless_and_named(reason: str, message: tuple[str, ...]) -> None:
    one = session(max_bad_frames=10)
    one.subscribe("requests", [{}])
    assert [say(one, *message) is None for _ in range(3)][1:] == [True, True]
    few = one.hopeless
    for _ in range(10):
        say(one, *message)
    assert (few, one.hopeless) == (False, True)
    assert one.nonsense == one.useless == reason


def test_an_endless_demand_for_auth_is_hopeless() -> None:
    one = session(max_bad_frames=10)
    for number in range(MAX_AUTHS + 12):
        say(one, "AUTH", f"challenge {number}", now=float(number))
        for frame in sent(one):
            say(one, "OK", frame[1]["id"], False, "restricted: no")
    assert one.hopeless
    assert one.nonsense == "auth-unanswered"


def test_what_is_far_older_than_asked_for_is_dropped_unchecked() -> None:
    one = session()
    one.subscribe("requests", [{"since": NOW + 7200}, {"since": NOW + DATE_SLACK_S + 1}])
    one.subscribe("all", [{"since": NOW + 7200}, {}])
    assert say(one, "EVENT", "requests", event().as_dict()) is None
    assert one.useless
    one.subscribe("requests", [{"since": NOW + DATE_SLACK_S}])
    assert say(one, "EVENT", "requests", event().as_dict()) == EventMessage("requests", event())
    assert say(one, "EVENT", "all", event().as_dict()) == EventMessage("all", event())
    assert not one.useless
    assert one.counters.dropped == {"before-since": 1}
    assert not one.hopeless


def test_notices_and_answers_nobody_waits_for_are_of_no_use_but_not_held_against_the_relay() -> None:
    one, reasons = session(max_bad_frames=10), []
    for _ in range(50):
        say(one, "NOTICE", "hear me")
        reasons.append(one.useless)
        say(one, "OK", "ab" * 32, True, "")
        reasons.append(one.useless)
    publish(one, event())
    sent(one)
    say(one, "OK", event().id, True, "")
    assert reasons == ["notice", "unknown-ok"] * 50
    assert not one.useless
    assert not one.hopeless


def test_what_strangers_can_cause_is_not_held_against_the_relay() -> None:
    one = session(max_bad_frames=10, max_frame_bytes=1000)
    one.subscribe("requests", [{}])
    for _ in range(50):
        one.receive("x" * 2000, 0.0)
        say(one, "EVENT", "requests", {"id": "short"})
    assert not one.hopeless


def test_a_notice_is_kept_printable_and_short() -> None:
    one = session()
    say(one, "NOTICE", "\x1b]0;pwned\x07" + "x" * 5000)
    assert one.counters.last_notice.startswith("\\x1b]0;pwned\\x07x")
    assert len(one.counters.last_notice) < 250


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
texts = st.sampled_from(
    [
        AUTH_REFUSAL,
        "duplicate:",
        "rate-limited: x",
        "invalid:",
        "",
        "c1",
        "c2",
        "requests",
        event().id,
        "",
        "é\ud800",
    ]
) | st.text(max_size=30)
messages = st.one_of(
    st.tuples(st.just("OK"), texts, st.booleans() | json_values, texts),
    st.tuples(st.just("EVENT"), texts, st.just(event().as_dict()) | json_values),
    st.tuples(st.sampled_from(["EOSE", "NOTICE", "AUTH", "CLOSED", "AUTH "]), texts, texts),
    st.lists(json_values, max_size=5),
)
frames = st.one_of(messages.map(json.dumps), st.text(), st.binary(), st.just("[" * 2000))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(frames, st.floats(0, 5)), max_size=30))
def test_nothing_a_relay_sends_raises_or_grows(incoming: list[tuple[str | bytes, float]]) -> None:
    one = session()
    one.subscribe("requests", [{}])
    publish(one, event())
    now = 0.0
    for frame, later in incoming:
        now += later
        one.receive(frame, now)
        one.tick(now)
        one.take(10_000)
        assert one.unanswered <= 1
        assert [state.name for state in one.subscriptions()] == ["requests"]
    assert len(one.counters.dropped) <= 12
    assert one.counters.last_notice.isprintable() or not one.counters.last_notice


# --- OKs without an id ----------------------------------------------------------------------------------------


def publish_all(to: Session, *texts: str) -> None:
    for text in texts:
        publish(to, event(text))
    sent(to)


def test_a_refusal_without_an_id_is_of_the_oldest_unanswered_event() -> None:
    one = session()
    publish_all(one, "a", "b", "c")
    assert say(one, "OK", event("a").id, True, "").verdict is Verdict.ACCEPTED
    assert say(one, "OK", "", False, "invalid: too long") == Answer(
        event("b").id, Verdict.INVALID, "invalid: too long"
    )
    assert say(one, "OK", event("c").id, True, "").verdict is Verdict.ACCEPTED
    assert (one.unanswered, one.counters.dropped) == (0, {})


def test_a_late_refusal_without_an_id_is_not_taken_for_the_next_events() -> None:
    one = session(publish_timeout_s=10.0)
    publish_all(one, "a")
    one.tick(10.0)
    publish(one, event("b"), now=11.0)
    sent(one)
    assert say(one, "OK", "", False, "invalid: too long") is None
    assert one.unanswered == 1
    assert say(one, "OK", "", False, "invalid: too long").event_id == event("b").id


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([("b", True)], id="answered-out-of-order"),
        pytest.param([("", True)], id="accepted-without-an-id"),
    ],
)
def test_where_the_order_says_nothing_nobody_guesses(before: list[tuple[str, bool]]) -> None:
    one = session()
    publish_all(one, "a", "b", "c")
    for text, accepted in before:
        say(one, "OK", event(text).id if text else "", accepted, "")
    unanswered = one.unanswered
    assert say(one, "OK", "", False, "invalid: too long") is None
    assert one.unanswered == unanswered


def test_a_refusal_without_an_id_may_be_of_an_open_auth() -> None:
    one = session()
    publish_all(one, "a")
    say(one, "AUTH", "c1")
    auth_of(sent(one))
    assert say(one, "OK", "", False, "invalid: wrong domain") is None
    assert one.unanswered == 1


def test_a_relay_that_answers_too_late_after_a_refusal_is_throttling() -> None:
    throttled = []
    for refusals in (0, 1):
        one = session(publish_timeout_s=10.0)
        publish_all(one, "a", "b")
        for _ in range(refusals):
            say(one, "OK", "", False, "invalid: too long")
        throttled.append(one.throttled)
        one.tick(10.0)
        throttled.append(one.throttled)
    assert throttled == [False, False, False, True], "one that refused nothing is slow: a new connection is no help"
