"""A paid job whose backend fails, paid back to the customer's own invoice by the real program, kill -9 included."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.jobs.ports import InvoiceRequest
from pylon.nostr.nip90 import ErrorPrefix
from pylon.nostr.refunds import wish_draft
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.openai_server import answer, scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop
from tests.support.wallet import WalletProcess

NODE = Node("55" * 32)
FUNDS_MSATS = 50_000

pytestmark = pytest.mark.e2e


@dataclass
class Scene:
    """A provider that owes its customer a job's price, and everything around it."""

    daemon: Provider
    wallet: WalletProcess
    customer: Shop
    order: Order
    due_msats: int

    def invoice(self) -> str:
        """Return an invoice of the customer's own node over what is due."""
        return NODE.sign(Draft("back", self.due_msats, 600, "my money", None), int(time.time())).bolt11

    async def send(self, to: str) -> None:
        """Have the customer say where the refund goes."""
        wish = wish_draft(self.order.id, self.daemon.pubkey, to)
        await self.customer.publish(wish.sign(self.customer.key, int(time.time())))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        path = self.daemon.paths.database
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(sql).fetchall()

    async def until(self, condition: Callable[[], Any]) -> None:
        with anyio.fail_after(30):
            while not condition():  # noqa: ASYNC110 - the database tells nobody
                await anyio.sleep(0.02)

    async def is_paid_once(self) -> None:
        """The customer was told, and wallet and books agree to the msat."""
        await self.order.until(lambda order: ErrorPrefix.REFUNDED in order.errors, "refunded")
        ((state, amount_msats, fee_msats, payment_hash),) = self.rows(
            "SELECT state, amount_msats, fee_msats, payment_hash FROM refunds"
        )
        assert (state, amount_msats) == ("paid", self.due_msats)
        (told,) = [event for event in self.order.events.values() if event.tag("refunded")]
        assert told.tag("refunded") == ("refunded", str(amount_msats), payment_hash)
        truth = await self.wallet.books()
        assert (truth["paid_msats"], truth["fees_msats"]) == (self.due_msats, fee_msats)
        books = (await self.daemon.status()).books
        assert (books.received_msats, books.earned_msats, books.owed_msats) == (self.due_msats, 0, 0)
        assert (books.refunded_msats, books.refund_fees_msats) == (self.due_msats, fee_msats)
        assert (
            truth["balance_msats"] - FUNDS_MSATS
            == books.received_msats - books.refunded_msats - books.refund_fees_msats
        )
        assert self.daemon.log_lines("error") == [] and "Traceback" not in self.daemon.log()


@asynccontextmanager
async def owing(folder: Path, *, auto: bool = True) -> AsyncIterator[Scene]:
    async with WalletProcess(folder) as wallet, scripted_server() as server:
        client = wallet.client()
        async with client.running():  # the route of a refund costs something, which no customer pays
            made = await client.create_invoice(InvoiceRequest("funds", FUNDS_MSATS, 600))
        await wallet.payer().pay(made.bolt11)
        server.models = (MODEL,)
        server.chats = [answer(500, {"error": {"message": "out of memory"}})]
        with relay_process() as relay:
            settings = market_settings(
                relay.url,
                paid_to=wallet,
                backend_url=server.url,
                jobs={"max_attempts": 1},
                refunds={"auto": auto},
            )
            async with (
                provider(folder, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                order = await customer.order(providers=[daemon.pubkey])
                await wallet.payer().pay(await order.invoice())
                assert await order.error() == ErrorPrefix.REFUND_DUE
                due_msats = (await daemon.status()).books.refund_due_msats
                assert due_msats == (await wallet.books())["received_msats"] - FUNDS_MSATS > 0
                yield Scene(daemon, wallet, customer, order, due_msats)


async def test_to_the_invoice_that_the_customer_sends(tmp_path: Path) -> None:
    async with owing(tmp_path) as scene:
        await scene.send(scene.invoice())
        await scene.is_paid_once()


async def test_ordered_by_the_operator(tmp_path: Path) -> None:
    async with owing(tmp_path, auto=False) as scene:
        pylon, job = scene.daemon.pylon, scene.order.id
        listed = await pylon("refunds", "list")
        with anyio.fail_after(30):
            while "it is for you" not in listed.stdout:  # the daemon comes to it in a moment
                listed = await pylon("refunds", "list")
        assert f"it is for you to order: pylon refunds pay {job[:12]}" in listed.stdout
        refused = await pylon("refunds", "pay", job, "--to", "alice at example")
        assert refused.returncode == 1 and "name@host.example" in refused.stderr
        paid = await pylon("refunds", "pay", job[:8], "--to", scene.invoice())
        assert paid.returncode == 0 and "paid back" in paid.stdout, paid
        await scene.is_paid_once()
        assert (await pylon("refunds", "list")).stdout == "no refunds are due\n"
        assert "refunded" in (await pylon("refunds", "list", "--all")).stdout
        assert "refunded" in (await pylon("status")).stdout
        assert await scene.daemon.stop() == 0
        assert job[:12] in (await pylon("refunds", "list", "--all")).stdout
        assert (await pylon("refunds", "pay", job)).returncode == 3
        print(listed.stdout, paid.stdout)


async def test_killed_between_commit_and_pay(tmp_path: Path) -> None:
    async with owing(tmp_path) as scene:
        await scene.wallet.set_faults(delay=1, delay_s=900)  # no call is carried out for a long while
        await scene.send(scene.invoice())
        await scene.until(lambda: scene.rows("SELECT 1 FROM refunds WHERE state = 'committed'"))
        scene.daemon.kill()
        await scene.wallet.restart()
        assert (await scene.wallet.books())["paid_msats"] == 0
        await scene.daemon.start()
        await scene.is_paid_once()


async def test_killed_between_pay_and_its_answer(tmp_path: Path) -> None:
    async with owing(tmp_path) as scene:
        await scene.wallet.set_faults(hang=1, hang_s=900)  # every call is carried out, and no answer comes
        await scene.send(scene.invoice())
        await scene.until(lambda: scene.rows("SELECT 1 FROM refunds WHERE state = 'committed'"))
        await anyio.sleep(
            0.3
        )  # the call is on its way by then, and hangs; if not, this is the other test once more
        await scene.wallet.set_faults()
        with anyio.fail_after(30):
            while (await scene.wallet.books())["paid_msats"] == 0:  # noqa: ASYNC110 - the wallet tells nobody
                await anyio.sleep(0.02)
        scene.daemon.kill()
        assert scene.rows("SELECT state FROM refunds") == [("committed",)]
        await scene.daemon.start()
        await scene.is_paid_once()
