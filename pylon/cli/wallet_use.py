"""What the `pylon wallet` commands do with a wallet: money moved at most once, and doubt told as doubt."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio

from pylon.jobs.ports import (
    Invoice,
    InvoiceRequest,
    Payment,
    PaymentState,
    Wallet,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, check_invoice, read_invoice

LOOK_EVERY_S: Final = 2.0
ASK_EVERY_S: Final = 1.0

_ENDED: Final = frozenset({PaymentState.FAILED, PaymentState.EXPIRED})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """An invoice that is to be made."""

    amount_msats: int
    expiry_s: int
    network: str
    description: str


def with_wallet(wallet: Wallet, use: Callable[[Wallet], Awaitable[T]]) -> T:
    """Run `use` with the wallet's connections open. Raises what it raises, never a group."""

    async def session() -> T:
        async with wallet.running():
            return await use(wallet)

    try:
        return anyio.run(session)
    except BaseExceptionGroup as group:
        raise _first_leaf(group) from group


async def make_invoice(wallet: Wallet, asked: Asked) -> Invoice:
    """Have an invoice made and check it as the till does. Raises `WalletError`.

    Where no answer came it is looked for by our own id, not made again.
    """
    own_id = f"cli-{secrets.token_hex(8)}"
    description = f"{asked.description} ({own_id})".strip()
    try:
        made = await wallet.create_invoice(InvoiceRequest(own_id, asked.amount_msats, asked.expiry_s, description))
    except WalletAmbiguous as error:
        found = await wallet.find(own_id, description)
        if not found:
            raise WalletUnavailable(f"no invoice was made: {error}") from error
        made = found[0]
    try:
        facts = read_invoice(made.bolt11)
        check_invoice(facts, amount_msats=asked.amount_msats, network=asked.network, now=time.time())
        if facts.payment_hash != made.payment_hash:
            raise BadInvoice("it has another payment hash than the wallet says")
    except BadInvoice as error:
        raise WalletRefused(f"the wallet made a wrong invoice, which is not shown: {error}") from error
    return made


async def wait_until_paid(wallet: Wallet, invoice: Invoice, deadline_at: float) -> Invoice | None:
    """Return the invoice once it is settled, None when it is not by `deadline_at`. Heard by push, and asked for.

    A wallet that is away meanwhile is asked again.
    """
    hint = anyio.Event()

    async def listen() -> None:
        try:
            async with aclosing(wallet.settlements()) as settlements:
                async for received in settlements:
                    if received.payment_hash == invoice.payment_hash:
                        hint.set()
        except WalletError:
            return  # the look-ups go on

    async with anyio.create_task_group() as tasks:
        if WalletAbility.PUSH in wallet.state().abilities:
            tasks.start_soon(listen)
        while True:
            last = time.time() >= deadline_at
            found = await _look_up(wallet, invoice)
            settled = found if found is not None and found.state is PaymentState.SETTLED else None
            if last or settled is not None:
                break
            heard = hint.is_set()
            with anyio.move_on_after(min(LOOK_EVERY_S, max(0.0, deadline_at - time.time()))):
                await (anyio.sleep(LOOK_EVERY_S) if heard else hint.wait())
        tasks.cancel_scope.cancel()
    return settled


async def _look_up(wallet: Wallet, invoice: Invoice) -> Invoice | None:
    try:
        return await wallet.look_up(invoice.payment_hash)
    except WalletError:
        return None


async def known_payment(wallet: Wallet, facts: InvoiceFacts) -> Payment | None:
    """Return the payment of an invoice that the wallet made before or is making; None for none, and a failed one.

    Raises `WalletUnavailable`; a wallet that cannot look payments up knows of none.
    """
    try:
        known = await wallet.look_up_payment(facts.payment_hash)
    except WalletRefused:
        return None
    return known if known is not None and known.state in (PaymentState.SETTLED, PaymentState.PENDING) else None


async def pay_once(
    wallet: Wallet, bolt11: str, facts: InvoiceFacts, *, max_fee_msats: int, patience_s: float
) -> Payment:
    """Pay under an id made from the payment hash, so that a repeated command asks for the same payment.

    Raises `WalletRefused` or `WalletUnavailable` when it was certainly not paid, `WalletAmbiguous` when that is
    still not known after asking for `patience_s`.
    """
    own_id = f"pay-{facts.payment_hash}"
    try:
        payment = await wallet.pay(bolt11, own_id=own_id, max_fee_msats=max_fee_msats)
    except WalletAmbiguous as error:
        return await await_payment(wallet, facts, patience_s=patience_s, doubt=str(error))
    if payment.state in _ENDED:
        raise WalletRefused(f"the wallet could not pay the invoice: {payment.state}")
    if payment.state is PaymentState.SETTLED:
        return payment
    return await await_payment(
        wallet, facts, patience_s=patience_s, doubt="the wallet has not finished the payment"
    )


async def await_payment(wallet: Wallet, facts: InvoiceFacts, *, patience_s: float, doubt: str) -> Payment:
    """Ask what became of a payment until it is known. Raises `WalletRefused` (it failed) or `WalletAmbiguous`."""
    with anyio.move_on_after(patience_s):
        while True:
            try:
                payment = await wallet.look_up_payment(facts.payment_hash)
            except WalletError as error:
                doubt = str(error)
            else:
                if payment is not None and payment.state is PaymentState.SETTLED:
                    return payment
                if payment is not None and payment.state in _ENDED:
                    raise WalletRefused(f"the wallet could not pay the invoice: {payment.state}")
            await anyio.sleep(ASK_EVERY_S)
    raise WalletAmbiguous(doubt)


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
