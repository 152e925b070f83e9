"""Prepaid work, paid into a wallet that is spoken with over relays (NIP-47)."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pylon.control.views import DaemonStatus
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from tests.support.nwc_service import Manner, NwcService, nwc_service
from tests.support.provider import Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop

pytestmark = pytest.mark.e2e

NWC = {"kind": "nwc", "network": "regtest", "timeout_s": 2}
PREPAY = {"mode": "prepay"}


@asynccontextmanager
async def nwc_market(
    folder: Path, *, manner: Manner | None = None
) -> AsyncIterator[tuple[Provider, NwcService, Shop]]:
    """Run a relay for the market and one for the wallet, its service, a provider paid there, and a customer."""
    with relay_process() as market, relay_process() as private:
        async with nwc_service(private.url, manner=manner) as service:
            settings = market_settings(market.url, wallet=NWC, payment=PREPAY)
            async with provider(folder, settings, started=False) as daemon:
                daemon._environ["PYLON_WALLET_URI"] = service.uri
                await daemon.start()
                async with shop(market.url, provider=daemon.pubkey) as customer:
                    yield daemon, service, customer


async def until_begun(order: Order) -> None:
    """Wait for `processing`; a provider that is done as soon leaves it out."""
    await order.until(lambda each: each.feedback(FeedbackStatus.PROCESSING) or each.results, "processing")


async def earned_msats(daemon: Provider, service: NwcService) -> int:
    """Wait until all that the wallet received is earned, and return it."""
    received_msats = service.balance_msats - 1_000_000
    status = await daemon.until(lambda each: each.books.earned_msats == received_msats, "paid")
    assert (status.books.received_msats, status.books.owed_msats) == (received_msats, 0)
    return received_msats


def taken(status: DaemonStatus) -> int:
    """How many requests became jobs."""
    return sum(status.jobs_by_state.values())


def wallet_line(status: DaemonStatus) -> str:
    assert status.wallet is not None
    return status.wallet.detail


@pytest.mark.alone
async def test_prepaid_jobs_begin_when_the_wallet_pushes_their_payment(tmp_path: Path) -> None:
    async with nwc_market(tmp_path) as (daemon, service, customer):
        status = await daemon.status()
        assert status.wallet is not None
        assert (status.wallet.kind, status.wallet.ready, status.wallet.network) == ("nwc", True, "regtest")
        waits = []
        for number in range(5):
            order = await customer.order(f"prompt {number}")
            bolt11 = await order.invoice()
            paid_at = time.monotonic()
            await service.receive(bolt11)
            await until_begun(order)
            waits.append(time.monotonic() - paid_at)
            assert f"prompt {number}" in (await order.result()).content
        assert statistics.median(waits) < 0.5
        assert await earned_msats(daemon, service) == sum(each.amount_msats for each in service.entries)
        for secret in (service.uri, service.client.reveal_hex()):
            assert secret not in daemon.log()
        shown = await daemon.pylon("config", "show")
        assert shown.returncode == 0 and service.client.reveal_hex() not in shown.stdout + shown.stderr
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.log() and "Exception ignored" not in daemon.log()


async def test_a_wallet_of_the_awkward_kind_is_paid_too(tmp_path: Path) -> None:
    manner = Manner(
        encryption="nip04", notifications=False, states=False, leaks_preimages=True, hashes_descriptions=True,
        keeps_metadata=False, answers_twice=True, first_by_stranger=True, pages=2,
    )  # fmt: skip
    async with nwc_market(tmp_path, manner=manner) as (daemon, service, customer):
        unpaid, paid = await customer.order("never"), await customer.order("now")
        await unpaid.invoice()
        await service.receive(await paid.invoice())
        await paid.result()
        assert not unpaid.results
        assert await earned_msats(daemon, service) == service.entries[1].amount_msats


async def test_what_is_paid_while_the_daemon_is_dead_is_found_and_delivered(tmp_path: Path) -> None:
    async with nwc_market(tmp_path) as (daemon, service, customer):
        order = await customer.order("survive this")
        bolt11 = await order.invoice()
        daemon.kill()
        await service.receive(bolt11)
        await service.stop()
        daemon.launch()
        away = await daemon.until(lambda status: "did not answer" in wallet_line(status), "told of a silent wallet")
        assert away.wallet is not None and not away.wallet.ready
        await service.start()
        await daemon.until(is_ready, "ready")
        assert "survive this" in (await order.result()).content
        assert await earned_msats(daemon, service) == service.entries[0].amount_msats


async def test_an_invoice_that_was_made_unheard_is_found_and_published(tmp_path: Path) -> None:
    async with nwc_market(tmp_path) as (daemon, service, customer):
        service.manner.mute = {"make_invoice"}
        order = await customer.order("made once")
        await service.until_asked("make_invoice")
        daemon.kill()
        service.manner.mute = set()
        await daemon.start()
        with anyio.fail_after(20):
            bolt11 = await order.invoice()
        assert [each.bolt11 for each in service.entries] == [bolt11]
        await service.receive(bolt11)
        await order.result()


async def test_a_wallet_that_is_away_refuses_paid_work_clearly_until_it_is_back(tmp_path: Path) -> None:
    async with nwc_market(tmp_path) as (daemon, service, customer):
        await service.stop()
        waiting = await customer.order("asked for an invoice that nobody makes")
        await daemon.until(
            lambda status: "did not answer make_invoice" in wallet_line(status), "told of the silence"
        )
        early = await customer.order("too early", providers=[daemon.pubkey])
        assert await early.error() == ErrorPrefix.PAYMENT_UNAVAILABLE
        service.manner.encryption = "nip04"  # and what it offers may have changed meanwhile
        await service.start()
        await daemon.until(is_ready, "ready again")
        later = await customer.order("in time")
        await service.receive(await later.invoice())
        await later.result()
        await service.receive(await waiting.invoice())
        await waiting.result()
        assert len({each.payment_hash for each in service.entries}) == 2, "each invoice was made once"


async def test_no_sat_is_lost_while_everything_goes_and_comes(tmp_path: Path) -> None:
    """Twenty jobs; meanwhile the daemon is killed, the service stops, and its relay dies, while work is open."""
    jobs = 20
    with relay_process() as market, relay_process() as private:
        async with nwc_service(private.url) as service:
            payment = {**PREPAY, "max_open_invoices_per_customer": jobs}
            settings = market_settings(market.url, wallet={**NWC, "timeout_s": 1}, payment=payment)
            async with provider(tmp_path, settings, started=False) as daemon:
                daemon._environ["PYLON_WALLET_URI"] = service.uri
                await daemon.start()
                async with shop(market.url, provider=daemon.pubkey) as customer:
                    orders = [await customer.order(f"job {number}") for number in range(jobs)]

                    async def pay(order: Order) -> None:
                        await service.receive(await order.invoice(limit_s=60))
                        await order.result(60)

                    async def disturb() -> None:
                        daemon.kill()
                        await service.stop()
                        daemon.launch()
                        await daemon.until(
                            lambda status: "did not answer" in wallet_line(status), "told of silence"
                        )
                        private.kill()
                        await daemon.until(
                            lambda status: "no relay of the" in wallet_line(status), "told of a relay"
                        )
                        private.start()
                        await service.start()

                    # What comes while the wallet is away is refused, without a word where it names no provider.
                    await daemon.until(lambda status: taken(status) == jobs, "working on all of them")
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(disturb)
                        for order in orders:
                            tasks.start_soon(pay, order)
                    paid_msats = sum(each.amount_msats for each in service.entries if each.state == "settled")
                    assert await earned_msats(daemon, service) == paid_msats
                    assert [len(order.results) for order in orders] == [1] * jobs
                    assert "Traceback" not in daemon.log()
