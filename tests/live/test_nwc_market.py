"""Prepaid jobs of the real daemon, paid into and out of NWC wallets that we did not write, to the msat."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pylon.control.views import DaemonStatus
from pylon.jobs.ports import InvoiceRequest, PaymentState
from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.nip90 import FeedbackStatus
from tests.support.nwc_makes import Make, NwcService, nwc_service
from tests.support.nwc_wallet import nwc_wallet
from tests.support.openai_server import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    ScriptedServer,
    Wire,
    answer,
    framed,
    piece,
    scripted_server,
)
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import RelayProcess, relay_process
from tests.support.shop import Shop, shop

pytestmark = [pytest.mark.e2e, pytest.mark.live]

JOBS = 5
MEDIAN_LIMIT_S = 0.5
SLACK = 2  # this machine has other things to do, too


@pytest.fixture(params=list(Make), ids=str)
def service(request: pytest.FixtureRequest, relay: RelayProcess, tmp_path: Path) -> Iterator[NwcService]:
    make: Make = request.param
    lnbits = None if make is Make.LDK else request.getfixturevalue("lnbits")
    with nwc_service(tmp_path, make, relay.url, lnbits=lnbits) as running:
        yield running


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    with relay_process() as running:
        yield running


@asynccontextmanager
async def nwc_market(
    folder: Path, service: NwcService, relay: RelayProcess, model: ScriptedServer
) -> AsyncIterator[tuple[Provider, Shop]]:
    """Run a provider that is paid into the service, and a customer."""
    model.models = (MODEL,)
    settings = market_settings(
        relay.url,
        backend_url=model.url,
        wallet={"kind": "nwc", "network": service.make.network, "timeout_s": 5},
        payment={"mode": "prepay"},
    )
    async with (
        provider(folder, settings, environ={"PYLON_WALLET_URI": service.provider}) as daemon,
        shop(relay.url, provider=daemon.pubkey) as customer,
    ):
        yield daemon, customer
        assert await daemon.stop() == 0
    assert service.provider.rpartition("=")[2] not in daemon.log()


async def test_prepaid_jobs(service: NwcService, relay: RelayProcess, tmp_path: Path) -> None:
    go_on = anyio.Event()

    async def chat(wire: Wire) -> None:
        """Answer once `processing` was heard: work that is done at once is not announced."""
        await go_on.wait()
        await wire.send(STREAM_HEAD + framed(piece("done", "stop")) + framed(DONE) + STREAM_END)

    async with (
        scripted_server(chat) as model,
        nwc_wallet(service.provider) as earnings,
        nwc_wallet(service.customer) as purse,
        nwc_market(tmp_path, service, relay, model) as (daemon, customer),
    ):
        before = await earnings.balance_msats(), await purse.balance_msats()
        waits: list[float] = []
        price_msats = 0
        for _ in range(JOBS):
            go_on = anyio.Event()
            order = await customer.order(params=[("max_tokens", ["40"])])
            bolt11 = await order.invoice()
            price_msats += read_invoice(bolt11).amount_msats or 0
            start = time.monotonic()
            paid = await purse.pay(bolt11, own_id=order.id, max_fee_msats=0)
            assert (paid.state, paid.fee_msats) == (PaymentState.SETTLED, 0)
            await order.until(lambda order: order.feedback(FeedbackStatus.PROCESSING), "processing")
            waits.append(time.monotonic() - start)
            go_on.set()
            assert (await order.result()).content == "done"
            await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
        books = (await until_jobs(daemon, "delivered/settled", JOBS)).books
        assert (books.received_msats, books.earned_msats) == (price_msats, price_msats)
        assert await earnings.balance_msats() - before[0] == price_msats
        assert before[1] - await purse.balance_msats() == price_msats
        assert daemon.log_lines("error") == []
    median_s = statistics.median(waits)
    print(f"{service.make}: from the payment's start to `processing` {median_s * 1000:.0f} ms (median of {JOBS})")
    if service.make.pushes:
        assert median_s < SLACK * MEDIAN_LIMIT_S


async def test_a_refund_is_paid_out_of_the_same_wallet(
    service: NwcService, relay: RelayProcess, tmp_path: Path
) -> None:
    """The backend fails the paid job for good: its price goes back, paid by the daemon over the connection."""
    async with (
        scripted_server(answer(400, {"error": {"message": "no"}})) as model,
        nwc_wallet(service.provider) as earnings,
        nwc_wallet(service.customer) as purse,
        nwc_market(tmp_path, service, relay, model) as (daemon, customer),
    ):
        before = await earnings.balance_msats(), await purse.balance_msats()
        order = await customer.order(params=[("max_tokens", ["40"])])
        paid = await purse.pay(await order.invoice(), own_id=order.id, max_fee_msats=0)
        books = (await until_jobs(daemon, "failed/refund_due", 1)).books
        assert (books.received_msats, books.refund_due_msats) == (paid.amount_msats, paid.amount_msats)
        assert await earnings.balance_msats() == before[0] + books.received_msats

        back = await purse.create_invoice(InvoiceRequest("back", paid.amount_msats, 600, "back"))
        done = await daemon.pylon("refunds", "pay", order.id, "--to", back.bolt11)
        assert done.returncode == 0, done.stdout + done.stderr
        books = (await until_jobs(daemon, "failed/refunded", 1)).books
        assert (books.owed_msats, books.refunded_msats) == (0, paid.amount_msats)
        assert await earnings.balance_msats() == before[0] + (
            books.received_msats - books.refunded_msats - books.refund_fees_msats
        )
        assert await purse.balance_msats() == before[1]


async def until_jobs(daemon: Provider, state: str, count: int) -> DaemonStatus:
    return await daemon.until(lambda status: status.jobs_by_state == {state: count}, f"at {count} of {state}")
