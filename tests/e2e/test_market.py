"""The market end to end: the real daemon between real relays and customers, through what relays really do."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import orjson
import pytest

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import parse_event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.store.records import Money, Work
from tests.support.openai_server import STREAM_HEAD, ScriptedServer, Wire, framed, piece, scripted_server
from tests.support.provider import MODEL, Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

MANY_JOBS = 6_400  # more than the messages after which the local relay hangs up
OUTSTANDING = 64


class SlowServer:
    """A model's server that says two words and then waits to be told to go on, or for its client to go."""

    def __init__(self, script: ScriptedServer, *, silent: bool = False) -> None:
        self.url = script.url
        self.go_on = anyio.Event()
        self.asked = anyio.Event()
        self.client_gone = anyio.Event()
        self._silent = silent
        script.models = (MODEL,)
        script.chats = [self._chat]

    async def _chat(self, wire: Wire) -> None:
        self.asked.set()
        await wire.send(STREAM_HEAD)
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await wire.gone()
                self.client_gone.set()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            if not self._silent:
                await wire.send(framed(piece("one ")))
                await anyio.sleep(0.1)  # longer than the least time between partials
                await wire.send(framed(piece("two ")))
            await self.go_on.wait()
            await wire.send(framed(piece("three", "stop")) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def slow_server(*, silent: bool = False) -> AsyncIterator[SlowServer]:
    async with scripted_server() as script:
        yield SlowServer(script, silent=silent)


async def within(limit_s: float, event: anyio.Event, what: str) -> None:
    with anyio.move_on_after(limit_s):
        await event.wait()
        return
    raise AssertionError(f"not within {limit_s:g} s: {what}")


async def job_state(daemon: Provider, order: Order) -> tuple[Work, Money]:
    def look() -> tuple[Work, Money]:
        detail = daemon.reports().detail(order.id)
        assert detail is not None, f"there is no job {order.id}"
        return detail.job.work, detail.job.money

    return await anyio.to_thread.run_sync(look)


async def until_state(daemon: Provider, order: Order, wanted: tuple[Work, Money]) -> None:
    state = None
    with anyio.move_on_after(20):
        while (state := await job_state(daemon, order)) != wanted:  # noqa: ASYNC110 - a database announces nothing
            await anyio.sleep(0.05)
        return
    raise daemon.failure(f"has {order.id} in {state}, not in {wanted}")


async def within_s(condition: Callable[[], bool], what: str, limit_s: float = 10) -> None:
    with anyio.move_on_after(limit_s):
        while not condition():  # noqa: ASYNC110 - some conditions announce nothing
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"not within {limit_s:g} s: {what}")


async def attempts_of(daemon: Provider, orders: Sequence[Order]) -> set[int]:
    def look() -> set[int]:
        reports = daemon.reports()
        details = [reports.detail(order.id) for order in orders]
        return {detail.job.attempts for detail in details if detail is not None}

    return await anyio.to_thread.run_sync(look)


async def serve(customer: Shop, count: int, outstanding: int) -> list[Order]:
    """Order `count` jobs, so many at a time, and wait until each has its result."""
    left = iter(range(count))
    orders: list[Order] = []
    start = int(time.time())

    async def buy() -> None:
        for number in left:
            # A subscription that is opened again gets the local relay's newest 500 events and no more: those
            # still to be served must be among them, so few may carry the same second.
            order = await customer.order(created_at=start + number // 100)
            orders.append(order)
            await order.result(60)

    async with anyio.create_task_group() as tasks:
        for _ in range(outstanding):
            tasks.start_soon(buy)
    return orders


# --- one job --------------------------------------------------------------------------------------------------


async def test_a_free_job_where_relays_demand_auth(tmp_path: Path) -> None:
    with relay_process(nip42="both") as relay:
        async with (
            provider(tmp_path, market_settings(relay.url)) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("say it again", providers=[daemon.pubkey])
            result = await order.result()
            assert result.content == "say it again"
            assert parse_event(orjson.loads(result.tag_values("request")[0])) == order.request
            assert order.invoices == []
            status = await daemon.status()
            assert status.relays[0].authenticated
            assert status.intake.accepted == 1


async def test_a_prepaid_job_where_relays_demand_auth(tmp_path: Path) -> None:
    with relay_process(nip42="both") as relay, WalletProcess(tmp_path) as wallet:
        async with (
            provider(tmp_path, market_settings(relay.url, paid_to=wallet), wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("worth a sat", params=[("max_tokens", ["100"])], bid_msats=2000)
            bolt11 = await order.invoice()
            assert read_invoice(bolt11).amount_msats == 2000
            assert await job_state(daemon, order) == (Work.AWAITING_PAYMENT, Money.INVOICED)
            await wallet.payer().pay(bolt11)
            assert (await order.result()).content == "worth a sat"
            await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
            books = (await daemon.status()).books
            assert (books.received_msats, books.earned_msats, books.owed_msats) == (2000, 2000, 0)
            assert (await wallet.books())["received_msats"] == 2000


async def test_cancelling_a_prepaid_job_stops_the_backend_and_owes_the_money(tmp_path: Path) -> None:
    async with slow_server(silent=True) as server:
        with relay_process() as relay, WalletProcess(tmp_path) as wallet:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=server.url)
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order()
                await wallet.payer().pay(await order.invoice())
                await within(10, server.asked, "the backend is asked")
                await customer.cancel(order)
                await within(5, server.client_gone, "the backend's client goes")
                assert await order.error() == ErrorPrefix.REFUND_DUE
                assert await job_state(daemon, order) == (Work.CANCELLED, Money.REFUND_DUE)
                books = (await daemon.status()).books
                assert (books.earned_msats, books.refund_due_msats) == (0, books.received_msats)


async def test_cancelling_after_a_partial_stops_the_backend_and_the_charge_stands(tmp_path: Path) -> None:
    async with slow_server() as server:
        with relay_process() as relay, WalletProcess(tmp_path) as wallet:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=server.url)
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order()
                await wallet.payer().pay(await order.invoice())
                await order.until(lambda order: order.feedback(FeedbackStatus.PARTIAL), "partial")
                assert order.feedback(FeedbackStatus.PARTIAL)[0].content == "one two "
                await customer.cancel(order)
                await within(5, server.client_gone, "the backend's client goes")
                await until_state(daemon, order, (Work.CANCELLED, Money.SETTLED))
                books = (await daemon.status()).books
                assert (books.earned_msats, books.owed_msats) == (books.received_msats, 0)
                assert order.results == []


# --- who is answered ------------------------------------------------------------------------------------------


async def test_only_what_is_for_us_is_answered_and_refused_once(tmp_path: Path) -> None:
    """Of four requests that are not served, one is for somebody else, one for anybody, and two are refused."""
    with relay_process() as first, relay_process() as second:
        async with (
            provider(tmp_path, market_settings(first.url, second.url)) as daemon,
            shop(first.url, second.url, provider=daemon.pubkey) as customer,
        ):
            other = await customer.order(providers=[SecretKey.generate().public_hex])
            model = [("model", ["gpt-99"])]
            anybody = await customer.order(params=model)
            ours = await customer.order(params=model, providers=[daemon.pubkey])
            wrong = await customer.order(params=[("temperature", ["hot"])], providers=[daemon.pubkey])
            assert await ours.error() == ErrorPrefix.UNSUPPORTED_MODEL
            assert await wrong.error() == ErrorPrefix.INVALID
            # Relays pass events on in order: what was to be said of those before would have been said by now.
            for _ in range(2):
                await (await customer.order()).result()
            assert [len(order.events) for order in (other, anybody, ours, wrong)] == [0, 0, 1, 1]
            status = await daemon.status()
            counted = {
                reason: status.refused[reason] for reason in ("other-provider", "unsupported-model", "invalid")
            }
            assert counted == {"other-provider": 1, "unsupported-model": 2, "invalid": 1}
            assert status.intake.accepted == 2


async def test_a_bid_below_the_price_is_answered_with_the_price(tmp_path: Path) -> None:
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        async with (
            provider(tmp_path, market_settings(relay.url, paid_to=wallet), wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order(
                params=[("max_tokens", ["100"])], bid_msats=1999, providers=[daemon.pubkey]
            )
            assert await order.error() == ErrorPrefix.BID_TOO_LOW
            assert order.feedback(FeedbackStatus.ERROR)[0].amount_msats == 2000
            assert order.invoices == []


# --- a customer's relays --------------------------------------------------------------------------------------


async def test_the_result_goes_to_the_relay_that_the_request_names(tmp_path: Path) -> None:
    with relay_process() as ours, relay_process() as theirs:
        settings = market_settings(ours.url, relays={"allow_private_hosts": True})
        async with (
            provider(tmp_path, settings) as daemon,
            shop(ours.url, provider=daemon.pubkey) as customer,
            shop(theirs.url, provider=daemon.pubkey) as elsewhere,
        ):
            request = customer.draft(relays=[theirs.url]).sign(customer.key, int(time.time()))
            there = elsewhere.follow(request)
            order = customer.follow(request)
            await customer.publish(request)
            assert (await there.result()).id == (await order.result()).id


async def test_a_private_host_that_a_request_names_is_not_contacted(tmp_path: Path) -> None:
    with relay_process() as ours, socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        port = trap.getsockname()[1]
        async with (
            provider(tmp_path, market_settings(ours.url)) as daemon,
            shop(ours.url, provider=daemon.pubkey) as customer,
        ):
            names = [f"ws://127.0.0.1:{port}", f"ws://localhost:{port}", f"ws://[::ffff:127.0.0.1]:{port}"]
            order = await customer.order(relays=names)
            await order.result()
            # Everything is delivered, and the daemon ends: whatever it would have dialed, it has dialed.
            assert await daemon.stop() == 0
        with pytest.raises(BlockingIOError):
            trap.accept()


# --- relays and daemons that come and go ----------------------------------------------------------------------


async def test_what_was_published_while_the_provider_was_down_is_served(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, intake={"max_age_s": 60})
        async with (
            provider(tmp_path, settings, started=False) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            for crash in (True, False):
                await daemon.start()
                await (await customer.order()).result()
                if crash:
                    daemon.kill()
                else:
                    assert await daemon.stop() == 0
                waiting = await customer.order()
                stale = await customer.order(created_at=int(time.time()) - 70)
                await daemon.start()
                await waiting.result()
                await (await customer.order()).result()
                assert list(stale.events) == []
                daemon.kill()
            jobs = await anyio.to_thread.run_sync(lambda: daemon.reports().ids_like("", limit=100))
            assert len(jobs) == 6


async def test_three_relays_of_which_one_dies_and_returns(tmp_path: Path) -> None:
    with ExitStack() as stack:
        relays = [stack.enter_context(relay_process()) for _ in range(3)]
        urls = [relay.url for relay in relays]
        async with (
            provider(tmp_path, market_settings(*urls)) as daemon,
            shop(*urls, provider=daemon.pubkey) as customer,
        ):
            before = await serve(customer, 100, 8)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, customer, 300, 8)
                await daemon.until(lambda status: status.intake.accepted > 150, "past 150 jobs")
                relays[1].kill()
            down = await daemon.until(lambda status: not is_ready(status), "without one relay")
            assert down.state == "ready"
            assert [relay.status == "connected" for relay in down.relays] == [True, False, True]
            await serve(customer, 20, 8)
            relays[1].start()
            await daemon.until(is_ready, "connected again")
            async with shop(urls[1], provider=daemon.pubkey) as neighbour:
                await serve(neighbour, 20, 8)
            await within_s(
                lambda: before[0].heard_on[before[0].results[0].id] == set(urls), "result on every relay"
            )
            orders = customer.orders
            assert len(orders) == 420
            assert all(len(order.results) == 1 for order in orders), "a job has more than one result"
            status = await daemon.status()
            assert status.intake.accepted == 440, "the same request from several relays is one job"
            assert status.refused["duplicate"] >= 300
            assert await attempts_of(daemon, orders) == {1}


async def test_a_result_made_while_the_relay_is_gone_is_delivered_when_it_returns(tmp_path: Path) -> None:
    async with slow_server() as server:
        with relay_process() as relay:
            settings = market_settings(relay.url, backend_url=server.url)
            async with (
                provider(tmp_path, settings) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order()
                await within(10, server.asked, "the backend is asked")
                relay.kill()
                server.go_on.set()
                await until_state(daemon, order, (Work.PRODUCED, Money.NONE))
                relay.start()
                assert (await order.result()).content == "one two three"
                await until_state(daemon, order, (Work.DELIVERED, Money.NONE))
                assert (await (await customer.order()).result()).content == "one two three"


async def test_nothing_is_lost_where_a_relay_hangs_up_without_a_word(tmp_path: Path) -> None:
    """The local relay closes a connection at its 6,001st message: the provider's, amidst its results."""
    with relay_process() as relay:
        settings = market_settings(relay.url, slots=OUTSTANDING, jobs={"queue_size": 1000})
        async with provider(tmp_path, settings) as daemon:
            # Two customers one after the other: it is the provider's connection that is to reach the limit.
            orders: list[Order] = []
            for _ in range(2):
                async with shop(relay.url, provider=daemon.pubkey) as customer:
                    orders += await serve(customer, MANY_JOBS // 2, OUTSTANDING)
            assert len(orders) == MANY_JOBS
            assert all(len(order.results) == 1 for order in orders)
            assert all(verify(order.results[0]) for order in orders)
            status = await daemon.until(lambda status: not status.outbox_pending, "done with publishing")
            assert status.relays[0].reconnects >= 1, "the relay did not hang up: this test shows nothing"
            assert status.jobs_by_state == {"delivered/none": MANY_JOBS}
