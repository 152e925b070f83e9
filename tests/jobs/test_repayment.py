"""Paying one refund: what each answer of a wallet means, and that no doubt is ever settled by assuming."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import pytest

from pylon.jobs import facts
from pylon.jobs.ports import (
    Payment,
    PaymentState,
    Wallet,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.jobs.repayment import End, Repayment, RepaymentConfig, judge
from pylon.store.records import Refund
from tests.support.stand_ins import FakeClock

HASH = "ab" * 32
EXPIRES_AT = 1_000
REFUND = Refund("own", "01" * 32, 2_000, 100, "alice@pay.example", "lnbcrt1", HASH, EXPIRES_AT, number=1)
CONFIG = RepaymentConfig(ask_min_s=0.001, ask_max_s=0.002, grace_s=60)
PAID = facts.RefundPaid("own", HASH, 2_000, 3)

Answer = Payment | WalletError | None


def answer(state: PaymentState, payment_hash: str = HASH) -> Payment:
    return Payment(payment_hash, state, 2_000, 3)


SETTLED = answer(PaymentState.SETTLED)


@dataclass
class Script:
    """A wallet that says one thing after another; `calls` are what it was asked."""

    says: deque[Answer]
    clock: FakeClock
    tick_s: float = 0.0
    calls: list[str] = field(default_factory=list)

    def _next(self, call: str) -> Any:
        self.calls.append(call)
        self.clock.advance(self.tick_s)
        said = self.says.popleft() if len(self.says) > 1 else self.says[0]
        if isinstance(said, WalletError):
            raise said
        return said

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        assert (bolt11, own_id, max_fee_msats) == (REFUND.bolt11, REFUND.own_id, CONFIG.max_fee_msats)
        return cast(Payment, self._next("pay"))

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        assert payment_hash == HASH
        return cast("Payment | None", self._next("ask"))


async def course(*says: Answer, fresh: bool = True, now: float = 500.0, tick_s: float = 0.0) -> tuple[End, str]:
    clock = FakeClock(now)
    wallet = Script(deque(says), clock, tick_s)
    repayment = Repayment(REFUND, cast(Wallet, wallet), CONFIG, clock, random.Random(1), fresh=fresh)
    with anyio.fail_after(5):
        end = await repayment.run()
    return end, " ".join(wallet.calls)


def is_failed(end: End) -> bool:
    return isinstance(end, facts.RefundFailed) and end.own_id == "own" and end.retryable


UNAVAILABLE, AMBIGUOUS, REFUSED = WalletUnavailable("away"), WalletAmbiguous("no answer"), WalletRefused("no route")


async def test_paid_at_once() -> None:
    assert await course(SETTLED) == (PAID, "pay")


async def test_a_refusal_of_the_first_call_is_final() -> None:
    end, calls = await course(REFUSED)
    assert is_failed(end) and calls == "pay"


async def test_the_same_invoice_is_tried_while_the_wallet_is_away() -> None:
    assert await course(UNAVAILABLE, UNAVAILABLE, SETTLED) == (PAID, "pay pay pay")


async def test_a_wallet_that_stays_away_past_the_expiry_has_not_paid() -> None:
    end, calls = await course(UNAVAILABLE, tick_s=300)
    assert is_failed(end) and calls == "pay pay"


async def test_after_an_ambiguous_call_it_is_only_asked() -> None:
    end, calls = await course(AMBIGUOUS, UNAVAILABLE, None, answer(PaymentState.PENDING), SETTLED)
    assert (end, calls) == (PAID, "pay ask ask ask ask")
    end, calls = await course(AMBIGUOUS, None, answer(PaymentState.FAILED))
    assert is_failed(end) and calls == "pay ask ask"


async def test_an_unknown_payment_is_unpaid_only_when_the_invoice_is_long_past() -> None:
    end, calls = await course(AMBIGUOUS, None, tick_s=100)
    # Asked at 700, 800, 900, 1000 (expired) and 1100, which is past the grace too.
    assert is_failed(end) and calls == "pay" + " ask" * 5
    end, calls = await course(AMBIGUOUS, *[None] * 20, SETTLED, tick_s=10)
    assert (end, calls) == (PAID, "pay" + " ask" * 21)


async def test_a_pending_payment_is_waited_for_beyond_any_expiry() -> None:
    pending = answer(PaymentState.PENDING)
    end, calls = await course(*[pending] * 30, SETTLED, tick_s=1_000)
    assert (end, calls) == (PAID, "pay" + " ask" * 30)


async def test_after_a_restart_it_asks_first() -> None:
    assert await course(SETTLED, fresh=False) == (PAID, "ask")
    assert await course(UNAVAILABLE, None, SETTLED, fresh=False) == (PAID, "ask ask pay")


async def test_after_a_restart_a_refusal_may_come_of_an_earlier_call() -> None:
    end, calls = await course(None, REFUSED, None, SETTLED, fresh=False)
    assert (end, calls) == (PAID, "ask pay ask ask")


async def test_after_a_restart_a_wallet_that_is_away_is_asked_before_each_call() -> None:
    end, calls = await course(None, UNAVAILABLE, None, SETTLED, fresh=False)
    assert (end, calls) == (PAID, "ask pay ask pay")


async def test_after_a_restart_nothing_is_sent_past_the_expiry() -> None:
    end, calls = await course(None, fresh=False, now=EXPIRES_AT + 61)
    assert is_failed(end) and calls == "ask ask ask"


async def test_an_answer_about_another_payment_says_nothing() -> None:
    other = answer(PaymentState.FAILED, "cd" * 32)
    assert await course(AMBIGUOUS, other, SETTLED) == (PAID, "pay ask ask")


@pytest.mark.parametrize("now", [500, EXPIRES_AT, EXPIRES_AT + 60, EXPIRES_AT + 10_000])
@pytest.mark.parametrize("state", [None, *PaymentState])
def test_only_the_wallet_or_time_ends_a_refund(state: PaymentState | None, now: int) -> None:
    said = None if state is None else answer(state)
    ends = [judge(REFUND, said, unknown_before=before, now=now, grace_s=60) for before in (0, 1, 2)]
    match state:
        case PaymentState.SETTLED:
            assert ends == [PAID] * 3
        case PaymentState.FAILED:
            assert all(end is not None and is_failed(end) for end in ends)
        case PaymentState.PENDING:
            assert ends == [None] * 3
        case _:
            assert ends[:2] == [None, None]
            assert (ends[2] is not None) == (now >= EXPIRES_AT + 60)
