"""Zaps (NIP-57) to our replies: heard from relays, verified in full, booked to the job that they were sent for.

A customer may zap the event that asked for payment, or the result, instead of paying the invoice in it. The receipt
is the word of our lightning address's host, so it counts only when that host's key signed it and all in it fits
together. Checking one takes some milliseconds, so it is done off the loop, one at a time, and only what the right
key signed gets that far.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import structlog

from pylon.jobs.engine import Engine
from pylon.jobs.ports import Clock, PayeeError
from pylon.nostr.event import Event
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND, BadZap, Zap, verify_zap_receipt
from pylon.text import printable

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 256
MAX_REMEMBERED: Final = 10_000
LOOK_BACK_S: Final = 7 * 86_400
"""How far back receipts are asked for on start: whoever was away longer finds the money by `pylon reconcile`."""

_ASK_AGAIN_S: Final = 60.0


class ZapDesk:
    """Takes receipts from relays. `author` asks for the key that signs them, None where the address has none."""

    def __init__(
        self,
        engine: Engine,
        pubkey: str,
        network: str,
        author: Callable[[], Awaitable[str | None]],
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._pubkey = pubkey
        self._network = network
        self._ask_author = author
        self._clock = clock
        self._author: str | None = None
        self._waiting: deque[Event] = deque()
        self._something = anyio.Event()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def hear(self, event: Event) -> str | None:
        """Take a receipt. Returns None when it was taken, else the drop's reason. Never raises."""
        if event.kind != ZAP_RECEIPT_KIND or self._pubkey not in event.tag_values("p"):
            return "zap-not-ours"
        if self._author is not None and event.pubkey != self._author:
            return "zap-foreign-author"
        if event.id in self._seen:
            return "duplicate"
        if len(self._waiting) >= MAX_WAITING:
            return "zap-overflow"  # relays keep it: it is asked for again on the next start
        self._waiting.append(event)
        self._something.set()
        return None

    async def run(self) -> None:
        """Learn whose receipts count, then check and book what was heard, until cancelled."""
        await self._learn_author()
        if self._author is None:
            return
        while True:
            while not self._waiting:
                self._something = anyio.Event()
                await self._something.wait()
            event = self._waiting.popleft()
            try:
                await self._take(event)
            except Exception:  # one receipt's fault, of whatever kind, stays its own
                self.counters["fault"] += 1
                log.exception("a zap receipt could not be handled", receipt=event.id)

    async def _learn_author(self) -> None:
        while True:
            try:
                self._author = await self._ask_author()
            except PayeeError as error:
                self.counters["address unavailable"] += 1
                log.info(
                    "the lightning address does not answer, so zaps cannot be verified yet", error=printable(error)
                )
            else:
                if self._author is None:
                    log.info("the lightning address takes no zaps (allowsNostr is not set)")
                return
            await anyio.sleep(_ASK_AGAIN_S)

    async def _take(self, receipt: Event) -> None:
        if receipt.id in self._seen or receipt.pubkey != self._author:
            return
        named = receipt.tag_values("e")
        if len(named) != 1:
            self.counters["no event"] += 1
            return
        try:
            zap = await anyio.to_thread.run_sync(self._verify, receipt, named[0])
        except BadZap as error:
            self.counters[error.fault.value] += 1
            log.info("a zap receipt does not count", receipt=receipt.id, why=printable(error))
            return
        payer, settled_at = zap.request.pubkey, min(zap.received_at, int(self._clock()))
        ours = await self._engine.zapped(named[0], zap.invoice.payment_hash, zap.amount_msats, settled_at, payer)
        self.counters["taken" if ours else "other event"] += 1
        self._remember(receipt.id)

    def _verify(self, receipt: Event, event_id: str) -> Zap:
        assert self._author is not None
        return verify_zap_receipt(
            receipt, author=self._author, recipient=self._pubkey, event_id=event_id, network=self._network
        )

    def _remember(self, receipt_id: str) -> None:
        self._seen[receipt_id] = None
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
