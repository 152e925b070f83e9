"""The customer on a real relay that demands AUTH, with a provider played by the test."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from pylon.customer import client as module
from pylon.customer.client import Customer, CustomerConfig, NotPublished, Order
from pylon.customer.payment import PaymentRefused
from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Result, Success, Update
from pylon.jobs.ports import WalletUnavailable
from pylon.nostr.bolt11 import Network
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import DELETION_KIND, FeedbackStatus, JobInput, parse_deletion, request_draft
from pylon.nostr.nip90_replies import feedback_draft, partial_draft, payment_required_draft, result_draft
from pylon.relays.local import local_relay
from pylon.relays.state import PoolConfig
from pylon.wallets.fake_server.node import Draft as InvoiceDraft
from pylon.wallets.fake_server.node import Node
from tests.support.events import PROVIDER, STRANGER
from tests.support.running_pool import QUICK, Running, running_pool

LIMIT_S = 15.0
NODE = Node("22" * 32)


@dataclass
class Scene:
    customer: Customer
    provider: Running
    stranger: Running

    async def requested(self) -> Event:
        """Wait for the request at the provider."""
        return await self.provider_heard(lambda event: event.kind == 5050)

    async def provider_heard(self, wanted: Callable[[Event], bool]) -> Event:
        while True:
            for event, _ in self.provider.heard.events:
                if wanted(event):
                    return event
            await anyio.sleep(0.01)

    def say(self, draft: Draft, *, by: Running | None = None) -> Event:
        speaker = by or self.provider
        event = draft.sign(speaker.key, int(time.time()))
        speaker.deliver(event)
        return event


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with anyio.fail_after(LIMIT_S):
        async with (
            local_relay(nip42="both") as url,
            running_pool(url, key=PROVIDER) as provider,
            running_pool(url, key=STRANGER) as stranger,
            make_customer(url).running() as customer,
        ):
            provider.pool.subscribe("requests", lambda since: [{"kinds": [5050, DELETION_KIND], "since": since}])
            await provider.pool.wait_caught_up("requests")
            yield Scene(customer, provider, stranger)


def make_customer(*urls: str, publish_timeout_s: float = 10.0) -> Customer:
    return Customer(
        CustomerConfig(Network.REGTEST, publish_timeout_s=publish_timeout_s, subscribe_timeout_s=1.0),
        PoolConfig(urls=urls, **QUICK),
        key=SecretKey.generate(),
        clock=time.time,
        rng=random.Random(3),
    )


def asking(prompt: str = "Hello", *, addressed: bool = True, bid_msats: int | None = 10_000) -> Draft:
    providers = [PROVIDER.public_hex] if addressed else []
    return request_draft(5050, [JobInput(prompt)], bid_msats=bid_msats, providers=providers)


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is so; the scene has the time limit."""
    while not true():  # noqa: ASYNC110 - neither side tells when it has heard something
        await anyio.sleep(0.01)


async def take(order: Order, until: type[Update]) -> list[Update]:
    """Return the updates up to the first of a type."""
    found: list[Update] = []
    async with aclosing(order.updates()) as updates:
        async for update in updates:
            found.append(update)
            if isinstance(update, until):
                break
    return found


class Purse:
    """Knows one preimage."""

    def __init__(self, preimage: str) -> None:
        self.preimage = preimage
        self.paid: list[str] = []

    async def pay(self, bolt11: str) -> str:
        self.paid.append(bolt11)
        return self.preimage


def payment_required(request: Event, amount_msats: int = 4000) -> tuple[Draft, str]:
    now = int(time.time())
    invoice = NODE.sign(InvoiceDraft("id", amount_msats, 600, "a job", None), now)
    draft = payment_required_draft(
        request.id,
        request.pubkey,
        amount_msats=amount_msats,
        bolt11=invoice.bolt11,
        invoice_expires_at=now + 600,
        eta_s=1,
    )
    return draft, invoice.preimage


async def test_a_whole_purchase() -> None:
    async with scene() as played, played.customer.order(asking("What is salt?")) as order:
        request = await played.requested()
        assert request.id == order.id
        assert request.tag_values("i") == ["What is salt?"]
        draft, preimage = payment_required(request)
        played.say(draft)
        [asked] = await take(order, PaymentRequired)
        assert isinstance(asked, PaymentRequired)
        receipt = await order.pay(asked, Purse(preimage))
        assert receipt.amount_msats == 4000
        played.say(feedback_draft(request.id, request.pubkey, FeedbackStatus.PROCESSING))
        assert [type(update) for update in await take(order, Processing)] == [Processing]
        played.say(partial_draft(request.id, request.pubkey, "Salt", number=1, attempt=1))
        [partial] = await take(order, Partial)
        assert isinstance(partial, Partial)
        assert partial.content == "Salt"
        final = played.say(result_draft(request, "Salt is salt."))
        played.say(feedback_draft(request.id, request.pubkey, FeedbackStatus.SUCCESS))
        updates = await take(order, Success)
        assert [update for update in updates if isinstance(update, Result)] == [
            Result(PROVIDER.public_hex, "Salt is salt.", final)
        ]


async def test_replies_that_a_relay_tells_again_are_no_news() -> None:
    async with scene() as played, played.customer.order(asking()) as order:
        request = await played.requested()
        for number in (1, 2, 3):
            played.say(partial_draft(request.id, request.pubkey, "a" * number, number=number, attempt=1))
        played.say(result_draft(request, "aaaa"))
        await take(order, Result)
        # The second order changes the one filter, so the relay sends all stored replies once more.
        async with played.customer.order(asking("Another")) as other:
            await until(lambda: order.dropped.get("duplicate", 0) >= 4)
            assert order.waiting == other.waiting == 0


async def test_two_orders_hear_their_own_replies() -> None:
    async with (
        scene() as played,
        played.customer.order(asking("one")) as first,
        played.customer.order(asking("two")) as second,
    ):
        for order, text in ((second, "TWO"), (first, "ONE")):
            played.say(result_draft(order.request, text))
        for order, text in ((first, "ONE"), (second, "TWO")):
            [result] = await take(order, Result)
            assert isinstance(result, Result)
            assert result.content == text


async def test_after_paying_one_provider_of_a_broadcast_the_others_are_not_heard() -> None:
    async with scene() as played, played.customer.order(asking(addressed=False)) as order:
        request = await played.requested()
        draft, preimage = payment_required(request)
        played.say(draft)
        asked = (await take(order, PaymentRequired))[-1]
        assert isinstance(asked, PaymentRequired)
        played.say(feedback_draft(request.id, request.pubkey, FeedbackStatus.ERROR), by=played.stranger)
        await until(lambda: order.waiting == 1)
        await order.pay(asked, Purse(preimage))
        assert order.waiting == 0, "what others said before is not news any more"
        played.say(result_draft(request, "a lie"), by=played.stranger)
        await until(lambda: "stranger" in order.dropped)
        played.say(result_draft(request, "what was paid for"))
        [result] = await take(order, Result)
        assert isinstance(result, Result)
        assert result.content == "what was paid for"


async def test_a_payment_that_was_not_made_leaves_all_providers_heard() -> None:
    class Away:
        async def pay(self, bolt11: str) -> str:
            raise WalletUnavailable("away")

    async with scene() as played, played.customer.order(asking(addressed=False, bid_msats=None)) as order:
        request = await played.requested()
        draft, _ = payment_required(request)
        played.say(draft)
        asked = (await take(order, PaymentRequired))[-1]
        assert isinstance(asked, PaymentRequired)
        with pytest.raises(WalletUnavailable):
            await order.pay(asked, Away())
        played.say(result_draft(request, "for free"), by=played.stranger)
        [result] = await take(order, Result)
        assert result.provider == STRANGER.public_hex


async def test_nothing_above_the_bid_is_paid() -> None:
    async with scene() as played, played.customer.order(asking(bid_msats=3000)) as order:
        draft, preimage = payment_required(await played.requested())
        played.say(draft)
        asked = (await take(order, PaymentRequired))[-1]
        assert isinstance(asked, PaymentRequired)
        purse = Purse(preimage)
        with pytest.raises(PaymentRefused, match="the bid is 3000"):
            await order.pay(asked, purse)
        assert purse.paid == []


async def test_a_cancel_reaches_the_provider() -> None:
    async with scene() as played, played.customer.order(asking()) as order:
        await order.cancel("changed my mind")
        deletion = await played.provider_heard(lambda event: event.kind == DELETION_KIND)
        assert parse_deletion(deletion) == (order.id,)
        assert deletion.pubkey == order.request.pubkey


async def test_a_slow_reader_keeps_the_newest_partial_and_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    async with scene() as played, played.customer.order(asking()) as order:
        key, request = PROVIDER, order.request

        def hear(draft: Draft, at: int) -> str | None:
            return order.hear(draft.sign(key, at))

        for number in range(1, 50):
            text = "a" * number
            assert hear(partial_draft(order.id, request.pubkey, text, number=number, attempt=1), number) is None
        assert hear(result_draft(request, "done"), 60) is None
        assert hear(feedback_draft(order.id, request.pubkey, FeedbackStatus.SUCCESS), 61) is None
        assert hear(feedback_draft(order.id, request.pubkey, FeedbackStatus.ERROR), 62) == "reader-slow"
        newest, result, success = await take(order, Success)
        assert newest == Partial(key.public_hex, "a" * 49, 49, 1)
        assert isinstance(result, Result)
        assert isinstance(success, Success)
        assert played.customer.offer(result.event, "ws://x") == "duplicate"


async def test_without_a_relay_nothing_is_published_and_it_says_so() -> None:
    with anyio.fail_after(LIMIT_S):
        customer = make_customer("ws://127.0.0.1:9", publish_timeout_s=0.5)
        async with customer.running():
            with pytest.raises(NotPublished, match="no relay confirmed"):
                async with customer.order(asking()):
                    raise AssertionError("an order that nobody has")
            assert customer.relay_states()[0].url == "ws://127.0.0.1:9"


async def test_a_reply_that_names_its_request_only_by_a_copy_is_heard() -> None:
    async with scene() as played, played.customer.order(asking()) as order:
        event = Draft(6050, "hi", (("request", order.request.to_json()),)).sign(PROVIDER, 5)
        assert played.customer.offer(event, "ws://x") is None
        assert played.customer.offer(Draft(6050, "hi").sign(PROVIDER, 5), "ws://x") is not None
        [result] = await take(order, Result)
        assert isinstance(result, Result)
        assert result.content == "hi"


async def test_an_error_ends_in_failed() -> None:
    async with scene() as played, played.customer.order(asking()) as order:
        request = await played.requested()
        played.say(
            feedback_draft(
                request.id, request.pubkey, FeedbackStatus.ERROR, info="unsupported-model: no such model"
            )
        )
        assert await take(order, Failed) == [Failed(PROVIDER.public_hex, "unsupported-model", "no such model")]
