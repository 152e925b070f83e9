"""The demo: a customer buys one answer from a real provider, told as it happens."""

from __future__ import annotations

import random
import signal
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NoReturn, TextIO

import anyio
import anyio.to_thread

from pylon.control.views import BooksLine, EarningsBy
from pylon.customer.client import Customer, CustomerConfig, NotPublished, Order
from pylon.customer.payment import PaymentInDoubt, PaymentRefused
from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Result, Success
from pylon.demo.market import MODEL, Market, NotInstalled, open_market
from pylon.demo.processes import ChildFailed
from pylon.demo.story import Answer, Paint, Story
from pylon.errors import describe_error
from pylon.jobs.ports import WalletError
from pylon.nostr.bolt11 import Network
from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.nip90 import JobInput, request_draft
from pylon.paths import HOME_VARIABLE
from pylon.relays.state import PoolConfig
from pylon.store.records import Attempt
from pylon.store.reports import Reports
from pylon.text import printable

DEFAULT_PROMPT: Final = "Write two sentences about the sea."
BID_MSATS: Final = 100_000
INTERRUPTED: Final = 130

_KIND: Final = 5050
_JOB_LIMIT_S: Final = 300.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):
    """The demo could not be played to its end; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to ask, how long the answer may be, and whether the market stays open afterwards."""

    prompt: str = DEFAULT_PROMPT
    max_tokens: int = 128
    serve: bool = False


def run_demo(options: DemoOptions, out: TextIO | None = None) -> int:
    """Play the demo and return the exit code: 0, or 130 when it was interrupted. Raises `DemoFailed`."""
    story = Story(out or sys.stdout)
    try:
        return anyio.run(Demo(options, story).run)
    except Exception as error:  # noqa: BLE001 - whatever it was, it becomes one sentence
        _fail(story, error)


class Demo:
    """One performance."""

    def __init__(self, options: DemoOptions, story: Story) -> None:
        self._options = options
        self._story = story
        self._began = time.monotonic()
        self._serving = False

    async def run(self) -> int:
        """Play it until its end, or until a signal."""
        code = 0
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal() -> None:
                nonlocal code
                with anyio.open_signal_receiver(*_SIGNALS) as signals:
                    async for _ in signals:
                        code = 0 if self._serving else INTERRUPTED
                        tasks.cancel_scope.cancel()

            tasks.start_soon(stop_on_signal)
            await self._play()
            tasks.cancel_scope.cancel()
        if code or self._serving:
            self._story.say()
            self._story.say("Stopped; nothing of it stays behind.")
        return code

    async def _play(self) -> None:
        story = self._story
        story.say("A compute market on this machine: everything is real but the sats.", Paint.BOLD)
        story.say()
        async with open_market(story) as market:
            await self._buy(market)
            took_s = time.monotonic() - self._began
            story.say()
            story.say(f"Done: asked, paid, answered and settled, {took_s:.1f} s after the start.", Paint.GOOD)
            if self._options.serve:
                self._serving = True
                self._explain(market)
                await anyio.sleep_forever()

    async def _buy(self, market: Market) -> None:
        key = SecretKey.generate()
        customer = Customer(
            CustomerConfig(network=Network.REGTEST),
            PoolConfig(urls=(market.relay_url,)),
            key=key,
            clock=time.time,
            rng=random.Random(),  # noqa: S311 - jitter, not secrets
        )
        self._story.tell("customer", encode_npub(key.public_hex))
        self._story.say()
        async with customer.running(), customer.order(self._draft(market)) as order:
            with anyio.move_on_after(_JOB_LIMIT_S) as limit:
                await Purchase(market, order, self._story).follow()
            if limit.cancelled_caught:
                raise DemoFailed(f"the job was not finished within {_JOB_LIMIT_S:g} s")

    def _draft(self, market: Market) -> Draft:
        return request_draft(
            _KIND,
            [JobInput(self._options.prompt)],
            params=[("model", [MODEL]), ("max_tokens", [str(self._options.max_tokens)])],
            bid_msats=BID_MSATS,
            relays=[market.relay_url],
            providers=[market.provider],
        )

    def _explain(self, market: Market) -> None:
        home = market.paths.state_dir
        story = self._story
        story.say()
        story.say("The market stays open until Ctrl-C.", Paint.BOLD)
        story.tell("relay", market.relay_url)
        story.tell("provider", encode_npub(market.provider))
        story.tell("send", f"a kind {_KIND} request with any NIP-90 client: an `i` tag with the prompt, and")
        story.tell("", f'["param", "model", "{MODEL}"] if you like; the relay wants AUTH, any key will do')
        story.tell("pay", f"curl -H 'Authorization: Bearer {market.wallet.payer_token}' \\")
        story.tell("", f"""  -d '{{"bolt11": "lnbcrt…"}}' {market.wallet.url}/v1/payer/pay""")
        story.tell("look", f"{HOME_VARIABLE}={home} pylon status     (or: jobs list, earnings)")


class Purchase:
    """One job from the request on, as its customer sees it, and then what the provider's books say of it."""

    def __init__(self, market: Market, order: Order, story: Story) -> None:
        self._market = market
        self._order = order
        self._story = story
        self._answer: Answer | None = None
        self._paid_msats = 0

    async def follow(self) -> None:
        """Follow the job to its end. Raises `DemoFailed`, and what paying raises."""
        request = self._order.request
        self._story.tell("request", f"kind {request.kind}, job {request.id[:16]}…, bid {_sats(BID_MSATS)}")
        self._story.tell("", f"“{printable(request.tag_values('i')[0], limit=400)}”")
        async with aclosing(self._order.updates()) as updates:
            async for update in updates:
                match update:
                    case PaymentRequired():
                        await self._pay(update)
                    case Processing():
                        self._story.tell("working", "paid, so the model runs")
                    case Partial(_, content):
                        self._show(content)
                    case Result():
                        await self._take(update)
                    case Success():
                        await self._settle()
                        return
                    case Failed(_, prefix, sentence):
                        why = printable(sentence, limit=500)
                        raise DemoFailed(f"the provider answered with an error: {prefix}: {why}")

    async def _pay(self, asked: PaymentRequired) -> None:
        story, bolt11 = self._story, asked.bolt11 or "no invoice"
        story.tell("invoice", f"payment-required, {_sats(asked.amount_msats or 0)}: {bolt11[:40]}…")
        story.tell("", printable(asked.info))
        began = time.monotonic()
        receipt = await self._order.pay(asked, self._market.wallet.purse())
        took_ms = (time.monotonic() - began) * 1000
        self._paid_msats = receipt.amount_msats
        story.tell(
            "paid", f"{_sats(receipt.amount_msats)} in {took_ms:.0f} ms, after checking amount, bid, network"
        )
        story.tell("", f"and expiry; preimage {receipt.preimage[:16]}… proves it")

    def _show(self, content: str) -> None:
        if self._answer is None:
            self._story.tell("answer", "streams as partial results (kind 7000):")
            self._answer = self._story.answer()
        self._answer.grow(content)

    async def _take(self, result: Result) -> None:
        self._show(result.content)
        assert self._answer is not None
        self._answer.close()
        self._answer = None
        event = result.event
        self._story.tell("result", f"kind {event.kind}, event {event.id[:16]}…, signature checked")
        attempt = await anyio.to_thread.run_sync(self._attempt)
        self._story.tell("speed", _speed(attempt))

    async def _settle(self) -> None:
        """Compare what the customer paid with what the provider's books and its wallet say."""
        books = await anyio.to_thread.run_sync(self._books)
        balance_msats = await self._market.wallet.owner.balance_msats()
        self._story.tell("settled", f"the provider's wallet holds {_sats(balance_msats)}; its books say:")
        self._story.tell(
            "",
            f"received {_sats(books.received_msats)} = earned {_sats(books.earned_msats)}"
            f" + owed {_sats(books.owed_msats)}",
        )
        sums = (balance_msats, books.received_msats, books.earned_msats, books.owed_msats)
        if sums != (self._paid_msats, self._paid_msats, self._paid_msats, 0):
            raise DemoFailed(f"the customer paid {_sats(self._paid_msats)}, and that is not what the books say")

    def _books(self) -> BooksLine:
        return self._market.control.earnings(None, EarningsBy.TOTAL).total

    def _attempt(self) -> Attempt:
        """Return how the job ran, as the provider's database has it."""
        detail = Reports(self._market.paths.database).detail(self._order.id)
        if detail is None or not detail.attempts:
            raise DemoFailed("the provider's books have no attempt of this job")
        return detail.attempts[-1]


def _speed(attempt: Attempt) -> str:
    rate = attempt.output_tokens * 1000 / max(1, attempt.duration_ms)
    return (
        f"{attempt.prompt_tokens} tokens in, {attempt.output_tokens} out in {attempt.duration_ms / 1000:.1f} s:"
        f" {rate:.0f} tokens/s, the first after {attempt.first_token_ms} ms"
    )


def _sats(amount_msats: int) -> str:
    whole, rest = divmod(amount_msats, 1000)
    text = f"{whole:,}.{rest:03d}" if rest else f"{whole:,}"
    return f"{text} sat" if text == "1" else f"{text} sats"


def _fail(story: Story, error: Exception) -> NoReturn:
    """Raise `DemoFailed` with one sentence, after the last words of a child that died."""
    leaf = _first_leaf(error)
    if isinstance(leaf, BrokenPipeError):
        raise leaf  # nobody reads the story any more
    story.say()
    if isinstance(leaf, ChildFailed) and leaf.log_lines:
        story.say("The last lines of its log:", Paint.BAD)
        for line in leaf.log_lines:
            story.say(f"    {line}", Paint.DIM)
    ours = (DemoFailed, NotInstalled, ChildFailed, NotPublished, PaymentRefused, PaymentInDoubt, WalletError)
    sentence = str(leaf) if isinstance(leaf, ours) else describe_error(leaf)
    raise DemoFailed(f"the demo failed: {sentence}") from error


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        # What a child said of its own end explains the failures that it caused elsewhere.
        told = error.subgroup(ChildFailed)
        error = (told or error).exceptions[0]
    return error
