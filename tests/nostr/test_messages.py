import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Draft, Event
from pylon.nostr.messages import (
    AUTH_KIND,
    MAX_RELAY_TEXT,
    MAX_SUBSCRIPTION_ID,
    AuthMessage,
    BadMessage,
    ClosedMessage,
    EoseMessage,
    EventMessage,
    NoticeMessage,
    OkMessage,
    RelayMessage,
    auth_draft,
    auth_frame,
    close_frame,
    event_frame,
    event_frame_of,
    parse_relay_message,
    req_frame,
)
from tests.support.events import job_request, json_values, near_events, signed, tags, texts

ID = "ab" * 32
REASONS = {
    "not-json",
    "not-a-message",
    "unknown-message",
    "bad-event",
    "bad-ok",
    "bad-subscription",
}


@given(st.lists(tags, max_size=5).map(tuple), texts)
def test_an_event_survives_the_way_from_a_relay(its_tags: tuple[tuple[str, ...], ...], content: str) -> None:
    event = signed(Draft(1, content, its_tags))
    frame = f'["EVENT","sub",{event.to_json()}]'
    assert parse_relay_message(frame) == EventMessage("sub", event)
    assert parse_relay_message(frame.encode()) == EventMessage("sub", event)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (f'["OK","{ID}",true,""]', OkMessage(ID, True, "")),
        (f'["OK","{ID}",false,"blocked: no"]', OkMessage(ID, False, "blocked: no")),
        (f'["OK","{ID}",true]', OkMessage(ID, True, "")),
        (f'["OK","{ID}",true,null]', OkMessage(ID, True, "")),
        ('["OK","",false,"invalid: bad"]', OkMessage("", False, "invalid: bad")),
        ('["EOSE","s"]', EoseMessage("s")),
        ('["EOSE","s","more"]', EoseMessage("s")),
        ('["CLOSED","s","auth-required: who are you"]', ClosedMessage("s", "auth-required: who are you")),
        ('["CLOSED","s"]', ClosedMessage("s", "")),
        ('["NOTICE","hello"]', NoticeMessage("hello")),
        ('["NOTICE"]', NoticeMessage("")),
        ('["NOTICE",{"a":1}]', NoticeMessage("")),
        ('["AUTH","challenge"]', AuthMessage("challenge")),
        (' \n["NOTICE","x"]\t', NoticeMessage("x")),
    ],
)
def test_messages(frame: str, message: RelayMessage) -> None:
    assert parse_relay_message(frame) == message


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("", "not-json"),
        ("hello", "not-json"),
        (b"\xff\xfe", "not-json"),
        ("[" * 100_000, "not-json"),
        ("[" * 5000 + "]" * 5000, "not-json"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "not-json"),
        ('["NOTICE","\\ud800"]', "not-json"),
        ('["NOTICE","\ud800"]', "not-json"),
        ('["NOTICE",NaN]', "not-json"),
        ("{}", "not-a-message"),
        ("[]", "not-a-message"),
        ("null", "not-a-message"),
        ("1e400", "not-json"),
        ("[1]", "unknown-message"),
        ("[[]]", "unknown-message"),
        ('["ok","x",true]', "unknown-message"),
        ('["EVENT"]', "unknown-message"),
        ('["EVENT","s"]', "unknown-message"),
        ('["EVENT",1,{}]', "unknown-message"),
        ('["EVENT","s",{}]', "bad-event"),
        ('["EVENT","s",[]]', "bad-event"),
        ('["OK",null,true,""]', "unknown-message"),
        (f'["OK","{ID}",1,""]', "unknown-message"),
        (f'["OK","{ID}","true",""]', "unknown-message"),
        ('["OK","zz",true,""]', "bad-ok"),
        (f'["OK","{ID.upper()}",true,""]', "bad-ok"),
        ('["EOSE"]', "unknown-message"),
        ('["EOSE",5]', "unknown-message"),
        (f'["EOSE","{"s" * (MAX_SUBSCRIPTION_ID + 1)}"]', "bad-subscription"),
        (f'["CLOSED","{"s" * (MAX_SUBSCRIPTION_ID + 1)}",""]', "bad-subscription"),
        ('["AUTH",""]', "unknown-message"),
        ('["AUTH"]', "unknown-message"),
        ('["AUTH",7]', "unknown-message"),
        (f'["AUTH","{"c" * (MAX_RELAY_TEXT + 1)}"]', "unknown-message"),
        ('["COUNT","s",{"count":1}]', "unknown-message"),
    ],
)
def test_what_is_no_message_has_a_reason(frame: str | bytes, reason: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_relay_message(frame)
    assert caught.value.reason == reason


def check_total(frame: str | bytes) -> None:
    try:
        parse_relay_message(frame)
    except BadMessage as error:
        assert error.reason in REASONS


@given(st.binary(max_size=200) | st.text(st.characters(), max_size=200))
def test_bytes_never_raise_anything_else(frame: str | bytes) -> None:
    check_total(frame)


@given(st.lists(json_values, max_size=5), st.sampled_from(["EVENT", "OK", "EOSE", "CLOSED", "NOTICE", "AUTH"]))
def test_json_never_raises_anything_else(rest: list[object], verb: str) -> None:
    check_total(json.dumps([verb, *rest]))


@given(near_events)
def test_almost_events_never_raise_anything_else(value: dict[str, object]) -> None:
    check_total(json.dumps(["EVENT", "s", value]))


def test_numbers_that_are_no_integers_are_no_kind() -> None:
    body = job_request().to_json()
    for number in ("5050.0", "5.05e3", "-5050", "true", "99999999999999999999999", "null"):
        with pytest.raises(BadMessage, match="bad-event"):
            parse_relay_message(f'["EVENT","s",{body.replace(":5050,", f":{number},")}]')


def test_a_relays_text_is_bounded() -> None:
    message = parse_relay_message(orjson.dumps(["NOTICE", "x" * 1_000_000]))
    assert isinstance(message, NoticeMessage)
    assert len(message.text) == MAX_RELAY_TEXT


def test_frames_that_we_send() -> None:
    event: Event = job_request()
    assert json.loads(event_frame(event)) == ["EVENT", json.loads(event.to_json())]
    assert event_frame_of(event.to_json()) == event_frame(event)
    assert json.loads(req_frame("s", [{"kinds": [5050]}, {"#e": [ID]}])) == [
        "REQ",
        "s",
        {"kinds": [5050]},
        {"#e": [ID]},
    ]
    assert json.loads(close_frame("s")) == ["CLOSE", "s"]
    auth = signed(auth_draft("ws://relay.example", "chall\x00enge"))
    assert auth.kind == AUTH_KIND
    assert auth.tags == (("relay", "ws://relay.example"), ("challenge", "chall\x00enge"))
    assert json.loads(auth_frame(auth)) == ["AUTH", json.loads(auth.to_json())]
