"""SIGTERM in the middle of a paid workload, again and again: nothing is lost, nothing done twice, nothing cut off.

`test_kills` shows what a crash leaves; a graceful stop leaves more: what ran is finished, in its first attempt.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from pylon.jobs.ports import WalletError, WalletRefused
from pylon.nostr.nip90 import ErrorPrefix
from pylon.store.records import Money, Work
from tests.support.aftermath import add_published, database, is_quiet, jobs_of
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop
from tests.support.wallet import WalletProcess
from tests.support.workload import MUST_END_S, talking

pytestmark = pytest.mark.e2e

STOPS = 3
CUSTOMERS = 8
STOP_LIMIT_S = 120.0


class Customers:
    """Order, pay and wait for the result, one job after another each, until it is `closed`.

    Who comes while it stops is told so. The request stays on the relay: should it be taken after the start, it is
    paid as well.
    """

    def __init__(self, customer: Shop, wallet: WalletProcess, provider_key: str, later: TaskGroup) -> None:
        self._shop = customer
        self._wallet = wallet
        self._provider = provider_key
        self._later = later
        self.closed = False
        self.shop_is_open = anyio.Event()
        self.orders: list[Order] = []

    async def one(self) -> None:
        """Be one of them."""
        while not self.closed:
            order = await self._shop.order(providers=[self._provider])
            self.orders.append(order)
            await order.until(lambda order: order.invoices or order.errors, "answer", MUST_END_S)
            if order.errors:
                self._later.start_soon(self._buy, order)
                await self.shop_is_open.wait()
            else:
                await self._buy(order)

    async def _buy(self, order: Order) -> None:
        await self._pay(await order.invoice(limit_s=MUST_END_S))
        await order.result(MUST_END_S)

    async def _pay(self, bolt11: str) -> None:
        while True:
            try:
                await self._wallet.payer().pay(bolt11)
            except WalletRefused as error:
                assert "already paid" in str(error), error
            except WalletError:
                continue  # a busy machine: whether it is paid is not known, and asked by paying again
            return


async def stopped_in_the_middle(daemon: Provider) -> None:
    """Send SIGTERM while jobs run and others wait, paid for, and see it end well."""
    await daemon.until(
        lambda status: any(line.running and line.queued for line in status.queue), "busy, with a queue", limit_s=60
    )
    daemon.send(signal.SIGTERM)
    assert await daemon.ended(STOP_LIMIT_S) == 0
    with database(daemon.paths.database) as db:
        works = {row["work"] for row in db.execute("SELECT work FROM jobs")}
    assert Work.RUNNING not in works, "an attempt was cut off"


async def test_a_stop_under_load_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(7)
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        async with scripted_server() as script:
            script.models = (MODEL,)
            script.chats = [talking(rng, lambda: False)]
            settings = market_settings(
                relay.url,
                paid_to=wallet,
                backend_url=script.url,
                slots=2,
                daemon={"stop_timeout_s": STOP_LIMIT_S},
                payment={"max_open_invoices_per_customer": 2 * CUSTOMERS},
            )
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
                anyio.create_task_group() as later,
            ):
                customers = Customers(customer, wallet, daemon.pubkey, later)
                async with anyio.create_task_group() as tasks:
                    for _ in range(CUSTOMERS):
                        tasks.start_soon(customers.one)
                    for _ in range(STOPS):
                        customers.shop_is_open = anyio.Event()
                        await stopped_in_the_middle(daemon)
                        await daemon.start()
                        customers.shop_is_open.set()
                    customers.closed = True
                books = (await daemon.until(is_quiet, "quiet", limit_s=120)).books
                assert await daemon.stop() == 0
                later.cancel_scope.cancel()
            jobs = jobs_of(daemon.paths.database)
            await add_published(jobs, relay.url, daemon.pubkey)
            orders = {order.id: order for order in customers.orders}
            assert len(jobs) > CUSTOMERS
            assert jobs.keys() <= orders.keys()
            for job in jobs.values():
                assert (job.work, job.money) == (Work.DELIVERED, Money.SETTLED)
                assert job.results == [job.result_id]
            for order in orders.values():
                assert order.errors in ([], [ErrorPrefix.PAUSED])
                assert order.id in jobs or order.errors, "it was taken by nobody, and nobody said so"
            assert books.received_msats == books.earned_msats == sum(job.price_msats for job in jobs.values())
            with database(daemon.paths.database) as db:
                assert {row["attempts"] for row in db.execute("SELECT attempts FROM jobs")} == {1}
