"""A customer on relays: publishes job requests, hears the replies, pays and cancels.

    me = Customer(CustomerConfig(), PoolConfig(urls=...), key=key, clock=time.time, rng=random.Random())
    async with me.running():
        async with me.order(request_draft(5050, [JobInput("Hello")])) as order:
            async for update in order.updates():
                ...

The replies to all open orders come through one subscription, whose filter moves with them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

import anyio

from pylon.customer.conversation import Conversation, Drop
from pylon.customer.payment import Payer, Receipt, Till
from pylon.customer.updates import Partial, PaymentRequired, Update
from pylon.jobs.ports import Clock
from pylon.nostr.bolt11 import InvoiceFacts, Network
from pylon.nostr.event import Draft, Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.nostr.nip90 import FEEDBACK_KIND, cancel_draft, result_kind
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import OutboxPublisher
from pylon.relays.state import PoolConfig, RelayState

MAX_WAITING: Final = 256
"""Updates of one order that nobody has taken yet; partials that follow each other count as one."""

_REPLIES: Final = "replies"
_FLUSH_EVERY_S: Final = 0.05


class NotPublished(Exception):
    """No relay confirmed the event in time, or every relay refused it. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class CustomerConfig:
    """What a customer decides: the network of the invoices it pays, and how long it waits for relays."""

    network: Network = Network.BITCOIN
    publish_timeout_s: float = 30.0
    subscribe_timeout_s: float = 5.0


@dataclass(slots=True)
class _Publishing:
    ended: anyio.Event = field(default_factory=anyio.Event)
    fault: str | None = None


@dataclass(slots=True)
class _Finding:
    ended: anyio.Event = field(default_factory=anyio.Event)
    event: Event | None = None

    def take(self, event: Event) -> str | None:
        """Take the event that was asked for; returns the reason when it is not that."""
        if not verify(event):
            return "forged"
        self.event = event
        self.ended.set()
        return None


class Customer:
    """One key that buys. Its relays are connected while `running` is entered."""

    def __init__(
        self, config: CustomerConfig, relays: PoolConfig, *, key: SecretKey, clock: Clock, rng: random.Random
    ) -> None:
        """Raises `DialRefused` when a URL is none of a relay."""
        self.pubkey = key.public_hex
        self._config = config
        self._key = key
        self._clock = clock
        self._pool = RelayPool(relays, key=key, sink=self, clock=clock, rng=rng)
        self._publisher = OutboxPublisher(self._pool, self, relays, clock=clock, rng=rng)
        self._publishing: dict[str, _Publishing] = {}
        self._orders: dict[str, Order] = {}
        self._findings: dict[str, _Finding] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Hold the connections to the relays; entering does not wait for them."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pool.run)
            tasks.start_soon(self._publisher.run)
            self._pool.subscribe(_REPLIES, self._filters)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

    def relay_states(self) -> tuple[RelayState, ...]:
        """Return how each relay stands."""
        return self._pool.states()

    def sign(self, draft: Draft) -> Event:
        """Return a job request of this customer's, dated now. Raises `BadEvent` when it cannot be encoded."""
        return draft.sign(self._key, int(self._clock()))

    async def find(self, event_id: str) -> Event:
        """Return an event that a relay has stored, its signature checked. The caller sets the time limit."""
        finding = self._findings.setdefault(event_id, _Finding())
        self._pool.refresh(_REPLIES)
        try:
            await finding.ended.wait()
        finally:
            self._findings.pop(event_id, None)
            self._pool.refresh(_REPLIES)
        assert finding.event is not None
        return finding.event

    @asynccontextmanager
    async def order(self, draft: Draft | Event, *, publish: bool = True) -> AsyncIterator[Order]:
        """Publish a job request and yield the order; its replies are heard until the block ends.

        The draft, or the event that `sign` made of it, says everything: providers (`p`), bid, kind, input. Raises
        `NotPublished`, and `nip90.BadRequest` when it is no job request. Leaving the block does not cancel the job.
        Without `publish` an event that relays have already is followed, whoever signed it.
        """
        request = self.sign(draft) if isinstance(draft, Draft) else draft
        conversation = Conversation(request)
        till = Till(conversation.request.bid_msats, self._config.network, self._clock)
        order = Order(self, conversation, till)
        self._orders[request.id] = order
        try:
            self._pool.refresh(_REPLIES)
            # Replies published before this relay listens to us are stored there, so this only saves time.
            with anyio.move_on_after(self._config.subscribe_timeout_s):
                await self._pool.wait_caught_up(_REPLIES)
            if publish:
                await self.publish(request)
            yield order
        finally:
            del self._orders[request.id]
            self._pool.refresh(_REPLIES)

    async def publish(self, event: Event) -> None:
        """Send an event until a relay confirms it. Raises `NotPublished`."""
        publishing = self._publishing[event.id] = _Publishing()
        deadline_at = self._clock() + self._config.publish_timeout_s
        self._publisher.deliver(event.id, event.to_json(), (), deadline_at)
        try:
            await publishing.ended.wait()
        finally:
            del self._publishing[event.id]
        if publishing.fault is not None:
            raise NotPublished(publishing.fault)

    async def cancel(self, request: Event, reason: str = "") -> None:
        """Ask by kind 5 that a request of ours is cancelled. Raises `NotPublished`."""
        await self.publish(cancel_draft(request.id, request.kind, reason).sign(self._key, int(self._clock())))

    def ask_again(self) -> None:
        """Let the relays tell once more what they have stored; what was heard is not told twice."""
        self._pool.refresh(_REPLIES)

    async def flush(self) -> None:
        """Wait until every relay has what one of them confirmed. The caller sets a short time limit."""
        while self._publisher.states().lingering:  # noqa: ASYNC110 - the publisher tells of the first one only
            await anyio.sleep(_FLUSH_EVERY_S)

    # --- what the relays tell -----------------------------------------------------------------------------------

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take a reply; see `EventSink`."""
        if finding := self._findings.get(event.id):
            return finding.take(event)
        reason: str | None = "unrelated"
        for name in event.tag_values("e"):
            if name in self._orders:
                return self._orders[name].hear(event)
        # Some replies name their request only by the copy they carry: then only the conversations can tell.
        for order in self._orders.values():
            reason = order.hear(event)
            if reason is None:
                return None
        return reason

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay has an event of ours; see `DeliverySink`."""
        if publishing := self._publishing.get(event_id):
            publishing.ended.set()

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay took an event of ours; see `DeliverySink`."""
        if publishing := self._publishing.get(event_id):
            publishing.fault = why
            publishing.ended.set()

    def _filters(self, since: int) -> Sequence[Filter]:
        # Without `since`: an id cannot be older than its request, and a provider's clock may be behind ours.
        ids = sorted(self._orders)
        kinds = sorted({FEEDBACK_KIND, *(result_kind(order.request.kind) for order in self._orders.values())})
        wanted: list[Filter] = [{"kinds": kinds, "#e": ids}] if ids else []
        return [*wanted, {"ids": sorted(self._findings)}] if self._findings else wanted


class Order:
    """One published job request. Updates have one reader."""

    def __init__(self, customer: Customer, conversation: Conversation, till: Till) -> None:
        self.request = conversation.request.event
        self._customer = customer
        self._till = till
        self._conversation = conversation
        self._waiting: deque[Update] = deque()
        self._aside: deque[Update] = deque(maxlen=MAX_WAITING)  # what others said before one was taken
        self._something = anyio.Event()

    @property
    def id(self) -> str:
        """The job's id: that of the request."""
        return self.request.id

    @property
    def dropped(self) -> dict[str, int]:
        """How many events were not believed or not news, by reason."""
        return {reason.value: count for reason, count in self._conversation.dropped.items()}

    @property
    def waiting(self) -> int:
        """How many updates nobody has taken yet."""
        return len(self._waiting)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Yield what the providers say, as it comes; ends only with its reader, who sets the time limit."""
        while True:
            while not self._waiting:
                self._something = anyio.Event()
                await self._something.wait()
            yield self._waiting.popleft()

    @property
    def providers(self) -> frozenset[str]:
        """Whom the request is addressed to; none means that anybody may answer."""
        return self._conversation.providers

    @property
    def engaged(self) -> bool:
        """Whether a payment was made, is being made, or may have been made by `pay`."""
        return self._till.engaged

    async def check(self, asked: PaymentRequired) -> InvoiceFacts:
        """Return what an invoice says. Raises `PaymentRefused` unless it is as asked, within the bid, payable."""
        return await self._till.check(asked)

    def take(self, provider: str | None) -> None:
        """Hear only the provider whose invoice is paid elsewhere, or with None again all that may answer.

        What the others say meanwhile is not lost: it is asked for again.
        """
        self._conversation.listen_only_to(provider)
        if provider is not None:
            self._set_others_aside(provider)
            return
        self._waiting.extendleft(reversed(self._aside))
        self._aside.clear()
        self._something.set()
        self._customer.ask_again()

    async def pay(self, asked: PaymentRequired, payer: Payer) -> Receipt:
        """Check the invoice and pay it, once per request; afterwards only that provider is heard.

        Raises what `Till.pay` raises.
        """
        # From before the payment on: nobody else must be able to answer in the place of who was paid.
        self._conversation.listen_only_to(asked.provider)
        self._set_others_aside(asked.provider)
        try:
            return await self._till.pay(asked, payer)
        finally:
            if not self._till.engaged:
                self.take(None)

    async def cancel(self, reason: str = "") -> None:
        """Cancel the job by kind 5. Raises `NotPublished`."""
        await self._customer.cancel(self.request, reason)

    def _set_others_aside(self, provider: str) -> None:
        self._aside += (update for update in self._waiting if update.provider != provider)
        self._waiting = deque(update for update in self._waiting if update.provider == provider)

    def hear(self, event: Event) -> str | None:
        """Take a reply; returns the reason when it is none. Synchronous and never raises."""
        update = self._conversation.hear(event)
        if isinstance(update, Drop):
            return update.value
        last = self._waiting[-1] if self._waiting else None
        if _replaces(update, last):
            self._waiting[-1] = update
        elif len(self._waiting) >= MAX_WAITING:
            return "reader-slow"
        else:
            self._waiting.append(update)
        self._something.set()
        return None


def _replaces(new: Update, old: Update | None) -> bool:
    """Tell whether a numbered partial makes the one before it superfluous, since it holds all of its text."""
    return (
        isinstance(new, Partial)
        and isinstance(old, Partial)
        and new.provider == old.provider
        and new.number is not None
        and old.number is not None
    )
