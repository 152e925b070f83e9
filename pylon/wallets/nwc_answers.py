"""What an NWC wallet says, in the words of `jobs.ports`: its errors, invoices, payments, transactions. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from pylon.jobs.ports import (
    Direction,
    Invoice,
    InvoiceRequest,
    Payment,
    PaymentState,
    Received,
    Transaction,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import BadInvoice, proves, read_invoice
from pylon.nostr.nip47 import BadReply, ErrorCode, Failure, Method, Result, TransactionState, WalletTransaction
from pylon.text import printable
from pylon.wallets.outcomes import AccessRefused, in_doubt

_STATES: Final = {
    TransactionState.PENDING: PaymentState.PENDING,
    TransactionState.SETTLED: PaymentState.SETTLED,
    TransactionState.EXPIRED: PaymentState.EXPIRED,
    TransactionState.FAILED: PaymentState.FAILED,
}
_REFUSALS: Final[Mapping[str, str]] = {
    ErrorCode.UNAUTHORIZED: "the wallet does not know this connection any more: make a new one there",
    ErrorCode.UNSUPPORTED_ENCRYPTION: "the wallet refuses the encryption that it offers",
    ErrorCode.RESTRICTED: "the wallet does not allow this connection to {method}",
    ErrorCode.QUOTA_EXCEEDED: "the budget of this connection in the wallet is used up",
    ErrorCode.INSUFFICIENT_BALANCE: "the wallet's balance is too low",
    ErrorCode.NOT_IMPLEMENTED: "the wallet has no {method}",
    ErrorCode.NOT_FOUND: "the wallet does not find what {method} is about",
    ErrorCode.PAYMENT_FAILED: "the payment failed",
}
_FAULTS: Final = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.RATE_LIMITED, ErrorCode.UNAUTHORIZED, ErrorCode.UNSUPPORTED_ENCRYPTION}
)
_CONNECTION_FAULTS: Final = frozenset({ErrorCode.UNAUTHORIZED, ErrorCode.UNSUPPORTED_ENCRYPTION})


class ConnectionRefused(AccessRefused):
    """The wallet refuses the connection as a whole, not only one call."""


def error_of(failure: Failure, method: str, *, mutating: bool) -> WalletError:
    """Return a wallet's "no" as the error of ours that it is.

    `INTERNAL`, `OTHER` and codes that we do not know tell nothing of whether a changing request was carried out.
    But an invoice that the wallet does not show can be paid by nobody, and `OTHER` is how some refuse its amount.
    """
    words = printable(failure.message)
    tail = f" (it says: {words})" if words else ""
    if failure.code in _REFUSALS:
        kind = ConnectionRefused if failure.code in _CONNECTION_FAULTS else WalletRefused
        return kind(_REFUSALS[failure.code].format(method=method) + tail)
    if failure.code == ErrorCode.RATE_LIMITED:
        return WalletUnavailable(f"the wallet wants to be asked less often{tail}")
    if failure.code == ErrorCode.OTHER and method == Method.MAKE_INVOICE:
        return WalletRefused(f"the wallet refuses to make the invoice{tail}")
    sentence = f"the wallet failed at {method} ({printable(failure.code)}){tail}"
    return in_doubt(sentence, mutating=mutating)


def is_fault(failure: Failure) -> bool:
    """Tell whether a "no" says that the wallet is not well, or that the connection is not; others are answers."""
    return failure.code in _FAULTS


def description_of(own_id: str, description: str) -> str:
    """Return the description of an invoice: what was asked for, with our own id in it."""
    if _names(description, own_id):
        return description
    return f"{description} ({own_id})" if description else own_id


def is_ours(found: WalletTransaction, own_id: str, description: str) -> bool:
    """Tell whether an invoice was made under `own_id`, by whatever the wallet kept of it.

    That is its metadata, its description, or the description's hash, in the list or in the invoice itself.
    """
    if found.own_id:
        return found.own_id == own_id
    said, digest = found.description, found.description_hash
    if not said and not digest:
        try:
            facts = read_invoice(found.invoice)
        except BadInvoice:
            return False
        said, digest = facts.description or "", facts.description_hash or ""
    hashes = {_hash(description), _hash(description_of(own_id, description))}
    return _names(said, own_id) or digest in hashes or said.lower() in hashes


def made_invoice(result: Result, request: InvoiceRequest) -> Invoice:
    """Return what `make_invoice` made, as the invoice itself says it. Raises `BadReply`."""
    bolt11 = result.get("invoice")
    if not isinstance(bolt11, str) or not bolt11:
        raise BadReply("no invoice")
    try:
        facts = read_invoice(bolt11)
    except BadInvoice as error:
        raise BadReply(f"an invoice that cannot be read ({error})") from error
    return Invoice(
        own_id=request.own_id,
        payment_hash=facts.payment_hash,
        bolt11=bolt11,
        amount_msats=facts.amount_msats or 0,
        created_at=facts.created_at,
        expires_at=facts.expires_at,
    )


def invoice_of(found: WalletTransaction, own_id: str = "") -> Invoice:
    """Return a wallet's transaction as an invoice; a time that it does not tell is read from the invoice."""
    created_at, expires_at = found.created_at, found.expires_at
    if found.invoice and not (created_at and expires_at):
        try:
            facts = read_invoice(found.invoice)
        except BadInvoice:
            pass
        else:
            created_at, expires_at = created_at or facts.created_at, expires_at or facts.expires_at
    return Invoice(
        own_id=own_id or found.own_id,
        payment_hash=found.payment_hash,
        bolt11=found.invoice,
        amount_msats=found.amount_msats,
        created_at=created_at,
        expires_at=expires_at,
        state=_STATES[found.state],
        received_msats=found.amount_msats if found.state is TransactionState.SETTLED else 0,
        settled_at=found.settled_at,
    )


def received_of(found: WalletTransaction, now: float) -> Received:
    """Return a settled transaction as a settlement."""
    return Received(found.payment_hash, found.amount_msats, found.settled_at or int(now))


def payment_of(found: WalletTransaction) -> Payment:
    """Return a wallet's transaction as a payment, with its preimage where that is the invoice's."""
    return Payment(
        payment_hash=found.payment_hash,
        state=_STATES[found.state],
        amount_msats=found.amount_msats,
        fee_msats=found.fees_msats or 0,
        preimage=found.preimage if proves(found.preimage, found.payment_hash) else None,
    )


def transaction_of(found: WalletTransaction) -> Transaction:
    """Return a line of the wallet's list."""
    return Transaction(
        direction=Direction.OUTGOING if found.incoming is False else Direction.INCOMING,
        payment_hash=found.payment_hash,
        state=_STATES[found.state],
        amount_msats=found.amount_msats,
        created_at=found.created_at,
        fee_msats=found.fees_msats or 0,
        settled_at=found.settled_at,
        description=found.description,
    )


def _names(text: str, own_id: str) -> bool:
    """Tell whether a text holds our id as a word of its own: `job-1` is not in `job-12`."""
    return re.search(rf"(?<![\w-]){re.escape(own_id)}(?![\w-])", text) is not None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
