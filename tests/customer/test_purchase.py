"""Whose invoice is taken, when nobody is left, and what counts as paid: an order without relays."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

import pytest

from pylon.customer.client import Order
from pylon.customer.conversation import Conversation
from pylon.customer.payment import Payer, Till
from pylon.customer.purchase import MAX_INVOICES, Purchase, Standing
from pylon.jobs.ports import WalletAmbiguous, WalletRefused
from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_replies import feedback_draft, payment_required_draft, result_draft
from pylon.wallets.fake_server.node import Signed
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, job_request
from tests.support.stall import invoice


class Notes:
    """A `Watcher` that keeps what it was told, as words."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def note(*about: Any) -> None:
            self.told.append(name)

        return note


class Relays:
    """Stands for the customer an order belongs to: counts how often the relays are asked again."""

    def __init__(self) -> None:
        self.asked_again = 0

    def ask_again(self) -> None:
        self.asked_again += 1


class Purse:
    def __init__(self, *outcomes: str | Exception) -> None:
        self.outcomes = list(outcomes)
        self.paid: list[str] = []

    async def pay(self, bolt11: str) -> str:
        self.paid.append(bolt11)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Scene:
    def __init__(self, payer: Payer | None, providers: tuple[str, ...], bid_msats: int | None) -> None:
        self.request = job_request(providers=providers, bid_msats=bid_msats, created_at=int(time.time()))
        self.relays = Relays()
        customer: Any = self.relays
        till = Till(bid_msats, "regtest", time.time)
        self.order = Order(customer, Conversation(self.request), till)
        self.notes = Notes()
        self.purchase = Purchase(self.order, self.notes, payer)
        self.ended = False
        self._said = 0

    def standing(self) -> Standing:
        return self.purchase.standing

    def may_be_paid(self) -> bool:
        return self.purchase.may_be_paid

    def has_ended(self) -> bool:
        return self.ended

    async def say(self, draft: Draft, by: SecretKey = PROVIDER) -> str | None:
        """Let a provider say something and the purchase take it; returns why it was dropped."""
        self._said += 1
        dropped = self.order.hear(draft.sign(by, self._said))
        await self.take_all()
        return dropped

    async def take_all(self) -> None:
        """Let the purchase take what waits."""
        async with aclosing(self.order.updates()) as updates:
            while self.order.waiting and not self.ended:
                self.ended = await self.purchase.take(await anext(updates))

    async def ask(self, made: Signed, by: SecretKey = PROVIDER, amount_msats: int = 4000) -> str | None:
        return await self.say(
            payment_required_draft(
                *(self.request.id, CUSTOMER.public_hex),
                amount_msats=amount_msats, bolt11=made.bolt11, invoice_expires_at=1, eta_s=1,
            ),
            by,
        )  # fmt: skip

    async def feedback(self, status: FeedbackStatus, by: SecretKey = PROVIDER) -> str | None:
        return await self.say(feedback_draft(self.request.id, CUSTOMER.public_hex, status), by)

    async def deliver(self, by: SecretKey = PROVIDER, made: Signed | None = None) -> str | None:
        asked: dict[str, Any] = {} if made is None else {"amount_msats": 4000, "bolt11": made.bolt11}
        return await self.say(result_draft(self.request, "done", **asked), by)


def scene(payer: Payer | None = None, *, addressed: bool = False, bid_msats: int | None = 5000) -> Scene:
    return Scene(payer, (PROVIDER.public_hex,) if addressed else (), bid_msats)


async def test_paid_and_delivered() -> None:
    made = invoice()
    played = scene(Purse(made.preimage), addressed=True)
    await played.ask(made)
    assert played.may_be_paid()
    await played.deliver()
    assert played.has_ended()
    assert played.standing() is Standing.DONE
    assert played.notes.told == ["paying", "paid", "result"]


async def test_once_an_invoice_is_shown_only_its_provider_is_heard() -> None:
    played = scene()
    await played.ask(invoice())
    assert await played.deliver(by=STRANGER) == "stranger"
    assert played.standing() is Standing.UNPAID
    assert not played.may_be_paid()
    await played.feedback(FeedbackStatus.PROCESSING)
    assert played.may_be_paid(), "else its provider would wait"
    assert played.standing() is Standing.WORKING
    assert played.notes.told == ["invoice", "heard"]


async def test_when_the_taken_one_gives_up_all_are_heard_again_and_the_relays_are_asked() -> None:
    played = scene()
    await played.ask(invoice())
    await played.ask(invoice(), by=STRANGER)
    await played.feedback(FeedbackStatus.ERROR)
    assert played.relays.asked_again == 1
    assert not played.has_ended(), "anybody may still answer a broadcast"
    assert await played.deliver(by=STRANGER) is None
    assert played.has_ended()
    assert played.standing() is Standing.DONE


async def test_what_others_said_before_a_payment_failed_is_not_lost() -> None:
    first, second = invoice(), invoice()
    purse = Purse(WalletRefused("no route"), second.preimage)
    played = scene(purse)
    for made, who in ((first, PROVIDER), (second, STRANGER)):
        draft = payment_required_draft(
            *(played.request.id, CUSTOMER.public_hex),
            amount_msats=4000, bolt11=made.bolt11, invoice_expires_at=1, eta_s=1,
        )  # fmt: skip
        assert played.order.hear(draft.sign(who, 1)) is None
    await played.take_all()
    await played.deliver(by=STRANGER)
    assert played.has_ended()
    assert purse.paid == [first.bolt11, second.bolt11]
    assert played.notes.told == ["paying", "not_paid", "paying", "paid", "result"]


async def test_who_was_paid_and_gives_up_ends_it() -> None:
    made = invoice()
    played = scene(Purse(made.preimage))
    await played.ask(made)
    await played.feedback(FeedbackStatus.ERROR)
    assert played.has_ended()
    assert played.standing() is Standing.FAILED


async def test_a_payment_in_doubt_counts_as_made_and_is_not_made_again() -> None:
    purse = Purse(WalletAmbiguous("who knows"))
    played = scene(purse, addressed=True)
    await played.ask(invoice())
    await played.ask(invoice())
    assert played.may_be_paid()
    assert len(purse.paid) == 1
    await played.deliver(made=invoice())
    assert played.has_ended()
    assert played.notes.told == ["paying", "in_doubt", "not_paid", "result"]
    assert len(purse.paid) == 1


async def test_a_refused_invoice_ends_an_addressed_job_and_not_a_broadcast() -> None:
    for addressed in (True, False):
        played = scene(Purse(), addressed=addressed, bid_msats=3000)
        await played.ask(invoice())
        assert played.has_ended() is addressed
        assert played.standing() is Standing.UNPAID


async def test_a_result_with_an_invoice_is_paid_after_it_was_told() -> None:
    made = invoice()
    purse = Purse(made.preimage)
    played = scene(purse)
    await played.deliver(made=made)
    assert played.has_ended()
    assert purse.paid == [made.bolt11]
    assert played.notes.told == ["result", "paying", "paid"]


@pytest.mark.parametrize("payer", [None, Purse()])
async def test_a_flood_of_invoices_is_looked_at_up_to_a_limit(payer: Payer | None) -> None:
    played = scene(payer, bid_msats=3000)
    for _ in range(MAX_INVOICES + 3):
        await played.ask(invoice())
    assert played.notes.told.count("not_paid") == MAX_INVOICES
