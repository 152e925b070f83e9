"""One job bought: whose invoice is taken, what is paid, and when nobody is left who could answer.

What happens is told to a `Watcher`; this module prints nothing and sets no time limit.
"""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from enum import StrEnum
from typing import Final, Protocol

from pylon.customer.client import Order
from pylon.customer.payment import Payer, PaymentInDoubt, PaymentRefused, Receipt
from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Remark, Result, Success, Update
from pylon.jobs.ports import WalletAmbiguous, WalletError
from pylon.nostr.bolt11 import InvoiceFacts

MAX_INVOICES: Final = 5
"""Invoices that are looked at, of one provider; more are not worth the time that reading them takes."""


class Standing(StrEnum):
    """How a purchase stands; where it ends without a result, this says why there is none."""

    WAITING = "waiting"  # nobody has said anything that counts
    UNPAID = "unpaid"  # an invoice waits to be paid, or was refused
    WORKING = "working"  # paid or not, a provider is at work
    FAILED = "failed"  # whoever answered says that there will be no result
    DONE = "done"


class Watcher(Protocol):
    """Who is told what happens, in order. Text in it was written by strangers."""

    def heard(self, update: Processing | Success | Remark) -> None:
        """Hear what a provider says of its work."""
        ...

    def partial(self, update: Partial) -> None:
        """Hear output so far."""
        ...

    def result(self, update: Result) -> None:
        """Hear the result; nothing but its payment comes after it."""
        ...

    def failed(self, update: Failed) -> None:
        """Hear that a provider will not deliver."""
        ...

    def invoice(self, asked: PaymentRequired, facts: InvoiceFacts) -> None:
        """Hear of an invoice that passed all checks and is to be paid elsewhere."""
        ...

    def paying(self, asked: PaymentRequired) -> None:
        """Hear that an invoice is being checked and paid."""
        ...

    def paid(self, receipt: Receipt) -> None:
        """Hear that it was paid."""
        ...

    def not_paid(self, asked: PaymentRequired, why: str) -> None:
        """Hear that an invoice was certainly not paid."""
        ...

    def in_doubt(self, asked: PaymentRequired, why: str) -> None:
        """Hear that an invoice may have been paid; the result is awaited as if it was."""
        ...


class Purchase:
    """One order followed to its end. Without a payer, invoices are shown and paid elsewhere."""

    def __init__(self, order: Order, watcher: Watcher, payer: Payer | None) -> None:
        self._order = order
        self._watcher = watcher
        self._payer = payer
        self._taken: str | None = None  # the provider whose invoice waits to be paid elsewhere
        self._paid_provider = ""  # who was paid, where the order is engaged
        self._shown: set[str] = set()  # invoices
        self._asked: Counter[str] = Counter()  # invoices by provider
        self._out: set[str] = set()  # providers that will not deliver
        self._working: set[str] = set()
        self._unpaid = False
        self._done = False

    @property
    def standing(self) -> Standing:
        """How it stands now."""
        if self._done:
            return Standing.DONE
        if self._order.engaged or self._working:
            return Standing.FAILED if self._nobody_is_left() else Standing.WORKING
        if self._unpaid:
            return Standing.UNPAID
        return Standing.FAILED if self._out else Standing.WAITING

    @property
    def may_be_paid(self) -> bool:
        """Whether the job was paid as far as can be known: by us, or elsewhere, since its provider works on it."""
        return self._order.engaged or (self._taken is not None and self._taken in self._working)

    async def follow(self) -> None:
        """Follow the order to its end: a result, or nobody left to give one. The caller sets the time limit."""
        async with aclosing(self._order.updates()) as updates:
            async for update in updates:
                if await self.take(update):
                    return

    async def take(self, update: Update) -> bool:
        """Do what follows from one update. Returns whether the purchase has ended."""
        await self._act(update)
        return self._done or self._nobody_is_left()

    async def _act(self, update: Update) -> None:
        match update:
            case PaymentRequired():
                await self._payment_required(update)
            case Partial():
                self._works(update.provider)
                self._watcher.partial(update)
            case Processing():
                self._works(update.provider)
                self._watcher.heard(update)
            case Success() | Remark():
                self._watcher.heard(update)
            case Failed():
                self._give_up_on(update.provider)
                self._watcher.failed(update)
            case Result():
                self._done = True
                self._watcher.result(update)
                await self._pay_after(update)

    def _nobody_is_left(self) -> bool:
        if self._order.engaged:
            # Only who was paid is heard.
            return self._paid_provider in self._out
        return bool(self._order.providers) and self._order.providers <= self._out

    def _works(self, provider: str) -> None:
        self._working.add(provider)
        if provider == self._taken:
            self._unpaid = False  # it was paid elsewhere, else its provider would wait

    def _give_up_on(self, provider: str) -> None:
        self._out.add(provider)
        self._working.discard(provider)
        if provider == self._taken:
            self._taken = None
            self._order.take(None)

    # --- money ------------------------------------------------------------------------------------------------

    async def _payment_required(self, asked: PaymentRequired) -> None:
        if self._order.engaged:
            self._watcher.not_paid(asked, "this request was paid, or may have been: it is not paid twice")
        elif self._is_news(asked):
            self._unpaid = True
            if not await self._settle(asked):
                self._give_up_on(asked.provider)

    async def _pay_after(self, result: Result) -> None:
        """Pay for a result that came with an invoice."""
        asked = PaymentRequired(result.provider, result.amount_msats, result.bolt11)
        if result.bolt11 is not None and not self._order.engaged and self._is_news(asked):
            await self._settle(asked)

    def _is_news(self, asked: PaymentRequired) -> bool:
        self._asked[asked.provider] += 1
        return self._asked[asked.provider] <= MAX_INVOICES and asked.bolt11 not in self._shown

    async def _settle(self, asked: PaymentRequired) -> bool:
        """Pay an invoice, or show it. Returns whether it is, or may be, paid or to be paid."""
        try:
            if self._payer is not None:
                return await self._pay(asked, self._payer)
            facts = await self._order.check(asked)
        except PaymentRefused as refused:
            self._watcher.not_paid(asked, str(refused))
            return False
        assert asked.bolt11 is not None
        self._shown.add(asked.bolt11)
        # Once it is paid nobody else must be able to answer, and when that is only the customer knows.
        self._taken = asked.provider
        self._order.take(asked.provider)
        self._watcher.invoice(asked, facts)
        return True

    async def _pay(self, asked: PaymentRequired, payer: Payer) -> bool:
        self._watcher.paying(asked)
        self._paid_provider = asked.provider
        try:
            receipt = await self._order.pay(asked, payer)
        except (PaymentInDoubt, WalletAmbiguous) as error:
            self._watcher.in_doubt(asked, str(error))
        except WalletError as error:
            self._watcher.not_paid(asked, str(error))
            return False
        else:
            self._watcher.paid(receipt)
        return True
