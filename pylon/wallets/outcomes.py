"""What came of a call, in the same words whatever the wallet: doubt, refused access, a settlement, its health."""

from __future__ import annotations

from pylon.jobs.ports import (
    Clock,
    Direction,
    Invoice,
    PaymentState,
    Received,
    Transaction,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, read_invoice


class AccessRefused(WalletRefused):
    """The wallet refuses our token or our connection, so no call will succeed."""


class Health:
    """How a wallet is, as its last call showed: well, or what is wrong, and since when it has not answered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fault = "not asked yet"
        self._answered_at: float | None = None

    def note(self, error: WalletError | None) -> None:
        """Keep how a call ended; a refusal of that call alone is an answer too."""
        if error is None or (isinstance(error, WalletRefused) and not isinstance(error, AccessRefused)):
            self._fault = ""
            self._answered_at = self._clock()
        else:
            self._fault = str(error)

    def detail(self, fault: str = "") -> str:
        """Return what is wrong, "" when nothing is. `fault` is one that is known without a call."""
        detail = fault or self._fault
        if detail and self._answered_at is not None:
            detail += f" (last answer {max(0, int(self._clock() - self._answered_at))} s ago)"
        return detail

    def is_fresh(self, within_s: float) -> bool:
        """Tell whether the last call went well, and was made within that time."""
        at = self._answered_at
        return not self._fault and at is not None and 0 <= self._clock() - at < within_s


def in_doubt(sentence: str, *, mutating: bool) -> WalletError:
    """Return the error for a request that may have arrived and was not answered in a way we understand."""
    return WalletAmbiguous(sentence) if mutating else WalletUnavailable(sentence)


def read_payable(bolt11: str) -> tuple[InvoiceFacts, int]:
    """Return what an invoice says and its amount (msats). Raises `WalletRefused` for one that cannot be paid."""
    try:
        invoice = read_invoice(bolt11)
    except BadInvoice as error:
        raise WalletRefused(f"not paid: {error}") from error
    if invoice.amount_msats is None:
        raise WalletRefused("not paid: the invoice names no amount")
    return invoice, invoice.amount_msats


def settlement_of(invoice: Invoice | None, now: float) -> Received | None:
    """Return the settlement of an invoice that was looked up, None where it is not settled."""
    if invoice is None or invoice.state is not PaymentState.SETTLED:
        return None
    settled_at = int(now) if invoice.settled_at is None else invoice.settled_at
    return Received(invoice.payment_hash, invoice.received_msats, settled_at)


def invoice_line(invoice: Invoice, description: str, fee_msats: int = 0) -> Transaction:
    """Return an invoice as a line of the wallet's list; `fee_msats` is what receiving cost."""
    return Transaction(
        Direction.INCOMING,
        invoice.payment_hash,
        invoice.state,
        invoice.received_msats if invoice.state is PaymentState.SETTLED else invoice.amount_msats,
        created_at=invoice.created_at,
        fee_msats=fee_msats,
        settled_at=invoice.settled_at,
        description=description,
    )
