"""Prepaid jobs of the real daemon, paid into and out of NWC wallets that we did not write, to the msat."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import anyio
import pytest

from pylon.jobs.ports import PaymentState
from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.nip90 import FeedbackStatus
from tests.support.nwc_makes import Make, nwc_service
from tests.support.nwc_wallet import nwc_wallet
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Wire, framed, piece, scripted_server
from tests.support.provider import MODEL, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = [pytest.mark.e2e, pytest.mark.live]

JOBS = 5
MEDIAN_LIMIT_S = 0.5
SLACK = 2  # this machine has other things to do, too


@pytest.mark.parametrize("make", list(Make), ids=str)
async def test_prepaid_jobs(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    go_on = anyio.Event()

    async def chat(wire: Wire) -> None:
        """Answer once `processing` was heard: work that is done at once is not announced."""
        await go_on.wait()
        await wire.send(STREAM_HEAD + framed(piece("done", "stop")) + framed(DONE) + STREAM_END)

    lnbits = None if make is Make.LDK else request.getfixturevalue("lnbits")
    with relay_process() as relay, nwc_service(tmp_path, make, relay.url, lnbits=lnbits) as service:
        async with (
            scripted_server(chat) as model,
            nwc_wallet(service.provider) as earnings,
            nwc_wallet(service.customer) as purse,
        ):
            model.models = (MODEL,)
            before = await earnings.balance_msats(), await purse.balance_msats()
            settings = market_settings(
                relay.url,
                backend_url=model.url,
                wallet={"kind": "nwc", "network": make.network, "timeout_s": 5},
                payment={"mode": "prepay"},
            )
            async with (
                provider(tmp_path, settings, environ={"PYLON_WALLET_URI": service.provider}) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
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
                status = await daemon.until(
                    lambda status: status.jobs_by_state == {"delivered/settled": JOBS}, "done with all"
                )
                assert (status.books.received_msats, status.books.earned_msats) == (price_msats, price_msats)
                assert await earnings.balance_msats() - before[0] == price_msats
                assert before[1] - await purse.balance_msats() == price_msats
                assert await daemon.stop() == 0
            assert daemon.log_lines("error") == []
            secret = service.provider.rpartition("=")[2]
            assert secret not in daemon.log()
    median_s = statistics.median(waits)
    print(f"{make}: from the payment's start to `processing` {median_s * 1000:.0f} ms (median of {JOBS})")
    if make.pushes:
        assert median_s < SLACK * MEDIAN_LIMIT_S
