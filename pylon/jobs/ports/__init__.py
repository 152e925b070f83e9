"""The small protocols through which jobs reach backends, wallets and relays.

`jobs` declares them, `backends`, `wallets` and `relays` implement them, `daemon` plugs them in. Every call that
leaves the process may succeed without our knowing: the errors here say which of "it did not happen", "it may
have happened" and "it was refused" is true, because the caller acts differently on each.
"""

from __future__ import annotations

from collections.abc import Callable

from pylon.jobs.ports.backends import (
    Backend,
    BackendBusy,
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelInfo,
    ModelMissing,
)
from pylon.jobs.ports.relays import (
    DeliverySink,
    EventSink,
    LineDown,
    Publisher,
    RelayLine,
)
from pylon.jobs.ports.wallets import (
    Direction,
    Invoice,
    InvoiceRequest,
    PayeeError,
    PayeeRefused,
    Payees,
    PayeeUnavailable,
    Payment,
    PaymentState,
    Profiles,
    Received,
    Transaction,
    Wallet,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)

Clock = Callable[[], float]
"""Returns unix seconds; passed in wherever logic depends on time."""

__all__ = [
    "Backend",
    "BackendBusy",
    "BackendError",
    "BackendHealth",
    "BackendRefused",
    "BackendState",
    "BackendUnavailable",
    "Chunk",
    "Clock",
    "DeliverySink",
    "Delta",
    "Direction",
    "EventSink",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "Invoice",
    "InvoiceRequest",
    "LineDown",
    "Message",
    "ModelInfo",
    "ModelMissing",
    "PayeeError",
    "PayeeRefused",
    "PayeeUnavailable",
    "Payees",
    "Payment",
    "PaymentState",
    "Profiles",
    "Publisher",
    "Received",
    "RelayLine",
    "Transaction",
    "Wallet",
    "WalletAbility",
    "WalletAmbiguous",
    "WalletError",
    "WalletRefused",
    "WalletState",
    "WalletUnavailable",
]
