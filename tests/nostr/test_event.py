import dataclasses
import hashlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import (
    MAX_TAGS,
    BadEvent,
    Draft,
    Event,
    canonical_bytes,
    compute_id,
    is_hex,
    parse_event,
    verify,
)
from tests.support.events import (
    CUSTOMER,
    NOW,
    STRANGER,
    events,
    job_request,
    json_values,
    near_events,
    signed,
    surrogate_texts,
    tags,
    texts,
)


def as_json(event: Event) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(event.to_json())
    return value


@given(st.integers(0, 65535), st.lists(tags, max_size=6).map(tuple), texts, st.integers(0, 2**53 - 1))
def test_a_signed_event_survives_the_wire(
    kind: int, its_tags: tuple[tuple[str, ...], ...], content: str, created_at: int
) -> None:
    event = Draft(kind, content, its_tags).sign(CUSTOMER, created_at)
    again = parse_event(orjson.loads(event.to_json()))
    assert again == event
    assert verify(again)


def test_the_id_is_that_of_the_documented_serialization() -> None:
    # NIP-01's escapes: line feed, quote, backslash, carriage return, tab, backspace, form feed; the rest verbatim.
    content = 'a\n"\\\r\t\b\fé🙂\u2028\x7f/'
    body = f'[0,"{"ab" * 32}",7,1,[["e","x"]],"a\\n\\"\\\\\\r\\t\\b\\fé🙂\u2028\x7f/"]'
    assert canonical_bytes("ab" * 32, 7, 1, (("e", "x"),), content) == body.encode()
    assert compute_id("ab" * 32, 7, 1, (("e", "x"),), content) == hashlib.sha256(body.encode()).hexdigest()


@given(texts, st.lists(tags, max_size=4))
def test_the_serialization_is_what_json_stringify_writes(content: str, its_tags: list[tuple[str, ...]]) -> None:
    # Python's json escapes exactly what JSON.stringify does when it may write non-ASCII.
    expected = json.dumps([0, "00" * 32, NOW, 1, its_tags, content], ensure_ascii=False, separators=(",", ":"))
    assert canonical_bytes("00" * 32, NOW, 1, its_tags, content) == expected.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"content": "Tell me a joke!"},
        {"created_at": NOW + 1},
        {"kind": 5051},
        {"tags": ()},
        {"pubkey": STRANGER.public_hex},
        {"id": "0" * 64},
        {"sig": "0" * 128},
        {"sig": job_request("other").sig},
    ],
)
def test_a_changed_event_does_not_verify(change: dict[str, Any]) -> None:
    event = job_request()
    assert verify(event)
    assert not verify(dataclasses.replace(event, **change))


def test_a_stranger_cannot_keep_the_id_and_sign_it_with_another_key() -> None:
    event = job_request()
    forged = dataclasses.replace(event, pubkey=STRANGER.public_hex, sig=STRANGER.sign(bytes.fromhex(event.id)))
    assert not verify(forged)


@given(events(st.integers(0, 65535)))
def test_verify_never_raises_on_an_unsigned_event(event: Event) -> None:
    assert verify(event) is False


@given(surrogate_texts)
def test_lone_surrogates_cannot_be_signed_and_do_not_verify(text: str) -> None:
    event = job_request()
    for draft in (Draft(1, text), Draft(1, "", (("t", text),))):
        with pytest.raises(BadEvent, match="Unicode"):
            signed(draft)
        assert not verify(dataclasses.replace(event, content=draft.content, tags=draft.tags))


@given(json_values | near_events)
def test_parsing_raises_only_bad_event(value: object) -> None:
    try:
        event = parse_event(value)
    except BadEvent as error:
        assert str(error).isprintable() or "'" in str(error)
    else:
        assert type(event.kind) is int
        assert type(event.created_at) is int
        assert all(type(member) is str for tag in event.tags for member in tag)
        orjson.loads(event.to_json())


@pytest.mark.parametrize("key", ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"])
def test_every_member_is_needed(key: str) -> None:
    value = as_json(job_request())
    del value[key]
    with pytest.raises(BadEvent, match=f"no {key}"):
        parse_event(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "A" * 64),
        ("id", "a" * 63),
        ("id", "a" * 63 + "\n"),
        ("id", "a" * 62 + "\u2028a"),
        ("id", "🙂" * 64),
        ("id", "\uff11" * 64),
        ("id", None),
        ("id", 1),
        ("id", ["a"] * 64),
        ("pubkey", "A" * 64),
        ("pubkey", ""),
        ("sig", "a" * 127),
        ("sig", "a" * 127 + "\x00"),
        ("created_at", True),
        ("created_at", -1),
        ("created_at", 2**53),
        ("created_at", 10**30),
        ("created_at", 1.0),
        ("created_at", float("nan")),
        ("created_at", float("inf")),
        ("created_at", str(NOW)),
        ("created_at", None),
        ("kind", False),
        ("kind", -1),
        ("kind", 65536),
        ("kind", 5050.0),
        ("kind", "5050"),
        ("tags", None),
        ("tags", {}),
        ("tags", "i"),
        ("tags", ["i"]),
        ("tags", [["i", 1]]),
        ("tags", [["i", None]]),
        ("tags", [["i", ["x"]]]),
        ("tags", [["t"]] * (MAX_TAGS + 1)),
        ("content", None),
        ("content", 5),
        ("content", ["x"]),
    ],
)
def test_wrong_members_are_refused(key: str, value: object) -> None:
    with pytest.raises(BadEvent):
        parse_event({**as_json(job_request()), key: value})


@pytest.mark.parametrize("value", [None, [], "x", 5, 1.5, True, {}])
def test_other_values_are_no_events(value: object) -> None:
    with pytest.raises(BadEvent):
        parse_event(value)


def test_empty_tags_and_a_megabyte_of_text_are_taken() -> None:
    event = signed(Draft(1, "x" * 1_000_000, ((), ("t",), ("", ""))))
    assert parse_event(orjson.loads(event.to_json())) == event
    assert verify(event)


def test_members_that_are_not_of_nip01_are_left_out() -> None:
    event = job_request()
    assert parse_event({**as_json(event), "ots": "x"}) == event


def test_tag_helpers() -> None:
    event = signed(Draft(1, "", (("e", "a", "b"), (), ("e",), ("e", "c"), ("p", "d"))))
    assert event.tag("e") == ("e", "a", "b")
    assert event.tag("x") is None
    assert event.tag_values("e") == ["a", "c"]
    assert event.tag_values("x") == []


@pytest.mark.parametrize(
    ("value", "length", "answer"),
    [
        ("00ff", 4, True),
        ("00fF", 4, False),
        ("00f", 4, False),
        ("", 0, True),
        (None, 4, False),
        (b"00ff", 4, False),
    ],
)
def test_is_hex(value: object, length: int, answer: bool) -> None:
    assert is_hex(value, length) is answer
