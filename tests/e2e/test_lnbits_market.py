"""Prepaid work, paid from one wallet of a real LNbits into another, while daemon and LNbits go and come."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from pylon.nostr.event import Draft
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from tests.support.lnbits import NETWORK, Account, Lnbits
from tests.support.openai_server import answer, scripted_server
from tests.support.provider import MODEL, Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def lnbits_market(
    folder: Path, lnbits: Lnbits, account: Account, **more: Any
) -> AsyncIterator[tuple[Provider, Shop]]:
    """Run a relay, a provider that is paid into a wallet of LNbits, and a customer."""
    wallet = {"kind": "lnbits", "url": lnbits.url, "network": NETWORK, "timeout_s": 5}
    environ = {"PYLON_WALLET_TOKEN": account.invoice_key, "PYLON_WALLET_PAY_TOKEN": account.admin_key}
    with relay_process() as relay:
        payment = {"mode": "prepay", "lookup_max_s": 2}
        settings = market_settings(relay.url, wallet=wallet, payment=payment, **more)
        async with (
            provider(folder, settings, environ=environ) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            yield daemon, customer


async def pay(lnbits: Lnbits, order: Order) -> None:
    bolt11 = await order.invoice()
    await anyio.to_thread.run_sync(lnbits.pay, bolt11)


async def earned(daemon: Provider, lnbits: Lnbits, account: Account) -> int:
    """Wait until all that the wallet holds is earned, and return it."""
    held_msats = lnbits.balance_msats(account)
    status = await daemon.until(lambda each: each.books.earned_msats == held_msats, "paid")
    assert (status.books.received_msats, status.books.owed_msats) == (held_msats, 0)
    return held_msats


@pytest.mark.alone
async def test_work_begins_when_lnbits_pushes_the_payment(tmp_path: Path, lnbits: Lnbits) -> None:
    account = lnbits.account()
    async with lnbits_market(tmp_path, lnbits, account) as (daemon, customer):
        status = await daemon.status()
        assert status.wallet is not None
        assert (status.wallet.kind, status.wallet.ready) == ("lnbits", True)
        waits_s = []
        for number in range(5):
            order = await customer.order(f"prompt {number}")
            await order.invoice()
            started = time.monotonic()
            await pay(lnbits, order)
            # A provider that is done as soon leaves `processing` out.
            await order.until(lambda each: each.feedback(FeedbackStatus.PROCESSING) or each.results, "begun")
            waits_s.append(time.monotonic() - started)
            assert f"prompt {number}" in (await order.result()).content
        assert statistics.median(waits_s) < 0.5, waits_s
        assert await earned(daemon, lnbits, account) > 0
        shown = await daemon.pylon("config", "show")
        for secret in (account.invoice_key, account.admin_key):
            assert secret not in daemon.log() + shown.stdout + shown.stderr
        assert await daemon.stop() == 0


async def test_both_are_killed_and_what_was_paid_is_delivered(tmp_path: Path, fresh_lnbits: Lnbits) -> None:
    lnbits, account = fresh_lnbits, fresh_lnbits.account()
    async with lnbits_market(tmp_path, lnbits, account) as (daemon, customer):
        paid, unpaid = [await customer.order() for _ in range(2)]
        await unpaid.invoice()
        first = await unpaid.invoice()
        await paid.invoice()
        daemon.kill()
        await pay(lnbits, paid)
        await lnbits.restart()
        await daemon.start()
        await paid.result()
        # LNbits has failed the open invoice at its restart: the job gets another, and that can be paid.
        await unpaid.until(lambda each: len(each.invoices) > 1, "another invoice")
        again = next(each for each in unpaid.invoices if each != first)
        await anyio.to_thread.run_sync(lnbits.pay, again)
        await unpaid.result()
        lnbits.kill()
        await daemon.until(lambda each: each.wallet is not None and not each.wallet.ready, "without its wallet")
        refused = await customer.order(providers=[daemon.pubkey])
        await daemon.until(
            lambda each: each.wallet is not None and "LNbits cannot be reached" in each.wallet.detail,
            "clear about it",
        )
        assert await refused.error() == ErrorPrefix.PAYMENT_UNAVAILABLE
        await lnbits.restart()
        await daemon.until(lambda each: is_ready(each) and each.wallet is not None and each.wallet.ready, "back")
        order = await customer.order()
        await pay(lnbits, order)
        await order.result()
        assert await earned(daemon, lnbits, account) > 0
        assert daemon.log_lines("error") == []
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("named_in", ["request", "profile"])
async def test_a_refund_goes_to_the_customers_lightning_address(
    tmp_path: Path, lnbits: Lnbits, named_in: str
) -> None:
    account, theirs = lnbits.account(sats=1_000), lnbits.account()
    before_msats = lnbits.balance_msats(account)
    async with scripted_server() as server:
        server.models = (MODEL,)
        server.chats = [answer(400, {"error": {"message": "the prompt is too long"}})] * 9
        refunds = {"auto": True, "max_fee_msats": 2_000}
        async with lnbits_market(
            tmp_path, lnbits, account, backend_url=server.url, refunds=refunds, relays={"allow_private_hosts": True}
        ) as (daemon, customer):
            request = customer.draft("too long")
            if named_in == "profile":
                profile = Draft(0, json.dumps({"lud16": theirs.address}), ())
                await customer.publish(profile.sign(customer.key, int(time.time())))
            else:
                request = Draft(request.kind, request.content, (*request.tags, ("lud16", theirs.address)))
            order = customer.follow(request.sign(customer.key, int(time.time())))
            await customer.publish(order.request)
            await pay(lnbits, order)
            await order.until(lambda each: ErrorPrefix.REFUNDED in each.errors, "refunded", 30)
            status = await daemon.until(lambda each: each.books.refunded_msats > 0, "refunded")
    books = status.books
    assert books.received_msats == books.refunded_msats == lnbits.balance_msats(theirs)
    assert (books.owed_msats, books.earned_msats) == (0, 0)
    change_msats = lnbits.balance_msats(account) - before_msats
    assert change_msats == books.received_msats - books.refunded_msats - books.refund_fees_msats
