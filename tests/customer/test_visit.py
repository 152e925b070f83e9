"""A visit to relays: what is taken of what they send, and when a reading ends."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.customer import visit as module
from pylon.customer.client import NotPublished
from pylon.customer.visit import Visit, matches, visiting
from pylon.nostr.event import Draft, Event
from pylon.nostr.nip89 import Announcement, announcement_draft
from pylon.relays.local import local_relay
from pylon.relays.state import PoolConfig
from tests.support.events import NOW, PROVIDER, STRANGER, event_with, events, signed
from tests.support.running_pool import QUICK

NOBODY = "ws://127.0.0.1:9"
ASKED = {"kinds": [31990], "#k": ["5050"]}
LIMIT_S = 10.0


def announced(name: str = "Shop", *, at: int | None = None, kind: int = 5050, d: str = "d") -> Event:
    return signed(announcement_draft(Announcement(d, (kind,), name=name)), PROVIDER, at or int(time.time()))


@asynccontextmanager
async def visit_to(*urls: str, **options: Any) -> AsyncIterator[Visit]:
    config = PoolConfig(urls=urls, **(QUICK | options))
    async with visiting(config, key=STRANGER, clock=time.time, rng=random.Random(1)) as visit:
        yield visit


def bare() -> Visit:
    """A visit that is connected to nothing, in the midst of a reading."""
    config = PoolConfig(urls=("ws://127.0.0.1:1", "ws://127.0.0.1:2"))
    visit = Visit(config, key=STRANGER, clock=lambda: NOW, rng=random.Random(1))
    visit._asked = (ASKED,)
    return visit


async def test_what_one_publishes_another_finds_even_where_auth_is_demanded() -> None:
    async with local_relay() as open_relay, local_relay(nip42="both") as closed_relay:
        event = announced()
        with anyio.fail_after(LIMIT_S):
            async with visit_to(open_relay, closed_relay) as visit:
                await visit.publish([event, announced(kind=5100, d="other")], LIMIT_S)
            async with visit_to(open_relay, closed_relay, NOBODY) as visit:
                reading = await visit.read([ASKED], LIMIT_S)
                assert [(each.event, set(each.relays)) for each in reading.found] == [
                    (event, {open_relay, closed_relay})
                ]
                assert [(each.url, each.complete) for each in reading.relays] == [
                    (open_relay, True), (closed_relay, True), (NOBODY, False),
                ]  # fmt: skip
                assert "refused" in reading.relays[2].detail.lower()
                again = await visit.read([{"authors": [STRANGER.public_hex]}], LIMIT_S)
                assert again.found == () and again.relays[0].complete


async def test_a_relay_that_never_answers_ends_the_reading_by_time() -> None:
    async def mute(stream: Any) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, mute)
        async with (
            local_relay() as relay,
            visit_to(relay, f"ws://127.0.0.1:{port}", connect_timeout_s=60.0) as visit,
        ):
            reading = await visit.read([ASKED], 0.5)
            assert [each.complete for each in reading.relays] == [True, False]
            assert reading.relays[1].detail == "no answer within 0.5 s"
        tasks.cancel_scope.cancel()


async def test_where_nobody_is_nothing_can_be_published() -> None:
    async with visit_to(NOBODY) as visit:
        with pytest.raises(NotPublished):
            await visit.publish([announced()], 0.3)


async def test_what_every_relay_refuses_is_not_published() -> None:
    async with local_relay() as relay, visit_to(relay) as visit:
        with pytest.raises(NotPublished):
            await visit.publish([replace(announced(), sig="00" * 64)], 1)


def test_what_was_not_asked_for_or_is_not_signed_is_not_taken() -> None:
    visit = bare()
    event = announced(at=NOW)
    assert visit.offer(announced(kind=5100), "a") == "unrelated"
    assert visit.offer(signed(Draft(1, "", (("k", "5050"),))), "a") == "unrelated"
    assert visit.offer(replace(event, content="{}"), "a") == "forged"
    assert visit.offer(event, "a") is None
    assert visit.offer(replace(event, content="{}"), "b") == "forged", "nor under the id of one that was taken"
    assert visit.offer(event, "b") is None
    assert visit._events == {event.id: event}
    visit._asked = ()
    assert visit.offer(event, "a") == "unrelated", "after the reading nothing is taken"


def test_one_relay_cannot_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 3)
    visit = bare()
    flood = [announced(at=NOW + at) for at in range(5)]
    assert [visit.offer(event, "hostile") for event in flood] == [None] * 3 + ["crowded"] * 2
    assert visit.offer(flood[4], "honest") is None
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    large = announced("x" * 1500, at=NOW)
    assert bare().offer(large, "hostile") == "crowded"


@given(events(st.sampled_from((31990, 1))))
def test_whatever_is_offered_it_answers(event: Event) -> None:
    assert bare().offer(event, "a") in ("forged", "unrelated")


def test_a_filter_is_matched_as_relays_match_it() -> None:
    event = event_with(("k", "5050"), ("k", "5100"), ("t",), kind=31990)
    asked: dict[str, Any]
    for asked in ({}, {"limit": 3}, {"kinds": [1, 31990]}, {"#k": ["5100"]}, {"ids": [event.id]}):
        assert matches(event, asked)
    for asked in ({"kinds": [1]}, {"#k": ["1"]}, {"#t": ["llm"]}, {"authors": []}, {"kinds": [31990], "#k": ["x"]}):
        assert not matches(event, asked)
