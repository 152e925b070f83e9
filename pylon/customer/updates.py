"""What providers answer to one job request, as the values that a customer's program works with.

Text in them was written by a stranger: it goes through `pylon.text.printable` before it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pylon.nostr.event import Event


@dataclass(frozen=True, slots=True)
class PaymentRequired:
    """The provider wants to be paid first. `bolt11` is None where it gives no invoice (some want a zap)."""

    provider: str
    amount_msats: int | None
    bolt11: str | None
    info: str = ""


@dataclass(frozen=True, slots=True)
class Processing:
    """The work has begun."""

    provider: str
    info: str = ""


@dataclass(frozen=True, slots=True)
class Partial:
    """Output so far. Numbered ones are cumulative and only ever move forward; a later attempt starts over.

    Without a number (a provider that does not follow our convention) nothing is known of order or completeness.
    """

    provider: str
    content: str
    number: int | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The job result, once per provider. `amount_msats` and `bolt11` are what is (still) asked for it."""

    provider: str
    content: str
    event: Event = field(repr=False)
    amount_msats: int | None = None
    bolt11: str | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """The provider says that the job is finished and settled."""

    provider: str
    info: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider says that there will be no result. `prefix` is one of `nip90.ErrorPrefix`, or empty.

    `amount_msats` is its price when the bid was below it.
    """

    provider: str
    prefix: str
    sentence: str
    amount_msats: int | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """A feedback whose status is none of NIP-90's; nothing follows from it."""

    provider: str
    status: str
    info: str = ""


Update = PaymentRequired | Processing | Partial | Result | Success | Failed | Remark
