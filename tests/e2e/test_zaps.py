"""A customer zaps the event that asked for payment instead of paying its invoice, and tips the result."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip57 import zap_request_draft
from pylon.nostr.nip90 import FeedbackStatus
from tests.support.lnurl_host import HOST_KEY, LnurlHost, lnurl_host
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.running_pool import Running, running_pool
from tests.support.shop import Order, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e


async def zap(
    host: LnurlHost, outlet: Running, daemon: Provider, event_id: str, amount_msats: int, key: SecretKey
) -> None:
    """Have an invoice of the address made for a zap request, and its receipt published, as if it was paid."""
    draft = zap_request_draft(
        recipient=daemon.pubkey, relays=("ws://127.0.0.1:1",), amount_msats=amount_msats, event_id=event_id
    )
    request = draft.sign(key, int(time.time()))
    _, made = await host.answer("/cb", {"nostr": [request.to_json()], "amount": [str(amount_msats)]})
    receipt = host.receipt(made["pr"])
    zapped = Draft(receipt.kind, "", (*receipt.tags, ("e", event_id))).sign(HOST_KEY, receipt.created_at)
    outlet.deliver(zapped)


def asking(order: Order) -> Event:
    """The event that asked for payment."""
    return next(
        each
        for each in order.events.values()
        if each.tag("status") is not None and each.tag_values("status") == [FeedbackStatus.PAYMENT_REQUIRED]
    )


async def test_a_zap_pays_and_the_next_one_tips(tmp_path: Path) -> None:
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        async with lnurl_host(zaps=True) as host:
            settings = market_settings(
                relay.url,
                paid_to=wallet,
                announce={"lud16": host.address},
                relays={"allow_private_hosts": True},
            )
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                running_pool(relay.url, key=HOST_KEY) as outlet,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order("zapped")
                await order.invoice()
                (asked,) = order.feedback(FeedbackStatus.PAYMENT_REQUIRED)
                assert asked.amount_msats is not None
                forged = SecretKey.generate()
                await zap(host, outlet, daemon, asking(order).id, asked.amount_msats - 1_000, forged)
                await daemon.until(
                    lambda each: each.books.earned_msats == (asked.amount_msats or 0) - 1_000, "tipped"
                )
                assert not order.results, "a stranger's small zap pays for nothing"
                await zap(host, outlet, daemon, asking(order).id, asked.amount_msats, customer.key)
                result = await order.result()
                await zap(host, outlet, daemon, result.id, 5_000, customer.key)
                earned_msats = 2 * asked.amount_msats - 1_000 + 5_000
                status = await daemon.until(lambda each: each.books.earned_msats == earned_msats, "tipped again")
                assert (status.books.received_msats, status.books.owed_msats) == (earned_msats, 0)
                with anyio.fail_after(10):
                    assert await daemon.stop() == 0
                assert daemon.log_lines("error") == []
