"""Wallets as jobs see them, and the lightning addresses of those who are paid.

A call may succeed without our knowing: the errors say which of "certainly not done", "perhaps done" and "refused"
is true.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class WalletError(Exception):
    """A wallet call failed; the message is one sentence fit for the operator, without secrets."""


class WalletUnavailable(WalletError):
    """The call was certainly not carried out (no connection, refused before it was sent)."""


class WalletAmbiguous(WalletError):
    """The call may have been carried out (time-out or broken connection after sending): ask before repeating."""


class WalletRefused(WalletError):
    """The wallet understood and said no."""


class WalletAbility(StrEnum):
    """What a wallet can do; what it lacks is done without or refused clearly."""

    PUSH = "push"
    PAY = "pay"
    BALANCE = "balance"
    LIST = "list"
    DESCRIPTION_HASH = "description_hash"
    MSAT_PRECISION = "msat_precision"


class PaymentState(StrEnum):
    """What a wallet says of an invoice or a payment."""

    PENDING = "pending"
    SETTLED = "settled"
    EXPIRED = "expired"  # closed unpaid, as far as the wallet knows
    FAILED = "failed"
    UNKNOWN = "unknown"  # the wallet does not know it (any more)


@dataclass(frozen=True, slots=True)
class InvoiceRequest:
    """What we ask a wallet to make. `own_id` is our idempotency key and is findable later by `find`."""

    own_id: str
    amount_msats: int
    expiry_s: int
    description: str = ""
    description_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as the wallet has it. Times are unix seconds."""

    own_id: str
    payment_hash: str
    bolt11: str
    amount_msats: int
    created_at: int
    expires_at: int
    state: PaymentState = PaymentState.PENDING
    received_msats: int = 0
    settled_at: int | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A settlement, as pushed by the wallet or found by asking."""

    payment_hash: str
    amount_msats: int
    settled_at: int


@dataclass(frozen=True, slots=True)
class Payment:
    """An outgoing payment as the wallet has it. `preimage` (hex) is its proof, None where the wallet has none."""

    payment_hash: str
    state: PaymentState
    amount_msats: int
    fee_msats: int = 0
    preimage: str | None = field(default=None, repr=False)


class Direction(StrEnum):
    """Which way money went."""

    INCOMING = "incoming"
    OUTGOING = "outgoing"


@dataclass(frozen=True, slots=True)
class Transaction:
    """One line of the wallet's own list: an invoice of its, or a payment that it made. Times are unix seconds.

    `amount_msats` is what was received (or asked for, while unpaid) or sent, without the fee.
    """

    direction: Direction
    payment_hash: str
    state: PaymentState
    amount_msats: int
    created_at: int
    fee_msats: int = 0
    settled_at: int | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class WalletState:
    """The wallet's line in `pylon status`."""

    name: str
    kind: str
    ready: bool
    detail: str = ""
    network: str = ""
    abilities: frozenset[WalletAbility] = field(default_factory=frozenset)


class Wallet(Protocol):
    """A Lightning wallet behind its own boundary: keys and custody stay inside it."""

    @property
    def name(self) -> str:
        """The kind of wallet, as in the settings."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the wallet's connections for the life of the daemon; entering does not need the wallet to be up."""
        ...

    def state(self) -> WalletState:
        """Return what is known without asking."""
        ...

    async def check(self) -> WalletState:
        """Ask the wallet whether it is there; never raises, a fault becomes the state."""
        ...

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Make an invoice. The caller checks amount, network and expiry of what comes back."""
        ...

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return every invoice made under `own_id` (an ambiguous time-out may have left one, or two).

        `description` is the one it was asked for with: some wallets keep nothing else of ours, or only its hash.
        """
        ...

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return the invoice, or None when the wallet does not know it."""
        ...

    def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield invoices created at or after `since`, page by page, in any order; one may come twice.

        There may be more of them than fit into memory. Raises `WalletUnavailable`, also between two pages.
        """
        ...

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Pay an invoice once per `own_id`. Raises `WalletAmbiguous` when it may have been paid.

        `WalletRefused` and `WalletUnavailable` say that it was certainly not paid and will not be.
        """
        ...

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return what became of a payment of ours, or None when the wallet knows of none."""
        ...

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Return what was received and sent (unpaid invoices may be left out) from `since` on, newest last."""
        ...

    async def balance_msats(self) -> int:
        """Return the spendable balance."""
        ...

    def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as the wallet pushes them; duplicates and old ones are allowed.

        Raises `WalletUnavailable` when the stream breaks; the caller opens it again and looks up what it missed.
        """
        ...


class PayeeError(Exception):
    """A lightning address gave no invoice; the message is one sentence fit for the operator."""


class PayeeUnavailable(PayeeError):
    """It does not answer, or not sensibly: it may be asked again later."""


class PayeeRefused(PayeeError):
    """There is no such address, or it takes no such amount: asking again is of no use."""


class Payees(Protocol):
    """Where strangers are paid: lightning addresses (LUD-16), reached through the guarded dialer only."""

    async def invoice_for(self, address: str, amount_msats: int) -> str:
        """Return an address's BOLT11 invoice over exactly this amount, checked. Raises `PayeeError`."""
        ...


class Profiles(Protocol):
    """What customers say of themselves (kind 0), as our own relays have it."""

    async def lightning_address(self, pubkey: str) -> str | None:
        """Return the lightning address in a key's newest kind 0, well-formed; None when there is none (in time)."""
        ...
