"""Customers of every manner, and a model's server for them: the load under which the daemon is killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from pylon.jobs.ports import WalletError, WalletRefused
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Handler, Wire, answer, framed, piece, usage
from tests.support.shop import Order, Shop

ORDER_LIMIT_S = 5.0  # a customer that hears nothing orders something else
MUST_END_S = 900.0  # waits that the end of the test cuts off
EXPIRY_S = 30  # of an invoice: the least that can be set


class Manner(StrEnum):
    """How a customer behaves."""

    PAYS = "pays"
    DAWDLES = "dawdles"
    CANCELS = "cancels"  # at some moment, whether it has paid or not
    PAYS_TWICE = "pays twice"
    PAYS_LATE = "pays late"  # about when the invoice expires
    CANCELS_UNPAID = "cancels unpaid"
    NEVER_PAYS = "never pays"


EARLY = (*[Manner.PAYS] * 8, *Manner)
"""What customers do at first. Tests wait until invoices have expired: let that begin soon."""

LATER = (*[Manner.PAYS] * 5, *[Manner.DAWDLES] * 2, *[Manner.CANCELS] * 3, Manner.PAYS_TWICE)


class Payer(Protocol):
    """Pays one invoice; raises `WalletError`, `WalletRefused` with "already paid" where that is so."""

    async def pay(self, bolt11: str) -> str: ...


class Purse(Protocol):
    """The customers' wallet."""

    def payer(self, *, timeout_s: float) -> Payer: ...


@dataclass
class Workload:
    """The customers of one shop, until it is `closed`. `provider` is the public key of whom they buy from."""

    shop: Shop
    wallet: Purse
    provider: str
    rng: random.Random
    tasks: TaskGroup
    manners: tuple[Manner, ...] = EARLY
    deck: list[Manner] = field(default_factory=list)
    closed: bool = False
    orders: dict[str, tuple[Order, Manner]] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)

    async def customer(self) -> None:
        """Order again and again, each time in another manner."""
        while not self.closed:
            manner = self._next_manner()
            order = await self.shop.order(
                f"request {len(self.orders)} says {self.rng.randrange(10**6)}",
                params=[("max_tokens", [str(self.rng.randint(1, 400))])],
                providers=[self.provider] if self.rng.random() < 0.5 else [],
            )
            self.orders[order.id] = (order, manner)
            self.busy.add(order.id)
            self.tasks.start_soon(self._behave, order, manner)
            with anyio.move_on_after(ORDER_LIMIT_S):
                await order.until(lambda order: order.results or order.errors, "answer", 2 * ORDER_LIMIT_S)

    def _next_manner(self) -> Manner:
        """Deal them like cards: all of them come, in a random order."""
        if not self.deck:
            self.deck = self.rng.sample(self.manners, k=len(self.manners))
        return self.deck.pop()

    async def _behave(self, order: Order, manner: Manner) -> None:
        rng = self.rng
        match manner:
            case Manner.PAYS:
                await self._pay(order)
            case Manner.DAWDLES:
                await self._pay(order, after_s=rng.uniform(0.2, 3))
            case Manner.PAYS_TWICE:
                await self._pay(order)
                await self._pay(order)
            case Manner.PAYS_LATE:
                await self._pay(order, after_s=EXPIRY_S + rng.uniform(-1, 4), invoices=1)
            case Manner.CANCELS:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pay, order, rng.uniform(0, 4))
                    await self._cancel(order)
            case Manner.CANCELS_UNPAID:
                await self._cancel(order)
            case Manner.NEVER_PAYS:
                pass
        self.busy.discard(order.id)

    async def _cancel(self, order: Order) -> None:
        """Cancel at some moment. Mostly once the provider has answered: before, relays take the request away."""
        if self.rng.random() < 0.8:
            await order.until(lambda order: order.events, "answer", MUST_END_S)
        await anyio.sleep(self.rng.choice((0.0, self.rng.random())))
        self.cancelled.add(order.id)
        await self.shop.cancel(order)

    async def _pay(self, order: Order, after_s: float = 0.0, invoices: int = 9) -> None:
        """Pay the job's invoice; when the wallet has lost it, the next one."""
        payer = self.wallet.payer(timeout_s=2)
        for number in range(invoices):
            bolt11 = await order.invoice(number, limit_s=MUST_END_S)
            await anyio.sleep(after_s)
            while True:
                try:
                    await payer.pay(bolt11)
                except WalletRefused as error:
                    if "already paid" in str(error):
                        return
                    break
                except WalletError:
                    await anyio.sleep(0.1)
                else:
                    return

    @property
    def waiting_for_expiry(self) -> bool:
        """Whether some customer still means to pay an invoice about when it expires."""
        return any(
            self.orders[job_id][1] is Manner.PAYS_LATE for job_id in self.busy if self.orders[job_id][0].invoices
        )


def talking(rng: random.Random, faulty: Callable[[], bool]) -> Handler:
    """Return a model's server that says the prompt and "indeed", word by word, and breaks off now and then."""

    async def talk(wire: Wire) -> None:
        chance = rng.random() if faulty() else 1.0
        if chance < 0.02:
            await answer(503, {"error": {"message": "loading"}})(wire)
            return
        words = f"{wire.json['messages'][-1]['content']} indeed".split(" ")
        await wire.send(STREAM_HEAD)
        for number, word in enumerate(words):
            await asyncio.sleep(rng.uniform(0.01, 0.08))
            if chance < 0.05 and number == 3:
                wire.cut()
                return
            await wire.send(framed(piece(word if number == 0 else f" {word}")))
        await wire.send(framed(piece(None, "stop")) + framed(usage(9, len(words))) + framed(DONE) + STREAM_END)

    return talk
