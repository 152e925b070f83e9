"""Our books beside the wallet's own list: values in, differences out. Asks nobody and changes nothing.

Every line of either side is an amount that went in (positive) or out (negative, the fee with it). A difference
carries what each side has for one payment hash, so that the differences add up to what is between the two sums:
what the books miss is named, not estimated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pylon.jobs.ports import Direction, Invoice, Payment, PaymentState, Transaction
from pylon.store.records import InvoiceRow, InvoiceState, Refund, RefundState, Settlement

_OWN_ID: Final = re.compile(r"pylon-[0-9a-f]{32}")
_OPEN: Final = frozenset({InvoiceState.OPEN, InvoiceState.CLOSING})
_DEAD: Final = frozenset({PaymentState.EXPIRED, PaymentState.FAILED, PaymentState.UNKNOWN})
_EARLIER_S: Final = 86_400  # an invoice may be made so long before it is paid


@dataclass(frozen=True, slots=True)
class OurBooks:
    """What our database says about money: all of it, whatever the period."""

    invoices: Sequence[InvoiceRow] = ()
    settlements: Sequence[Settlement] = ()
    refunds: Sequence[Refund] = ()


@dataclass(frozen=True, slots=True)
class WalletBooks:
    """What the wallet says: its list, and answers about single payment hashes that the list does not settle.

    `listed` is false where the wallet has no list: then what is not ours stays unseen. `balance_msats` is None
    where it has no balance, or where that moved while it was asked.
    """

    transactions: Sequence[Transaction] = ()
    invoices: Mapping[str, Invoice | None] = field(default_factory=dict)
    payments: Mapping[str, Payment | None] = field(default_factory=dict)
    listed: bool = True
    balance_msats: int | None = None


class Kind(StrEnum):
    """What is different, and why."""

    NOT_BOOKED = "not-booked"
    FOREIGN_RECEIPT = "foreign-receipt"
    NOT_IN_WALLET = "not-in-wallet"
    NOT_SETTLED = "not-settled"
    OTHER_AMOUNT = "other-amount"
    DEAD_INVOICE = "dead-invoice"
    FOREIGN_PAYMENT = "foreign-payment"
    REFUND_NOT_PAID = "refund-not-paid"
    REFUND_NOT_BOOKED = "refund-not-booked"
    DEAD_REFUND = "dead-refund"
    OTHER_REFUND = "other-refund"
    OTHER_FEE = "other-fee"
    BALANCE = "balance"


REASONS: Final[Mapping[Kind, tuple[str, str]]] = {
    Kind.NOT_BOOKED: (
        "an invoice of ours is paid in the wallet and not in our books",
        "start pylon: it asks about its invoices and books what was paid",
    ),
    Kind.FOREIGN_RECEIPT: (
        "the wallet was paid for an invoice that is not ours",
        "yours or another program's; a wallet that only pylon uses keeps the two apart",
    ),
    Kind.NOT_IN_WALLET: (
        "a payment is in our books and the wallet does not know it",
        "see that the settings name the wallet that was paid; else ask the wallet's operator about this hash",
    ),
    Kind.NOT_SETTLED: (
        "a payment is in our books and the wallet does not call it settled",
        "ask the wallet's operator about this hash before it is earned or refunded",
    ),
    Kind.OTHER_AMOUNT: (
        "the wallet received another amount than we booked",
        "it may have been paid twice: give back to the customer what is beyond the price",
    ),
    Kind.DEAD_INVOICE: (
        "an invoice is open in our books and closed in the wallet",
        "start pylon: it asks about its open invoices and ends those that cannot be paid any more",
    ),
    Kind.FOREIGN_PAYMENT: (
        "the wallet paid something that is no refund of ours",
        "yours or another program's; if nobody knows it, change the wallet's keys",
    ),
    Kind.REFUND_NOT_PAID: (
        "a refund is paid in our books and the wallet did not pay it",
        "ask the customer whether it came; if not, the money is still owed",
    ),
    Kind.REFUND_NOT_BOOKED: (
        "the wallet paid a refund that is not paid in our books",
        "start pylon: it asks about refunds that it has not finished; do not pay it again",
    ),
    Kind.DEAD_REFUND: (
        "a refund is under way in our books and failed in the wallet",
        "start pylon: it asks about refunds that it has not finished",
    ),
    Kind.OTHER_REFUND: (
        "the wallet paid another amount than the refund of our books",
        "ask the wallet's operator about this hash",
    ),
    Kind.OTHER_FEE: (
        "the wallet paid another fee for a refund than we booked",
        "the wallet's figure is what it cost",
    ),
    Kind.BALANCE: (
        "the wallet holds less than its own list adds up to",
        "it takes fees that its list does not show (for channels, or custody), or its list is not complete",
    ),
}
"""For each kind its reason, and what to do."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: what our books and the wallet have for one payment hash, msats, negative when sent.

    `at` is unix seconds, the wallet's time where it tells one. `job_id` is None where no job of ours is meant.
    """

    kind: Kind
    payment_hash: str
    ours_msats: int
    wallet_msats: int
    at: int
    job_id: str | None = None

    @property
    def reason(self) -> str:
        """What is wrong, one clause."""
        return REASONS[self.kind][0]

    @property
    def advice(self) -> str:
        """What to do about it, one clause."""
        return REASONS[self.kind][1]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The outcome for a period: sums of both sides, and every difference, oldest first. All msats.

    `change_msats` is what the wallet's own list adds up to, None where it has none; `opening_msats` is the balance
    before the period, by that list, None where it cannot be told.
    """

    differences: tuple[Difference, ...]
    settlements: int
    refunds: int
    received_msats: int
    refunded_msats: int
    fees_msats: int
    change_msats: int | None
    balance_msats: int | None
    opening_msats: int | None

    @property
    def books_msats(self) -> int:
        """What our books say that the balance changed by."""
        return self.received_msats - self.refunded_msats - self.fees_msats


@dataclass(frozen=True, slots=True)
class _Line:
    """What the wallet has for one payment hash and direction, over all of its lines."""

    state: PaymentState
    amount_msats: int
    fee_msats: int
    at: int
    description: str = ""

    @property
    def settled(self) -> bool:
        return self.state is PaymentState.SETTLED


def list_from(ours: OurBooks, since: int) -> int:
    """Return from when (unix seconds) the wallet is to list: lists go by when an invoice was made, not paid."""
    if not since:
        return 0
    paid = {each.payment_hash for each in ours.settlements if each.settled_at >= since}
    made = [row.created_at for row in ours.invoices if row.payment_hash in paid or row.state in _OPEN]
    return max(0, min([since, *made]) - _EARLIER_S)


def to_look_up(ours: OurBooks, transactions: Sequence[Transaction], since: int) -> tuple[list[str], list[str]]:
    """Return the payment hashes of invoices and of refunds that the wallet must be asked about one by one.

    Those are what we hold for paid or payable and the list does not show as settled: lists may leave out what is
    unpaid, and end somewhere.
    """
    settled = {(each.direction, each.payment_hash) for each in transactions if each.state is PaymentState.SETTLED}
    booked = [each.payment_hash for each in ours.settlements if each.settled_at >= since]
    payable = [row.payment_hash for row in ours.invoices if row.state in _OPEN and row.payment_hash is not None]
    refunds = [
        each.payment_hash
        for each in ours.refunds
        if each.payment_hash is not None and (_ended_at(each) >= since or each.state is RefundState.COMMITTED)
    ]
    return (
        [each for each in dict.fromkeys([*booked, *payable]) if (Direction.INCOMING, each) not in settled],
        [each for each in dict.fromkeys(refunds) if (Direction.OUTGOING, each) not in settled],
    )


def reconcile(ours: OurBooks, wallet: WalletBooks, *, since: int, now: int, grace_s: int = 0) -> Reconciliation:
    """Return what is different between our books and the wallet's from `since` (unix seconds, 0 for ever) on.

    An invoice that is past its expiry by less than `grace_s` is not yet expected to be closed in our books.
    """
    received = _incoming(wallet)
    refunds = {each.payment_hash: each for each in ours.refunds if each.payment_hash is not None}
    sent = _outgoing(wallet, refunds)
    invoices = {row.payment_hash: row for row in ours.invoices if row.payment_hash is not None}
    by_own_id = {row.own_id: row for row in ours.invoices}
    booked = {each.payment_hash for each in ours.settlements}

    # One time decides for both sides whether a payment falls into the period: the wallet's, where it has one.
    def falls_in(line: _Line | None, at: int) -> bool:
        return (line.at if line is not None and line.settled else at) >= since

    settlements = [each for each in ours.settlements if falls_in(received.get(each.payment_hash), each.settled_at)]
    paid = [
        each
        for payment_hash, each in refunds.items()
        if each.state is RefundState.PAID and falls_in(sent.get(payment_hash), _ended_at(each))
    ]
    found = [_of_settlement(each, received.get(each.payment_hash)) for each in settlements]
    for payment_hash, line in received.items():
        if not line.settled or payment_hash in booked:
            continue
        row = invoices.get(payment_hash) or _named(by_own_id, line.description)
        if line.at >= since or (row is not None and row.state in _OPEN):
            found.append(_not_booked(payment_hash, line, row))
    found += [_of_open_invoice(row, received, now, grace_s) for row in ours.invoices if row.state in _OPEN]
    found += [_of_refund(each, sent.get(each.payment_hash or "")) for each in paid]
    for payment_hash, line in sent.items():
        refund = refunds.get(payment_hash)
        if refund is None or refund.state is not RefundState.PAID:
            found.append(_of_payment(payment_hash, line, refund, since))

    change_msats = None
    if wallet.listed:
        # An unbooked payment of an open invoice is a difference whenever it came, but no part of the period then.
        change_msats = sum(line.amount_msats for line in received.values() if line.settled and line.at >= since)
        change_msats -= sum(
            line.amount_msats + line.fee_msats for line in sent.values() if line.settled and line.at >= since
        )
    opening_msats = None
    if change_msats is not None and wallet.balance_msats is not None:
        opening_msats = wallet.balance_msats - change_msats
        if opening_msats < 0:
            found.append(Difference(Kind.BALANCE, "", change_msats, wallet.balance_msats, now))
    differences = sorted(
        (each for each in found if each is not None), key=lambda each: (each.at, each.payment_hash)
    )
    return Reconciliation(
        differences=tuple(differences),
        settlements=len(settlements),
        refunds=len(paid),
        received_msats=sum(each.amount_msats for each in settlements),
        refunded_msats=sum(each.amount_msats for each in paid),
        fees_msats=sum(each.fee_msats for each in paid),
        change_msats=change_msats,
        balance_msats=wallet.balance_msats,
        opening_msats=opening_msats,
    )


def _of_settlement(ours: Settlement, line: _Line | None) -> Difference | None:
    if line is None or not line.settled:
        unknown = line is None or line.state is PaymentState.UNKNOWN
        kind = Kind.NOT_IN_WALLET if unknown else Kind.NOT_SETTLED
        return Difference(kind, ours.payment_hash, ours.amount_msats, 0, ours.settled_at, ours.job_id)
    if line.amount_msats == ours.amount_msats:
        return None
    amounts = ours.amount_msats, line.amount_msats
    return Difference(Kind.OTHER_AMOUNT, ours.payment_hash, *amounts, line.at, ours.job_id)


def _not_booked(payment_hash: str, line: _Line, row: InvoiceRow | None) -> Difference:
    if row is None:
        return Difference(Kind.FOREIGN_RECEIPT, payment_hash, 0, line.amount_msats, line.at)
    return Difference(Kind.NOT_BOOKED, payment_hash, 0, line.amount_msats, line.at, row.job_id)


def _of_open_invoice(row: InvoiceRow, received: Mapping[str, _Line], now: int, grace_s: int) -> Difference | None:
    assert row.payment_hash is not None
    line = received.get(row.payment_hash)
    if line is None or line.state not in _DEAD or row.expires_at <= now < row.expires_at + grace_s:
        return None
    return Difference(Kind.DEAD_INVOICE, row.payment_hash, 0, 0, row.expires_at, row.job_id)


def _of_refund(ours: Refund, line: _Line | None) -> Difference | None:
    payment_hash = ours.payment_hash or ""
    booked_msats = -ours.amount_msats - ours.fee_msats
    if line is None or not line.settled:
        return Difference(Kind.REFUND_NOT_PAID, payment_hash, booked_msats, 0, _ended_at(ours), ours.job_id)
    wallet_msats = -line.amount_msats - line.fee_msats
    if line.amount_msats != ours.amount_msats:
        kind = Kind.OTHER_REFUND
    elif line.fee_msats != ours.fee_msats:
        kind = Kind.OTHER_FEE
    else:
        return None
    return Difference(kind, payment_hash, booked_msats, wallet_msats, line.at, ours.job_id)


def _of_payment(payment_hash: str, line: _Line, refund: Refund | None, since: int) -> Difference | None:
    """Judge what the wallet did about a payment that is not paid in our books."""
    if line.settled and (refund is not None or line.at >= since):
        kind = Kind.FOREIGN_PAYMENT if refund is None else Kind.REFUND_NOT_BOOKED
        job_id = None if refund is None else refund.job_id
        return Difference(kind, payment_hash, 0, -line.amount_msats - line.fee_msats, line.at, job_id)
    if refund is not None and refund.state is RefundState.COMMITTED and line.state in _DEAD:
        return Difference(Kind.DEAD_REFUND, payment_hash, 0, 0, _ended_at(refund), refund.job_id)
    return None


def _ended_at(refund: Refund) -> int:
    """Return when a refund was last heard of: when it was paid, for a paid one."""
    return refund.updated_at or refund.created_at


def _named(by_own_id: Mapping[str, InvoiceRow], description: str) -> InvoiceRow | None:
    """Return the invoice that a description names: the wallet made two for one intent, and we know one hash."""
    named = _OWN_ID.search(description)
    return None if named is None else by_own_id.get(named[0])


def _incoming(wallet: WalletBooks) -> dict[str, _Line]:
    lines = _lines(wallet.transactions, Direction.INCOMING)
    for payment_hash, invoice in wallet.invoices.items():
        if invoice is None:
            lines.setdefault(payment_hash, _Line(PaymentState.UNKNOWN, 0, 0, 0))
        else:
            settled = invoice.state is PaymentState.SETTLED
            amount_msats = invoice.received_msats if settled else invoice.amount_msats
            at = invoice.created_at if invoice.settled_at is None else invoice.settled_at
            lines[payment_hash] = _Line(invoice.state, amount_msats, 0, at)
    return lines


def _outgoing(wallet: WalletBooks, refunds: Mapping[str, Refund]) -> dict[str, _Line]:
    lines = _lines(wallet.transactions, Direction.OUTGOING)
    for payment_hash, payment in wallet.payments.items():
        before, refund = lines.get(payment_hash), refunds.get(payment_hash)
        at = (
            before.at if before is not None else 0 if refund is None else _ended_at(refund)
        )  # an answer tells no time
        if payment is None:
            lines.setdefault(payment_hash, _Line(PaymentState.UNKNOWN, 0, 0, 0))
        else:
            lines[payment_hash] = _Line(payment.state, payment.amount_msats, payment.fee_msats, at)
    return lines


def _lines(transactions: Iterable[Transaction], direction: Direction) -> dict[str, _Line]:
    """Return one line for each payment hash: settled ones add up, and count before any other."""
    lines: dict[str, _Line] = {}
    for each in transactions:
        if each.direction is not direction:
            continue
        at = each.created_at if each.settled_at is None else each.settled_at
        line = _Line(each.state, each.amount_msats, each.fee_msats, at, each.description)
        before = lines.get(each.payment_hash)
        if before is not None and before.settled:
            if not line.settled:
                continue
            amounts = before.amount_msats + line.amount_msats, before.fee_msats + line.fee_msats
            line = _Line(line.state, *amounts, before.at, before.description)
        lines[each.payment_hash] = line
    return lines
