"""`check_relays` against the real local relay, and against relays that fail at each step as scripted."""

from __future__ import annotations

import json
import random
import time
from email.utils import formatdate
from typing import Any

import pytest

from pylon.nostr.keys import SecretKey
from pylon.nostr.nip11 import RelayDocument
from pylon.relays.check import CHECK_KIND, Fault, RelayCheck, Step, check_relays
from pylon.relays.local import Nip42, local_relay
from pylon.relays.state import PoolConfig
from tests.support.scripted_relay import Peer, Script, scripted_relay, silent

KEY = SecretKey(b"\x07" * 32)
CONFIG = PoolConfig(urls=(), auth_wait_s=0.2)
NOTHING_THERE = "ws://127.0.0.1:1"


async def checked(*urls: str, limit_s: float = 5.0) -> tuple[RelayCheck, ...]:
    return await check_relays(urls, CONFIG, key=KEY, clock=time.time, rng=random.Random(1), limit_s=limit_s)


async def fault_of(script: Script, *, limit_s: float = 5.0) -> Fault:
    async with scripted_relay(script) as relay:
        (check,) = await checked(relay.url, limit_s=limit_s)
    assert not check.ok
    (fault,) = check.faults
    assert fault.sentence.isprintable()
    return fault


async def serve(peer: Peer) -> None:
    """Take the subscription and the event, and send the event back."""
    while True:
        match await peer.get():
            case ["REQ", name, wanted]:
                assert wanted["authors"] == [KEY.public_hex]
                await peer.send("EOSE", name)
                subscription = name
            case ["EVENT", event]:
                assert 20_000 <= event["kind"] < 30_000
                await peer.ok(event["id"])
                await peer.send("EVENT", subscription, event)


# --- what works ---------------------------------------------------------------------------------------------------


async def test_a_relay_that_hands_the_event_on_and_says_no_ok() -> None:
    """As nostr-rs-relay 0.8 does with events that it does not keep."""

    async def script(peer: Peer) -> None:
        _, name, _ = await peer.get()
        await peer.send("EOSE", name)
        _, event = await peer.get()
        await peer.send("EVENT", name, event)
        await silent(peer)

    async with scripted_relay(script) as relay:
        (check,) = await checked(relay.url)
    assert check.faults == ()
    assert check.round_trip_ms is not None


@pytest.mark.parametrize("nip42", [None, "read", "write", "both"])
async def test_the_real_relay_serves_us_with_and_without_auth(nip42: Nip42 | None) -> None:
    async with local_relay(nip42=nip42) as url:
        (check,) = await checked(url)
    assert check.faults == ()
    assert check.authenticated is (nip42 is not None)
    assert check.connect_ms is not None
    assert check.round_trip_ms is not None
    assert check.round_trip_ms < 5000
    assert check.document is None  # this relay has none, which is no fault


async def test_the_document_and_the_clock_are_read() -> None:
    document = json.dumps({"limitation": {"max_message_length": 131_072, "payment_required": True}})
    date = formatdate(time.time() + 100, usegmt=True)
    async with scripted_relay(serve, document=document, date=date) as relay:
        (check,) = await checked(relay.url)
    assert check.ok
    assert check.document == RelayDocument(max_message_bytes=131_072, payment_required=True)
    assert check.skew_s is not None
    assert 97 <= check.skew_s <= 102


@pytest.mark.parametrize(
    ("document", "note"),
    [
        (None, "none (HTTP 404)"),
        ("<html>", "unreadable: not JSON"),
        ("x" * 70_000, "unreadable: larger than 65536 bytes"),
    ],
)
async def test_a_missing_or_odd_document_is_told_and_no_fault(document: str | None, note: str) -> None:
    async with scripted_relay(serve, document=document, date="yesterday") as relay:
        (check,) = await checked(relay.url)
    assert check.ok
    assert check.document is None
    assert check.document_note == note
    assert check.skew_s is None


async def test_relays_are_checked_beside_each_other_and_stand_in_the_order_asked() -> None:
    async with scripted_relay(silent) as mute, scripted_relay(serve) as good:
        started_at = time.monotonic()
        checks = await checked(mute.url, NOTHING_THERE, good.url, mute.url, limit_s=0.5)
        assert time.monotonic() - started_at < 1.9  # two mute ones one after another would take longer
    assert [check.url for check in checks] == [mute.url, NOTHING_THERE, good.url, mute.url]
    assert [check.ok for check in checks] == [False, False, True, False]


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (NOTHING_THERE, "no connection: Connection refused"),
        ("http://relay.example", "does not start with ws:// or wss://"),
        ("ws://\x1b[31mred", "holds a blank, a control character or a bracket"),
    ],
)
async def test_no_connection(url: str, said: str) -> None:
    (check,) = await checked(url)
    (fault,) = check.faults
    assert fault.step is Step.CONNECT
    assert said in fault.sentence
    assert (check.url + fault.sentence).isprintable()


async def test_no_answer_to_the_subscription() -> None:
    expected = Fault(Step.SUBSCRIBE, "the relay did not answer the subscription within 0.3 s")
    assert await fault_of(silent, limit_s=0.3) == expected


async def test_a_subscription_that_is_refused() -> None:
    async def script(peer: Peer) -> None:
        _, name, _ = await peer.get("REQ")
        await peer.send("CLOSED", name, "restricted: pay \x1b[31mfirst")
        await silent(peer)

    assert await fault_of(script) == Fault(
        Step.SUBSCRIBE, "the relay ended the subscription: restricted: pay \\x1b[31mfirst"
    )


async def subscribed(peer: Peer) -> dict[str, Any]:
    """Get as far as the event, and return it."""
    _, name, _ = await peer.get("REQ")
    await peer.send("EOSE", name)
    _, event = await peer.get("EVENT")
    return dict(event)


async def test_an_event_that_is_refused() -> None:
    async def script(peer: Peer) -> None:
        event = await subscribed(peer)
        assert event["kind"] == CHECK_KIND
        await peer.ok(event["id"], False, "blocked: not on the list")
        await silent(peer)

    assert await fault_of(script) == Fault(Step.PUBLISH, "the relay refused the event: blocked: not on the list")


async def test_an_event_that_is_not_answered() -> None:
    async def script(peer: Peer) -> None:
        await subscribed(peer)
        await silent(peer)

    fault = await fault_of(script, limit_s=0.4)
    assert fault.step is Step.PUBLISH
    assert fault.sentence.startswith("the relay did not answer the event that was published")


async def test_an_event_that_never_comes_back_or_comes_back_changed() -> None:
    async def script(peer: Peer) -> None:
        event = await subscribed(peer)
        await peer.ok(event["id"])
        await peer.send("EVENT", "check", event | {"content": "forged"})
        await silent(peer)

    assert await fault_of(script, limit_s=0.4) == Fault(
        Step.READ, "the relay accepted the event and never sent it to the subscription within 0.4 s"
    )


async def refuse_auth(peer: Peer) -> None:
    await peer.send("AUTH", "challenge")
    _, answer = await peer.get("AUTH")
    assert answer["pubkey"] == KEY.public_hex
    assert answer["kind"] == 22242
    await peer.ok(answer["id"], False, "restricted: not a member")
    await silent(peer)


@pytest.mark.parametrize("demanded_for", ["subscription", "event"])
async def test_an_auth_that_is_not_taken(demanded_for: str) -> None:
    async def script(peer: Peer) -> None:
        if demanded_for == "event":
            event = await subscribed(peer)
            await peer.ok(event["id"], False, "auth-required: who are you")
        else:
            _, name, _ = await peer.get("REQ")
            await peer.send("CLOSED", name, "auth-required: who are you")
        await refuse_auth(peer)

    assert await fault_of(script) == Fault(
        Step.AUTH, "the relay demands AUTH and did not take ours: AUTH refused: restricted: not a member"
    )


async def test_a_connection_that_breaks() -> None:
    async def script(peer: Peer) -> None:
        await subscribed(peer)
        await peer.hang_up()

    fault = await fault_of(script)
    assert fault.step is Step.PUBLISH
    assert fault.sentence.startswith("the connection ended: ")


async def test_a_relay_that_talks_nonsense_without_end() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.socket.send("nonsense \x1b[31m")

    fault = await fault_of(script)
    assert fault == Fault(Step.SUBSCRIBE, "the relay sends frames that mean nothing")
