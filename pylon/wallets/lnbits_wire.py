"""What LNbits answers, read into the port's values and errors. No I/O.

An LNbits wallet is a list of rows, invoices and payments alike: a negative amount left the wallet. Three things are
not what they seem. A bad key is 404 `Wallet not found.`; a refusal is 520 with `{"detail", "status": "failed"}`;
and the expiry of an invoice that was just made is the server's local time, without a zone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from pylon.jobs.ports import (
    Direction,
    Invoice,
    InvoiceRequest,
    Payment,
    PaymentState,
    Transaction,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import MAX_INVOICE_CHARS, BadInvoice, InvoiceFacts, read_invoice
from pylon.text import printable
from pylon.wallets.answers import MAX_MSATS, MAX_SECONDS, BadAnswer, Fields
from pylon.wallets.http import TokenRefused, unclear

LABEL: Final = "LNbits"
OWN_ID_KEY: Final = "pylon_own_id"
"""Where our own id stands in a row's `extra`."""

_MAX_TEXT_CHARS: Final = 10_000
_DEFAULT_EXPIRY_S: Final = 3_600
_STATES: Final = {
    "pending": PaymentState.PENDING,
    "success": PaymentState.SETTLED,
    "failed": PaymentState.FAILED,
}


class UnknownPayment(WalletRefused):
    """LNbits knows no invoice and no payment by this hash."""


@dataclass(frozen=True, slots=True)
class Row:
    """One invoice or payment. Amounts are positive; `expires_at` is None where LNbits does not say it for sure."""

    direction: Direction
    payment_hash: str
    bolt11: str
    state: PaymentState
    amount_msats: int
    fee_msats: int
    created_at: int
    changed_at: int
    expires_at: int | None
    memo: str
    own_ids: tuple[str, ...]
    preimage: str | None = field(repr=False)

    def is_under(self, own_id: str, description: str) -> bool:
        """Tell whether this is an invoice that we had made under this id."""
        known = own_id in self.own_ids or self.memo in {own_id, description} - {""}
        return self.direction is Direction.INCOMING and known

    def invoice(self, now: float) -> Invoice:
        """Return the invoice; unpaid ones stay pending until LNbits has closed them, for it takes late money."""
        settled, state = self.state is PaymentState.SETTLED, self.state
        expires_at = _facts(self.bolt11).expires_at if self.expires_at is None else self.expires_at
        if state is PaymentState.FAILED and now >= expires_at:
            state = PaymentState.EXPIRED
        return Invoice(
            own_id=next(iter(self.own_ids), ""),
            payment_hash=self.payment_hash,
            bolt11=self.bolt11,
            amount_msats=self.amount_msats,
            created_at=self.created_at,
            expires_at=expires_at,
            state=state,
            received_msats=self.amount_msats if settled else 0,
            settled_at=self.changed_at if settled else None,
        )

    @property
    def payment(self) -> Payment:
        """The payment. Its fee and preimage count once it is settled: before, the fee is a mere reserve."""
        settled = self.state is PaymentState.SETTLED
        return Payment(
            self.payment_hash,
            self.state,
            self.amount_msats,
            self.fee_msats if settled else 0,
            self.preimage if settled else None,
        )

    @property
    def transaction(self) -> Transaction:
        """The line of the wallet's list."""
        settled = self.state is PaymentState.SETTLED
        return Transaction(
            self.direction,
            self.payment_hash,
            self.state,
            self.amount_msats,
            created_at=self.created_at,
            fee_msats=self.fee_msats if settled and self.direction is Direction.OUTGOING else 0,
            settled_at=self.changed_at if settled else None,
            description=self.memo,
        )


def answer(status: int, raw: bytes, *, mutating: bool, key_name: str) -> Any:
    """Return the JSON that LNbits answered. Raises `WalletError`; `key_name` is the setting to check."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = None
    if 200 <= status < 300:
        if value is None:
            raise unclear(LABEL, "answered something that is not JSON", mutating=mutating)
        return value
    detail, word = (value.get("detail"), value.get("status")) if isinstance(value, dict) else (None, None)
    said = printable(detail) if isinstance(detail, str) and detail else f"HTTP status {status}"
    if status in {401, 403} or (status == 404 and detail == "Wallet not found."):
        raise TokenRefused(f"{LABEL} does not accept the key: {said}; check {key_name}")
    if status == 404 and detail == "Payment does not exist.":
        raise UnknownPayment(f"{LABEL} does not know this payment")
    if status == 404:
        # Whatever answers is no LNbits, or a proxy before one that is away.
        raise WalletUnavailable(f"{LABEL} does not answer at this address: {said}; check wallet.url")
    if 400 <= status < 500 or (status == 520 and word == "failed" and isinstance(detail, str)):
        raise WalletRefused(f"{LABEL} refused: {said}")
    told = f": {said}" if isinstance(detail, str) else ""
    raise unclear(LABEL, f"answered with HTTP status {status}{told}", mutating=mutating)


def made(value: Any, request: InvoiceRequest) -> tuple[Invoice, str]:
    """Return the invoice that was just made, and its network; its times stand for sure in the BOLT11 alone."""
    read = row(value)
    facts = _facts(read.bolt11)
    if facts.payment_hash != read.payment_hash or read.direction is not Direction.INCOMING:
        raise BadAnswer("an invoice with another payment hash than it says")
    invoice = Invoice(
        own_id=request.own_id,
        payment_hash=facts.payment_hash,
        bolt11=read.bolt11,
        amount_msats=read.amount_msats,
        created_at=facts.created_at,
        expires_at=facts.expires_at,
    )
    return invoice, facts.network


def details(value: Any, payment_hash: str, key_name: str) -> Row:
    """Return the row of a look-up. Raises `TokenRefused`: to who has no key of a wallet it tells no details."""
    if isinstance(value, dict) and value.get("details") is None and "paid" in value:
        raise TokenRefused(f"{LABEL} knows no wallet by this key; check {key_name}")
    read = row(Fields(value).mapping("details"))
    if read.payment_hash != payment_hash:
        raise BadAnswer("a payment other than the one asked for")
    return read


def page(value: Any) -> tuple[list[Row], int]:
    """Return the rows of one page, and how many there are in all."""
    answered = Fields(value)
    return [row(each) for each in answered.items("data")], answered.number("total", MAX_SECONDS)


def balance_msats(value: Any) -> int:
    """Return the balance of `/api/v1/wallet`, which is in msats; an overdrawn wallet has nothing to spend."""
    return max(0, _signed(value, "balance"))


def is_admin(value: Any) -> bool:
    """Tell whether `/api/v1/wallet` was asked with the admin key: only to that it tells the wallet's id."""
    return Fields(value).text_or_none("id") is not None


def fee_reserve_msats(value: Any) -> int:
    """Return the most that LNbits may spend on a payment beyond its amount."""
    return Fields(value).number("fee_reserve")


def pushed_hash(text: str) -> str | None:
    """Return the payment hash of a pushed settlement, None for anything else: whoever has the key can push."""
    try:
        pushed = Fields(orjson.loads(text)).mapping("payment")
        incoming = _signed(pushed, "amount") > 0 and Fields(pushed).text("status") == "success"
        return Fields(pushed).digest("payment_hash") if incoming else None
    except (BadAnswer, orjson.JSONDecodeError):
        return None


def row(value: Any) -> Row:
    """Return one invoice or payment. Raises `BadAnswer`."""
    answered = Fields(value)
    amount_msats, status = _signed(value, "amount"), answered.text("status")
    if status not in _STATES:
        raise BadAnswer(f"a status that is not one of {', '.join(_STATES)}")
    extra = value.get("extra")
    own_ids = (extra.get(OWN_ID_KEY) if isinstance(extra, dict) else None, value.get("external_id"))
    created_at = _seconds(value, "created_at") if value.get("created_at") else _seconds(value, "time")
    expiry = value.get("expiry")
    return Row(
        direction=Direction.OUTGOING if amount_msats < 0 else Direction.INCOMING,
        payment_hash=answered.digest("payment_hash"),
        bolt11=answered.text_or_none("bolt11", MAX_INVOICE_CHARS) or "",
        state=_STATES[status],
        amount_msats=abs(amount_msats),
        fee_msats=abs(_signed(value, "fee")),
        created_at=created_at,
        changed_at=_seconds(value, "updated_at") if value.get("updated_at") else created_at,
        expires_at=created_at + _DEFAULT_EXPIRY_S if expiry is None else _zoned(expiry),
        memo=answered.text_or_none("memo", _MAX_TEXT_CHARS) or "",
        own_ids=tuple(dict.fromkeys(each for each in own_ids if isinstance(each, str) and each)),
        preimage=answered.digest_or_none("preimage"),
    )


def _facts(bolt11: str) -> InvoiceFacts:
    try:
        return read_invoice(bolt11)
    except BadInvoice as error:
        raise BadAnswer(f"what is no invoice ({error})") from error


def _signed(value: Any, name: str) -> int:
    number = value.get(name) if isinstance(value, dict) else None
    if type(number) is not int or abs(number) > MAX_MSATS:
        raise BadAnswer(f"a {name} that is not a whole number")
    return number


def _seconds(value: Any, name: str) -> int:
    text = value.get(name)
    try:
        read = datetime.fromisoformat(text)
        # What is stored is UTC, whether or not it says so.
        seconds = int(read.timestamp() if read.tzinfo else read.replace(tzinfo=UTC).timestamp())
    except (TypeError, ValueError, OverflowError):
        raise BadAnswer(f"a {name} that is not a time") from None
    if not 0 <= seconds <= MAX_SECONDS:
        raise BadAnswer(f"a {name} that is not a time")
    return seconds


def _zoned(text: Any) -> int | None:
    try:
        read = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise BadAnswer("an expiry that is not a time") from None
    return int(read.timestamp()) if read.tzinfo else None
