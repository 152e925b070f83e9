"""Whatever a relay sends: nothing raises, everything is counted, nothing grows, and a good request is served after.

`PYLON_FUZZ_EXAMPLES=100000` looks longer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pylon.nostr.event import Draft, Event
from tests.support.events import (
    CUSTOMER,
    NOW,
    PROVIDER,
    STRANGER,
    event_with,
    events,
    job_request,
    json_values,
    near_events,
    signed,
    surrogate_texts,
    tags,
    texts,
)
from tests.support.gate import Gate, world
from tests.support.house import open_house

EXAMPLES = int(os.environ.get("PYLON_FUZZ_EXAMPLES", "80"))
FEW = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

TO_US = ("p", PROVIDER.public_hex)
BAD_NUMBERS = (
    "",
    "0",
    "-1",
    "1.5",
    "1e400",
    "-0",
    "NaN",
    "inf",
    "true",
    "null",
    "0x10",
    "١٢٣",
    "9" * 5_000,
    "1_000",
    " 7",
    str(2**64),
)


async def fuzz(path: Path, frames: SearchStrategy[Any], take: Callable[[Gate, Any], None]) -> Gate:
    """Run the property on the loop, in one house: what it may not do is to raise, block or grow."""
    async with open_house(world(path)) as house:
        gate = Gate(house)

        @FEW
        @given(frames)
        def run(frame: Any) -> None:
            take(gate, frame)

        run()
        await gate.settle()
        await gate.serves()
        return gate


def as_json(value: object) -> str:
    """Like a careless relay: NaN, Infinity and lone surrogates go out as they are."""
    return json.dumps(value)


# --- frames ---------------------------------------------------------------------------------------------------


async def test_bytes_and_text(tmp_path: Path) -> None:
    frames = st.binary(max_size=200) | st.text(max_size=200) | surrogate_texts.filter(bool)
    gate = await fuzz(tmp_path, frames.map(encodable), Gate.take)
    assert gate.outcomes.keys() <= {"not-json", "not-a-message", "unknown-message"}


def encodable(frame: str | bytes) -> str | bytes:
    return frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame


async def test_any_json(tmp_path: Path) -> None:
    words = st.sampled_from(["EVENT", "OK", "EOSE", "CLOSED", "NOTICE", "AUTH", "COUNT"])
    messages = json_values | st.lists(json_values, max_size=4) | st.tuples(words, json_values, json_values)
    await fuzz(tmp_path, messages.map(as_json), Gate.take)


async def test_events_with_one_member_that_is_something_else(tmp_path: Path) -> None:
    gate = await fuzz(tmp_path, near_events.map(lambda event: as_json(["EVENT", "s", event])), Gate.take)
    assert gate.outcomes["bad-event"] > 0


async def test_events_of_the_right_shape_that_nobody_signed(tmp_path: Path) -> None:
    await fuzz(tmp_path, events(st.sampled_from([5050, 5, 5100, 1])), Gate.offer)


async def test_altered_events(tmp_path: Path) -> None:
    good = job_request(providers=[PROVIDER.public_hex])
    digits = st.text("0123456789abcdef", min_size=64, max_size=64)
    altered = st.one_of(
        st.builds(replace, st.just(good), id=digits),
        st.builds(replace, st.just(good), pubkey=digits),
        st.builds(replace, st.just(good), sig=st.builds(str.__add__, digits, digits)),
        st.builds(replace, st.just(good), content=texts.filter(bool)),
        st.builds(replace, st.just(good), created_at=st.integers(0, NOW - 1)),
        st.builds(replace, st.just(good), kind=st.integers(0, 65_535).filter(lambda kind: kind != 5050)),
    )
    gate = await fuzz(tmp_path, altered, Gate.offer)
    assert gate.house.intake.accepted == 1  # the good one at the end
    assert gate.house.intake.counters.as_dict().keys() <= {"bad-signature", "unwanted-kind", "unknown-job"}


# --- requests that were really signed -------------------------------------------------------------------------

numbers = st.sampled_from(BAD_NUMBERS) | st.integers().map(str) | st.floats().map(str) | texts
number_tags = st.one_of(
    st.tuples(st.just("bid"), numbers),
    st.tuples(st.just("expiration"), numbers),
    st.tuples(
        st.just("param"),
        st.sampled_from(["max_tokens", "temperature", "top_k", "top-p", "seed", "frequency_penalty", "stop"]),
        numbers,
    ),
)
request_tags = st.lists(
    tags | number_tags | st.just(TO_US) | st.just(("i", "Hi", "text")) | st.just(()), max_size=10
).map(tuple)
requests = st.builds(
    lambda content, tags, key, created_at: signed(Draft(5050, content, tags), key, created_at),
    texts,
    request_tags,
    st.sampled_from([CUSTOMER, STRANGER]),
    st.sampled_from([NOW, NOW - 10, NOW + 10, 0, 2**53 - 1]) | st.integers(NOW - 4_000, NOW + 400),
)


async def test_signed_requests_with_any_tags(tmp_path: Path) -> None:
    gate = await fuzz(tmp_path, requests, Gate.offer)
    assert len(gate.house.intake.counters.as_dict()) > 3


async def test_signed_requests_as_frames_sent_again_and_again(tmp_path: Path) -> None:
    def take(gate: Gate, sent: list[Event]) -> None:
        for event in sent + sent[::-1]:
            gate.take(orjson.dumps(["EVENT", "s", event.as_dict()]))

    await fuzz(tmp_path, st.lists(requests, max_size=3), take)


async def test_signed_deletions_with_any_tags(tmp_path: Path) -> None:
    ids = st.sampled_from([job_request(f"number {number}").id for number in range(5)])
    named = st.lists(tags | st.tuples(st.just("e"), ids) | st.tuples(st.just("e"), texts), max_size=8).map(tuple)
    deletions = st.builds(
        lambda tags, key: signed(Draft(5, "", tags), key), named, st.sampled_from([CUSTOMER, STRANGER])
    )
    jobs = st.sampled_from([job_request(f"number {number}") for number in range(5)])
    await fuzz(tmp_path, deletions | jobs, Gate.offer)


# --- sizes ----------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "frame",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'["EVENT","s",' + b"[" * 50_000 + b"]" * 50_000 + b"]",
        b'["EVENT","s",{"tags":' + b"[" * 5_000 + b"]" * 5_000 + b"}]",
        b'["EVENT","' + b"s" * MEGABYTE + b'",{}]',
        b'["NOTICE","' + b"x" * MEGABYTE + b'"]',
        b'["OK","' + b"0" * MEGABYTE + b'",true,""]',
        b'["AUTH","' + b"x" * MEGABYTE + b'"]',
        b"9" * MEGABYTE,
        b"[" + b"9" * 10_000 + b"]",
        b'["EVENT","s",{"created_at":1e999}]',
        b'["EVENT","s",{"content":"\\ud800"}]',
        b"\xff\xfe" * 1_000,
        b"",
    ],
    ids=lambda frame: repr(frame[:24]),
)
async def test_large_and_deep_frames(tmp_path: Path, frame: bytes) -> None:
    async with open_house(world(tmp_path)) as house:
        gate = Gate(house)
        for _ in range(3):
            gate.take(frame)
        assert sum(gate.outcomes.values()) == 3
        await gate.settle()
        await gate.serves()


@pytest.mark.parametrize(
    "event",
    [
        event_with(("i", "x" * MEGABYTE, "text"), TO_US),
        event_with(("i", "Hi"), ("param", "model", "x" * MEGABYTE), TO_US),
        event_with(("i", "Hi"), ("x" * MEGABYTE,), TO_US),
        event_with(("i", "Hi"), ("bid", "9" * MEGABYTE), TO_US),
        event_with(("i", "Hi"), *[("param", "stop", "x")] * 1_900, TO_US),
        event_with(*[("i", "Hi")] * 1_900, TO_US),
        event_with(("i", "Hi"), *[("relays", *["wss://a.example"] * 50)] * 100, TO_US),
        event_with(("i", "Hi"), *[TO_US] * 1_900),
        event_with(TO_US, content="x" * MEGABYTE),
    ],
    ids=lambda event: repr(event.tags[0][0]) + str(len(event.tags)),
)
async def test_signed_requests_of_a_megabyte(tmp_path: Path, event: Event) -> None:
    async with open_house(world(tmp_path)) as house:
        gate = Gate(house)
        for _ in range(3):
            gate.take(orjson.dumps(["EVENT", "s", event.as_dict()]))
        await gate.settle()
        assert gate.offered == 3
        assert all(len(reply.to_json()) < 2_000 for reply in house.world.relays.live)
        await gate.serves()
