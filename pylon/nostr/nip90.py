"""NIP-90 job requests: kinds 5000 to 5999 from event to value and back, and their cancellation by kind 5.

Replies are built and read in `nip90_replies`, their size limits in `nip90_fit`. `parse_request` takes what a
stranger signed: it raises `BadRequest`, which carries what to answer, and nothing else. What a parameter means is
not known here (`pylon.jobs.textgen` knows it for kind 5050), so that the codec stays thin and replaceable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pylon.nostr.event import Draft, Event, Tags, is_hex
from pylon.text import printable

REQUEST_KINDS: Final = range(5000, 6000)
RESULT_KINDS: Final = range(6000, 7000)
FEEDBACK_KIND: Final = 7000
DELETION_KIND: Final = 5

MAX_MONEY_MSATS: Final = 21_000_000 * 100_000_000 * 1000
MAX_INPUTS: Final = 64
MAX_PARAMS: Final = 64
MAX_RELAYS: Final = 16
MAX_RELAY_URL: Final = 256

_SHOWN = 60  # characters of a stranger's text that a sentence repeats
_KNOWN_TAGS: Final = frozenset({"i", "param", "bid", "output", "relays", "t", "p", "expiration", "encrypted"})
_DIGITS: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
# Printable ASCII without space, quote and backslash: JSON never escapes it, so its length is its size.
_RELAY_URL: Final = re.compile(r"wss?://[!#-\[\]-~]+", re.ASCII | re.IGNORECASE)


class FeedbackStatus(StrEnum):
    """The status of a job feedback."""

    PAYMENT_REQUIRED = "payment-required"  # pay the invoice in `amount`, and the job goes on
    PROCESSING = "processing"  # the work has begun
    PARTIAL = "partial"  # content holds the output so far
    SUCCESS = "success"  # the result is published
    ERROR = "error"  # there will be no result; the text says why


class ErrorPrefix(StrEnum):
    """The machine-readable prefix of an `error` feedback: why a request or a job ends without result."""

    # the request itself
    INVALID = "invalid"  # it cannot be read, or a value is malformed or out of range
    UNSUPPORTED_KIND = "unsupported-kind"  # a job kind that is not offered
    UNSUPPORTED_MODEL = "unsupported-model"  # the model asked for is not offered
    UNSUPPORTED_PARAM = "unsupported-param"  # a parameter that would have to be ignored
    UNSUPPORTED_INPUT = "unsupported-input"  # an input type that is not offered for this kind
    UNSUPPORTED_OUTPUT = "unsupported-output"  # an output format that is not offered for this kind
    UNSUPPORTED_ENCRYPTION = "unsupported-encryption"  # encrypted requests are not offered
    TOO_LARGE = "too-large"  # the prompt, or the result it may cause, is over a limit
    # its time
    EXPIRED = "expired"  # its expiration, or the job's deadline, has passed
    TOO_OLD = "too-old"  # it was created too long ago
    IN_FUTURE = "in-future"  # it was created too far in the future: check the clock
    # the customer and the load
    RESTRICTED = "restricted"  # this customer is not served
    POW_REQUIRED = "pow-required"  # the request proves too little work (NIP-13)
    FREE_LIMIT = "free-limit"  # what is given away in a day is used up: by this customer, or by all together
    RATE_LIMITED = "rate-limited"  # too many requests from this customer: wait
    QUEUE_FULL = "queue-full"  # no room for another job or unpaid invoice: try later or elsewhere
    PAUSED = "paused"  # the operator takes no jobs now
    # money
    BID_TOO_LOW = "bid-too-low"  # the price, given in `amount`, is above the bid
    PAYMENT_UNAVAILABLE = "payment-unavailable"  # no invoice can be made now
    UNPAID = "unpaid"  # an earlier job of this customer was done on credit: it is to be paid first
    REFUND_DUE = "refund-due"  # paid, and there will be no result: the amount is owed to the customer
    REFUNDED = "refunded"  # what was owed was paid back; the tag `refunded` holds the amount and the payment hash
    WRITTEN_OFF = "written-off"  # the provider closed a refund without paying it
    # the work
    BACKEND_UNAVAILABLE = "backend-unavailable"  # the model's server is not ready
    FAILED = "failed"  # every attempt failed; nothing is owed
    CANCELLED = "cancelled"  # by the customer or the operator; nothing is owed
    INTERNAL = "internal"  # a fault of this provider


@dataclass(frozen=True, slots=True)
class Denial:
    """A refusal and its sentence, fit to be shown: untrusted text in it is already printable."""

    prefix: ErrorPrefix
    sentence: str

    @property
    def info(self) -> str:
        """The text of an `error` feedback: `prefix: sentence`."""
        return f"{self.prefix.value}: {self.sentence}"


class BadRequest(ValueError):
    """A job request that is not taken; `denial` is what its customer may be told."""

    def __init__(self, prefix: ErrorPrefix, sentence: str) -> None:
        self.denial = Denial(prefix, sentence)
        super().__init__(self.denial.info)


class InputType(StrEnum):
    """What the data of an `i` tag is."""

    TEXT = "text"  # the data itself
    URL = "url"  # where to fetch it
    EVENT = "event"  # the id of an event that holds it
    JOB = "job"  # the id of a job request whose result holds it


_INPUT_TYPES: Final = {member.value: member for member in InputType}


@dataclass(frozen=True, slots=True)
class JobInput:
    """One `i` tag. `relay` hints where an event or job is found; `marker` says how the job uses the input."""

    data: str
    type: InputType = InputType.TEXT
    relay: str = ""
    marker: str = ""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job request of any kind. Order and repetition of inputs and parameters are kept.

    `params` pairs a normalised name (lower case, `_` for `-`) with the values of one `param` tag, possibly none.
    `bid_msats` is the most that the customer pays. `providers` are the `p` tags as written; without one the request
    is a broadcast. `expires_at` is unix seconds (NIP-40). `relays` are ws or wss URLs of a stranger's choice: never
    dial them without the guarded dialer.
    """

    event: Event
    inputs: tuple[JobInput, ...] = ()
    params: tuple[tuple[str, tuple[str, ...]], ...] = ()
    output: str | None = None
    bid_msats: int | None = None
    relays: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    expires_at: int | None = None
    encrypted: bool = False

    @property
    def id(self) -> str:
        """The event id, which is the job's id."""
        return self.event.id

    @property
    def customer(self) -> str:
        """The customer's public key, hex."""
        return self.event.pubkey

    @property
    def kind(self) -> int:
        """The job kind, 5000 to 5999."""
        return self.event.kind

    @property
    def created_at(self) -> int:
        """Unix seconds, as the customer's clock says."""
        return self.event.created_at


def result_kind(kind: int) -> int:
    """Return the kind of the results of job kind `kind`."""
    return kind + 1000


def normal_name(name: str) -> str:
    """Return a parameter's name as compared: `Top-K` and `top_k` are one."""
    return name.strip().lower().replace("-", "_")


def parse_request(event: Event) -> JobRequest:
    """Return the job request that `event` holds. Raises `BadRequest` and nothing else, whatever the event."""
    if event.kind not in REQUEST_KINDS:
        raise BadRequest(ErrorPrefix.UNSUPPORTED_KIND, f"kind {event.kind} is not a job request")
    found: dict[str, list[tuple[str, ...]]] = {}
    for tag in event.tags:
        if tag and tag[0] in _KNOWN_TAGS:
            found.setdefault(tag[0], []).append(tag)
    bid, output, expiration = _single(found, "bid"), _single(found, "output"), _single(found, "expiration")
    return JobRequest(
        event=event,
        inputs=_parse_inputs(found.get("i", ())),
        params=_parse_params(found.get("param", ())),
        output=(output or "").strip() or None,
        bid_msats=None if bid is None else _parse_bid(bid),
        relays=clean_relays(url for tag in found.get("relays", ()) for url in tag[1:]),
        topics=tuple(tag[1] for tag in found.get("t", ()) if len(tag) > 1),
        # A malformed `p` stays: the request was meant for someone, and must not turn into a broadcast.
        providers=tuple(tag[1] if len(tag) > 1 else "" for tag in found.get("p", ())),
        expires_at=None if expiration is None else _parse_expiration(expiration),
        encrypted="encrypted" in found,
    )


def request_draft(
    kind: int,
    inputs: Iterable[JobInput] = (),
    *,
    params: Iterable[tuple[str, Sequence[str]]] = (),
    output: str | None = None,
    bid_msats: int | None = None,
    relays: Iterable[str] = (),
    topics: Iterable[str] = (),
    providers: Iterable[str] = (),
    expires_at: int | None = None,
) -> Draft:
    """Return a job request to sign. Raises `ValueError` when `kind` or `bid_msats` is out of range."""
    if kind not in REQUEST_KINDS:
        raise ValueError(f"kind {kind} is not a job request: use 5000 to 5999")
    if bid_msats is not None and not 0 <= bid_msats <= MAX_MONEY_MSATS:
        raise ValueError(f"a bid of {bid_msats} msats is out of range")
    tags: list[tuple[str, ...]] = [_input_tag(each) for each in inputs]
    tags += [("param", name, *values) for name, values in params]
    if output:
        tags.append(("output", output))
    if bid_msats is not None:
        tags.append(("bid", str(bid_msats)))
    if urls := tuple(relays):
        tags.append(("relays", *urls))
    tags += [("t", topic) for topic in topics]
    tags += [("p", provider) for provider in providers]
    if expires_at is not None:
        tags.append(("expiration", str(expires_at)))
    return Draft(kind=kind, tags=tuple(tags))


def cancel_draft(request_id: str, kind: int, reason: str = "") -> Draft:
    """Return the NIP-09 deletion by which a customer cancels the job request `request_id` of kind `kind`."""
    return Draft(kind=DELETION_KIND, content=reason, tags=(("e", request_id), ("k", str(kind))))


def parse_deletion(event: Event) -> tuple[str, ...]:
    """Return the event ids that a kind 5 event deletes, each once; none for another kind or malformed ids.

    Whether the deletion counts is for the caller: its author must be the author of what it names.
    """
    if event.kind != DELETION_KIND:
        return ()
    return tuple(dict.fromkeys(value for value in event.tag_values("e") if is_hex(value, 64)))


def clean_relays(urls: Iterable[str]) -> tuple[str, ...]:
    """Return the ws and wss URLs of `urls`, each once, at most `MAX_RELAYS`; as hints, the rest is dropped."""
    kept: dict[str, None] = {}
    for url in urls:
        if is_relay_url(url):
            kept[url] = None
            if len(kept) == MAX_RELAYS:
                break
    return tuple(kept)


def is_relay_url(url: str) -> bool:
    """Tell whether `url` has the shape of a relay's address; it says nothing about where that leads."""
    return len(url) <= MAX_RELAY_URL and _RELAY_URL.fullmatch(url) is not None


def parse_msats(text: str) -> int | None:
    """Return an amount written in plain decimal digits, or None when it is not one or is more than all money."""
    if _DIGITS.fullmatch(text) is None:
        return None
    amount_msats = int(text)
    return amount_msats if amount_msats <= MAX_MONEY_MSATS else None


def input_tags(event: Event) -> Tags:
    """Return the `i` tags of a request as they are; a result repeats them."""
    return tuple(tag for tag in event.tags if tag and tag[0] == "i")


def _input_tag(each: JobInput) -> tuple[str, ...]:
    if each.marker:
        return ("i", each.data, each.type.value, each.relay, each.marker)
    return ("i", each.data, each.type.value, each.relay) if each.relay else ("i", each.data, each.type.value)


def _single(found: dict[str, list[tuple[str, ...]]], name: str) -> str | None:
    """Return the value of a tag that may come once. Which of two bids is meant must not be ours to choose."""
    tags = found.get(name)
    if tags is None:
        return None
    if len(tags) > 1:
        raise BadRequest(ErrorPrefix.INVALID, f"more than one {name} tag")
    return tags[0][1] if len(tags[0]) > 1 else ""


def _parse_inputs(tags: Sequence[tuple[str, ...]]) -> tuple[JobInput, ...]:
    if len(tags) > MAX_INPUTS:
        raise BadRequest(ErrorPrefix.TOO_LARGE, f"{len(tags)} inputs: at most {MAX_INPUTS} are taken")
    return tuple(map(_parse_input, tags))


def _parse_input(tag: tuple[str, ...]) -> JobInput:
    if len(tag) < 2:
        raise BadRequest(ErrorPrefix.INVALID, "an i tag without data")
    written = tag[2] if len(tag) > 2 else ""
    # Clients in the wild leave the type out, or empty, when the input is text.
    kind = _INPUT_TYPES.get(written.strip().lower() or InputType.TEXT)
    if kind is None:
        sentence = f"input type '{printable(written, limit=_SHOWN)}' is not text, url, event or job"
        raise BadRequest(ErrorPrefix.UNSUPPORTED_INPUT, sentence)
    return JobInput(tag[1], kind, tag[3] if len(tag) > 3 else "", tag[4] if len(tag) > 4 else "")


def _parse_params(tags: Sequence[tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if len(tags) > MAX_PARAMS:
        raise BadRequest(ErrorPrefix.TOO_LARGE, f"{len(tags)} param tags: at most {MAX_PARAMS} are taken")
    params = []
    for tag in tags:
        name = normal_name(tag[1]) if len(tag) > 1 else ""
        if not name:
            raise BadRequest(ErrorPrefix.INVALID, "a param tag without a name")
        params.append((name, tag[2:]))
    return tuple(params)


def _parse_bid(text: str) -> int:
    bid_msats = parse_msats(text)
    if bid_msats is None:
        sentence = f"bid '{printable(text, limit=_SHOWN)}' is not an amount: give millisats as a whole number"
        raise BadRequest(ErrorPrefix.INVALID, sentence)
    return bid_msats


def _parse_expiration(text: str) -> int:
    if _DIGITS.fullmatch(text) is None:
        sentence = f"expiration '{printable(text, limit=_SHOWN)}' is not unix seconds"
        raise BadRequest(ErrorPrefix.INVALID, sentence)
    return int(text)
