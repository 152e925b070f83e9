"""`pylon request --resume`: the result of an earlier request, which its relays still have or will have."""

from __future__ import annotations

import random
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import anyio

from pylon.cli.request_run import Outcome, Reason, conclude
from pylon.cli.request_screen import RequestScreen
from pylon.customer.client import Customer, CustomerConfig, Order
from pylon.customer.updates import Failed, Partial, PaymentRequired, Result
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import BadRequest
from pylon.relays.state import PoolConfig

FIND_LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Resumption:
    """Which request is followed, whose result is wanted (public key, hex), and where."""

    job_id: str
    provider: str
    relays: PoolConfig
    timeout_s: float


def resume_request(wanted: Resumption, screen: RequestScreen) -> int:
    """Wait, print, and return 0 when there is a result. Raises `UserError` with the exit code otherwise."""

    async def play(work: anyio.CancelScope) -> Outcome:
        outcome = Outcome(Reason.CANCELLED, "stopped waiting; the job itself is left alone")
        with work:
            outcome = await _resume(wanted, screen)
        return outcome

    return conclude(play, screen)


async def _resume(wanted: Resumption, screen: RequestScreen) -> Outcome:
    customer = Customer(
        CustomerConfig(),
        wanted.relays,
        key=SecretKey.generate(),  # results are public: any key may read them
        clock=time.time,
        rng=random.Random(),  # noqa: S311 - jitter, not secrets
    )
    async with customer.running():
        request = None
        with anyio.move_on_after(min(FIND_LIMIT_S, wanted.timeout_s)):
            request = await customer.find(wanted.job_id)
        if request is None:
            return Outcome(Reason.NOT_PUBLISHED, f"no relay has the request {wanted.job_id}")
        try:
            async with customer.order(request, publish=False) as order:
                order.take(wanted.provider)
                screen.resumes(order, wanted.relays.urls)
                with anyio.move_on_after(wanted.timeout_s):
                    return await _follow(order, screen)
        except BadRequest:
            return Outcome(Reason.FAILED, f"{wanted.job_id} is an event of kind {request.kind}, not a job request")
    return Outcome(Reason.TIMEOUT, f"no result within {wanted.timeout_s:g} s")


async def _follow(order: Order, screen: RequestScreen) -> Outcome:
    """Follow until the end. Nothing is paid: relays tell old invoices too, in any order."""
    async with aclosing(order.updates()) as updates:
        async for update in updates:
            match update:
                case PaymentRequired():
                    continue
                case Partial():
                    screen.partial(update)
                case Failed():
                    screen.failed(update)
                    return Outcome(Reason.FAILED, f"there will be no result: {screen.last_fault}")
                case Result():
                    screen.result(update)
                    return Outcome(Reason.RESULT)
                case _:
                    screen.heard(update)
    raise AssertionError("updates end only with their reader")
