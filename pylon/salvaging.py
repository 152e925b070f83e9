"""The first start on restored books: relays and wallet are asked what became of them, before anything acts.

Runs alone, before the engine loads a job. It needs an answer of one relay and every answer of the wallet, and waits
for them as long as it takes: nothing is assumed. `jobs/salvage.py` has what follows from the answers.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import structlog

from pylon.customer.visit import Reading, Visit, visiting
from pylon.jobs import salvage
from pylon.jobs.cashier import describe
from pylon.jobs.kinds import KINDS
from pylon.jobs.ports import Clock, Direction, PaymentState, Transaction, Wallet, WalletAbility, WalletError
from pylon.jobs.recorder import Recorder
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import Filter
from pylon.nostr.nip90 import FEEDBACK_KIND, result_kind
from pylon.relays.state import PoolConfig
from pylon.store import refunds
from pylon.store.tx import Tx
from pylon.store.writer import Store
from pylon.text import printable

log = structlog.get_logger(__name__)

_LOOK_BACK_S: Final = 30 * 86_400
_OVERLAP_S: Final = 600  # clocks differ, and a step may have been under way
_READ_S: Final = 15.0
_RETRY_MIN_S: Final = 0.5
_RETRY_MAX_S: Final = 15.0
_IDS_PER_FILTER: Final = 100
_PAGE: Final = 200
_AT_ONCE: Final = 4  # look-ups: some wallets allow few requests a minute

T = TypeVar("T")


@dataclass(slots=True)
class Salvage:
    """Compares restored books, taken at `taken_at` (unix seconds). `say` hears how far it is, one clause."""

    store: Store
    recorder: Recorder
    wallet: Wallet | None
    relays: PoolConfig
    key: SecretKey
    terms: salvage.Terms
    clock: Clock
    rng: random.Random
    taken_at: int
    say: Callable[[str], None]

    async def run(self) -> None:
        """Compare, and take the mark away. Returns when all is known; may be cancelled at any point."""
        log.info("restored books: relays and wallet are asked before anything acts", taken_at=self.taken_at)
        said = await self._ask_relays()
        booked, foreign = await self._ask_wallet(said.values())
        results = [each for each in said.values() if each.result is not None]
        for each in results:
            await self.store.write(lambda tx, each=each: salvage.tell_result(tx, self.recorder, each, self._now()))  # type: ignore[misc]
        await self.store.write(salvage.finish)
        log.info(
            "restored books are compared", jobs=len(said), results=len(results), booked=booked, foreign=foreign
        )

    def _now(self) -> int:
        return int(self.clock())

    # --- relays -----------------------------------------------------------------------------------------------

    async def _ask_relays(self) -> dict[str, salvage.Said]:
        """Learn what we said since the backup, and bring it into the books."""
        self.say("the relays are asked what was published since")
        async with visiting(self.relays, key=self.key, clock=self.clock, rng=self.rng) as visit:
            events = await self._own_events(visit)
            said = await anyio.to_thread.run_sync(salvage.read_said, events, self.key.public_hex)
            known = await self.store.write(lambda tx: {each for each in said if tx.job(each) is not None})
            requests = {each.job_id: each.request for each in said.values() if each.job_id not in known}
            missing = [job_id for job_id, request in requests.items() if request is None]
            for start in range(0, len(missing), _IDS_PER_FILTER):
                wanted: Filter = {"ids": missing[start : start + _IDS_PER_FILTER]}
                requests |= {event.id: event for event in (await self._read(visit, wanted)).events}
        for each in sorted(said.values(), key=lambda each: each.first_at):
            request = requests.get(each.job_id)

            def bring(tx: Tx, each: salvage.Said = each, request: Event | None = request) -> bool:
                return salvage.put_back(tx, self.recorder, each, request, self.terms, self._now())

            if not await self.store.write(bring):
                log.warning(
                    "a job of the lost history cannot be put back: no relay has its request", job=each.job_id
                )
        return said

    async def _own_events(self, visit: Visit) -> list[Event]:
        """Return our feedback and results since the backup; relays give so many at a time, the newest first."""
        kinds = sorted({FEEDBACK_KIND, *(result_kind(kind) for kind in KINDS)})
        wanted: Filter = {
            "kinds": kinds,
            "authors": [self.key.public_hex],
            "since": max(0, self.taken_at - _OVERLAP_S),
            "limit": _PAGE,  # well within what a visit takes from a relay in one reading
        }
        events: dict[str, Event] = {}
        until: int | None = None
        while True:
            reading = await self._read(visit, wanted if until is None else {**wanted, "until": until})
            pages: dict[str, int] = {}  # relay that told something new -> how far back it went
            for found in reading.found:
                if found.event.id not in events:
                    for url in found.relays:
                        pages[url] = min(pages.get(url, found.event.created_at), found.event.created_at)
            events |= {event.id: event for event in reading.events}
            if not pages:
                return list(events.values())
            furthest = max(pages.values())
            until = furthest if until is None or furthest < until else until - 1

    async def _read(self, visit: Visit, wanted: Filter) -> Reading:
        """Return what the relays have; wait until one of them has told all."""
        pause_s = _RETRY_MIN_S
        while True:
            reading = await visit.read([wanted], _READ_S)
            ids = set(wanted.get("ids", ()))
            if ids and ids <= {event.id for event in reading.events}:
                return reading  # some relays close a subscription that can bring nothing more, instead of EOSE
            silent = [relay.url for relay in reading.relays if not relay.complete]
            if len(silent) < len(reading.relays):
                if silent:
                    log.warning("not every relay told what was published since the backup", silent=silent)
                return reading
            self.say(f"no relay answers what was published since ({printable(reading.relays[0].detail)})")
            pause_s = await self._pause(pause_s)

    # --- the wallet -------------------------------------------------------------------------------------------

    async def _ask_wallet(self, said: Iterable[salvage.Said]) -> tuple[int, int]:
        """Book what was paid; return how many payments are new to the books, and how many are not ours."""
        wallet = self.wallet
        if wallet is None:
            return 0, 0
        pause_s = _RETRY_MIN_S
        while not (state := await wallet.check()).ready:  # what it is able to do is known only then
            self._wait_for_wallet(state.detail)
            pause_s = await self._pause(pause_s)
        before = await self._settlements()
        since = self.taken_at - _LOOK_BACK_S
        hashes, wanted = await self.store.write(lambda tx: salvage.to_ask_about(tx, since))
        left = enumerate(hashes)

        async def ask_on() -> None:
            for number, payment_hash in left:
                self.say(f"the wallet was asked about {number} of {len(hashes)} invoices")
                await self._ask_about(wallet, payment_hash)

        async with anyio.create_task_group() as tasks:
            for _ in range(_AT_ONCE):
                tasks.start_soon(ask_on)
        for row in wanted:
            for invoice in await self._insist(lambda row=row: wallet.find(row.own_id, describe(row))):  # type: ignore[misc]
                if invoice.state is PaymentState.SETTLED:
                    await self.store.write(
                        lambda tx, row=row, invoice=invoice: salvage.settle_wanted(  # type: ignore[misc]
                            tx, self.recorder, row, invoice, self._now()
                        )
                    )
        listed: Sequence[Transaction] = ()
        if WalletAbility.LIST in state.abilities:
            listed = await self._insist(lambda: wallet.transactions(self.taken_at - _OVERLAP_S))
        settled = [each for each in listed if each.state is PaymentState.SETTLED]
        foreign = await self._book_strays([each for each in settled if each.direction is Direction.INCOMING])
        await self._ask_for_refunds(wallet, said)
        sent = [each.payment_hash for each in settled if each.direction is Direction.OUTGOING]
        await self._weigh_payments(sent, listed=WalletAbility.LIST in state.abilities)
        return await self._settlements() - before, foreign

    async def _ask_about(self, wallet: Wallet, payment_hash: str) -> None:
        invoice = await self._insist(lambda: wallet.look_up(payment_hash))
        if invoice is not None and invoice.state is PaymentState.SETTLED:
            received_msats, now = invoice.received_msats, self._now()
            at = now if invoice.settled_at is None else invoice.settled_at
            await self.store.write(
                lambda tx: salvage.settle(tx, self.recorder, payment_hash, received_msats, at, now)
            )

    async def _book_strays(self, received: Sequence[Transaction]) -> int:
        """Book what the wallet lists as paid and no look-up found; return how much of it is not ours."""
        foreign = 0
        for each in received:
            at = each.created_at if each.settled_at is None else each.settled_at
            foreign += not await self.store.write(
                lambda tx, each=each, at=at: salvage.settle_stray(  # type: ignore[misc]
                    tx, self.recorder, each.payment_hash, each.amount_msats, at, each.description, self._now()
                )
            )
        return foreign

    async def _weigh_payments(self, sent: Sequence[str], *, listed: bool) -> None:
        """Hold the refunds that are due where one of them may be among what the wallet paid since the backup."""
        known = await self.store.write(lambda tx: {each for each in sent if refunds.is_used(tx, each)})
        unknown = [each for each in sent if each not in known]
        if not unknown and listed:
            return
        held = await self.store.write(lambda tx: salvage.hold_refunds(tx, self._now()))
        log.warning("the wallet may have paid refunds that these books lack", payments=len(unknown), held=held)

    async def _ask_for_refunds(self, wallet: Wallet, said: Iterable[salvage.Said]) -> None:
        """Bring refunds into the books that the lost history announced, as far as the wallet confirms them."""
        for job_id, payment_hash in ((each.job_id, back) for each in said for back in each.refunded):
            paid = await self._insist(lambda back=payment_hash: wallet.look_up_payment(back))  # type: ignore[misc]
            if paid is None or paid.state is not PaymentState.SETTLED:
                log.warning("a refund of the lost history is not confirmed by the wallet", job=job_id)
                continue
            booked = await self.store.write(
                lambda tx, job_id=job_id, paid=paid: salvage.give_back(  # type: ignore[misc]
                    tx, self.recorder, job_id, paid, self._now()
                )
            )
            if not booked:
                log.warning("a refund of the lost history fits no debt of these books", job=job_id)

    async def _settlements(self) -> int:
        ((count,),) = await self.store.write(lambda tx: tx.ask("SELECT count(*) FROM settlements"))
        return int(count)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the wallet's answer, however long it takes to get one."""
        pause_s = _RETRY_MIN_S
        while True:
            try:
                return await ask()
            except WalletError as error:
                self._wait_for_wallet(str(error))
            pause_s = await self._pause(pause_s)

    def _wait_for_wallet(self, why: str) -> None:
        self.say(f"the wallet does not answer ({printable(why)})")
        log.warning("restored books wait for the wallet", error=printable(why))

    async def _pause(self, pause_s: float) -> float:
        await anyio.sleep(pause_s * (0.5 + self.rng.random()))
        return min(2 * pause_s, _RETRY_MAX_S)
