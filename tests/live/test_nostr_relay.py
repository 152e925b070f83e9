"""The market over PyPI's `nostr-relay`, a relay that we did not write and that does much otherwise than ours."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from pylon.nostr.event import verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import Money, Work
from tests.support.foreign_relay import foreign_relay
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Wire, framed, piece, scripted_server
from tests.support.provider import MODEL, Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = [pytest.mark.e2e, pytest.mark.live]

CONTENT_LIMIT = 4096  # characters of an event's content, by default

END = framed(DONE) + STREAM_END


async def job_ends(daemon: Provider, order: Order, work: Work, limit_s: float = 30.0) -> tuple[Money, str]:
    """Wait until the work of a job has ended so; return its money's state and the reason."""
    with anyio.move_on_after(limit_s):
        while True:
            detail = await anyio.to_thread.run_sync(lambda: daemon.reports().detail(order.id))
            if detail is not None and detail.job.work is work:
                return detail.job.money, detail.job.reason
            await anyio.sleep(0.1)
    raise daemon.failure(f"has not ended {order.id} as {work} within {limit_s:g} s")


async def serve(customer: Shop, count: int) -> list[Order]:
    """Order jobs one after the other and wait for each result."""
    orders = [await customer.order() for _ in range(count)]
    for order in orders:
        await order.result()
    return orders


async def test_a_free_job_with_partial_results(tmp_path: Path) -> None:
    first_is_heard = anyio.Event()

    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        while not first_is_heard.is_set():
            await wire.send(framed(piece("word ")))
            await anyio.sleep(0.05)
        await wire.send(framed(piece("end", "stop")) + END)

    async with scripted_server(chat) as script:
        script.models = (MODEL,)
        with foreign_relay(tmp_path) as relay:
            async with (
                provider(tmp_path, market_settings(relay.url, backend_url=script.url)) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order(providers=[daemon.pubkey])
                await order.until(lambda order: order.feedback(FeedbackStatus.PARTIAL), "partial")
                partial = order.feedback(FeedbackStatus.PARTIAL)[0].content
                assert order.results == []
                first_is_heard.set()
                content = (await order.result()).content
                assert (content[: len(partial)], content[-4:]) == (partial, " end")
                assert partial.startswith("word ")
                assert (await job_ends(daemon, order, Work.DELIVERED))[0] is Money.NONE


async def test_a_paid_job(tmp_path: Path) -> None:
    with foreign_relay(tmp_path) as relay, WalletProcess(tmp_path) as wallet:
        async with (
            provider(tmp_path, market_settings(relay.url, paid_to=wallet), wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("worth a sat", params=[("max_tokens", ["100"])], bid_msats=2000)
            await wallet.payer().pay(await order.invoice())
            assert (await order.result()).content == "worth a sat"
            await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
            assert (await job_ends(daemon, order, Work.DELIVERED))[0] is Money.SETTLED
            assert (await daemon.status()).books.earned_msats == 2000


async def test_a_relay_that_demands_auth_from_the_start(tmp_path: Path) -> None:
    """It refuses the subscription, which is faster than the AUTH, by a NOTICE alone, and confirms no AUTH."""
    seller, buyer = SecretKey.generate(), SecretKey.generate()
    with foreign_relay(tmp_path, roles={seller.public_hex: "rw", buyer.public_hex: "rw"}) as relay:
        async with (
            provider(tmp_path, market_settings(relay.url), key=seller) as daemon,
            shop(relay.url, provider=daemon.pubkey, key=buyer) as customer,
        ):
            order = await customer.order("behind a door", providers=[daemon.pubkey])
            assert (await order.result()).content == "behind a door"
            (line,) = (await daemon.status()).relays
            assert line.authenticated
            log = relay.log()
            assert f"Authenticated {daemon.pubkey}" in log
            assert "restricted: permission denied" in log, "nothing came before the AUTH: this test shows nothing"


async def test_the_relay_restarts_between_request_and_result(tmp_path: Path) -> None:
    asked, go_on = anyio.Event(), anyio.Event()

    async def chat(wire: Wire) -> None:
        asked.set()
        await go_on.wait()
        await wire.send(STREAM_HEAD + framed(piece("done", "stop")) + END)

    async with scripted_server(chat) as script:
        script.models = (MODEL,)
        with foreign_relay(tmp_path) as relay:
            async with (
                provider(tmp_path, market_settings(relay.url, backend_url=script.url)) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order()
                with anyio.fail_after(20):
                    await asked.wait()
                relay.kill()
                go_on.set()
                await daemon.until(lambda status: not is_ready(status), "without its relay")
                await job_ends(daemon, order, Work.PRODUCED)
                await anyio.to_thread.run_sync(relay.start)
                assert (await order.result()).content == "done"
                await job_ends(daemon, order, Work.DELIVERED)
                await serve(customer, 3)
                status = await daemon.status()
                assert status.intake.accepted == 4, "the relay kept the request, and it is not done twice"
                assert status.relays[0].reconnects >= 1


async def test_a_result_that_the_relay_finds_too_long(tmp_path: Path) -> None:
    """The relay refuses it without saying which event it means, and takes nothing for 2 s. The daemon ends the job
    with the relay's words, and does not offer the result again; the next job goes on as before."""
    with foreign_relay(tmp_path) as relay:
        settings = market_settings(relay.url, relays={"publish_timeout_s": 10}, announce={"enabled": False})
        async with (
            provider(tmp_path, settings) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            fits = await customer.order("x" * CONTENT_LIMIT)
            assert len((await fits.result()).content) == CONTENT_LIMIT
            start = time.monotonic()
            order = await customer.order("x" * (CONTENT_LIMIT + 1))
            money, reason = await job_ends(daemon, order, Work.UNDELIVERABLE)
            assert money is Money.NONE
            assert "invalid: 280 characters should be enough for anybody" in reason
            assert time.monotonic() - start < 10, "it waited for an answer that had come"
            await serve(customer, 2)
            status = await daemon.status()
            assert (status.relays[0].refused, status.relays[0].reconnects) == (1, 0)
            assert order.results == []


async def test_an_answer_that_grows_too_long_for_the_relay(tmp_path: Path) -> None:
    """Each partial result beyond the limit doubles the relay's wait: soon it takes nothing more for minutes. The
    daemon connects anew, and the next customer is served."""
    words = 60

    async def long_answer(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for _ in range(words):
            await wire.send(framed(piece("x" * 100)))
            await anyio.sleep(0.06)  # longer than the least time between partials
        await wire.send(framed(piece(None, "stop")) + END)

    async def short_answer(wire: Wire) -> None:
        await wire.send(STREAM_HEAD + framed(piece("short", "stop")) + END)

    async with scripted_server(long_answer, short_answer) as script:
        script.models = (MODEL,)
        with foreign_relay(tmp_path) as relay:
            settings = market_settings(
                relay.url, backend_url=script.url, relays={"publish_timeout_s": 5}, announce={"enabled": False}
            )
            async with (
                provider(tmp_path, settings) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order()
                await order.until(lambda order: len(order.feedback(FeedbackStatus.PARTIAL)) > 5, "partials")
                _, reason = await job_ends(daemon, order, Work.UNDELIVERABLE, 60)
                assert "invalid: 280 characters should be enough for anybody" in reason
                (next_order,) = await serve(customer, 1)
                assert next_order.results[0].content == "short"
                status = await daemon.status()
                assert status.relays[0].reconnects >= 1, "the relay was not slow: this test shows nothing"


async def test_a_long_result_goes_to_the_relay_that_takes_it(tmp_path: Path) -> None:
    with foreign_relay(tmp_path) as small, relay_process() as large:
        async with (
            provider(tmp_path, market_settings(small.url, large.url)) as daemon,
            shop(small.url, large.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("x" * (CONTENT_LIMIT + 1))
            result = await order.result()
            assert verify(result)
            assert order.heard_on[result.id] == {large.url}
            await job_ends(daemon, order, Work.DELIVERED)
            await serve(customer, 2)


async def test_three_relays_of_two_makes_of_which_one_dies_and_returns(tmp_path: Path) -> None:
    with ExitStack() as stack:
        foreign = stack.enter_context(foreign_relay(tmp_path))
        relays = [stack.enter_context(relay_process()) for _ in range(2)]
        urls = [foreign.url, *(relay.url for relay in relays)]
        async with (
            provider(tmp_path, market_settings(*urls)) as daemon,
            shop(*urls, provider=daemon.pubkey) as customer,
        ):
            orders = await serve(customer, 20)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, customer, 40)
                await daemon.until(lambda status: status.intake.accepted > 30, "past 30 jobs")
                foreign.kill()
            down = await daemon.until(lambda status: not is_ready(status), "without one relay")
            assert [relay.status == "connected" for relay in down.relays] == [False, True, True]
            meanwhile = await serve(customer, 10)
            await anyio.to_thread.run_sync(foreign.start)
            await daemon.until(is_ready, "connected again")
            async with shop(foreign.url, provider=daemon.pubkey) as neighbour:
                await serve(neighbour, 10)
            for order in (orders[0], meanwhile[0]):
                result = (await order.result()).id
                with anyio.fail_after(20):
                    while order.heard_on[result] != set(urls):  # noqa: ASYNC110 - a copy announces itself to nobody
                        await anyio.sleep(0.05)
            assert all(len(order.results) == 1 for order in customer.orders), "a job has more than one result"
            status = await daemon.status()
            assert status.intake.accepted == 80, "the same request from several relays is one job"
            done = {"delivered/none": 80}
            await daemon.until(lambda status: status.jobs_by_state == done, "told that all is delivered")
