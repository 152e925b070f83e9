"""Money that comes in, as it is stored: booked, earned, and what is beyond a price kept as the customer's deposit.

`docs/deposits.md` says what customers and operators see of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pylon.jobs import effects as do
from pylon.jobs.pricing import MSATS_PER_SAT
from pylon.store.records import ENDED, InvoiceState, Job, Money, Settlement, Work
from pylon.store.tx import Tx

_HAS_RESULT: Final = frozenset({Work.PRODUCED, Work.DELIVERED})


def usable(deposit_msats: int, price_msats: int) -> int:
    """Return what a deposit pays of a price: all of it, or whole sats, since wallets invoice no less."""
    if deposit_msats >= price_msats:
        return price_msats
    return deposit_msats // MSATS_PER_SAT * MSATS_PER_SAT


def moves_money(effects: Sequence[do.Effect]) -> bool:
    """Tell whether a step books anything."""
    return any(isinstance(each, do.BookMoney | do.BookGift) for each in effects)


def store_money(tx: Tx, job: Job, effect: do.BookMoney | do.BookGift | do.Earn) -> None:
    """Book what a step says for `job`, as it is after the step."""
    match effect:
        case do.BookMoney(payment_hash, amount_msats, settled_at, zap):
            tx.book(Settlement(payment_hash, job.id, amount_msats, 0, settled_at, zap=zap))
            tx.end_invoice(payment_hash, InvoiceState.PAID)
            if job.money is Money.SETTLED and job.work in ENDED:
                tx.earn(job)
            elif job.money is Money.NONE and job.work in _HAS_RESULT:
                tx.earn(job.evolve(price_msats=0))  # it was free: whatever came in is beyond its price
        case do.BookGift(payment_hash, amount_msats, settled_at, to_deposit):
            kept = amount_msats if to_deposit else 0
            tx.book(
                Settlement(payment_hash, job.id, amount_msats, 0, settled_at, kept, amount_msats - kept, zap=True)
            )
        case do.Earn():
            tx.earn(job)
