"""Paying a provider: the invoice is checked before, the proof after, and one request is never paid twice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

import anyio.to_thread

from pylon.customer.updates import PaymentRequired
from pylon.jobs.ports import Clock, WalletRefused, WalletUnavailable
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, check_invoice, proves, read_invoice

MIN_REMAINING_S: Final = 5
"""An invoice that expires sooner is not paid: the payment would arrive too late."""


class PaymentRefused(Exception):
    """The customer's own checks say no; nothing was paid. The message is one sentence."""


class PaymentInDoubt(Exception):
    """The invoice was, or may have been, paid, and there is no valid proof. The message is one sentence."""


class Payer(Protocol):
    """A customer's wallet, as far as paying an invoice goes."""

    async def pay(self, bolt11: str) -> str:
        """Pay and return the preimage, 64 hex digits.

        Raises `WalletRefused` or `WalletUnavailable` when it was certainly not paid, `WalletAmbiguous` when it may
        have been.
        """
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of a payment: the preimage is known only to who was paid and to who paid."""

    provider: str
    amount_msats: int
    bolt11: str
    payment_hash: str
    preimage: str


class _Stage(Enum):
    UNPAID = "unpaid"
    IN_DOUBT = "in doubt"  # given to the wallet, and nothing certain came back
    PAID = "paid"


class Till:
    """The one payment of one request. `bid_msats` is the most that is ever paid, None where no bid was made."""

    def __init__(self, bid_msats: int | None, network: str, clock: Clock) -> None:
        self._bid_msats = bid_msats
        self._network = network
        self._clock = clock
        self._stage = _Stage.UNPAID

    @property
    def engaged(self) -> bool:
        """Whether a payment was made, is being made, or may have been made."""
        return self._stage is not _Stage.UNPAID

    async def check(self, asked: PaymentRequired) -> InvoiceFacts:
        """Return what the invoice says. Raises `PaymentRefused` unless it is for what was asked, and payable."""
        if asked.bolt11 is None:
            raise PaymentRefused("the provider asks for payment without an invoice")
        if asked.amount_msats is None:
            raise PaymentRefused("the provider does not say what its invoice is for")
        if self._bid_msats is not None and asked.amount_msats > self._bid_msats:
            raise PaymentRefused(
                f"the provider asks {asked.amount_msats} msats, the bid is {self._bid_msats} msats"
            )
        try:
            # A stranger chose its length, and reading takes up to 140 ms.
            facts = await anyio.to_thread.run_sync(read_invoice, asked.bolt11)
            now = self._clock() + MIN_REMAINING_S
            check_invoice(facts, amount_msats=asked.amount_msats, network=self._network, now=now)
        except BadInvoice as error:
            raise PaymentRefused(str(error)) from error
        return facts

    async def pay(self, asked: PaymentRequired, payer: Payer) -> Receipt:
        """Pay what is asked, once. Raises `PaymentRefused`, `PaymentInDoubt` and the payer's `WalletError`s.

        After `PaymentRefused`, `WalletRefused` or `WalletUnavailable` nothing was paid and it may be tried again.
        Anything else, cancellation included, leaves the payment in doubt, and no other is made.
        """
        if self._stage is not _Stage.UNPAID:
            raise PaymentRefused("this request was paid, or may have been: it is not paid twice")
        self._stage = _Stage.IN_DOUBT
        try:
            facts = await self.check(asked)
        except BaseException:
            self._stage = _Stage.UNPAID
            raise
        assert asked.bolt11 is not None
        assert asked.amount_msats is not None
        try:
            preimage = await payer.pay(asked.bolt11)
        except (WalletRefused, WalletUnavailable):
            self._stage = _Stage.UNPAID
            raise
        if not proves(preimage, facts.payment_hash):
            raise PaymentInDoubt("the wallet says that it paid, and its proof does not belong to this invoice")
        self._stage = _Stage.PAID
        return Receipt(asked.provider, asked.amount_msats, asked.bolt11, facts.payment_hash, preimage)
