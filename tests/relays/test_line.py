"""The line to a wallet, over relays that take, refuse, break off and say nothing."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from pylon.jobs.ports import LineDown, RelayLine
from pylon.net.urls import DialRefused
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.relays.line import PoolLine
from pylon.relays.state import PoolConfig
from tests.support.running_pool import QUICK, Heard
from tests.support.scripted_relay import Peer, Script, polite, scripted_relay, silent

KEY = SecretKey(b"\x07" * 32)
QUESTION = Draft(23194, "asked").sign(KEY, int(time.time()))


def make_line(*urls: str) -> PoolLine:
    config = replace(PoolConfig(urls=urls, **QUICK), overlap_s=600)
    return PoolLine(config, key=KEY, clock=time.time, rng=random.Random(1))


@asynccontextmanager
async def running_line(*urls: str, heard: Heard | None = None) -> AsyncIterator[RelayLine]:
    line: RelayLine = make_line(*urls)

    def filters(since: int) -> Sequence[Filter]:
        return [{"kinds": [23195], "since": since}]

    async with line.running(filters, heard or Heard()):
        yield line


def answering(text: str | None, *, hang_up: bool = False) -> Script:
    """A relay that takes subscriptions and answers every event in the same way, None for never."""

    async def script(peer: Peer) -> None:
        while True:
            match await peer.get():
                case ["REQ", name, *_]:
                    await peer.send("EOSE", name)
                case ["EVENT", event]:
                    if hang_up:
                        await peer.hang_up()
                        return
                    if text is not None:
                        await peer.ok(event["id"], not text, text)

    return script


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (answering(""), True),
        (answering("duplicate: have it"), True),
        (answering("blocked: not you"), "refuse our requests: blocked: not you"),
        (answering("rate-limited: slow down"), "refuse our requests: rate-limited"),
        (answering("restricted: members only"), "refuse our requests: restricted"),
        (answering("error: disk full"), False),
        (answering("mute: nobody listens"), False),
        (answering(None), False),
        (answering(None, hang_up=True), False),
    ],
    ids=["ok", "duplicate", "blocked", "rate-limited", "restricted", "error", "other", "silence", "broken"],
)
async def test_how_a_publish_ends(script: Script, outcome: bool | str) -> None:
    async with scripted_relay(script) as relay, running_line(relay.url) as line:
        await line.ready(5)
        with anyio.fail_after(5):
            if isinstance(outcome, str):
                with pytest.raises(LineDown, match=outcome):
                    await line.publish(QUESTION)
            else:
                assert await line.publish(QUESTION) is outcome
        assert relay.events() == [QUESTION.id]


async def test_one_relay_that_may_have_it_outweighs_one_that_refused() -> None:
    async with (
        scripted_relay(answering("blocked: no")) as refusing,
        scripted_relay(answering(None)) as quiet,
        running_line(refusing.url, quiet.url) as line,
    ):
        await both_ready(line, refusing.url, quiet.url)
        assert await line.publish(QUESTION) is False


async def test_one_that_confirms_is_enough() -> None:
    async with (
        scripted_relay(answering("")) as good,
        scripted_relay(answering(None)) as quiet,
        running_line(good.url, quiet.url) as line,
    ):
        await both_ready(line, good.url, quiet.url)
        with anyio.fail_after(0.4):  # before the silence of the other is over
            assert await line.publish(QUESTION) is True
        assert quiet.events() in ([], [QUESTION.id])


async def both_ready(line: RelayLine, *urls: str) -> None:
    assert isinstance(line, PoolLine)
    with anyio.fail_after(5):
        while len(line._ready()) < len(urls):
            assert line._pool is not None
            await line._pool.changed()


async def test_nothing_is_sent_where_the_answer_would_not_be_heard() -> None:
    async with scripted_relay(silent) as relay, running_line(relay.url) as line:
        with pytest.raises(LineDown, match=f"no relay of the wallet can be used \\({relay.url}: connected"):
            await line.ready(0.3)
        with pytest.raises(LineDown):
            await line.publish(QUESTION)
        assert "EVENT" not in relay.verbs()


async def test_a_relay_that_closes_the_subscription_says_why() -> None:
    async def closing(peer: Peer) -> None:
        _, name, *_ = await peer.get("REQ")
        await peer.send("CLOSED", name, "restricted: pay first\x1b[2J")
        await peer.get("never")

    async with scripted_relay(closing) as relay, running_line(relay.url) as line:
        with pytest.raises(LineDown, match=r"restricted: pay first\\x1b\[2J"):
            await line.ready(0.3)


async def test_where_nobody_listens_it_is_known_at_once() -> None:
    async with running_line("ws://127.0.0.1:9") as line:
        with anyio.fail_after(2), pytest.raises(LineDown, match="Connection refused"):
            await line.ready(60)


async def test_it_breaks_and_comes_back() -> None:
    first_over = anyio.Event()

    async def once_broken(peer: Peer) -> None:
        if peer.number:
            return await polite(peer)
        _, name, *_ = await peer.get("REQ")
        await peer.send("EOSE", name)
        await first_over.wait()

    async with scripted_relay(once_broken) as relay, running_line(relay.url) as line:
        await line.ready(5)
        assert line.fault() == ""
        with anyio.fail_after(5):
            first_over.set()
            await line.broken()
            while line.fault():
                try:
                    await line.ready(5)
                except LineDown:
                    await anyio.sleep(0.01)
            assert await line.publish(QUESTION) is True
        assert relay.connections == 2


async def test_what_comes_is_handed_on_from_every_relay_and_asked_for_from_a_little_earlier() -> None:
    asked: list[int] = []
    reply = Draft(23195, "answer").sign(KEY, int(time.time()))

    async def telling(peer: Peer) -> None:
        _, name, wanted = await peer.get("REQ")
        asked.append(wanted["since"])
        await peer.send("EVENT", name, reply.as_dict())
        await peer.send("EOSE", name)
        await peer.get("never")

    heard = Heard()
    async with (
        scripted_relay(telling) as one,
        scripted_relay(telling) as two,
        running_line(one.url, two.url, heard=heard) as line,
    ):
        await both_ready(line, one.url, two.url)
    events: list[Event] = [event for event, _ in heard.events]
    assert events == [reply, reply]
    assert all(550 < time.time() - since < 650 for since in asked)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(DialRefused):
        make_line("https://relay.example")


async def test_before_and_after_it_runs_it_is_down() -> None:
    line = make_line("ws://127.0.0.1:9")
    with pytest.raises(LineDown, match="not connected to the wallet's relays"):
        await line.ready(1)
    with pytest.raises(LineDown):
        await line.publish(QUESTION)
    await line.broken()
