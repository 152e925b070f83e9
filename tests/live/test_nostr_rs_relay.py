"""The market over `nostr-rs-relay`, which Nexus is built on, with NIP-42 and the limits of Nexus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from websockets.asyncio.client import connect

from pylon.nostr.encryption import Conversation, Encryption
from pylon.nostr.event import Draft, Event, verify
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.nip89 import parse_announcement
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from tests.support.nostr_rs_relay import MAX_BYTES, NAME, NostrRsRelay, asked, nostr_rs_relay
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Wire, framed, piece, scripted_server
from tests.support.provider import MODEL, ROOT, is_ready, market_settings, provider
from tests.support.running_pool import running_pool
from tests.support.shop import KIND, Order, Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = [pytest.mark.e2e, pytest.mark.live]

LIMIT_S = 30.0
END = framed(DONE) + STREAM_END
BURST_S = 60  # the relay's limits are averages over a minute: so many seconds' worth may come at once


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[NostrRsRelay]:
    with nostr_rs_relay(tmp_path) as running:
        yield running


async def until(condition: Callable[[], Any], what: str) -> None:
    with anyio.move_on_after(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"not within {LIMIT_S:g} s: {what}")


async def serve(customer: Shop, count: int) -> list[Order]:
    """Order jobs at once and wait for each result."""
    orders = [await customer.order() for _ in range(count)]
    for order in orders:
        await order.result()
    return orders


async def test_a_job_is_ordered_paid_streamed_and_delivered(tmp_path: Path, relay: NostrRsRelay) -> None:
    first_is_heard = anyio.Event()

    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        while not first_is_heard.is_set():
            await wire.send(framed(piece("word ")))
            await anyio.sleep(0.05)
        await wire.send(framed(piece("end", "stop")) + END)

    async with scripted_server(chat) as script:
        script.models = (MODEL,)
        with WalletProcess(tmp_path) as wallet:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=script.url)
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                max_tokens = ("max_tokens", ["100"])
                order = await customer.order(params=[max_tokens], bid_msats=2000, providers=[daemon.pubkey])
                await wallet.payer().pay(await order.invoice())
                await order.until(lambda order: order.feedback(FeedbackStatus.PARTIAL), "partial")
                partial = order.feedback(FeedbackStatus.PARTIAL)[0].content
                assert order.results == []
                first_is_heard.set()
                content = (await order.result()).content
                assert (content[: len(partial)], content[-4:]) == (partial, " end")
                await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
                done = {"delivered/settled": 1}
                status = await daemon.until(lambda status: status.jobs_by_state == done, "done with the job")
                assert status.books.earned_msats == 2000
                await daemon.until(lambda status: status.relays[0].authenticated, "authenticated")
                (line,) = status.relays
                assert (line.refused, line.reconnects) == (0, 0)
                assert len(order.results) == 1
                assert relay.has_authenticated(daemon.pubkey)


async def test_our_auth_is_taken_and_opens_what_is_for_us_alone(relay: NostrRsRelay) -> None:
    """The relay demands no AUTH; but who has answered its challenge is handed the messages that are for him."""
    sender, us, stranger = (SecretKey.generate() for _ in range(3))
    message = Draft(4, "for you alone", (("p", us.public_hex),)).sign(sender, int(time.time()))
    note = Draft(1, "for all", (("p", us.public_hex),)).sign(sender, int(time.time()))

    async def heard_by(key: SecretKey) -> set[str]:
        async with running_pool(relay.url, key=key, publish_timeout_s=10) as run:
            await until(lambda: run.state.authenticated, "authenticated")
            run.pool.subscribe("messages", lambda since: [{"#p": [us.public_hex], "kinds": [1, 4]}])
            await run.pool.wait_caught_up("messages")
            for event in (message, note):
                run.deliver(event)
            # What was published first is handed on first, so that both have come, or one never will.
            await until(lambda: len(run.heard.confirmed_by) == 2 and note.id in run.heard.ids(), "confirmed, heard")
            return set(run.heard.ids())

    assert await heard_by(us) == {message.id, note.id}
    assert await heard_by(stranger) == {note.id}
    assert [each.id for each in await asked(relay, kinds=[1, 4])] == [note.id]
    assert relay.has_authenticated(us.public_hex)


async def test_an_encrypted_request_is_answered_by_name(tmp_path: Path, relay: NostrRsRelay) -> None:
    async with (
        provider(tmp_path, market_settings(relay.url)) as daemon,
        shop(relay.url, provider=daemon.pubkey) as customer,
    ):
        hidden = Conversation(customer.key, daemon.pubkey).encrypt('[["i","secret","text"]]', Encryption.NIP44)
        draft = Draft(KIND, hidden, (("p", daemon.pubkey), ("encrypted",)))
        order = customer.follow(draft.sign(customer.key, int(time.time())))
        await customer.publish(order.request)
        assert await order.error() == ErrorPrefix.UNSUPPORTED_ENCRYPTION


async def test_it_is_found_by_what_it_sells_and_bought_from_with_our_own_commands(
    tmp_path: Path, relay: NostrRsRelay
) -> None:
    home = tmp_path / "customer"
    home.mkdir(mode=0o700)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYLON_")}
    environ |= {"PYLON_HOME": str(home), "NO_COLOR": "1"}

    async def pylon(*arguments: str) -> Any:
        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "pylon", *arguments, "--relay", relay.url, "--json"]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=60, env=environ, cwd=ROOT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

        done = await anyio.to_thread.run_sync(run)
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    async with provider(tmp_path, market_settings(relay.url, announce={"debounce_s": 1})) as daemon:
        found: list[Event] = []
        with anyio.fail_after(LIMIT_S):
            while not found:
                found = await asked(relay, kinds=[31990], **{"#k": [str(KIND)]})
        (event,) = found
        assert (event.pubkey, verify(event)) == (daemon.pubkey, True)
        assert parse_announcement(event).kinds == (KIND,)
        assert await asked(relay, kinds=[31990], **{"#k": ["5100"]}) == []

        (listed,) = (await pylon("providers"))["providers"]
        assert listed["npub"] == encode_npub(daemon.pubkey)
        told = await pylon("request", "Say it back.", "--provider", listed["npub"], "--timeout", "30")
        assert (told["status"], told["result"]) == ("result", "Say it back.")

        checked = await daemon.pylon("relays", "check", "--json")
        assert checked.returncode == 0, checked
        assert NAME in checked.stdout


async def test_the_relay_dies_while_work_is_done_and_the_daemon_while_work_is_asked_for(
    tmp_path: Path, relay: NostrRsRelay
) -> None:
    was_asked, go_on = anyio.Event(), anyio.Event()

    async def chat(wire: Wire) -> None:
        was_asked.set()
        await go_on.wait()
        await wire.send(STREAM_HEAD + framed(piece("done", "stop")) + END)

    async with scripted_server(chat) as script:
        script.models = (MODEL,)
        async with (
            provider(tmp_path, market_settings(relay.url, backend_url=script.url)) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            cut_off = await customer.order()
            with anyio.fail_after(LIMIT_S):
                await was_asked.wait()
            relay.kill()
            go_on.set()
            await daemon.until(lambda status: status.jobs_by_state == {"produced/none": 1}, "done with the work")
            await daemon.until(lambda status: not is_ready(status), "without its relay")
            await anyio.to_thread.run_sync(relay.start)
            assert (await cut_off.result()).content == "done"

            await daemon.until(lambda status: status.jobs_by_state == {"delivered/none": 1}, "through with it")
            daemon.kill()
            missed = await customer.order(providers=[daemon.pubkey])
            status = await daemon.start()
            assert (await missed.result()).content == "done"
            done = {"delivered/none": 2}
            status = await daemon.until(lambda status: status.jobs_by_state == done, "done with both")
            assert status.relays[0].refused == 0
            assert [len(order.results) for order in (cut_off, missed)] == [1, 1]


async def test_beyond_its_rate_the_relay_lets_everybody_wait_and_nothing_is_lost(tmp_path: Path) -> None:
    """It has the words `rate-limited:` and says them never: all one notices is that an OK comes late, half a second
    for each event before it. Meanwhile our events are sent again, which it takes for what they are."""
    with nostr_rs_relay(tmp_path, messages_per_s=2) as relay:
        settings = market_settings(relay.url, relays={"publish_timeout_s": 1}, announce={"enabled": False})
        async with (
            provider(tmp_path, settings) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            (first,) = await serve(customer, 1)
            neighbour = SecretKey.generate()
            async with connect(relay.url, compression=None, max_queue=None) as socket:
                for number in range(2 * BURST_S + 10):
                    event = Draft(1, str(number), ()).sign(neighbour, int(time.time()))
                    await socket.send(f'["EVENT",{event.to_json()}]')
                start = time.monotonic()
                (second,) = await serve(customer, 1)
                assert time.monotonic() - start > 1, "the relay was never at its limit: this test shows nothing"
            done = {"delivered/none": 2}
            status = await daemon.until(lambda status: status.jobs_by_state == done, "told that all is delivered")
            assert [len(order.results) for order in (first, second)] == [1, 1]
            (line,) = status.relays
            assert (line.refused, line.reconnects) == (0, 0)


async def test_beyond_its_subscriptions_the_relay_lets_the_connection_wait(relay: NostrRsRelay) -> None:
    asked_for = 0
    async with running_pool(relay.url, publish_timeout_s=LIMIT_S) as run:
        run.pool.subscribe("many", lambda since: [{"kinds": [KIND], "#e": [f"{asked_for:064x}"]}])
        await run.pool.wait_caught_up("many")
        for _ in range(BURST_S + 1):
            asked_for += 1
            run.pool.refresh("many")
            await until(lambda: run.state.subscriptions[0].status == "live", f"{asked_for} subscriptions")
        event = Draft(KIND, "", (("e", f"{asked_for:064x}"),)).sign(SecretKey.generate(), int(time.time()))
        run.deliver(event)
        await until(lambda: event.id in run.heard.confirmed_by and event.id in run.heard.ids(), "heard again")
        assert run.state.reconnects == 0


@pytest.mark.parametrize("over", [0, 1])
async def test_the_largest_request_that_the_relay_takes_is_answered(
    tmp_path: Path, relay: NostrRsRelay, over: int
) -> None:
    """By a refusal, and over the same connection; one byte more, and the relay takes it from nobody."""
    async with (
        provider(tmp_path, market_settings(relay.url)) as daemon,
        shop(relay.url, provider=daemon.pubkey) as customer,
    ):
        tags = (("p", daemon.pubkey), ("i", "x", "text"))
        small = Draft(KIND, "", tags).sign(customer.key, int(time.time()))
        room = MAX_BYTES - len(f'["EVENT",{small.to_json()}]')
        request = Draft(KIND, "x" * (room + over), tags).sign(customer.key, int(time.time()))
        assert len(f'["EVENT",{request.to_json()}]') == MAX_BYTES + over
        order = customer.follow(request)
        async with connect(relay.url, compression=None) as socket:
            await socket.recv()  # the challenge
            await socket.send(f'["EVENT",{request.to_json()}]')
            with anyio.fail_after(LIMIT_S):
                said = json.loads(await socket.recv())
        if over:
            assert said[0] == "NOTICE", said
        else:
            assert said[:3] == ["OK", request.id, True], said
            await order.until(lambda order: order.events, "answer")
        (result,) = await serve(customer, 1)
        assert result.results
        assert (await daemon.status()).relays[0].reconnects == 0
