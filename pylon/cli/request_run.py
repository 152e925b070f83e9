"""One run of `pylon request`: relays, wallet, signals and time around one `Purchase`, and how it ended."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import anyio
from anyio.abc import TaskStatus

from pylon.cli.output import UserError
from pylon.cli.request_screen import RequestScreen
from pylon.customer.client import Customer, CustomerConfig, NotPublished, Order
from pylon.customer.payment import Payer
from pylon.customer.purchase import Purchase, Standing
from pylon.customer.purse import WalletPayer, require_ready
from pylon.jobs.ports import Wallet, WalletUnavailable
from pylon.nostr.bolt11 import Network
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.relays.state import PoolConfig, RelayState, RelayStatus
from pylon.text import printable

PUBLISH_LIMIT_S: Final = 20.0
CANCEL_LIMIT_S: Final = 5.0
FLUSH_LIMIT_S: Final = 1.0

_BROKEN_PIPE: Final = 141
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Reason(StrEnum):
    """Why the command ended."""

    RESULT = "result"
    FAILED = "failed"
    TIMEOUT = "timeout"
    NOT_PAID = "not-paid"
    NOT_PUBLISHED = "not-published"
    CANCELLED = "cancelled"


EXIT_CODES: Final = {
    Reason.RESULT: 0,
    Reason.FAILED: 1,
    Reason.TIMEOUT: 4,
    Reason.NOT_PAID: 5,
    Reason.NOT_PUBLISHED: 6,
    Reason.CANCELLED: 130,
}


@dataclass(frozen=True, slots=True)
class Deal:
    """What is asked, of whom, and what may be spent; without a wallet nothing is paid from here."""

    request: Event
    key: SecretKey = field(repr=False)
    relays: PoolConfig
    network: Network
    timeout_s: float
    wallet: Wallet | None = None
    max_fee_msats: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended; the sentence says more where there is no result."""

    reason: Reason
    sentence: str = ""

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return EXIT_CODES[self.reason]


Play = Callable[[anyio.CancelScope], Awaitable[Outcome]]
"""Does the work inside the scope that the first signal cancels, and what must follow it outside."""


def run_request(deal: Deal, screen: RequestScreen) -> int:
    """Buy, print, and return 0 when there is a result. Raises `UserError` with the exit code otherwise."""
    return conclude(lambda work: _Session(deal, screen, work).run(), screen)


def conclude(play: Play, screen: RequestScreen) -> int:
    """Play, say how it ended, and return 0 when there is a result. Raises `UserError` otherwise."""
    try:
        outcome = anyio.run(_until_signal, play)
    except BaseExceptionGroup as group:
        leaf = _first_leaf(group)
        if isinstance(leaf, BrokenPipeError):
            return _BROKEN_PIPE  # raised, it would become click's 1, which means something here
        raise leaf from group
    screen.close(outcome.reason, outcome.exit_code, outcome.sentence)
    if outcome.reason is not Reason.RESULT:
        raise UserError(outcome.sentence, outcome.exit_code)
    return 0


async def _until_signal(play: Play) -> Outcome:
    """Play until the end, or until a signal: the first cancels the job, the second ends at once."""
    outcome = Outcome(Reason.CANCELLED, "ended at once; whether the job is cancelled is not certain")
    async with anyio.create_task_group() as tasks:
        work = anyio.CancelScope()

        async def hear_signals(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(*_SIGNALS) as signals:
                task_status.started()
                async for _ in signals:
                    if work.cancel_called:
                        tasks.cancel_scope.cancel()
                    work.cancel()

        await tasks.start(hear_signals)
        outcome = await play(work)
        tasks.cancel_scope.cancel()
    return outcome


class _Session:
    """A customer on its relays, for one job. Cancelling `work` ends the purchase and still cancels the job."""

    def __init__(self, deal: Deal, screen: RequestScreen, work: anyio.CancelScope) -> None:
        self._deal = deal
        self._screen = screen
        self._work = work
        self._purchase: Purchase | None = None
        self._customer = Customer(
            CustomerConfig(deal.network, publish_timeout_s=min(PUBLISH_LIMIT_S, deal.timeout_s)),
            deal.relays,
            key=deal.key,
            clock=time.time,
            rng=random.Random(),  # noqa: S311 - jitter, not secrets
        )

    async def run(self) -> Outcome:
        """Buy, and cancel what was not bought."""
        async with AsyncExitStack() as held:
            payer = None
            if self._deal.wallet is not None:
                await held.enter_async_context(self._deal.wallet.running())
                payer = WalletPayer(self._deal.wallet, self._deal.max_fee_msats)
                self._screen.payer = payer
            await held.enter_async_context(self._customer.running())
            outcome = Outcome(Reason.CANCELLED, "cancelled before the request was published")
            with self._work:
                outcome = await self._buy(payer)
            if self._work.cancelled_caught and self._screen.asked:
                told = await self._cancel()
                unpaid = self._purchase is not None and self._purchase.standing is Standing.UNPAID
                shown = ": do not pay the invoice any more" if unpaid and self._screen.invoice_shown else ""
                outcome = Outcome(Reason.CANCELLED, f"interrupted{told}{shown}")
            return outcome

    async def _buy(self, payer: WalletPayer | None) -> Outcome:
        try:
            if self._deal.wallet is not None:
                await require_ready(self._deal.wallet)
            self._screen.asks(self._deal.request, self._deal.relays.urls)
            async with self._customer.order(self._deal.request) as order:
                self._screen.published(order)
                return await self._follow(order, payer)
        except WalletUnavailable as error:
            return Outcome(Reason.NOT_PAID, f"nothing was asked, because nothing could be paid: {error}")
        except NotPublished as error:
            return await self._not_published(str(error))

    async def _follow(self, order: Order, payer: Payer | None) -> Outcome:
        purchase = Purchase(order, self._screen, payer)
        self._purchase = purchase
        in_time = False
        with anyio.move_on_after(self._deal.timeout_s):
            await purchase.follow()
            in_time = True
        if purchase.standing is Standing.DONE:
            return Outcome(Reason.RESULT)
        return await self._without_result(purchase, "" if in_time else f" within {self._deal.timeout_s:g} s")

    async def _without_result(self, purchase: Purchase, late: str) -> Outcome:
        """Say why there is no result; `late` tells the time limit where that is what ended it."""
        if purchase.standing is Standing.FAILED:
            # A broadcast may still be taken up by somebody else; an addressed job is over.
            told = await self._cancel() if not self._deal.request.tag_values("p") else ""
            return Outcome(Reason.FAILED, f"there will be no result: {self._screen.last_fault}{told}")
        if purchase.may_be_paid:
            return Outcome(Reason.TIMEOUT, f"no result{late}; {self._where_it_may_come()}")
        match purchase.standing:
            case Standing.UNPAID if self._screen.invoice_shown:
                said = f"the invoice was not paid{late}{await self._cancel()}: do not pay it any more"
                return Outcome(Reason.NOT_PAID, said)
            case Standing.UNPAID:
                return Outcome(Reason.NOT_PAID, f"not paid: {self._screen.last_fault}{await self._cancel()}")
            case Standing.WAITING:
                return Outcome(Reason.TIMEOUT, f"nobody answered{late}{await self._cancel()}")
        return Outcome(Reason.TIMEOUT, f"no result{late}{await self._cancel()}")

    async def _cancel(self) -> str:
        """Cancel the job by kind 5, for a bounded time; returns the rest of a sentence."""
        sent = "its cancellation reached no relay"
        with anyio.move_on_after(CANCEL_LIMIT_S), suppress(NotPublished):
            await self._customer.cancel(self._deal.request)
            sent = "the job is cancelled (kind 5)"
            with anyio.move_on_after(FLUSH_LIMIT_S):
                await self._customer.flush()
        paid = self._purchase is not None and self._purchase.may_be_paid
        return f"; {sent}{', and it is paid, or may be: its provider owes a refund' if paid else ''}"

    async def _not_published(self, why: str) -> Outcome:
        relays = self._customer.relay_states()
        # A relay that never confirms may have passed it on.
        told = await self._cancel() if any(each.status is RelayStatus.CONNECTED for each in relays) else ""
        faults = "; ".join(_relay_fault(each) for each in relays)
        return Outcome(Reason.NOT_PUBLISHED, f"not published: {why} [{faults}]{told}")

    def _where_it_may_come(self) -> str:
        command = f"pylon request --resume {self._deal.request.id} --provider {self._screen.provider}"
        return f"the job is paid, or may be, and is not cancelled; its result may still come: {command}"


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _relay_fault(state: RelayState) -> str:
    return printable(f"{state.url}: {state.last_error or state.status}", limit=300)
