"""Work on credit end to end: the real daemon, a relay and the fake wallet as processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import JobResult, parse_result
from pylon.store.records import Money, Work
from tests.e2e.test_market import until_state
from tests.support.provider import market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

CREDIT = {"mode": "postpay", "credit_msats": 20_000}
USED_MSATS = 2_000
"""1,000 msats and what few tokens the echo of a few words takes, rounded up to whole sats."""


async def bill(order: Order) -> JobResult:
    result = parse_result(await order.result())
    assert result.bolt11 is not None and result.amount_msats == USED_MSATS
    assert read_invoice(result.bolt11).amount_msats == USED_MSATS
    return result


async def test_a_job_on_credit_is_billed_after_it_and_paid_though_the_daemon_was_killed(tmp_path: Path) -> None:
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        settings = market_settings(relay.url, paid_to=wallet, payment=CREDIT)
        async with (
            provider(tmp_path, settings, wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("worth a sat", params=[("max_tokens", ["1000"])])
            result = await bill(order)
            assert result.content == "worth a sat"
            assert order.invoices == []
            await until_state(daemon, order, (Work.DELIVERED, Money.INVOICED))

            # Addressed, so that the refusal is said.
            second = await customer.order("the next", providers=[daemon.pubkey])
            assert await second.error() == ErrorPrefix.UNPAID.value
            assert order.id in second.feedback(FeedbackStatus.ERROR)[0].info

            listed = await daemon.pylon("jobs", "list", "--money", "invoiced")
            assert order.id[:12] in listed.stdout and "delivered" in listed.stdout
            shown = await daemon.pylon("jobs", "show", order.id)
            assert "metered -> billing/none" in shown.stdout
            assert (await daemon.pylon("earnings")).returncode == 0

            daemon.kill()
            assert result.bolt11 is not None
            await wallet.payer().pay(result.bolt11)
            await daemon.start()
            await until_state(daemon, order, (Work.DELIVERED, Money.SETTLED))
            await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
            assert len(order.results) == 1

            # The relay sends it again; it was refused before, so nothing is done that its customer has not paid.
            await second.invoice()
            third = await customer.order("on credit again")
            await wallet.payer().pay((await bill(third)).bolt11 or "")
            await until_state(daemon, third, (Work.DELIVERED, Money.SETTLED))
            books = (await daemon.status()).books
            assert (books.received_msats, books.earned_msats, books.owed_msats) == (4_000, 4_000, 0)
            assert (await wallet.books())["received_msats"] == 4_000
