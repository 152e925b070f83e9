"""Giving money back: whose turn it is, where it goes, and the invoice that is committed before it is paid.

What is due is in the database; this part keeps only when to look at each job again, and why it waits. An operator's
order goes at once, others by themselves when that is switched on and within the caps; a customer's invoice is read,
or one is fetched from its lightning address, checked, committed as a refund (`facts.RefundStarted`), and only then
handed to a `Repayment`. No other invoice is looked for while that has not ended.
"""

from __future__ import annotations

import math
import random
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from pylon.jobs import facts
from pylon.jobs.engine import Engine
from pylon.jobs.policy import Drop, RateLimiter
from pylon.jobs.ports import (
    Clock,
    PayeeError,
    Payees,
    PayeeUnavailable,
    PaymentState,
    Profiles,
    Wallet,
    WalletAbility,
    WalletError,
)
from pylon.jobs.refund_case import (
    RefundCase,
    RefunderConfig,
    RefundRefused,
    Waits,
    permit,
    read_case,
    standing,
)
from pylon.jobs.repayment import Repayment
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, check_invoice, read_invoice
from pylon.nostr.event import Event, verify
from pylon.nostr.refunds import BadDestination, is_invoice, parse_destination, parse_wish
from pylon.store import refunds
from pylon.store.records import Job, Money, Payee, PayeeSource, Refund
from pylon.store.tx import Tx
from pylon.text import printable

log = structlog.get_logger(__name__)

_STARTERS: Final = 4
_LOOK_EVERY_S: Final = 0.2
_SOON_S: Final = 60.0
_ASKED_AGAIN: Final = 10  # failed payments of a job, the last ones, about which the wallet is asked once more
_WISHES_PER_MINUTE: Final = 30
_MAX_FUTURE_S: Final = 900


@dataclass(slots=True)
class _Due:
    """One job whose money is due. `waits` says for what, once it was looked at."""

    customer: str
    next_at: float
    pause_s: float
    waits: str = ""
    busy: bool = False
    paying: bool = False


class Refunder:
    """Gives back what is due, through one wallet. `run` must be running while anything is to be paid."""

    def __init__(
        self,
        engine: Engine,
        wallet: Wallet | None,
        payees: Payees | None,
        profiles: Profiles | None,
        pubkey: str,
        config: RefunderConfig,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._engine = engine
        self._wallet = wallet
        self._payees = payees
        self._profiles = profiles
        self._pubkey = pubkey
        self._config = config
        self._clock = clock
        self._rng = rng
        self._due: dict[str, _Due] = {}
        self._to_pay: deque[tuple[Refund, bool]] = deque()
        self._wishes: deque[Payee] = deque()
        self._something_to_do = anyio.Event()
        self._news = anyio.Event()
        self._one_at_a_time = anyio.Lock()
        self._rate = RateLimiter(_WISHES_PER_MINUTE)

    # --- RefundDesk -------------------------------------------------------------------------------------------

    def follow(self, job: Job) -> None:
        """Hear of a job whose money is given back, or was."""
        due = self._due.get(job.id)
        if job.money not in (Money.REFUND_DUE, Money.REFUNDING):
            self._due.pop(job.id, None)
        elif due is None:
            paying = job.money is Money.REFUNDING
            self._due[job.id] = _Due(job.customer, self._clock(), self._config.retry_min_s, paying=paying)
        elif job.money is Money.REFUNDING:
            due.paying = True
        elif due.paying:
            due.paying = False
            if due.next_at == math.inf:
                self._postpone(due)
        self._tell()

    def pay(self, refund: Refund, *, fresh: bool) -> None:
        """Have a committed refund paid; not `fresh`: the wallet is asked first."""
        self._to_pay.append((refund, fresh))
        self._something_to_do.set()

    def reconfigure(self, config: RefunderConfig) -> None:
        """Take other caps; what waited because of the old ones is looked at again."""
        if config == self._config:
            return
        self._config = config
        for job_id in self._due:
            self._wake(job_id)

    # --- what others ask --------------------------------------------------------------------------------------

    @property
    def customers(self) -> dict[str, str]:
        """The jobs whose money is due, oldest first, each with its customer."""
        return {job_id: due.customer for job_id, due in self._due.items()}

    def waits(self, job_id: str) -> str:
        """Return for what a refund waits, "" when it is not known or nothing is due."""
        due = self._due.get(job_id)
        return "" if due is None else due.waits

    def hear(self, event: Event) -> str | None:
        """Take a customer's word about where its refund goes; returns the drop's reason. Never raises."""
        wish = parse_wish(event)
        due = None if wish is None else self._due.get(wish.job_id)
        if wish is None or due is None or due.customer != event.pubkey or self._pubkey not in event.tag_values("p"):
            return Drop.UNKNOWN_JOB.value
        now = self._clock()
        if not verify(event):
            return Drop.BAD_SIGNATURE.value
        if event.created_at > now + _MAX_FUTURE_S or not self._rate.take(event.pubkey, now):
            return Drop.INTAKE_FULL.value
        self._wishes.append(Payee(wish.job_id, wish.destination, PayeeSource.CUSTOMER, event.created_at))
        self._something_to_do.set()
        return None

    async def order(self, job_id: str, to: str = "") -> None:
        """Have a job's refund paid whatever the caps say, to what is named or known. Raises `RefundRefused`."""
        self._check_wallet()
        case = await self._case(job_id)
        if case is None or case.job.money is not Money.REFUND_DUE:
            raise RefundRefused(f"nothing is to be refunded: {standing(case)}")
        if to:
            try:
                to = parse_destination(to)
                if is_invoice(to):
                    await self._checked(case, to)
            except (BadDestination, BadInvoice) as error:
                raise RefundRefused(f"{error}; {case.amount_msats} msats are due") from error
        now = int(self._clock())
        await self._engine.query(lambda tx: refunds.order(tx, job_id, to, now))
        log.info("a refund is ordered", job=job_id, amount_msats=case.amount_msats)
        self._wake(job_id)

    async def write_off(self, job_id: str, reason: str) -> Job:
        """Record that a refund will not be paid. Raises `RefundRefused`."""
        before = await self._case(job_id)
        if before is None or before.job.money is not Money.REFUND_DUE:
            raise RefundRefused(f"nothing can be written off: {standing(before)}")
        job = await self._engine.apply(job_id, facts.WrittenOff(reason))
        if job is None or job.money is not Money.WRITTEN_OFF:
            raise RefundRefused("nothing was written off: the refund began just now")
        log.info("a refund is written off", job=job_id, amount_msats=before.amount_msats)
        return job

    async def outcome(self, job_id: str, within_s: float) -> None:
        """Wait until an order has come to something: paid, failed, or waiting for somebody."""
        with anyio.move_on_after(within_s):
            while (due := self._due.get(job_id)) is not None:
                if not (due.busy or due.paying or due.next_at <= self._clock()):
                    return
                await self._news.wait()

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start and see through refunds until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._start_all)
            while True:
                await self._take_wishes()
                while self._to_pay:
                    refund, fresh = self._to_pay.popleft()
                    tasks.start_soon(self._see_through, refund, fresh)
                await self._something_to_do.wait()
                self._something_to_do = anyio.Event()

    async def _take_wishes(self) -> None:
        while self._wishes:
            wish = self._wishes.popleft()
            if await self._engine.query(lambda tx, wish=wish: refunds.put_payee(tx, wish)):  # type: ignore[misc]
                log.info("a customer says where its refund goes", job=wish.job_id)
                self._wake(wish.job_id)

    async def _see_through(self, refund: Refund, fresh: bool) -> None:
        if self._wallet is None:
            self._say(refund.job_id, "no wallet is connected, which would know whether it is paid")
            return
        self._say(refund.job_id, "its invoice is being paid")
        repayment = Repayment(refund, self._wallet, self._config.repayment, self._clock, self._rng, fresh=fresh)
        end = await repayment.run()
        told = {"job": refund.job_id, "payment_hash": refund.payment_hash, "amount_msats": refund.amount_msats}
        if isinstance(end, facts.RefundPaid):
            log.info("a refund is paid", fee_msats=end.fee_msats, **told)
        else:
            log.warning("a refund failed", reason=end.reason, **told)
            self._say(refund.job_id, f"the last payment failed: {end.reason}")
        await self._engine.apply(refund.job_id, end)

    async def _start_all(self) -> None:
        limit = anyio.CapacityLimiter(_STARTERS)
        async with anyio.create_task_group() as tasks:
            while True:
                self._start_due(tasks, limit)
                await anyio.sleep(_LOOK_EVERY_S)

    def _start_due(self, tasks: TaskGroup, limit: anyio.CapacityLimiter) -> None:
        now = self._clock()
        for job_id, due in self._due.items():
            if due.next_at <= now and not due.busy and not due.paying:
                due.busy = True
                tasks.start_soon(self._attempt, job_id, due, limit)

    async def _attempt(self, job_id: str, due: _Due, limit: anyio.CapacityLimiter) -> None:
        try:
            async with limit:
                due.next_at = math.inf  # whoever wakes it up meanwhile has it looked at again
                await self._begin(job_id)
        except Waits as wait:
            if due.waits != str(wait):
                log.info("a refund waits", job=job_id, why=str(wait))
            due.waits = str(wait)
            if wait.again and due.next_at == math.inf:
                self._postpone(due, soon=wait.soon)
        finally:
            due.busy = False
            self._tell()

    # --- one refund -------------------------------------------------------------------------------------------

    async def _begin(self, job_id: str) -> None:
        """Commit the invoice of one refund. Raises `Waits`."""
        case = await self._case(job_id)
        if case is None or case.job.money is not Money.REFUND_DUE:
            return
        permit(case, self._config)
        try:
            wallet = self._check_wallet()
        except RefundRefused as error:
            raise Waits(str(error), again=True) from error
        if not wallet.state().ready:
            raise Waits(f"the wallet is not ready: {printable(wallet.state().detail)}", again=True, soon=True)
        if await self._was_paid_after_all(wallet, case):
            return
        destination = await self._destination(case)
        try:
            bolt11 = destination if is_invoice(destination) else await self._fetch(destination, case.amount_msats)
            read = await self._checked(case, bolt11)
        except BadInvoice as error:
            await self._refuse(case, destination, str(error))
            raise Waits(printable(error, limit=200), again=not is_invoice(destination)) from error
        refund = Refund(
            own_id=f"pylon-{uuid.uuid4().hex}",
            job_id=job_id,
            amount_msats=case.amount_msats,
            created_at=int(self._clock()),
            destination=destination,
            bolt11=bolt11,
            payment_hash=read.payment_hash,
            expires_at=read.expires_at,
        )
        # One after another: two that fit the day's cap each may not fit it together.
        async with self._one_at_a_time:
            now = await self._case(job_id)
            if now is None or now.job.money is not Money.REFUND_DUE:
                return
            permit(now, self._config)
            job = await self._engine.apply(job_id, facts.RefundStarted(refund))
        if job is not None and job.money is Money.REFUND_DUE:
            raise Waits("the invoice was used before, or less is due than it asks", again=True)
        log.info("a refund is begun", job=job_id, payment_hash=read.payment_hash, amount_msats=case.amount_msats)

    def _check_wallet(self) -> Wallet:
        """Return the wallet if it can pay. Raises `RefundRefused`."""
        if self._wallet is None:
            raise RefundRefused("no wallet is connected")
        state = self._wallet.state()
        # What a wallet can do may be known only once it has answered.
        if WalletAbility.PAY not in state.abilities and (state.ready or state.abilities):
            raise RefundRefused(f"the wallet ({state.kind}) cannot pay: pay by other means and write it off")
        return self._wallet

    async def _was_paid_after_all(self, wallet: Wallet, case: RefundCase) -> bool:
        """Ask about payments that failed, before money is sent once more; book one that did not. Raises `Waits`."""
        for refund in case.failed[-_ASKED_AGAIN:]:
            assert refund.payment_hash is not None
            try:
                payment = await wallet.look_up_payment(refund.payment_hash)
            except WalletError as error:
                raise Waits(f"the wallet does not answer: {printable(error, limit=200)}", again=True) from error
            if payment is None or payment.payment_hash != refund.payment_hash:
                continue
            if payment.state is PaymentState.SETTLED:
                log.error("a payment that the wallet had called failed is paid", job=case.job.id)
                paid = facts.RefundPaid(refund.own_id, refund.payment_hash, refund.amount_msats, payment.fee_msats)
                await self._engine.apply(case.job.id, paid)
                return True
            if payment.state is PaymentState.PENDING:
                raise Waits("the wallet is still paying an earlier invoice of this job", again=True)
        return False

    async def _destination(self, case: RefundCase) -> str:
        if case.payee is not None and case.payee.destination:
            return case.payee.destination
        found = None if self._profiles is None else await self._profiles.lightning_address(case.job.customer)
        if found is None:
            raise Waits("no lightning address of the customer is known, and it sent no invoice", again=True)
        return found

    async def _fetch(self, address: str, amount_msats: int) -> str:
        if self._payees is None:
            raise Waits("lightning addresses cannot be reached from here: give an invoice", again=False)
        try:
            return (await self._payees.invoice_for(address, amount_msats)).lower()
        except PayeeUnavailable as error:
            raise Waits(printable(error, limit=200), again=True) from error
        except PayeeError as error:
            raise Waits(printable(error, limit=200), again=False) from error

    async def _checked(self, case: RefundCase, bolt11: str) -> InvoiceFacts:
        """Return what an invoice says if it may be paid for this refund. Raises `BadInvoice`."""
        # A stranger chose the text: reading it may take a while.
        read = await anyio.to_thread.run_sync(read_invoice, bolt11)
        soonest = self._clock() + self._config.min_expiry_s
        check_invoice(read, amount_msats=case.amount_msats, network=self._config.network, now=self._clock())
        if read.expires_at < soonest:
            raise BadInvoice(f"the invoice expires within {self._config.min_expiry_s} s")

        def known(tx: Tx) -> bool:
            return refunds.is_used(tx, read.payment_hash) or tx.invoice_by_hash(read.payment_hash) is not None

        if await self._engine.query(known):
            raise BadInvoice("the invoice was used before, or is one of the provider's own")
        return read

    async def _refuse(self, case: RefundCase, destination: str, why: str) -> None:
        """Tell a customer whose own invoice is of no use; others are told in the list."""
        payee = case.payee
        if is_invoice(destination) and payee is not None and payee.source is PayeeSource.CUSTOMER:
            sentence = f"{why}: send an invoice over {case.amount_msats} msats"
            await self._engine.apply(case.job.id, facts.PayeeRefused(destination, sentence))

    async def _case(self, job_id: str) -> RefundCase | None:
        now = int(self._clock())
        return await self._engine.query(lambda tx: read_case(tx, job_id, self._config, now))

    # --- when -------------------------------------------------------------------------------------------------

    def _wake(self, job_id: str) -> None:
        if (due := self._due.get(job_id)) is not None:
            due.next_at, due.pause_s, due.waits = self._clock(), self._config.retry_min_s, ""

    def _postpone(self, due: _Due, *, soon: bool = False) -> None:
        pause_s = min(due.pause_s, _SOON_S) if soon else due.pause_s
        due.next_at = self._clock() + pause_s * (0.5 + self._rng.random())
        due.pause_s = min(2 * due.pause_s, self._config.retry_max_s)

    def _say(self, job_id: str, waits: str) -> None:
        if (due := self._due.get(job_id)) is not None:
            due.waits = waits

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
