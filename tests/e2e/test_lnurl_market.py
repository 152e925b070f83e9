"""Prepaid work, paid to a lightning address: its host is in the test, the daemon, relay and customer are real."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import Event
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from tests.support.lnurl_host import HOST_KEY, LnurlHost, lnurl_host
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.running_pool import Running, running_pool
from tests.support.shop import Shop, shop

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def lnurl_market(folder: Path, **offers: Any) -> AsyncIterator[tuple[Provider, LnurlHost, Shop, Running]]:
    """Run a relay, an address's host that publishes there, a provider that is paid at the address, a customer."""
    with relay_process() as relay:
        async with lnurl_host(**offers) as host:
            wallet = {"kind": "lnurl", "network": "regtest", "address": host.address, "timeout_s": 5}
            payment = {"mode": "prepay", "lookup_min_s": 0.1, "lookup_max_s": 0.5}
            private = {"allow_private_hosts": True}
            settings = market_settings(relay.url, wallet=wallet, payment=payment, relays=private)
            started = bool(offers)
            async with (
                provider(folder, settings, started=started) as daemon,
                running_pool(relay.url, key=HOST_KEY) as outlet,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                yield daemon, host, customer, outlet


async def publish(outlet: Running, receipt: Event) -> None:
    outlet.deliver(receipt)
    with anyio.fail_after(10):
        while receipt.id not in outlet.heard.confirmed_by:  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def test_a_zap_receipt_begins_the_work(tmp_path: Path) -> None:
    async with lnurl_market(tmp_path, zaps=True) as (daemon, host, customer, outlet):
        waits, earned_msats = [], 0
        for number in range(3):
            order = await customer.order(f"prompt {number}")
            bolt11 = await order.invoice()
            receipt = host.receipt(bolt11)
            earned_msats += amount(host, bolt11)
            paid_at = time.monotonic()
            await publish(outlet, receipt)
            await order.until(lambda each: each.feedback(FeedbackStatus.PROCESSING) or each.results, "processing")
            waits.append(time.monotonic() - paid_at)
            assert f"prompt {number}" in (await order.result()).content
        assert statistics.median(waits) < 0.5
        status = await daemon.until(lambda each: each.books.earned_msats == earned_msats, "paid")
        assert (status.books.received_msats, status.books.owed_msats) == (earned_msats, 0)
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.log() and "Exception ignored" not in daemon.log()


@pytest.mark.parametrize("way", ["zaps", "verifies"])
async def test_what_is_paid_while_the_daemon_is_dead_is_found(way: str, tmp_path: Path) -> None:
    async with lnurl_market(tmp_path, **{way: True}) as (daemon, host, customer, outlet):
        order, unpaid = await customer.order("survive this"), await customer.order("never")
        bolt11 = await order.invoice()
        await unpaid.invoice()
        daemon.kill()
        host.settled.add(bolt11)
        if way == "zaps":
            await publish(outlet, host.receipt(bolt11))
        await daemon.start()
        assert "survive this" in (await order.result()).content
        assert not unpaid.results
        await daemon.until(lambda each: each.books.earned_msats == amount(host, bolt11), "paid")


async def test_an_address_that_cannot_tell_sells_nothing(tmp_path: Path) -> None:
    async with lnurl_market(tmp_path) as (daemon, _, customer, _):
        daemon.launch()
        words = "this address cannot tell whether an invoice was paid"
        status = await daemon.until(lambda each: each.wallet is not None and words in each.wallet.detail, "told")
        assert status.wallet is not None and not status.wallet.ready
        order = await customer.order("too good", providers=[daemon.pubkey])
        assert await order.error() == ErrorPrefix.PAYMENT_UNAVAILABLE


def amount(host: LnurlHost, bolt11: str) -> int:
    assert bolt11 in host.invoices
    return read_invoice(bolt11).amount_msats or 0
