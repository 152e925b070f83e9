"""What phoenixd's answers mean; no I/O. Its times are milliseconds, its amounts mostly whole sats, cut off.

Every function raises `BadAnswer` for an answer of another shape, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from pylon.jobs.ports import Direction, Invoice, InvoiceRequest, Payment, PaymentState, Transaction
from pylon.nostr.bolt11 import MAX_INVOICE_CHARS, BadInvoice, Network, read_amount, read_invoice
from pylon.text import printable
from pylon.wallets.answers import MAX_MSATS, MAX_SECONDS, BadAnswer, Fields
from pylon.wallets.outcomes import invoice_line

NOT_KNOWN: Final = ("Not found", "Unknown endpoint")
"""How a 404 begins that means an unknown payment: of this version, and of those before it."""

_MAX_SATS: Final = MAX_MSATS // 1000
_MAX_TEXT_CHARS: Final = 2_000
_DEFAULT_EXPIRY_S: Final = 3600
_FEE_BASE_MSATS: Final = 4_000
_FEE_PER_THOUSAND: Final = 4

_NETWORKS: Final = {
    "mainnet": Network.BITCOIN,
    "testnet": Network.TESTNET,
    "testnet3": Network.TESTNET,
    "testnet4": Network.TESTNET,
    "signet": Network.SIGNET,
    "regtest": Network.REGTEST,
}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One invoice of the server's list; `fee_msats` is what making room for the payment cost."""

    invoice: Invoice
    created_ms: int
    fee_msats: int
    description: str

    @property
    def transaction(self) -> Transaction:
        """The same as a line of the wallet's list."""
        return invoice_line(self.invoice, self.description, self.fee_msats)


@dataclass(frozen=True, slots=True)
class IncomingPage:
    """A page of the server's list: how many entries, the time of the oldest, and those that are invoices."""

    entries: int
    oldest_ms: int
    invoices: tuple[Incoming, ...]


@dataclass(frozen=True, slots=True)
class PayOutcome:
    """The answer to `/payinvoice`: what was paid, or why nothing was."""

    paid: Fields | None
    reason: str = ""


def expected_fee_msats(amount_msats: int) -> int:
    """Return what phoenixd takes for sending: 4 sats and 0.4 %, whatever the route costs it."""
    return _FEE_BASE_MSATS + amount_msats * _FEE_PER_THOUSAND // 1000


def sentence(raw: bytes) -> str:
    """Return the plain text of a refusal, fit to be shown; empty for anything that looks like a page."""
    text = raw.decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else printable(text)


def network(raw: bytes) -> str:
    """Return the chain of `/getinfo` by the name that invoices know it by."""
    chain = _object(raw).text("chain")
    if chain not in _NETWORKS:
        raise BadAnswer(f"a chain that is not known ({printable(chain, limit=40)})")
    return _NETWORKS[chain]


def balance_msats(raw: bytes) -> int:
    """Return the balance of `/getbalance`."""
    return _object(raw).number("balanceSat", _MAX_SATS) * 1000


def created(raw: bytes, request: InvoiceRequest) -> Invoice:
    """Return the invoice that `/createinvoice` made; its times stand in the invoice alone."""
    answer = _object(raw)
    bolt11, payment_hash = answer.text("serialized", MAX_INVOICE_CHARS), answer.digest("paymentHash")
    try:
        facts = read_invoice(bolt11)
    except BadInvoice as error:
        raise BadAnswer(f"what is no invoice ({error})") from error
    if facts.payment_hash != payment_hash:
        raise BadAnswer("an invoice with another payment hash than it says")
    return Invoice(
        own_id=request.own_id,
        payment_hash=payment_hash,
        bolt11=bolt11,
        amount_msats=facts.amount_msats or 0,
        created_at=facts.created_at,
        expires_at=facts.expires_at,
    )


def invoices(raw: bytes) -> tuple[Invoice, ...]:
    """Return the invoices of `/payments/incoming`, in its order (newest first)."""
    return tuple(each.invoice for each in incoming_page(raw).invoices)


def incoming_page(raw: bytes) -> IncomingPage:
    """Return one page of `/payments/incoming`."""
    entries = _list(raw)
    return IncomingPage(
        entries=len(entries),
        oldest_ms=min((each.number("createdAt", MAX_SECONDS) for each in entries), default=0),
        invoices=tuple(read for each in entries if (read := _incoming(each)) is not None),
    )


def invoice_by_hash(raw: bytes, payment_hash: str) -> Invoice | None:
    """Return the invoice of `/payments/incoming/{hash}`; None for null, and where no BOLT11 invoice was paid."""
    value = _value(raw)
    found = None if value is None else _incoming(Fields(value))
    if found is None:
        return None
    if found.invoice.payment_hash != payment_hash:
        raise BadAnswer("an invoice other than the one asked for")
    return found.invoice


def pay_outcome(raw: bytes) -> PayOutcome:
    """Return what `/payinvoice` answers, which is of either shape with status 200."""
    answer = _object(raw)
    if (reason := answer.text_or_none("reason", _MAX_TEXT_CHARS)) is not None:
        return PayOutcome(None, printable(reason))
    answer.digest("paymentPreimage")
    return PayOutcome(answer)


def sent_payment(answer: Fields, payment_hash: str, amount_msats: int) -> Payment:
    """Return a payment from the answer to `/payinvoice` alone, whose fee is cut to whole sats."""
    if answer.digest("paymentHash") != payment_hash:
        raise BadAnswer("a payment of another invoice")
    return Payment(
        payment_hash=payment_hash,
        state=PaymentState.SETTLED,
        amount_msats=amount_msats,
        fee_msats=answer.number("routingFeeSat", _MAX_SATS) * 1000,
        preimage=answer.digest("paymentPreimage"),
    )


def payment_by_hash(raw: bytes, payment_hash: str) -> Payment | None:
    """Return the payment of `/payments/outgoingbyhash/{hash}`, None for null."""
    value = _value(raw)
    if value is None:
        return None
    answer = Fields(value)
    if answer.digest("paymentHash") != payment_hash:
        raise BadAnswer("a payment other than the one asked for")
    paid = _outgoing(answer)
    return Payment(payment_hash, paid.state, paid.amount_msats, paid.fee_msats, answer.digest_or_none("preimage"))


def outgoing_page(raw: bytes) -> tuple[int, list[Transaction]]:
    """Return how many entries a page of `/payments/outgoing` has, and those that are Lightning payments."""
    entries = _list(raw)
    return len(entries), [_outgoing(each) for each in entries if each.digest_or_none("paymentHash") is not None]


def pushed_hash(text: str) -> str | None:
    """Return the payment hash of a `payment_received` of the websocket, None for any other event."""
    event = _object(text.encode("utf-8", "replace"))
    return event.digest("paymentHash") if event.text_or_none("type") == "payment_received" else None


def _incoming(answer: Fields) -> Incoming | None:
    bolt11 = answer.text_or_none("invoice", MAX_INVOICE_CHARS)
    if bolt11 is None:
        return None
    created_ms = answer.number("createdAt", MAX_SECONDS)
    expires_ms = answer.number_or_none("expiresAt", MAX_SECONDS)
    completed_ms = answer.number_or_none("completedAt", MAX_SECONDS)
    paid, fee_msats = answer.flag("isPaid"), answer.number("fees")
    expired = PaymentState.EXPIRED if answer.flag("isExpired") else PaymentState.PENDING
    gross_msats = answer.number("receivedSat", _MAX_SATS) * 1000 + fee_msats
    invoice = Invoice(
        own_id=answer.text_or_none("externalId") or "",
        payment_hash=answer.digest("paymentHash"),
        bolt11=bolt11,
        amount_msats=(answer.number_or_none("requestedSat", _MAX_SATS) or 0) * 1000,
        created_at=created_ms // 1000,
        expires_at=created_ms // 1000 + _DEFAULT_EXPIRY_S if expires_ms is None else expires_ms // 1000,
        state=PaymentState.SETTLED if paid else expired,
        received_msats=_whole_sats(gross_msats) if paid else 0,
        settled_at=completed_ms // 1000 if paid and completed_ms is not None else None,
    )
    description = answer.text_or_none("description", _MAX_TEXT_CHARS) or ""
    return Incoming(invoice, created_ms, fee_msats, description)


def _outgoing(answer: Fields) -> Transaction:
    completed_ms = answer.number_or_none("completedAt", MAX_SECONDS)
    if answer.flag("isPaid"):
        state = PaymentState.SETTLED
    else:
        state = PaymentState.PENDING if completed_ms is None else PaymentState.FAILED
    fee_msats = answer.number("fees")
    return Transaction(
        Direction.OUTGOING,
        answer.digest("paymentHash"),
        state,
        _recipient_msats(answer, fee_msats),
        created_at=answer.number("createdAt", MAX_SECONDS) // 1000,
        fee_msats=fee_msats,
        settled_at=completed_ms // 1000 if completed_ms is not None and state is PaymentState.SETTLED else None,
    )


def _recipient_msats(answer: Fields, fee_msats: int) -> int:
    """Return what the recipient got: `sent` has the fee in it and is cut off, so the invoice's amount decides."""
    least_msats = max(0, answer.number("sent", _MAX_SATS) * 1000 - fee_msats)
    bolt11 = answer.text_or_none("invoice", MAX_INVOICE_CHARS)
    try:
        asked_msats = None if bolt11 is None else read_amount(bolt11)
    except BadInvoice as error:
        raise BadAnswer(f"what is no invoice ({error})") from error
    if asked_msats is not None and least_msats <= asked_msats < least_msats + 1000:
        return asked_msats
    return _whole_sats(least_msats)


def _whole_sats(amount_msats: int) -> int:
    """Round up: an amount that the server has cut off is put back where it was, whole sats."""
    return -(-amount_msats // 1000) * 1000


def _object(raw: bytes) -> Fields:
    return Fields(_value(raw))


def _list(raw: bytes) -> list[Fields]:
    value = _value(raw)
    if not isinstance(value, list):
        raise BadAnswer("something that is not a JSON list")
    return [Fields(each) for each in value]


def _value(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadAnswer("something that is not JSON") from error
