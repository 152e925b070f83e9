"""Asking for what `pylon reconcile` compares: the database read-only, the wallet through a client of its own.

The wallet is asked before the books are read, so that what it settles meanwhile is booked by the time they are; a
difference that is only seconds old is looked at once more all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from pylon.jobs.ports import Clock, Transaction, Wallet, WalletAbility, WalletError, WalletUnavailable
from pylon.jobs.reconcile import OurBooks, Reconciliation, WalletBooks, list_from, reconcile, to_look_up
from pylon.store.reports import Reports

AT_ONCE: Final = 4
"""Look-ups under way at a time: some wallets allow few requests a minute."""

_TRIES: Final = 3  # readings of the list and the balance until nothing moved in between
_FRESH_S: Final = 60
_AGAIN_S: Final = 2.0

_T = TypeVar("_T")


async def reconcile_with(
    wallet: Wallet, reports: Reports, *, since: int, grace_s: int, clock: Clock
) -> Reconciliation:
    """Compare the books with a running wallet's. Raises `WalletError`, `StoreUnavailable`."""
    found = await _compare(wallet, reports, since=since, grace_s=grace_s, clock=clock)
    if any(each.at > clock() - _FRESH_S for each in found.differences):
        await anyio.sleep(_AGAIN_S)  # a payment of this very moment: the daemon may be booking it
        found = await _compare(wallet, reports, since=since, grace_s=grace_s, clock=clock)
    return found


async def _compare(wallet: Wallet, reports: Reports, *, since: int, grace_s: int, clock: Clock) -> Reconciliation:
    before = await _read(reports)
    state = await wallet.check()
    if not state.ready:
        raise WalletUnavailable(state.detail)
    listed = WalletAbility.LIST in state.abilities
    tells_balance = WalletAbility.BALANCE in state.abilities
    transactions, balance_msats = await _list(
        wallet, list_from(before, since), listed=listed, tells_balance=tells_balance
    )
    ours = await _read(reports)
    hashes, refunds = to_look_up(ours, transactions, since)
    books = WalletBooks(
        transactions=transactions,
        invoices=dict(zip(hashes, await _each(wallet.look_up, hashes), strict=True)),
        payments=dict(zip(refunds, await _each(wallet.look_up_payment, refunds), strict=True)),
        listed=listed,
        balance_msats=balance_msats,
    )
    return reconcile(ours, books, since=since, now=int(clock()), grace_s=grace_s)


async def _read(reports: Reports) -> OurBooks:
    return OurBooks(*await anyio.to_thread.run_sync(reports.ledger))


async def _list(
    wallet: Wallet, since: int, *, listed: bool, tells_balance: bool
) -> tuple[Sequence[Transaction], int | None]:
    """Return the wallet's list and its balance of the same moment; None for one that is never still."""
    transactions: Sequence[Transaction] = ()
    for _ in range(_TRIES):
        before = await wallet.balance_msats() if tells_balance else None
        transactions = await wallet.transactions(since) if listed else ()
        if not tells_balance or await wallet.balance_msats() == before:
            return transactions, before
    return transactions, None


async def _each(ask: Callable[[str], Awaitable[_T]], hashes: Sequence[str]) -> list[_T]:
    """Return the answers for all hashes, in their order. Raises the first `WalletError`, as itself."""
    answers: dict[str, _T] = {}
    left = iter(hashes)
    faults: list[WalletError] = []

    async def ask_on() -> None:
        for payment_hash in left:
            try:
                answers[payment_hash] = await ask(payment_hash)
            except WalletError as error:
                faults.append(error)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(ask_on)
    if faults:
        raise faults[0]
    return [answers[payment_hash] for payment_hash in hashes]
