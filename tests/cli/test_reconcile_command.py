"""`pylon reconcile` on a real database and the fake wallet's own process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.cli.app import run
from pylon.jobs.ports import Invoice, InvoiceRequest
from pylon.lock import instance_lock
from pylon.paths import paths_under
from pylon.store import refunds
from pylon.store.records import InvoiceRow, InvoiceState, Job, Money, Refund, RefundState, Settlement, Work
from pylon.store.tx import Tx
from pylon.store.writer import Store
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.provider import market_settings
from tests.support.wallet import WalletProcess

Captured = pytest.CaptureFixture[str]


@dataclass
class Shop:
    """A home with books, beside a wallet."""

    wallet: WalletProcess
    home: Path
    jobs: int = 0

    def sell(self, amount_msats: int = 2_000, *, paid: bool = True, booked: bool = True) -> tuple[str, Invoice]:
        """Have a job with an invoice of the wallet's, paid and booked or not; returns the job's id."""
        return anyio.run(self._sell, amount_msats, paid, booked)

    async def _sell(self, amount_msats: int, paid: bool, booked: bool) -> tuple[str, Invoice]:
        self.jobs += 1
        now, job_id, own_id = int(time.time()), f"{self.jobs:064x}", f"pylon-{self.jobs:032x}"
        async with (client := self.wallet.client()).running():
            invoice = await client.create_invoice(InvoiceRequest(own_id, amount_msats, 600))
        if paid:
            await self.wallet.payer().pay(invoice.bolt11)
        job = Job(job_id, "ab" * 32, 5050, "b", "m", amount_msats, 64, now, now + 600, money=Money.INVOICED)
        job = job.evolve(work=Work.AWAITING_PAYMENT, invoices=1)

        def store(tx: Tx) -> None:
            tx.insert_job(job, "{}")
            tx.want_invoice(InvoiceRow(own_id, job_id, 1, amount_msats, now, now + 600))
            state = InvoiceState.PAID if booked else InvoiceState.OPEN
            tx.set_invoice(own_id, state, invoice.payment_hash, invoice.bolt11, now + 600)
            if booked:
                tx.book(Settlement(invoice.payment_hash, job_id, amount_msats, 0, now))

        books = await Store.open(paths_under(self.home).database)
        await books.write(store)
        await books.aclose()
        return job_id, invoice

    async def give_back(self, job_id: str, amount_msats: int) -> None:
        """Let the wallet pay a refund, and book it."""
        elsewhere = Node("22" * 32).sign(Draft("y", amount_msats, 600, "back", None), int(time.time()))
        async with (client := self.wallet.client()).running():
            paid = await client.pay(elsewhere.bolt11, own_id="back", max_fee_msats=1_000)
        now = int(time.time())
        row = Refund("back", job_id, amount_msats, now, payment_hash=paid.payment_hash, bolt11=elsewhere.bolt11)

        def store(tx: Tx) -> None:
            refunds.keep_refund(tx, row)
            refunds.end_refund(tx, "back", RefundState.PAID, fee_msats=paid.fee_msats, reason="", now=now)

        books = await Store.open(paths_under(self.home).database)
        await books.write(store)
        await books.aclose()

    async def spend(self, amount_msats: int) -> None:
        """Let the wallet pay somebody."""
        elsewhere = Node("11" * 32).sign(Draft("x", amount_msats, 600, "rent", None), int(time.time()))
        async with (client := self.wallet.client()).running():
            await client.pay(elsewhere.bolt11, own_id="rent", max_fee_msats=1_000)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    import tomlkit

    monkeypatch.setattr("pylon.reconciling._AGAIN_S", 0.01)
    with WalletProcess(tmp_path) as wallet:
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        settings = tomlkit.dumps(market_settings("ws://127.0.0.1:1", paid_to=wallet))
        paths_under(home).config_file.write_text(settings)
        monkeypatch.setenv("PYLON_HOME", str(home))
        monkeypatch.setenv("PYLON_WALLET_TOKEN", wallet.owner_token)
        yield Shop(wallet, home)


def answer(capsys: Captured) -> dict[str, Any]:
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def test_books_that_agree(shop: Shop, capsys: Captured) -> None:
    shop.sell(2_000)
    shop.sell(3_000)
    shop.sell(1_000, paid=False, booked=False)
    before = paths_under(shop.home).database.read_bytes()
    with instance_lock(paths_under(shop.home).lock_file):  # as beside a daemon
        assert run(["reconcile"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 settled payments and 0 refunds since ever, beside the fake wallet\n")
    assert "our books          5 sats" in out
    assert "the wallet's list  5 sats" in out
    assert "balance now        5 sats" in out
    assert out.endswith("The books and the wallet agree.\n")
    assert paths_under(shop.home).database.read_bytes() == before


def test_each_difference_with_its_reason_and_what_to_do(shop: Shop, capsys: Captured) -> None:
    shop.sell(2_000)
    missed, invoice = shop.sell(3_000, booked=False)
    wrong, _ = shop.sell(4_000, paid=False)
    anyio.run(shop.spend, 1_000)
    assert run(["reconcile", "--json"]) == 1
    found = answer(capsys)
    kinds = {each["kind"]: each for each in found["differences"]}
    assert set(kinds) == {"not-booked", "not-settled", "foreign-payment"}
    assert (kinds["not-booked"]["job"], kinds["not-booked"]["payment_hash"]) == (missed, invoice.payment_hash)
    assert kinds["not-settled"]["job"] == wrong
    between = sum(each["wallet_msats"] - each["ours_msats"] for each in found["differences"])
    assert between == found["wallet_change_msats"] - found["books_msats"]
    assert found["opening_msats"] == 0
    assert run(["reconcile"]) == 1
    out = capsys.readouterr().out
    assert "Differences (3)" in out
    assert f"job {missed[:12]}" in out
    assert "-> start pylon: it asks about its invoices and books what was paid" in out


def test_refunds_and_their_fees(shop: Shop, capsys: Captured) -> None:
    job_id, _ = shop.sell(9_000)
    anyio.run(shop.give_back, job_id, 5_000)
    assert run(["reconcile", "--json"]) == 0
    found = answer(capsys)
    assert (found["received_msats"], found["refunds"], found["refunded_msats"]) == (9_000, 1, 5_000)
    assert found["fees_msats"] > 0
    assert found["books_msats"] == found["wallet_change_msats"] == found["balance_msats"]


def test_since(shop: Shop, capsys: Captured) -> None:
    shop.sell(2_000)
    assert run(["reconcile", "--since", "2099-01-01", "--json"]) == 0
    found = answer(capsys)
    assert (found["settlements"], found["books_msats"], found["opening_msats"]) == (0, 0, 2_000)
    assert run(["reconcile", "--since", "tomorrow"]) == 2


def test_a_wallet_that_cannot_be_asked(shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sell(2_000)
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "another")
    assert run(["reconcile"]) == 4
    assert "does not accept the token" in capsys.readouterr().err
    shop.wallet.kill()
    assert run(["reconcile"]) == 4
    assert capsys.readouterr().err.startswith(
        "pylon: the wallet cannot be asked: the fake wallet cannot be reached"
    )
    monkeypatch.setenv("PYLON_WALLET__KIND", "none")
    assert run(["reconcile"]) == 4
    assert "no wallet is connected" in capsys.readouterr().err


def test_without_books(shop: Shop, capsys: Captured) -> None:
    assert run(["reconcile"]) == 1
    assert "there are no books yet" in capsys.readouterr().err
