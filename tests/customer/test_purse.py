"""A wallet as a purse: what is unclear is asked again, and never turns into a second payment."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pylon.customer.purse import WalletPayer, require_ready
from pylon.jobs.ports import (
    InvoiceRequest,
    Payment,
    PaymentState,
    Wallet,
    WalletAmbiguous,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)
from tests.support.wallet import WalletProcess

PREIMAGE = "ab" * 32
HASH = "cd" * 32
BOLT11 = "lnbcrt40n1whatever"


def payment(state: PaymentState = PaymentState.SETTLED, preimage: str | None = PREIMAGE) -> Payment:
    return Payment(HASH, state, 4000, 7, preimage)


class Scripted:
    """Answers one thing after another; the last one again and again."""

    def __init__(self, *answers: Payment | Exception) -> None:
        self._answers = list(answers)
        self.calls: list[dict[str, Any]] = []

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        self.calls.append({"bolt11": bolt11, "own_id": own_id, "max_fee_msats": max_fee_msats})
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def payer(self) -> WalletPayer:
        return WalletPayer(cast(Wallet, self), 5000, ask_every_s=0.001, patience_s=0.1)


async def test_a_payment_gives_its_proof_and_tells_its_fee() -> None:
    wallet = Scripted(payment())
    payer = wallet.payer()
    assert await payer.pay(BOLT11) == PREIMAGE
    assert payer.fee_msats == 7
    assert wallet.calls[0]["max_fee_msats"] == 5000


@pytest.mark.parametrize(
    "before",
    [
        (WalletAmbiguous("time-out"),),
        (WalletAmbiguous("time-out"), WalletUnavailable("away"), WalletRefused("under way already")),
        (payment(PaymentState.PENDING, None), payment(PaymentState.UNKNOWN, None)),
    ],
)
async def test_what_is_unclear_is_asked_again_under_the_same_id(before: tuple[Payment | Exception, ...]) -> None:
    wallet = Scripted(*before, payment())
    assert await wallet.payer().pay(BOLT11) == PREIMAGE
    assert len(wallet.calls) == len(before) + 1
    assert all(call == wallet.calls[0] for call in wallet.calls)


@pytest.mark.parametrize("fault", [WalletRefused("too little money"), WalletUnavailable("away")])
async def test_what_was_certainly_not_paid_says_so_at_once(fault: Exception) -> None:
    wallet = Scripted(fault)
    with pytest.raises(type(fault)):
        await wallet.payer().pay(BOLT11)
    assert len(wallet.calls) == 1


async def test_a_payment_that_failed_for_good_is_refused_even_after_doubt() -> None:
    wallet = Scripted(WalletAmbiguous("time-out"), payment(PaymentState.FAILED, None))
    with pytest.raises(WalletRefused, match="could not pay"):
        await wallet.payer().pay(BOLT11)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([WalletAmbiguous("time-out"), WalletUnavailable("away")], "not certain: away"),
        ([payment(PaymentState.PENDING, None)], "has not finished"),
        ([payment(preimage=None)], "no proof"),
    ],
)
async def test_doubt_that_stays_is_told_as_doubt(answers: list[Payment | Exception], why: str) -> None:
    with pytest.raises(WalletAmbiguous, match=why):
        await Scripted(*answers).payer().pay(BOLT11)


async def test_two_invoices_are_two_payments() -> None:
    wallet = Scripted(payment())
    await wallet.payer().pay(BOLT11)
    await wallet.payer().pay(BOLT11 + "2")
    assert wallet.calls[0]["own_id"] != wallet.calls[1]["own_id"]


async def test_a_wallet_that_is_not_ready_is_one_sentence() -> None:
    class Away:
        async def check(self) -> WalletState:
            return WalletState("w", "fake", ready=False, detail="connection refused")

    with pytest.raises(WalletUnavailable, match="the fake wallet is not ready: connection refused"):
        await require_ready(cast(Wallet, Away()))


async def test_the_fake_wallet_proves_what_it_paid_to_itself(tmp_path: Any) -> None:
    with WalletProcess(tmp_path) as process:
        client = process.client()
        async with client.running():
            purse = await client.create_invoice(InvoiceRequest("purse", 50_000, 600))
            price = await client.create_invoice(InvoiceRequest("price", 4_000, 600))
            await process.payer().pay(purse.bolt11)
            await require_ready(client)
            payer = WalletPayer(client, 0)
            first = await payer.pay(price.bolt11)
            assert await payer.pay(price.bolt11) == first, "the same call again pays nothing and tells the same"
            assert (await process.books())["paid_msats"] == 4_000
