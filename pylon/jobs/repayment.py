"""Paying one committed refund, until it is known how it ended.

The wallet may pay without our hearing of it. So the invoice is in the database before the first call, and no other
one is fetched for the job until this one is known to have failed. Whether it did is asked and never assumed: once a
call may have been carried out, only the wallet's own word about the payment hash ends the refund, or the invoice's
expiry together with a wallet that knows nothing of it. `judge` holds the rules about what an answer means.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import anyio
import structlog

from pylon.jobs import facts
from pylon.jobs.ports import (
    Clock,
    Payment,
    PaymentState,
    Wallet,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
)
from pylon.nostr.refunds import is_invoice
from pylon.store.records import Refund
from pylon.text import printable

log = structlog.get_logger(__name__)

_FORGOTTEN_AFTER: Final = 3  # so many answers in a row must be "unknown" before an expired invoice counts as unpaid

End = facts.RefundPaid | facts.RefundFailed


@dataclass(frozen=True, slots=True)
class RepaymentConfig:
    """What paying needs of the settings; times in seconds. `grace_s` counts from an invoice's expiry."""

    max_fee_msats: int = 5_000
    grace_s: float = 60.0
    ask_min_s: float = 1.0
    ask_max_s: float = 60.0


def judge(refund: Refund, answer: Payment | None, *, unknown_before: int, now: float, grace_s: float) -> End | None:
    """Return how a refund ended by what the wallet says of its payment hash, None while it may still be paid.

    A wallet that knows nothing of it is believed only when the invoice has been past paying for a while.
    """
    assert refund.expires_at is not None and refund.payment_hash is not None
    if answer is not None and answer.payment_hash != refund.payment_hash:
        return None  # an answer about something else
    if answer is not None and answer.state is PaymentState.SETTLED:
        return facts.RefundPaid(refund.own_id, refund.payment_hash, refund.amount_msats, answer.fee_msats)
    if answer is not None and answer.state is PaymentState.FAILED:
        return failed(refund, "the wallet says that the payment failed")
    if is_unknown(answer) and unknown_before + 1 >= _FORGOTTEN_AFTER and now >= refund.expires_at + grace_s:
        return failed(refund, "the invoice expired and the wallet knows of no payment")
    return None


def is_unknown(answer: Payment | None) -> bool:
    """Tell whether a wallet knows nothing of a payment, or nothing but that its invoice is past paying."""
    return answer is None or answer.state in (PaymentState.UNKNOWN, PaymentState.EXPIRED)


def failed(refund: Refund, reason: str) -> facts.RefundFailed:
    """Return that a refund is certainly not paid; of an address another invoice can be fetched."""
    return facts.RefundFailed(
        refund.own_id, refund.destination, reason, retryable=not is_invoice(refund.destination)
    )


class Repayment:
    """One refund's way to its end. Not `fresh`: a call of an earlier process may have been carried out."""

    def __init__(
        self,
        refund: Refund,
        wallet: Wallet,
        config: RepaymentConfig,
        clock: Clock,
        rng: random.Random,
        *,
        fresh: bool,
    ) -> None:
        self._refund = refund
        self._wallet = wallet
        self._config = config
        self._clock = clock
        self._rng = rng
        self._in_doubt = not fresh  # a call may have been carried out
        self._may_send = True  # under the same own id, once the wallet knows nothing of it
        self._unknown = 0

    async def run(self) -> End:
        """Pay, ask, and return how it ended; may take as long as the wallet does not say."""
        pause_s = self._config.ask_min_s
        while True:
            try:
                end = await (self._ask() if self._in_doubt else self._send())
            except WalletError as error:
                # Nothing new is known, however long the wallet is away.
                log.debug("the wallet does not say", job=self._refund.job_id, error=printable(error))
                end = None
            if end is not None:
                return end
            await anyio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(2 * pause_s, self._config.ask_max_s)

    async def _send(self) -> End | None:
        """Have the invoice paid. Raises `WalletError` when certainly nothing was done by this call."""
        refund = self._refund
        assert refund.bolt11 is not None
        if self._is_expired() and not self._in_doubt:
            return failed(refund, "the invoice expired before the wallet could be reached")
        try:
            answer = await self._wallet.pay(
                refund.bolt11, own_id=refund.own_id, max_fee_msats=self._config.max_fee_msats
            )
        except WalletAmbiguous as error:
            log.warning(
                "a refund may be paid or not: the wallet is asked", job=refund.job_id, error=printable(error)
            )
            self._in_doubt, self._may_send = True, False
            return None
        except WalletRefused as error:
            if not self._in_doubt:
                return failed(refund, f"the wallet refuses: {printable(error)}")
            self._may_send = False  # an earlier call may be why
            return None
        self._in_doubt, self._may_send = True, False
        return self._judge(answer)

    async def _ask(self) -> End | None:
        assert self._refund.payment_hash is not None
        answer = await self._wallet.look_up_payment(self._refund.payment_hash)
        end = self._judge(answer)
        self._unknown = self._unknown + 1 if is_unknown(answer) else 0
        if end is None and is_unknown(answer) and self._may_send and not self._is_expired():
            return await self._send()
        return end

    def _judge(self, answer: Payment | None) -> End | None:
        return judge(
            self._refund,
            answer,
            unknown_before=self._unknown,
            now=self._clock(),
            grace_s=self._config.grace_s,
        )

    def _is_expired(self) -> bool:
        assert self._refund.expires_at is not None
        return self._clock() >= self._refund.expires_at
