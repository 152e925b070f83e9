"""Zap receipts for invoices of ours, as relays bring them: dropped cheaply, checked in full, counted when wrong."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import anyio.to_thread

from pylon.nostr.event import Event, verify
from pylon.nostr.messages import Filter
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND, BadZap, verify_zap_receipt
from pylon.wallets.lnurl_file import Remembered

MAX_WAITING: Final = 1_024
CLOCK_SLACK_S: Final = 600
"""How far the clocks of hosts may be from ours."""


class ZapReceipts:
    """The sink of the wallet's relay line. `settle` hears of each receipt that counts, with its time."""

    def __init__(self, pubkey: str, network: str, settle: Callable[[Remembered, int], Awaitable[None]]) -> None:
        self._pubkey = pubkey
        self._network = network
        self._settle = settle
        self._awaited: dict[str, Remembered] = {}  # by BOLT11
        self._waiting: deque[Event] = deque()
        self._arrived = anyio.Event()
        self._reading = anyio.Lock()
        self.counters: Counter[str] = Counter()

    def expect(self, *rows: Remembered) -> None:
        """Await receipts for these invoices, as far as they are zapped."""
        self._awaited |= {row.bolt11: row for row in rows if row.zap_author is not None}

    def forget(self, row: Remembered) -> None:
        """Await no receipt any more."""
        self._awaited.pop(row.bolt11, None)

    def forget_expired(self, before: int) -> None:
        """Await no receipts any more for invoices that expired before this time."""
        self._awaited = {bolt11: row for bolt11, row in self._awaited.items() if row.expires_at >= before}

    def filters(self, since: int) -> Sequence[Filter]:
        """Return what relays are asked for: receipts to our key since the oldest invoice that waits for one."""
        oldest = min((row.created_at for row in self._awaited.values()), default=since)
        start = max(0, min(oldest, since) - CLOCK_SLACK_S)
        return [{"kinds": [ZAP_RECEIPT_KIND], "#p": [self._pubkey], "since": start}]

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take a receipt from a relay; see `EventSink`. What is not for an open invoice of ours is dropped."""
        row = self._row(event)
        if row is None or event.pubkey != row.zap_author:
            return "not-awaited"
        if len(self._waiting) >= MAX_WAITING:
            return "too-many-receipts"
        if not verify(event):  # an invoice is public: anybody can name it, and the address's key too
            return "bad-signature"
        self._waiting.append(event)
        self._arrived.set()
        return None

    async def run(self) -> None:
        """Check what comes until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            await self.work_off()

    async def work_off(self) -> None:
        """Check the receipts that have come so far; when this returns, those that count are settled."""
        async with self._reading:
            while self._waiting:
                await self._weigh(self._waiting[0])
                self._waiting.popleft()

    async def _weigh(self, receipt: Event) -> None:
        row = self._row(receipt)
        if row is None or row.zap_author is None:
            return  # settled meanwhile
        try:
            request_id = await anyio.to_thread.run_sync(self._judge, receipt, row.zap_author)
        except BadZap as error:
            self.counters[error.fault] += 1
            return
        if request_id != row.zap_request_id:
            self.counters["other-request"] += 1
            return
        await self._settle(row, receipt.created_at)

    def _judge(self, receipt: Event, author: str) -> str:
        zap = verify_zap_receipt(
            receipt, author=author, recipient=self._pubkey, event_id=None, network=self._network
        )
        return zap.request.id

    def _row(self, receipt: Event) -> Remembered | None:
        invoices = receipt.tag_values("bolt11")
        return self._awaited.get(invoices[0].lower()) if len(invoices) == 1 else None
