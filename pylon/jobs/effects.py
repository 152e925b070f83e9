"""The effects of a step: what must be stored and done, as values. `docs/lifecycle.md` has the crash table."""

from __future__ import annotations

from dataclasses import dataclass

from pylon.jobs.facts import Usage
from pylon.jobs.ports import Invoice
from pylon.nostr.event import Tags
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.store.records import Refund, RefundState


@dataclass(frozen=True, slots=True)
class WantInvoice:
    """Ask the wallet for invoice `number` of this job."""

    number: int


@dataclass(frozen=True, slots=True)
class OpenInvoice:
    """Keep the invoice as open and watch it."""

    invoice: Invoice


@dataclass(frozen=True, slots=True)
class RetireInvoice:
    """Mark wanted invoices unused; `invoice` is the stray that was made but will never be published."""

    invoice: Invoice | None = None


@dataclass(frozen=True, slots=True)
class CloseInvoices:
    """The job wants none of its open invoices any more: ask the wallet until each has ended."""


@dataclass(frozen=True, slots=True)
class EndInvoice:
    """The invoice is dead, as the wallet said."""

    payment_hash: str


@dataclass(frozen=True, slots=True)
class BookMoney:
    """Book a settlement, once by payment hash, as owed."""

    payment_hash: str
    amount_msats: int
    settled_at: int
    zap: bool = False


@dataclass(frozen=True, slots=True)
class BookGift:
    """Book a zap that pays for no work, once by payment hash: as the customer's deposit or as a tip."""

    payment_hash: str
    amount_msats: int
    settled_at: int
    to_deposit: bool


@dataclass(frozen=True, slots=True)
class Earn:
    """What was owed for the work is earned, up to the price; what is beyond it becomes a deposit, or a tip."""


@dataclass(frozen=True, slots=True)
class Enqueue:
    """The job joins the queue of its backend and model."""


@dataclass(frozen=True, slots=True)
class BeginAttempt:
    """Record attempt `number`, then run it."""

    number: int


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """Record how attempt `number` ended."""

    number: int
    outcome: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class StopWork:
    """Take the job out of its queue or cancel its attempt."""


@dataclass(frozen=True, slots=True)
class DeliverResult:
    """Publish the result until a relay confirms."""

    event_id: str
    event_json: str


@dataclass(frozen=True, slots=True)
class KeepOutput:
    """Store the text of a result that waits for its invoice."""

    text: str


@dataclass(frozen=True, slots=True)
class DeliverBilled:
    """Make the result of the stored text, with `invoice` if there is one, and publish it until a relay confirms."""

    invoice: Invoice | None = None


@dataclass(frozen=True, slots=True)
class PayRefund:
    """Commit a refund's invoice, then have the wallet pay it."""

    refund: Refund


@dataclass(frozen=True, slots=True)
class AskRefund:
    """Ask the wallet what became of the refund under way."""


@dataclass(frozen=True, slots=True)
class EndRefund:
    """Record how a refund ended."""

    own_id: str
    state: RefundState
    fee_msats: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DropPayee:
    """Where the money was to go is of no use any more, unless something else was named since."""

    destination: str


@dataclass(frozen=True, slots=True)
class WriteOff:
    """Record that what is due will not be paid back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Say `processing` once, live only."""


@dataclass(frozen=True, slots=True)
class Say:
    """Publish a feedback durably. `prefix` is set for errors, `invoice` for payment-required; `tags` are added."""

    status: FeedbackStatus
    prefix: ErrorPrefix | None = None
    sentence: str = ""
    invoice: Invoice | None = None
    eta_s: int = 0
    tags: Tags = ()


Effect = (
    WantInvoice
    | OpenInvoice
    | RetireInvoice
    | CloseInvoices
    | EndInvoice
    | BookMoney
    | BookGift
    | Earn
    | Enqueue
    | BeginAttempt
    | EndAttempt
    | StopWork
    | DeliverResult
    | KeepOutput
    | DeliverBilled
    | PayRefund
    | AskRefund
    | EndRefund
    | DropPayee
    | WriteOff
    | Announce
    | Say
)
