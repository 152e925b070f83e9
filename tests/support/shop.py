"""A customer that sees everything: publishes requests and keeps every event that is said about them, as it came.

Unlike `pylon.customer` it believes and drops nothing: what a test wants to know is what was really published.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
from websockets.asyncio.client import connect

from pylon.nostr.event import Draft, Event, parse_event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FEEDBACK_KIND, FeedbackStatus, JobInput, cancel_draft, request_draft
from pylon.nostr.nip90_replies import Feedback, parse_feedback
from tests.support.running_pool import Heard, Running, running_pool

KIND = 5050
RESULT_KIND = 6050
REPLIES = "replies"
PUBLISH_LIMIT_S = 20.0
REPLY_LIMIT_S = 30.0


class Order:
    """One request and what was published about it: each event once, in the order of its coming."""

    def __init__(self, request: Event) -> None:
        self.request = request
        self.id = request.id
        self.events: dict[str, Event] = {}
        self.heard_on: defaultdict[str, set[str]] = defaultdict(set)  # event id -> relays
        self._news = anyio.Event()

    def hear(self, event: Event, relay_url: str) -> None:
        self.heard_on[event.id].add(relay_url)
        if event.id not in self.events:
            self.events[event.id] = event
            news, self._news = self._news, anyio.Event()
            news.set()

    @property
    def results(self) -> list[Event]:
        return [event for event in self.events.values() if event.kind == RESULT_KIND]

    def feedback(self, status: FeedbackStatus) -> list[Feedback]:
        said = [parse_feedback(event) for event in self.events.values() if event.kind == FEEDBACK_KIND]
        return [each for each in said if each.status is status]

    @property
    def invoices(self) -> list[str]:
        """Every invoice that was published, in order."""
        asked = self.feedback(FeedbackStatus.PAYMENT_REQUIRED)
        return list(dict.fromkeys(each.bolt11 for each in asked if each.bolt11 is not None))

    @property
    def errors(self) -> list[str]:
        """The machine-readable prefixes of the errors, in order."""
        return [each.prefix.value if each.prefix else each.info for each in self.feedback(FeedbackStatus.ERROR)]

    async def until(self, condition: Callable[[Order], Any], what: str, limit_s: float = REPLY_LIMIT_S) -> None:
        """Wait until what was said fulfils a condition."""
        with anyio.move_on_after(limit_s):
            while not condition(self):
                await self._news.wait()
            return
        heard = [(each.kind, each.tag("status"), each.content[:60]) for each in self.events.values()]
        raise AssertionError(f"job {self.id[:12]}: no {what} within {limit_s:g} s; heard: {heard}")

    async def result(self, limit_s: float = REPLY_LIMIT_S) -> Event:
        """Wait for the result, check that its signature holds, and return it."""
        await self.until(lambda order: order.results, "result", limit_s)
        event = self.results[0]
        assert verify(event)
        return event

    async def invoice(self, number: int = 0, limit_s: float = REPLY_LIMIT_S) -> str:
        """Wait for an invoice, counted from 0, and return it."""
        await self.until(lambda order: len(order.invoices) > number, f"invoice {number}", limit_s)
        return self.invoices[number]

    async def error(self, limit_s: float = REPLY_LIMIT_S) -> str:
        """Wait for the first error and return its prefix."""
        await self.until(lambda order: order.errors, "error", limit_s)
        return self.errors[0]


class _Ear(Heard):
    """Sorts what relays send by the request it speaks of."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: dict[str, Order] = {}
        self.published: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)

    def offer(self, event: Event, relay_url: str) -> str | None:
        for job_id in event.tag_values("e"):
            if job_id in self.orders:
                self.orders[job_id].hear(event, relay_url)
        return None

    def confirmed(self, event_id: str, relay_url: str) -> None:
        super().confirmed(event_id, relay_url)
        self.published[event_id].set()

    def gave_up(self, event_id: str, why: str) -> None:
        super().gave_up(event_id, why)
        self.published[event_id].set()


class Shop:
    """The customer: one key, connected to its relays."""

    def __init__(self, running: Running, ear: _Ear) -> None:
        self._running = running
        self._ear = ear
        self._made = 0
        self.key = running.key

    @property
    def orders(self) -> list[Order]:
        return list(self._ear.orders.values())

    def draft(self, prompt: str = "", **options: Any) -> Draft:
        """Return a request; without a prompt one that was never asked before. `options` are `request_draft`'s."""
        self._made += 1
        return request_draft(KIND, [JobInput(prompt or f"prompt number {self._made}")], **options)

    async def order(
        self, prompt: str = "", *, created_at: int | None = None, key: SecretKey | None = None, **options: Any
    ) -> Order:
        """Publish a request and return it when a relay has it."""
        when = int(time.time()) if created_at is None else created_at
        order = self.follow(self.draft(prompt, **options).sign(key or self.key, when))
        await self.publish(order.request)
        return order

    def follow(self, request: Event) -> Order:
        """Keep what is said about a request, whoever publishes it."""
        order = self._ear.orders[request.id] = Order(request)
        return order

    def forget(self, order: Order) -> None:
        """Keep nothing of a request any more, for tests that make very many."""
        self._ear.orders.pop(order.id, None)
        self._ear.published.pop(order.id, None)
        self._ear.confirmed_by.pop(order.id, None)
        self._ear.gave.pop(order.id, None)

    async def cancel(self, order: Order) -> None:
        """Publish the cancellation of a request."""
        await self.publish(cancel_draft(order.id, KIND, "").sign(self.key, int(time.time())))

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when a relay has it."""
        self._running.deliver(event, within_s=PUBLISH_LIMIT_S)
        await self._ear.published[event.id].wait()
        why = self._ear.gave.get(event.id)
        assert why is None, f"event of kind {event.kind} not published: {why}"


@asynccontextmanager
async def shop(*urls: str, provider: str, key: SecretKey | None = None) -> AsyncIterator[Shop]:
    """Be a customer of one provider (its public key) on these relays, and hear all it says from now on."""
    ear = _Ear()
    async with running_pool(*urls, key=key or SecretKey.generate(), heard=ear) as running:
        wanted = [{"kinds": [FEEDBACK_KIND, RESULT_KIND, 6001, 6002], "authors": [provider]}]
        running.pool.subscribe(REPLIES, lambda since: [{**each, "since": since} for each in wanted])
        with anyio.fail_after(PUBLISH_LIMIT_S):
            await running.pool.wait_caught_up(REPLIES, len(urls))
        yield Shop(running, ear)


async def stored_events(url: str, provider: str, job_ids: Sequence[str], kinds: Iterable[int]) -> list[Event]:
    """Return what a relay without AUTH has stored of a provider's replies to these jobs."""
    found: list[Event] = []
    # A local relay answers with 500 events at most.
    async with connect(url, compression=None, max_size=2**24) as socket:
        for start in range(0, len(job_ids), 10):
            wanted = {"kinds": list(kinds), "authors": [provider], "#e": list(job_ids[start : start + 10])}
            await socket.send(orjson.dumps(["REQ", f"stored-{start}", wanted]).decode())
            count = 0
            with anyio.fail_after(PUBLISH_LIMIT_S):
                while (message := orjson.loads(await socket.recv()))[0] == "EVENT":
                    found.append(parse_event(message[2]))
                    count += 1
            assert message[0] == "EOSE", message
            assert count < 500, "the relay may have kept some to itself"
    return found
