"""The till: has invoices made, watches them, and brings settlements to the engine.

A wallet may do what it was asked without our hearing of it, forget what it did, tell things twice or not at all.
So the intent (a `wanted` row with our own id) is stored before every call, a repeated call looks for our own id
first, settlements come by push and by look-up alike, and an invoice is only ever given up after the wallet was
asked about it. `judge` holds the rules about what an answer means; the rest is asking.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import anyio
import structlog

from pylon.jobs import facts
from pylon.jobs.engine import Engine
from pylon.jobs.ports import (
    Clock,
    Invoice,
    InvoiceRequest,
    PaymentState,
    Wallet,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
)
from pylon.nostr.bolt11 import BadInvoice, check_invoice, read_invoice
from pylon.nostr.nip90_replies import MAX_BOLT11
from pylon.store.records import InvoiceRow, InvoiceState, Job, Money, Work
from pylon.text import printable

log = structlog.get_logger(__name__)

_MAKERS: Final = 4
_LOOKERS: Final = 8
_LOOK_EVERY_S: Final = 0.2
_LOOK_BACK_S: Final = 7 * 86_400
_OVERLAP_S: Final = 3_600
_LONG_REACH_S: Final = 86_400
_LONG_LOOKS: Final = 12  # every so many times the list is read a day back
_REMEMBERED: Final = 10_000
_WANTING: Final = frozenset({(Work.AWAITING_PAYMENT, Money.NONE), (Work.BILLING, Money.NONE)})
_FORGOTTEN_AFTER: Final = 3  # so many look-ups in a row must say "unknown" before an invoice counts as lost


@dataclass(frozen=True, slots=True)
class CashierConfig:
    """What the till needs of the settings; times in seconds."""

    network: str = "bitcoin"
    invoice_expiry_s: int = 600  # of an invoice for work that is done: counted from when it is made
    invoice_grace_s: int = 60
    min_expiry_s: int = 20
    lookup_min_s: float = 2.0
    lookup_max_s: float = 30.0
    retry_min_s: float = 0.2
    retry_max_s: float = 10.0
    health_interval_s: float = 5.0
    catch_up_s: float = 300.0


@dataclass(slots=True)
class Watch:
    """One invoice whose end we wait for."""

    row: InvoiceRow
    next_at: float
    pause_s: float
    unknown: int = 0
    asking: bool = False


def describe(row: InvoiceRow) -> str:
    """Return an invoice's description: the customer finds the job in it, and we find our own id."""
    return f"NIP-90 job {row.job_id[:16]} ({row.own_id})"


def judge(
    row: InvoiceRow, answer: Invoice | None, *, unknown_before: int, now: float, grace_s: float
) -> facts.InvoiceDead | None:
    """Return that an invoice is dead, or None while it may still be paid. Not for settled ones.

    Past its expiry and a grace for wallets that settle late, any unpaid answer ends it. Before its expiry it is
    lost early when the wallet says that it closed it, or has not known it several times in a row.
    """
    assert row.payment_hash is not None
    if now >= row.expires_at + grace_s:
        return facts.InvoiceDead(row.payment_hash, lost_early=False)
    if now >= row.expires_at:
        return None  # expired or forgotten now says nothing new; it may be settling
    if answer is None or answer.state is PaymentState.UNKNOWN:
        lost = unknown_before + 1 >= _FORGOTTEN_AFTER
    else:
        lost = answer.state in (PaymentState.EXPIRED, PaymentState.FAILED)
    return facts.InvoiceDead(row.payment_hash, lost_early=True) if lost else None


class Cashier:
    """Talks to one wallet for the engine. `run` must be running while invoices are to be made."""

    def __init__(
        self,
        engine: Engine,
        wallet: Wallet,
        config: CashierConfig,
        clock: Clock,
        rng: random.Random,
        eta_s: Callable[[Job], int],
    ) -> None:
        self._engine = engine
        self._wallet = wallet
        self._config = config
        self._clock = clock
        self._rng = rng
        self._eta_s = eta_s
        self._to_make: deque[tuple[InvoiceRow, bool]] = deque()
        self._something_to_make = anyio.Event()
        self._watched: dict[str, Watch] = {}
        self._checked_until = 0.0
        self.caught_up = anyio.Event()  # what was paid while nobody listened is booked
        self._settled: OrderedDict[str, None] = OrderedDict()  # the last ones that are booked, or not ours
        self.counters: Counter[str] = Counter()

    @property
    def watching(self) -> int:
        """How many invoices the wallet is asked about."""
        return len(self._watched)

    def reconfigure(self, config: CashierConfig) -> None:
        """Take other waits and expiries; an invoice that is made keeps its own."""
        self._config = config

    # --- Till -------------------------------------------------------------------------------------------------

    def make(self, row: InvoiceRow, *, fresh: bool) -> None:
        """Have a wanted invoice made; not `fresh`: look for it first, it may have been made before a crash."""
        self._to_make.append((row, fresh))
        self._something_to_make.set()

    def watch(self, row: InvoiceRow) -> None:
        """Ask the wallet about an invoice until it has ended; at once when its job wants it no more."""
        assert row.payment_hash is not None
        pause_s = self._config.lookup_min_s
        first_s = 0.0 if row.state is InvoiceState.CLOSING else pause_s
        self._watched[row.payment_hash] = Watch(row, self._clock() + first_s, pause_s)

    async def run(self) -> None:
        """Make, watch and listen until cancelled."""
        async with anyio.create_task_group() as tasks:
            for _ in range(_MAKERS):
                tasks.start_soon(self._make_all)
            tasks.start_soon(self._look_up_all)
            tasks.start_soon(self._listen)
            tasks.start_soon(self._watch_health)

    # --- making -----------------------------------------------------------------------------------------------

    async def _make_all(self) -> None:
        while True:
            while not self._to_make:
                if self._something_to_make.is_set():  # the makers that wait share one event
                    self._something_to_make = anyio.Event()
                await self._something_to_make.wait()
            row, fresh = self._to_make.popleft()
            try:
                await self._make(row, fresh=fresh)
            except Exception:  # noqa: BLE001 - it is logged
                # A fault of ours with one invoice must not stop the others; it is tried again while it is wanted.
                self._fault("an invoice could not be made", row)
                await anyio.sleep(self._config.retry_max_s)
                self._to_make.append((row, False))

    async def _make(self, row: InvoiceRow, *, fresh: bool) -> None:
        """Get the invoice for one intent, whatever it takes, while its job still wants it."""
        look_first, pause_s = not fresh, self._config.retry_min_s
        while (job := self._wanting(row)) is not None:
            try:
                found = await self._wallet.find(row.own_id, describe(row)) if look_first else ()
                if job.work is Work.BILLING:
                    # Nobody has seen one that expired unheard of: another can be made, the work is done.
                    found = tuple(each for each in found if each.expires_at > self._clock())
                invoice = found[0] if found else await self._ask(job, row)
            except WalletRefused as error:
                log.warning("wallet refuses an invoice", job=row.job_id, error=str(error))
                refusal = facts.InvoiceRefused(row.own_id, "no invoice can be made: the wallet refuses")
                await self._engine.apply(row.job_id, refusal)
                return
            except WalletError as error:
                self.counters[type(error).__name__] += 1
                look_first = look_first or isinstance(error, WalletAmbiguous)
                await anyio.sleep(pause_s * (0.5 + self._rng.random()))
                pause_s = min(2 * pause_s, self._config.retry_max_s)
                continue
            if invoice is None:
                refusal = facts.InvoiceRefused(row.own_id, "no invoice could be made in time")
                await self._engine.apply(row.job_id, refusal)
            else:
                await self._hand_over(job, row, invoice)
            return

    def _wanting(self, row: InvoiceRow) -> Job | None:
        job = self._engine.open_jobs.get(row.job_id)
        return job if job is not None and (job.work, job.money) in _WANTING else None

    async def _ask(self, job: Job, row: InvoiceRow) -> Invoice | None:
        expiry_s = int(row.expires_at - self._clock())
        if job.work is Work.BILLING:
            expiry_s = self._config.invoice_expiry_s  # however long the wallet was away
        if expiry_s < self._config.min_expiry_s:
            return None
        request = InvoiceRequest(
            own_id=row.own_id,
            amount_msats=row.amount_msats,
            expiry_s=expiry_s,
            description=describe(row),
        )
        return await self._wallet.create_invoice(request)

    async def _hand_over(self, job: Job, row: InvoiceRow, invoice: Invoice) -> None:
        """Check what the wallet made before anybody is asked to pay it."""
        try:
            read = read_invoice(invoice.bolt11)
            if len(invoice.bolt11) > MAX_BOLT11:
                raise BadInvoice(f"the invoice is longer than the {MAX_BOLT11} characters that a reply carries")
            check_invoice(read, amount_msats=row.amount_msats, network=self._config.network, now=self._clock())
            if read.payment_hash != invoice.payment_hash:
                raise BadInvoice("the invoice has another payment hash than the wallet says")
            if await self._engine.query(lambda tx: tx.invoice_by_hash(read.payment_hash)) is not None:
                raise BadInvoice("the wallet gave an invoice that it gave before")
        except BadInvoice as error:
            log.error("wallet made a wrong invoice", job=row.job_id, error=str(error))
            refusal = facts.InvoiceRefused(row.own_id, "no usable invoice can be made")
            await self._engine.apply(row.job_id, refusal)
            return
        made = Invoice(
            own_id=row.own_id,
            payment_hash=read.payment_hash,
            bolt11=invoice.bolt11.lower(),  # as read, and as every client expects it
            amount_msats=row.amount_msats,
            created_at=read.created_at,
            expires_at=read.expires_at,
        )
        await self._engine.apply(row.job_id, facts.InvoiceMade(made, self._eta_s(job)))

    # --- looking up -------------------------------------------------------------------------------------------

    async def _look_up_all(self) -> None:
        limit = anyio.CapacityLimiter(_LOOKERS)
        async with anyio.create_task_group() as tasks:
            while True:
                now = self._clock()
                for watch in list(self._watched.values()):
                    if watch.next_at <= now and not watch.asking:
                        watch.asking = True
                        tasks.start_soon(self._look_up, watch, limit)
                await anyio.sleep(_LOOK_EVERY_S)

    async def _look_up(self, watch: Watch, limit: anyio.CapacityLimiter) -> None:
        row = watch.row
        assert row.payment_hash is not None
        try:
            async with limit:
                answer = await self._wallet.look_up(row.payment_hash)
            await self._weigh(watch, answer)
        except WalletError as error:
            # Nothing is known: the invoice stays as it is, however long the wallet is away.
            self.counters[type(error).__name__] += 1
        except Exception:  # noqa: BLE001 - it is logged
            self._fault("an invoice could not be looked up", row)
        finally:
            watch.asking = False
        watch.pause_s = min(2 * watch.pause_s, self._config.lookup_max_s)
        watch.next_at = self._clock() + watch.pause_s * (0.5 + self._rng.random())

    async def _weigh(self, watch: Watch, answer: Invoice | None) -> None:
        row = watch.row
        assert row.payment_hash is not None
        if answer is not None and answer.state is PaymentState.SETTLED:
            await self._settle(row.payment_hash, answer.received_msats, answer.settled_at)
            return
        now = self._clock()
        dead = judge(row, answer, unknown_before=watch.unknown, now=now, grace_s=self._config.invoice_grace_s)
        watch.unknown = 0 if answer is not None and answer.state is not PaymentState.UNKNOWN else watch.unknown + 1
        if dead is not None:
            self._watched.pop(row.payment_hash, None)
            await self._engine.apply(row.job_id, dead)

    async def _settle(self, payment_hash: str, amount_msats: int, settled_at: int | None) -> None:
        at = int(self._clock()) if settled_at is None else settled_at
        if not await self._engine.received(payment_hash, amount_msats, at):
            self.counters["foreign settlement"] += 1
        # Only now: were this cut off before the money is booked, the look-ups must find it.
        self._watched.pop(payment_hash, None)
        self._settled[payment_hash] = None
        while len(self._settled) > _REMEMBERED:
            self._settled.popitem(last=False)

    # --- listening --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear the wallet's push; whenever it breaks, open it again and look up what was missed."""
        pause_s = self._config.retry_min_s
        while True:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._catch_up)
                try:
                    async with aclosing(self._wallet.settlements()) as settlements:
                        async for received in settlements:
                            pause_s = self._config.retry_min_s
                            await self._settle(received.payment_hash, received.amount_msats, received.settled_at)
                except WalletError as error:
                    self.counters["push broken"] += 1
                    log.debug("the wallet's push broke", error=printable(error))
                except Exception:  # noqa: BLE001 - it is logged
                    self._fault("the wallet's push ended")
                tasks.cancel_scope.cancel()
            await anyio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(2 * pause_s, self._config.retry_max_s)

    async def _catch_up(self) -> None:
        """Find settlements that no push told us: open invoices at once, closed ones in the wallet's own list.

        The list again and again: some wallets take money long after an invoice's end, and a push can be lost.
        """
        for watch in self._watched.values():
            watch.next_at = self._clock()
        looks = 0
        while True:
            now = self._clock()
            reach_s = _OVERLAP_S if looks % _LONG_LOOKS else _LONG_REACH_S
            since = int(max(now - _LOOK_BACK_S, self._checked_until - reach_s))
            pause_s = self._config.retry_max_s
            if await self._read_list(since):
                self._checked_until, looks, pause_s = now, looks + 1, self._config.catch_up_s
                self.caught_up.set()
            await anyio.sleep(pause_s * (0.5 + self._rng.random()))

    async def _read_list(self, since: int) -> bool:
        """Book what the wallet lists as settled and we have not booked; False when the list broke off.

        A page at a time, and never all of it in memory: on a busy day it is long.
        """
        try:
            async with aclosing(self._wallet.list_invoices(since)) as pages:
                async for page in pages:
                    for invoice in await self._not_booked(page):
                        await self._settle(invoice.payment_hash, invoice.received_msats, invoice.settled_at)
        except WalletError as error:
            self.counters[type(error).__name__] += 1
            return False
        except Exception:  # noqa: BLE001 - it is logged
            self._fault("the wallet's invoices could not be listed")
            return False
        return True

    async def _not_booked(self, page: Sequence[Invoice]) -> list[Invoice]:
        settled = {each.payment_hash: each for each in page if each.state is PaymentState.SETTLED}
        new = [each for each in settled if each not in self._settled]
        if not new:
            return []
        booked = await self._engine.query(lambda tx: tx.booked(new))
        return [settled[each] for each in new if each not in booked]

    def _fault(self, what: str, row: InvoiceRow | None = None) -> None:
        """Log what no wallet should do to us; what was not done is still stored as such, and tried again."""
        self.counters["fault"] += 1
        log.exception(what, **({} if row is None else {"job": row.job_id}))

    async def _watch_health(self) -> None:
        while True:
            await self._wallet.check()
            await anyio.sleep(self._config.health_interval_s)
