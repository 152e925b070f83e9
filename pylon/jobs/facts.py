"""The facts of a job's life: what can happen to it, as values. `docs/lifecycle.md` says who tells each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, get_args

from pylon.jobs.ports import Invoice
from pylon.nostr.nip90 import ErrorPrefix
from pylon.store.records import Refund


class Mode(StrEnum):
    """How a job is paid for."""

    FREE = "free"
    PREPAY = "prepay"
    POSTPAY = "postpay"


class CancelledBy(StrEnum):
    """Who asked for a cancellation."""

    CUSTOMER = "customer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class InvoiceMade:
    """The wallet made the invoice we wanted, and it passed our checks. `eta_s` is for the customer."""

    invoice: Invoice
    eta_s: int = 0


@dataclass(frozen=True, slots=True)
class InvoiceRefused:
    """The wallet will not make this invoice; `sentence` is for the customer."""

    own_id: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Paid:
    """First sight of a settlement of one of the job's invoices, at least its amount."""

    payment_hash: str
    amount_msats: int
    settled_at: int


@dataclass(frozen=True, slots=True)
class PaidShort:
    """First sight of a settlement below the invoice's amount."""

    payment_hash: str
    amount_msats: int
    settled_at: int


@dataclass(frozen=True, slots=True)
class Zapped:
    """First sight of a zap (NIP-57) to the event that asked for payment or to the result."""

    payment_hash: str
    amount_msats: int
    settled_at: int
    by_customer: bool


@dataclass(frozen=True, slots=True)
class InvoiceDead:
    """The wallet was asked: unpaid and past paying. `lost_early`: it died before its expiry."""

    payment_hash: str
    lost_early: bool


@dataclass(frozen=True, slots=True)
class Started:
    """A slot is free and the attempt begins, on `backend` (by default the one that the job names)."""

    backend: str = ""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """Attempt `attempt` goes on at `backend`: the one before failed it before its first token."""

    attempt: int
    backend: str


@dataclass(frozen=True, slots=True)
class PartialSent:
    """The first partial of the current attempt is about to leave."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt used, as its backend counted (or estimated)."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    first_token_ms: int = 0
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """Attempt `attempt` gave a result; its event is signed."""

    attempt: int
    event_id: str
    event_json: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Metered:
    """Attempt `attempt` of a postpaid job gave its text; by actual use it costs `price_msats`, never nothing.

    `deposit_msats` is what the customer's deposit pays of it, as the recorder finds it.
    """

    attempt: int
    text: str
    price_msats: int
    usage: Usage
    deposit_msats: int = 0


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """Attempt `attempt` failed. `retryable` is false when another attempt would fail the same way.

    `sentence` is for the customer; `detail` is for the operator and may name hosts and files.
    """

    attempt: int
    sentence: str
    retryable: bool
    prefix: ErrorPrefix = ErrorPrefix.FAILED
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PutBack:
    """Attempt `attempt` is broken off for the owner of the machine; the job waits again."""

    attempt: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A relay confirmed the result."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """No relay confirmed the result before its delivery deadline."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """A cancellation, by kind 5 of the request's author or by the operator."""

    by: CancelledBy


@dataclass(frozen=True, slots=True)
class Deadline:
    """The job's deadline passed."""


@dataclass(frozen=True, slots=True)
class RefundStarted:
    """An invoice over what is due was checked, and is to be paid."""

    refund: Refund


@dataclass(frozen=True, slots=True)
class RefundPaid:
    """The wallet says that it paid a refund's invoice. `left_msats` is what is due beyond it."""

    own_id: str
    payment_hash: str
    amount_msats: int
    fee_msats: int
    left_msats: int = 0


@dataclass(frozen=True, slots=True)
class RefundFailed:
    """A refund's invoice is certainly not paid and will not be. `retryable`: another one can be fetched."""

    own_id: str
    destination: str
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class PayeeRefused:
    """What the customer named for its refund cannot be paid; `sentence` says why, and is for the customer."""

    destination: str
    sentence: str


@dataclass(frozen=True, slots=True)
class WrittenOff:
    """The operator decided that what is due will not be paid back. `reason` stays in the books."""

    reason: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """The process started and found the job unfinished."""


@dataclass(frozen=True, slots=True)
class Found:
    """A relay has a result of ours that these books do not know: they came from a backup, and it is younger."""

    event_id: str


Fact = (
    InvoiceMade
    | InvoiceRefused
    | Paid
    | PaidShort
    | Zapped
    | InvoiceDead
    | Started
    | Rerouted
    | PartialSent
    | Output
    | Metered
    | AttemptFailed
    | PutBack
    | Confirmed
    | GaveUp
    | Cancel
    | Deadline
    | RefundStarted
    | RefundPaid
    | RefundFailed
    | PayeeRefused
    | WrittenOff
    | Restarted
    | Found
)


def fact_name(fact: Fact) -> str:
    """Return a fact's name as the tables of `docs/lifecycle.md` spell it."""
    return f"cancel_by_{fact.by.value}" if isinstance(fact, Cancel) else _NAMES[type(fact)]


_NAMES: Final = {kind: re.sub(r"(?<!^)([A-Z])", r"_\1", kind.__name__).lower() for kind in get_args(Fact)}
