"""Customers attack: the honest ones are served, limits hold, nothing is dialed that should not be, the books agree.

The real daemon between a real relay and the fake wallet. What a single odd request does to intake is in
`tests/jobs/test_intake.py` and its fuzz tests; here is what needs the whole program.
"""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import coincurve
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from pylon.jobs.ports import WalletRefused
from pylon.nostr.event import Draft, Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FEEDBACK_KIND, ErrorPrefix, JobInput, request_draft
from pylon.nostr.nip90_replies import parse_feedback
from pylon.store.records import Money, Work
from tests.support.aftermath import check_job, is_quiet, jobs_of, sums
from tests.support.events import mined
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Wire, framed, piece, scripted_server, usage
from tests.support.provider import MODEL, Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import KIND, Order, Shop, shop
from tests.support.wallet import WalletProcess, listed_by

pytestmark = pytest.mark.e2e

FLOOD = 10_000
PER_CONNECTION = 5_000  # the local relay hangs up at its 6,001st message
BITS = 8
GROWTH_MB = 32.0
HONEST_LIMIT_S = 5.0
BACK_LIMIT_S = 10.0
REPLIES_PER_MINUTE = 120
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\u2066\x9b31m\x00\r"


# --- what they are made of ------------------------------------------------------------------------------------


def request(key: SecretKey, provider_key: str, prompt: str, **options: Any) -> Event:
    return request_draft(KIND, [JobInput(prompt)], providers=[provider_key], **options).sign(key, int(time.time()))


async def publish(url: str, events: Sequence[Event]) -> None:
    """Publish events as fast as a relay takes them; returns when it has answered for each."""
    for start in range(0, len(events), PER_CONNECTION):
        frames = [f'["EVENT",{event.to_json()}]' for event in events[start : start + PER_CONNECTION]]
        async with connect(url, compression=None) as relay, anyio.create_task_group() as tasks:
            tasks.start_soon(_answers, relay, len(frames))
            for frame in frames:
                await relay.send(frame)


async def _answers(relay: ClientConnection, count: int) -> None:
    for _ in range(count):
        word, _id, accepted, why = orjson.loads(await relay.recv())
        assert (word, accepted) == ("OK", True), why


async def buy(customer: Shop, wallet: WalletProcess, bits: int) -> float:
    """Buy one job as an honest customer does; return how long it took."""
    started_at = time.monotonic()
    order = customer.follow(mined(customer.draft(), bits, customer.key, int(time.time())))
    await customer.publish(order.request)
    await wallet.payer().pay(await order.invoice())
    await order.result()
    return time.monotonic() - started_at


@asynccontextmanager
async def market(
    folder: Path, *, backend_url: str = "", **tables: Any
) -> AsyncIterator[tuple[Provider, Shop, WalletProcess, str]]:
    """Run relay, wallet, daemon and one honest customer."""
    with relay_process() as relay:
        async with WalletProcess(folder) as wallet:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=backend_url, **tables)
            async with (
                provider(folder, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                yield daemon, customer, wallet, relay.url


def published(status: Any) -> int:
    (relay,) = status.relays
    return int(relay.accepted)


# --- floods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [1, FLOOD], ids=["one-key", "as-many-keys"])
async def test_ten_thousand_requests_do_not_keep_others_from_being_served(keys: int, tmp_path: Path) -> None:
    """One key meets its rate; many keys meet the work that each request must prove."""
    bits = BITS if keys > 1 else 0
    limits = {"requests_per_customer_per_minute": 60, "min_pow_bits": bits}
    async with market(tmp_path, intake=limits) as (daemon, customer, wallet, url):
        flooders = [SecretKey.generate() for _ in range(keys)]
        requests = [
            request(flooders[number % keys], daemon.pubkey, f"flood {number} {secrets.token_hex(4)}")
            for number in range(FLOOD)
        ]
        await buy(customer, wallet, bits)
        before = await daemon.status()
        memory_mb = daemon.rss_mb
        times_s: list[float] = []
        over = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def flood() -> None:
                await publish(url, requests)
                over.set()

            tasks.start_soon(flood)
            while not over.is_set() or len(times_s) < 5:
                times_s.append(await buy(customer, wallet, bits))
        assert max(times_s) < HONEST_LIMIT_S
        reason = "pow-required" if bits else "rate-limited"
        refused_at_least = FLOOD if bits else FLOOD - 2 * 60
        status = await daemon.until(lambda now: now.refused.get(reason, 0) >= refused_at_least, reason)
        assert daemon.rss_mb - memory_mb < GROWTH_MB
        # Three events for each job: invoice, processing and result; one more, success, and its partials.
        about_jobs = len(times_s) * 8 + 60
        minutes = 1 + (time.time() - before.started_at) // 60
        assert published(status) - published(before) <= about_jobs + REPLIES_PER_MINUTE * (1 + minutes)
        await daemon.until(lambda now: now.outbox_pending == 0, "done with what it says")
        rows = jobs_of(daemon.paths.database)
        assert len(rows) <= 1 + len(times_s) + (0 if bits else 4)  # no more open invoices than one may have
        assert sum(job.work == Work.DELIVERED for job in rows.values()) == 1 + len(times_s)


async def test_a_thousand_keys_that_do_not_pay_hold_few_invoices(tmp_path: Path) -> None:
    """Who had an invoice before is served; what others may hold open is what the settings say."""
    async with market(tmp_path, payment={"max_open_invoices": 16}) as (daemon, customer, wallet, url):
        order = await customer.order(providers=[daemon.pubkey])
        bolt11 = await order.invoice()
        await publish(url, [request(SecretKey.generate(), daemon.pubkey, f"flood {each}") for each in range(1_000)])
        await daemon.until(lambda now: now.refused.get("queue-full", 0) >= 1_000 - 16, "full")
        async with (client := wallet.client()).running():
            assert len(await listed_by(client, 0)) <= 16
        await wallet.payer().pay(bolt11)
        await order.result()
        await buy(customer, wallet, 0)  # what was paid made room
        assert len(jobs_of(daemon.paths.database)) <= 18


# --- one request, made to hurt --------------------------------------------------------------------------------


def odd_requests(us: str) -> Iterator[tuple[str, tuple[tuple[str, ...], ...], ErrorPrefix | None]]:
    """What they try, their tags, and how it is answered; None: it is served like any other."""
    hi = ("i", "Hi", "text")
    yield "an absent model", (hi, ("param", "model", "gpt-99")), ErrorPrefix.UNSUPPORTED_MODEL
    yield "a bid in letters", (hi, ("bid", "abc")), ErrorPrefix.INVALID
    yield "a negative bid", (hi, ("bid", "-1000000")), ErrorPrefix.INVALID
    yield "a bid beyond all money", (hi, ("bid", "9" * 400)), ErrorPrefix.INVALID
    yield "output without end", (hi, ("param", "max_tokens", str(10**18))), ErrorPrefix.INVALID
    yield "no temperature", (hi, ("param", "temperature", "nan")), ErrorPrefix.INVALID
    yield "endless temperature", (hi, ("param", "temperature", "1e999")), ErrorPrefix.INVALID
    yield "an unknown parameter", (hi, ("param", "__class__", "1")), ErrorPrefix.UNSUPPORTED_PARAM
    yield "a prompt over the limit", (("i", "x" * 32_769, "text"),), ErrorPrefix.TOO_LARGE
    yield "a prompt at the limit", (("i", "x" * 32_768, "text"),), None
    yield "another's job as input", (("i", "00" * 32, "job"),), ErrorPrefix.UNSUPPORTED_INPUT
    yield "an address as input", (("i", "http://169.254.169.254/latest/", "url"),), ErrorPrefix.UNSUPPORTED_INPUT
    yield "a thousand prompts", tuple(("i", "y", "text") for _ in range(1_000)), ErrorPrefix.TOO_LARGE
    yield "escapes in the prompt", (("i", ESCAPES, "text"),), None
    yield "escapes in the model", (hi, ("param", "model", ESCAPES)), ErrorPrefix.UNSUPPORTED_MODEL
    yield "escapes in a parameter", (hi, ("param", ESCAPES, ESCAPES)), ErrorPrefix.UNSUPPORTED_PARAM
    yield "escapes in the output", (hi, ("output", ESCAPES)), ErrorPrefix.UNSUPPORTED_OUTPUT
    yield "escapes in the input's type", (("i", "Hi", ESCAPES),), ErrorPrefix.UNSUPPORTED_INPUT
    yield "escapes in the bid", (hi, ("bid", ESCAPES)), ErrorPrefix.INVALID
    yield "escapes in a relay", (hi, ("relays", f"ws://{ESCAPES}.example")), None


async def test_requests_made_to_hurt_get_one_answer_each(tmp_path: Path) -> None:
    limits = {"requests_per_customer_per_minute": 60}
    with relay_process() as relay:
        async with (
            provider(tmp_path, market_settings(relay.url, intake=limits)) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            wrong: dict[str, Any] = {}
            for what, tags, expected in odd_requests(daemon.pubkey):
                draft = Draft(KIND, "", (*tags, ("p", daemon.pubkey)))
                order = customer.follow(draft.sign(customer.key, int(time.time())))
                await customer.publish(order.request)
                await order.until(lambda order: order.results or order.errors, f"answer to {what}")
                said = [*order.errors, *["served"] * len(order.results)]
                if said != [expected.value if expected else "served"]:
                    wrong[what] = said
                for event in order.events.values():
                    assert event.kind != FEEDBACK_KIND or parse_feedback(event).info.isprintable(), what
            assert wrong == {}
            await (await customer.order()).result()
            shown = [await daemon.pylon(*words) for words in (("status",), ("jobs", "list"), ("jobs", "refused"))]
            for result in shown:
                assert result.returncode == 0, result.stderr
            for text in (daemon.log(), *(result.stdout for result in shown)):
                assert text.replace("\n", "").isprintable()
            assert daemon.log_lines("error") == []


async def test_one_request_signed_again_is_one_job(tmp_path: Path) -> None:
    with relay_process() as first, relay_process() as second:
        async with (
            provider(tmp_path, market_settings(first.url, second.url)) as daemon,
            shop(first.url, second.url, provider=daemon.pubkey) as customer,
        ):
            event = request(customer.key, daemon.pubkey, "once")
            raw = coincurve.PrivateKey.from_hex(customer.key.reveal_hex())
            again = replace(event, sig=raw.sign_schnorr(bytes.fromhex(event.id), secrets.token_bytes(32)).hex())
            assert verify(again)
            assert again.sig != event.sig
            order = customer.follow(event)
            await publish(first.url, [event])
            await publish(second.url, [again])
            await order.result()
            await (await customer.order()).result()
            assert len(order.results) == 1
            assert len(jobs_of(daemon.paths.database)) == 2


# --- whom we dial ---------------------------------------------------------------------------------------------


@contextmanager
def trap() -> Iterator[socket.socket]:
    """Listen on every address of this machine, for whoever should not call."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as door:
        door.setblocking(False)
        yield door


async def test_a_thousand_relays_in_one_request_lead_nowhere_private(tmp_path: Path) -> None:
    with trap() as door, relay_process() as relay:
        port = door.getsockname()[1]
        names = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0"]
        names += ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::]", "LOCALHOST."]
        names += [
            "169.254.169.254",
            "metadata.google.internal",
            "10.0.0.1",
            "192.168.0.1",
            "172.16.0.1",
            "[fe80::1]",
        ]
        names += [socket.gethostname(), "127.0.0.1.nip.io", "user:secret@127.0.0.1"]
        urls = [f"ws://{name}:{port}/{number}" for number in range(50) for name in names][:1_000]
        async with (
            provider(tmp_path, market_settings(relay.url)) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            for start in (0, 3, 6, 9, 12, 15, 18, 20):  # so many are used of each request
                order = await customer.order(relays=urls[start : start + 3], providers=[daemon.pubkey])
                await order.result()
            hints = Draft(KIND, "", (("i", "Hi", "text", urls[0]), ("p", daemon.pubkey, urls[1])))
            order = customer.follow(hints.sign(customer.key, int(time.time())))
            await customer.publish(order.request)
            await order.result()
            order = await customer.order(relays=urls, providers=[daemon.pubkey])
            await order.until(lambda order: order.results or order.errors, "answer")
            await (await customer.order()).result()
            assert len((await daemon.status()).relays) == 1
            # Everything is delivered, and the daemon ends: whatever it would have dialed, it has dialed.
            assert await daemon.stop() == 0
        with pytest.raises(BlockingIOError):
            door.accept()


REBINDING = """
import os, socket

look_up, connect, note = socket.getaddrinfo, socket.socket.connect, os.environ["NOTE"]
asked = 0

def rebinding(host, port, *rest, **named):
    global asked
    if host != "rebind.example":
        return look_up(host, port, *rest, **named)
    asked += 1
    address = "8.8.4.4" if asked % 2 else "127.0.0.1"
    print("looked up", address, file=open(note, "a"))
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]

def refused(self, address):
    if address[0] != "8.8.4.4":
        return connect(self, address)
    print("dialed", address[0], file=open(note, "a"))
    raise ConnectionRefusedError(111, "Connection refused")

socket.getaddrinfo, socket.socket.connect = rebinding, refused
"""
"""A name that resolves to a public address and to a private one in turn; the public one is not there."""


async def test_a_name_that_resolves_inside_the_second_time_leads_nowhere_private(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REBINDING)
    note = tmp_path / "note"
    environ = {"PYTHONPATH": str(tmp_path / "site"), "NOTE": str(note)}
    with trap() as door, relay_process() as relay:
        url = f"ws://rebind.example:{door.getsockname()[1]}"
        async with (
            provider(tmp_path, market_settings(relay.url), environ=environ) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            with anyio.fail_after(30):
                for number in range(100):
                    await (await customer.order(relays=[f"{url}/{number}"], providers=[daemon.pubkey])).result()
                    seen = note.read_text().split("\n") if note.exists() else []
                    if seen.count("dialed 8.8.4.4") >= 2 and seen.count("looked up 127.0.0.1") >= 2:
                        break
            assert await daemon.stop() == 0
        with pytest.raises(BlockingIOError):
            door.accept()
        seen = note.read_text().split("\n")
        assert seen.count("looked up 127.0.0.1") >= 2
        assert seen.count("dialed 8.8.4.4") == seen.count("looked up 8.8.4.4") >= 2  # one look-up, one dial


# --- money ----------------------------------------------------------------------------------------------------


async def test_bids_of_one_msat_buy_nothing_and_make_no_invoice(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, wallet, _):
        for number in range(20):
            order = await customer.order(f"cheap {number}", bid_msats=1, providers=[daemon.pubkey])
            assert await order.error() == ErrorPrefix.BID_TOO_LOW
        assert jobs_of(daemon.paths.database) == {}
        async with (client := wallet.client()).running():
            assert not await listed_by(client, 0)
        await buy(customer, wallet, 0)


async def test_payments_that_race_cancels_and_cancels_that_race_results(tmp_path: Path) -> None:
    """Each job ends in one state, and the books are the wallet's to the msat."""
    rng = random.Random(5)
    payment = {"max_open_invoices_per_customer": 100}
    async with market(tmp_path, payment=payment) as (daemon, customer, wallet, _):
        orders: list[Order] = []

        async def race(after_s: float) -> None:
            order = await customer.order(providers=[daemon.pubkey])
            orders.append(order)
            bolt11 = await order.invoice()
            async with anyio.create_task_group() as tasks:

                async def pay() -> None:
                    with suppress(WalletRefused):  # cancelled in time
                        await wallet.payer().pay(bolt11)

                tasks.start_soon(pay)
                await anyio.sleep(after_s)
                await customer.cancel(order)

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(race, rng.uniform(0, 0.15) if number % 3 else 0.0)
        status = await daemon.until(lambda now: is_quiet(now) and sum(now.jobs_by_state.values()) == 60, "quiet")
        jobs = jobs_of(daemon.paths.database)
        for job in jobs.values():
            job.results = [event.id for order in orders if order.id == job.id for event in order.results]
            job.errors = [error for order in orders if order.id == job.id for error in order.errors]
            check_job(job)
        received_msats = (await wallet.books())["received_msats"]
        books = status.books
        assert (books.received_msats, books.earned_msats, books.owed_msats) == sums(jobs)
        assert books.received_msats == received_msats > 0


async def test_a_prompt_that_kills_the_backend_is_given_up_and_owed_back(tmp_path: Path) -> None:
    """It may try so often and no more; others are served before and after it."""

    async def talk(wire: Wire) -> None:
        prompt = wire.json["messages"][-1]["content"]
        if prompt == "die":
            wire.cut()
            return
        await wire.send(STREAM_HEAD + framed(piece("well")))
        await wire.send(framed(piece(None, "stop")) + framed(usage(3, 1)) + framed(DONE) + STREAM_END)

    async with scripted_server(talk) as server:
        server.models = (MODEL,)
        async with market(tmp_path, backend_url=server.url) as (daemon, customer, wallet, _):
            await buy(customer, wallet, 0)
            order = await customer.order("die", key=SecretKey.generate(), providers=[daemon.pubkey])
            await wallet.payer().pay(await order.invoice())
            await order.until(lambda order: ErrorPrefix.REFUND_DUE.value in order.errors, "refund")
            # Who hangs up without a word may be gone: nothing is sold there until it answers when asked.
            await daemon.until(is_ready, "ready again", limit_s=BACK_LIMIT_S)
            assert await buy(customer, wallet, 0) < HONEST_LIMIT_S
            job = jobs_of(daemon.paths.database)[order.id]
            assert (job.work, job.money) == (Work.FAILED, Money.REFUND_DUE)
            detail = daemon.reports().detail(order.id)
            assert detail is not None
            assert detail.job.attempts == 3
