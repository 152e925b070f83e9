"""What the database holds, as frozen values: jobs, invoices, settlements, outbox items.

The states live here because the schema checks them; what they mean and how they change is
`docs/lifecycle.md` and `pylon/jobs/lifecycle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

CURSOR_MARK: Final = "cursor "
"""Begins the names of the marks that hold, for each relay, until when (unix seconds) it was read."""

RESTORED_MARK: Final = "restored"
"""The mark of a database that came from a backup: when that was taken, unix seconds. See `jobs/salvage.py`."""

HELD_MARK: Final = "refunds held"
"""The mark of books of which it is not known whether refunds due by then (unix seconds) were paid already."""


class Work(StrEnum):
    """How far the work of a job is."""

    AWAITING_PAYMENT = "awaiting_payment"  # prepaid: nothing runs until the invoice is settled
    QUEUED = "queued"  # may run; waits for a slot of its backend and model
    RUNNING = "running"  # an attempt is committed and on its backend
    BILLING = "billing"  # postpaid: the text is stored, its invoice is being made
    PRODUCED = "produced"  # the result event is signed and stored, no relay has confirmed it
    DELIVERED = "delivered"  # end: at least one relay confirmed the result
    FAILED = "failed"  # end: every allowed attempt failed, or the wallet gave no invoice
    CANCELLED = "cancelled"  # end: by the customer (kind 5) or the operator
    EXPIRED = "expired"  # end: the deadline passed first
    UNDELIVERABLE = "undeliverable"  # end: no relay took the result before its deadline


class Money(StrEnum):
    """Where the money of a job is. `held` and `settling` join with later wallets."""

    NONE = "none"  # no invoice is out: a free job, or the invoice is not made yet
    INVOICED = "invoiced"  # one invoice is published and may be paid
    SETTLED = "settled"  # end: paid, and the work is under way or done (or the charge stands)
    CANCELLING = "cancelling"  # the work is gone; the wallet is asked before the invoice is closed
    VOID = "void"  # end: closed unpaid, after asking the wallet
    UNPAID = "unpaid"  # end: delivered on credit and not paid in time; the customer gets no more credit
    REFUND_DUE = "refund_due"  # paid, and the work is gone: a liability
    REFUNDING = "refunding"  # an invoice of the customer's is committed and being paid
    REFUNDED = "refunded"  # end: paid back
    WRITTEN_OFF = "written_off"  # end: the operator decided that it will not be paid back


class InvoiceState(StrEnum):
    """What we know of one invoice."""

    WANTED = "wanted"  # the intent is committed; the wallet may or may not have made it
    OPEN = "open"  # made, stored, published; the wallet is asked about it until it ends
    CLOSING = "closing"  # its job no longer wants it; it ends when the wallet has answered
    DEAD = "dead"  # the wallet was asked: unpaid and past paying
    PAID = "paid"  # settled; the settlement row has the money
    UNUSED = "unused"  # never published: the job ended before it was made


class RefundState(StrEnum):
    """How one refund stands."""

    COMMITTED = "committed"  # its invoice may be paid by now: the wallet is asked until it is known
    PAID = "paid"  # end: the wallet paid it
    FAILED = "failed"  # end: certainly not paid, and it will not be
    WRITTEN_OFF = "written_off"  # end: no payment, the operator's decision


class PayeeSource(StrEnum):
    """Who said where a refund goes."""

    REQUEST = "request"  # the tag `lud16` of the job request
    CUSTOMER = "customer"  # a feedback that the customer signed later
    OPERATOR = "operator"  # `pylon refunds pay --to`
    PROFILE = "profile"  # the customer's kind 0; asked for anew each time, never stored


class OutboxTopic(StrEnum):
    """What an outbox item asks for."""

    RESULT = "result"  # publish the job's result event; confirms move the job
    FEEDBACK = "feedback"  # publish a kind 7000 event


class OutboxState(StrEnum):
    """How an outbox item stands."""

    PENDING = "pending"  # no relay has confirmed it
    SENT = "sent"  # end: at least one relay confirmed it
    DEAD = "dead"  # end: its deadline passed unconfirmed (the dead letters)


ENDED: Final = frozenset({Work.DELIVERED, Work.FAILED, Work.CANCELLED, Work.EXPIRED, Work.UNDELIVERABLE})
"""Work states that nothing leaves."""

UNDER_WAY: Final = frozenset({Work.QUEUED, Work.RUNNING, Work.PRODUCED})
"""Work states in which settled money is owed for work, not to be given back."""


@dataclass(frozen=True)  # no slots: `evolve` copies the dict, in a tenth of the time of `dataclasses.replace`
class Job:
    """One accepted job request. Times are unix seconds, money is msats; `id` is the request's event id.

    `max_tokens` is the output that was priced. A `postpaid` job's price is the quoted one until its use is metered.
    `deposit_msats` is what of the price the customer's deposit pays: held or spent, 0 once the work is gone.
    The request's own text lives apart (`Tx.request_json`): it is erased long before the row is.
    """

    id: str
    customer: str
    kind: int
    backend: str
    model: str
    price_msats: int
    max_tokens: int
    accepted_at: int
    deadline_at: int
    relays: tuple[str, ...] = ()
    postpaid: bool = False
    work: Work = Work.QUEUED
    money: Money = Money.NONE
    version: int = 0
    attempts: int = 0
    partial_sent: bool = False
    invoices: int = 0
    deposit_msats: int = 0
    result_id: str | None = None
    reason: str = ""
    updated_at: int = 0
    purge_at: int | None = None

    def evolve(self, **changes: Any) -> Job:
        """Return a copy with some fields changed, like `dataclasses.replace`; unknown names are a `TypeError`."""
        if not changes.keys() <= self.__dict__.keys():
            raise TypeError(f"a job has no {', '.join(changes.keys() - self.__dict__.keys())}")
        copy = object.__new__(Job)
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    """One invoice, from intent to end. `own_id` is our idempotency key with the wallet."""

    own_id: str
    job_id: str
    number: int
    amount_msats: int
    created_at: int
    expires_at: int
    state: InvoiceState = InvoiceState.WANTED
    payment_hash: str | None = None
    bolt11: str | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Money received once, by an invoice of ours or as a `zap`.

    Of its amount `earned_msats` is earned by the work, `tip_msats` given beyond the price, and `deposit_msats` kept
    for the customer's next job. The rest is owed: to work under way, or to be refunded.
    """

    payment_hash: str
    job_id: str
    amount_msats: int
    earned_msats: int
    settled_at: int
    deposit_msats: int = 0
    tip_msats: int = 0
    zap: bool = False

    @property
    def rest_msats(self) -> int:
        """What is neither earned nor kept as a deposit."""
        return self.amount_msats - self.earned_msats - self.deposit_msats - self.tip_msats


@dataclass(frozen=True, slots=True)
class Refund:
    """One invoice of a customer's that gives back what is due, or (without invoice) what was written off.

    `own_id` is our idempotency key with the wallet, `destination` where the invoice came from. `reason` tells why
    it failed, or why it was written off.
    """

    own_id: str
    job_id: str
    amount_msats: int
    created_at: int
    destination: str = ""
    bolt11: str | None = None
    payment_hash: str | None = None
    expires_at: int | None = None
    number: int = 0  # given when it is stored
    state: RefundState = RefundState.COMMITTED
    fee_msats: int = 0
    reason: str = ""
    updated_at: int = 0


@dataclass(frozen=True, slots=True)
class Payee:
    """Where a job's refund goes: a lightning address or a BOLT11 invoice, "" when none is known (any more).

    The newest `said_at` holds. `ordered`: the operator wants it paid whatever the caps say.
    """

    job_id: str
    destination: str
    source: PayeeSource
    said_at: int
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """A signed event to publish. `event_json` is None once its plaintext was purged."""

    event_id: str
    job_id: str
    topic: OutboxTopic
    event_json: str | None
    relays: tuple[str, ...]
    created_at: int
    deadline_at: int
    state: OutboxState = OutboxState.PENDING


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job on a backend. `outcome` is empty while it runs; token counts are the backend's."""

    job_id: str
    number: int
    started_at: float
    ended_at: float | None = None
    outcome: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    first_token_ms: int = 0
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of the append-only journal; `seq` only ever grows."""

    seq: int
    at: float
    topic: str
    job_id: str
    entry: str


@dataclass(frozen=True, slots=True)
class Books:
    """Money sums over all settlements and refunds, all msats.

    `received = earned + in_work + refund_due + deposits + refunded + written_off`; the wallet's balance has changed
    by `received - refunded - refund_fees`.
    """

    received_msats: int
    earned_msats: int
    in_work_msats: int
    refund_due_msats: int
    refunded_msats: int = 0
    refund_fees_msats: int = 0
    written_off_msats: int = 0
    deposits_msats: int = 0

    @property
    def owed_msats(self) -> int:
        """Money that is not ours (yet): for work under way, to be given back, or kept for a customer's next job."""
        return self.in_work_msats + self.refund_due_msats + self.deposits_msats

    def __add__(self, other: Books) -> Books:
        return Books(
            self.received_msats + other.received_msats,
            self.earned_msats + other.earned_msats,
            self.in_work_msats + other.in_work_msats,
            self.refund_due_msats + other.refund_due_msats,
            self.refunded_msats + other.refunded_msats,
            self.refund_fees_msats + other.refund_fees_msats,
            self.written_off_msats + other.written_off_msats,
            self.deposits_msats + other.deposits_msats,
        )

    def __sub__(self, other: Books) -> Books:
        return Books(
            self.received_msats - other.received_msats,
            self.earned_msats - other.earned_msats,
            self.in_work_msats - other.in_work_msats,
            self.refund_due_msats - other.refund_due_msats,
            self.refunded_msats - other.refunded_msats,
            self.refund_fees_msats - other.refund_fees_msats,
            self.written_off_msats - other.written_off_msats,
            self.deposits_msats - other.deposits_msats,
        )
