"""A provider that a test scripts, on a real relay in this process, in a thread beside the command under test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import DELETION_KIND, FeedbackStatus, parse_deletion
from pylon.nostr.nip90_replies import feedback_draft, partial_draft, payment_required_draft, result_draft
from pylon.relays.local import local_relay
from pylon.wallets.fake_server.node import Draft as InvoiceDraft
from pylon.wallets.fake_server.node import Node, Signed
from tests.support.events import PROVIDER, STRANGER
from tests.support.running_pool import Heard, Running, running_pool
from tests.support.scripted_relay import until

LIMIT_S = 20.0
NODE = Node("33" * 32)

Script = Callable[["Stall"], Awaitable[None]]


class _Ear(Heard):
    """Keeps requests and deletions, and tells when one comes."""

    def __init__(self) -> None:
        super().__init__()
        self._news = anyio.Event()

    def offer(self, event: Event, relay_url: str) -> str | None:
        super().offer(event, relay_url)
        news, self._news = self._news, anyio.Event()
        news.set()
        return None

    async def first(self, kind: int) -> Event:
        """Wait for the first event of a kind."""
        with anyio.fail_after(LIMIT_S):
            while True:
                for event, _ in self.events:
                    if event.kind == kind:
                        return event
                await self._news.wait()


class Stall:
    """What a script has to play a provider; `request` is set by the time the script begins."""

    def __init__(self, url: str, kind: int, provider: Running, stranger: Running, ear: _Ear) -> None:
        self.url = url
        self.kind = kind
        self.request: Event
        self.portal: BlockingPortal
        self._provider = provider
        self._stranger = stranger
        self._ear = ear

    def say(self, draft: Draft, *, by: SecretKey = PROVIDER) -> Event:
        """Publish what a provider says; `by` is PROVIDER or STRANGER."""
        return self.publish(draft.sign(by, int(time.time())), by=by)

    def publish(self, event: Event, *, by: SecretKey = PROVIDER) -> Event:
        """Publish an event as it is."""
        (self._provider if by is PROVIDER else self._stranger).deliver(event)
        return event

    def feedback(self, status: FeedbackStatus, info: str = "", content: str = "", by: SecretKey = PROVIDER) -> None:
        self.say(feedback_draft(self.request.id, self.request.pubkey, status, info=info, content=content), by=by)

    def partial(self, content: str, number: int, attempt: int = 1) -> None:
        self.say(partial_draft(self.request.id, self.request.pubkey, content, number=number, attempt=attempt))

    def result(self, content: str, *, by: SecretKey = PROVIDER, invoice: Signed | None = None) -> Event:
        """Publish the result; with an invoice of 4 sats, to be paid afterwards."""
        if invoice is None:
            return self.say(result_draft(self.request, content), by=by)
        draft = result_draft(self.request, content, amount_msats=4000, bolt11=invoice.bolt11)
        return self.say(draft, by=by)

    def result_later(self, content: str, *, by: SecretKey = PROVIDER) -> None:
        """Publish a result from the test's thread; returns when the relay has it."""

        async def publish() -> None:
            event = self.result(content, by=by)
            heard = self._ear if by is PROVIDER else self._stranger.heard
            await until(lambda: event.id in heard.confirmed_by, "the relay has it")

        self.portal.call(publish)

    def ask(self, invoice: Signed, amount_msats: int = 4000, *, by: SecretKey = PROVIDER) -> Signed:
        """Ask for payment with an invoice."""
        draft = payment_required_draft(
            self.request.id,
            self.request.pubkey,
            amount_msats=amount_msats,
            bolt11=invoice.bolt11,
            invoice_expires_at=int(time.time()) + 600,
            eta_s=1,
        )
        self.say(draft, by=by)
        return invoice

    async def heard(self, kind: int) -> Event:
        """Wait for an event of the customer's."""
        return await self._ear.first(kind)

    def cancelled(self) -> bool:
        """Tell, to the test's thread, whether the request was cancelled; fails when nothing comes in time."""
        deletion = self.portal.call(self.heard, DELETION_KIND)
        return parse_deletion(deletion) == (self.request.id,) and deletion.pubkey == self.request.pubkey

    def saw_no_deletion(self) -> bool:
        """Tell that no cancellation has come so far."""
        return all(event.kind != DELETION_KIND for event, _ in self._ear.events)


def invoice(amount_msats: int = 4000, *, created_at: int | None = None, node: Node = NODE) -> Signed:
    """Return an invoice of a node that no wallet knows."""
    now = int(time.time()) if created_at is None else created_at
    return node.sign(InvoiceDraft("id", amount_msats, 600, "a job", None), now)


@contextmanager
def stall(script: Script, kind: int = 5050) -> Iterator[Stall]:
    """Run a relay, and the script once for the first request of a kind. A fault in the script fails the test."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_open(script, kind)) as opened:
        opened.portal = portal
        yield opened


@asynccontextmanager
async def _open(script: Script, kind: int) -> AsyncIterator[Stall]:
    ear = _Ear()
    async with (
        local_relay() as url,
        running_pool(url, key=PROVIDER, heard=ear) as provider,
        running_pool(url, key=STRANGER) as stranger,
    ):
        provider.pool.subscribe("requests", lambda since: [{"kinds": [kind, DELETION_KIND], "since": since}])
        with anyio.fail_after(LIMIT_S):
            await provider.pool.wait_caught_up("requests")
        opened = Stall(url, kind, provider, stranger, ear)

        async def play() -> None:
            opened.request = await ear.first(kind)
            await script(opened)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(play)
            yield opened
            tasks.cancel_scope.cancel()
