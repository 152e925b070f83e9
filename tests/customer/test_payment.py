"""Paying: only what was asked and agreed, only once, and only with a proof."""

from __future__ import annotations

import hashlib

import anyio
import anyio.lowlevel
import pytest

from pylon.customer.payment import PaymentInDoubt, PaymentRefused, Till
from pylon.customer.updates import PaymentRequired
from pylon.jobs.ports import WalletAmbiguous, WalletError, WalletRefused, WalletUnavailable
from pylon.wallets.fake_server.node import Draft, Node, Signed
from tests.support.events import NOW

NODE = Node("11" * 32)
PROVIDER = "02" * 32


def make(amount_msats: int = 4000, *, created_at: int = NOW, expiry_s: int = 600) -> Signed:
    return NODE.sign(Draft("id", amount_msats, expiry_s, "a job", None), created_at)


def asking(invoice: Signed, amount_msats: int | None = 4000) -> PaymentRequired:
    return PaymentRequired(PROVIDER, amount_msats, invoice.bolt11)


def till(bid_msats: int | None = 10_000, network: str = "regtest") -> Till:
    return Till(bid_msats, network, lambda: float(NOW))


class Purse:
    """Pays with a given preimage, or fails in a given way."""

    def __init__(self, preimage: str = "", fault: Exception | None = None) -> None:
        self.preimage = preimage
        self.fault = fault
        self.calls = 0

    async def pay(self, bolt11: str) -> str:
        self.calls += 1
        await anyio.lowlevel.checkpoint()
        if self.fault is not None:
            raise self.fault
        return self.preimage


async def test_an_invoice_is_paid_and_the_receipt_proves_it() -> None:
    invoice, purse = make(), Purse()
    purse.preimage = invoice.preimage
    receipt = await till().pay(asking(invoice), purse)
    assert (receipt.provider, receipt.amount_msats, receipt.bolt11) == (PROVIDER, 4000, invoice.bolt11)
    assert hashlib.sha256(bytes.fromhex(receipt.preimage)).hexdigest() == receipt.payment_hash
    assert receipt.payment_hash == invoice.payment_hash


@pytest.mark.parametrize(
    ("asked", "bid_msats", "network", "why"),
    [
        (PaymentRequired(PROVIDER, 4000, None), None, "regtest", "without an invoice"),
        (asking(make(), None), None, "regtest", "does not say"),
        (asking(make()), 3999, "regtest", "the bid is 3999"),
        (asking(make(5000)), None, "regtest", "asks 5000 msats where 4000"),
        (asking(make()), None, "bitcoin", "for regtest, not for bitcoin"),
        (asking(make(created_at=NOW - 700)), None, "regtest", "expired"),
        (asking(make(expiry_s=3)), None, "regtest", "expired"),
        (PaymentRequired(PROVIDER, 4000, "lnbcrt1nonsense"), None, "regtest", "invoice"),
    ],
)
async def test_what_is_not_as_agreed_is_not_paid(
    asked: PaymentRequired, bid_msats: int | None, network: str, why: str
) -> None:
    purse, place = Purse(), till(bid_msats, network)
    with pytest.raises(PaymentRefused, match=why):
        await place.pay(asked, purse)
    assert purse.calls == 0
    assert not place.engaged


async def test_a_request_is_paid_once_even_when_asked_twice_at_the_same_time() -> None:
    invoice, place = make(), till()
    purse = Purse(invoice.preimage)
    refused = 0

    async def pay() -> None:
        nonlocal refused
        try:
            await place.pay(asking(invoice), purse)
        except PaymentRefused:
            refused += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(pay)
    assert (purse.calls, refused) == (1, 2)
    with pytest.raises(PaymentRefused, match="not paid twice"):
        await place.pay(asking(make()), purse)


@pytest.mark.parametrize("fault", [WalletRefused("no"), WalletUnavailable("away")])
async def test_what_was_certainly_not_paid_may_be_tried_again(fault: WalletError) -> None:
    invoice, place = make(), till()
    with pytest.raises(type(fault)):
        await place.pay(asking(invoice), Purse(fault=fault))
    assert (await place.pay(asking(invoice), Purse(invoice.preimage))).preimage == invoice.preimage


@pytest.mark.parametrize("fault", [WalletAmbiguous("who knows"), RuntimeError("a bug")])
async def test_what_may_have_been_paid_is_never_paid_again(fault: Exception) -> None:
    invoice, place, purse = make(), till(), Purse()
    with pytest.raises(type(fault)):
        await place.pay(asking(invoice), Purse(fault=fault))
    with pytest.raises(PaymentRefused, match="may have been"):
        await place.pay(asking(invoice), purse)
    assert purse.calls == 0


@pytest.mark.parametrize("preimage", ["00" * 32, "", "no hex", "AB" * 32])
async def test_a_wrong_proof_leaves_the_payment_in_doubt(preimage: str) -> None:
    place = till()
    with pytest.raises(PaymentInDoubt):
        await place.pay(asking(make()), Purse(preimage))
    assert place.engaged


async def test_a_cancelled_payment_is_in_doubt() -> None:
    class Slow:
        async def pay(self, bolt11: str) -> str:
            await anyio.sleep_forever()
            raise AssertionError

    place = till()
    with anyio.move_on_after(0.05) as limit:
        await place.pay(asking(make()), Slow())
    assert limit.cancelled_caught
    with pytest.raises(PaymentRefused, match="may have been"):
        await place.pay(asking(make()), Purse())
