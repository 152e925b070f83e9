"""The rules of the way in, without I/O and without a clock: time is always passed in, as unix seconds.

Until a customer has paid, a request may cost only bounded memory, one signature check and one budgeted reply. So
everything here that remembers has a fixed size, and every rule answers with a value, never by raising.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from pylon.nostr.event import BadEvent, Event
from pylon.nostr.nip90 import Denial, ErrorPrefix, JobRequest
from pylon.nostr.nip90_fit import max_output_text_bytes, text_bytes
from pylon.text import utf8_bytes

MAX_CUSTOMERS: Final = 10_000
MAX_SEEN_IDS: Final = 100_000

_MICROS = 1_000_000
_MINUTE_MICROS = 60 * _MICROS


@dataclass(frozen=True, slots=True)
class IntakePolicy:
    """The limits of intake. Raises `ValueError` on a negative one.

    `max_age_s` must cover an outage after which requests published meanwhile are still wanted. A rate of 0 shuts.
    """

    max_age_s: int = 3600
    max_future_s: int = 300
    replies_per_minute: int = 600
    requests_per_customer_per_minute: int = 60
    max_queued: int = 256
    max_queued_per_customer: int = 64
    max_open_invoices: int = 256
    max_open_invoices_per_customer: int = 8
    max_prompt_bytes: int = 32_768
    max_prompt_tokens: int | None = None
    requests_per_minute: int = 60_000

    def __post_init__(self) -> None:
        for each in fields(self):
            if (getattr(self, each.name) or 0) < 0:
                raise ValueError(f"{each.name} is negative")


class Drop(StrEnum):
    """Why an event was dropped without a reply. Requests that were refused count under their `ErrorPrefix`."""

    BAD_FRAME = "bad-frame"  # too large, not JSON, or not a relay's message
    BAD_EVENT = "bad-event"  # not the shape of an event
    UNWANTED_KIND = "unwanted-kind"  # a kind that was not asked for
    DUPLICATE = "duplicate"  # seen before, from this relay or another
    BAD_SIGNATURE = "bad-signature"  # id or signature is not that of the content
    OTHER_PROVIDER = "other-provider"  # addressed to others
    NOT_TARGETED = "not-targeted"  # addressed to nobody, where only those addressed to us are taken
    UNKNOWN_JOB = "unknown-job"  # a deletion of no open job, or not by its customer
    INTAKE_FULL = "intake-full"  # the queue between relays and intake was full
    NO_REPLY_BUDGET = "no-reply-budget"  # refused, and the reply budget was spent


class Address(StrEnum):
    """Whom a request is meant for."""

    TARGETED = "targeted"  # us: it gets an answer
    BROADCAST = "broadcast"  # anyone: it is taken or left alone
    OTHER = "other"  # others only


def addressed_to(event: Event, our_pubkey: str) -> Address:
    """Tell whom a request is meant for, by its `p` tags. A malformed `p` tag still means someone else."""
    named = [tag for tag in event.tags if tag and tag[0] == "p"]
    if not named:
        return Address.BROADCAST
    return Address.TARGETED if any(tag[1:2] == (our_pubkey,) for tag in named) else Address.OTHER


# --- one request ----------------------------------------------------------------------------------------------


def check_times(request: JobRequest, now: float, policy: IntakePolicy) -> Denial | None:
    """Return why `request` is too late or too early, or None."""
    if request.expires_at is not None and request.expires_at <= now:
        return Denial(ErrorPrefix.EXPIRED, "the request's expiration has passed")
    age_s = now - request.created_at
    if age_s > policy.max_age_s:
        return Denial(ErrorPrefix.TOO_OLD, f"the request is older than {policy.max_age_s} s")
    if -age_s > policy.max_future_s:
        return Denial(ErrorPrefix.IN_FUTURE, f"the request is dated more than {policy.max_future_s} s ahead")
    return None


def check_prompt(texts: Iterable[str], policy: IntakePolicy) -> Denial | None:
    """Return why the messages' texts are too large together, or None."""
    size = sum(map(utf8_bytes, texts))
    if size <= policy.max_prompt_bytes:
        return None
    return Denial(
        ErrorPrefix.TOO_LARGE, f"the prompt has {size} bytes: at most {policy.max_prompt_bytes} are taken"
    )


def check_prompt_tokens(tokens: int, policy: IntakePolicy) -> Denial | None:
    """Return why a prompt that may take so many tokens is too long, or None."""
    most = policy.max_prompt_tokens
    if most is None or tokens <= most:
        return None
    return Denial(ErrorPrefix.TOO_LARGE, f"the prompt may take {tokens} tokens: at most {most} are taken")


@dataclass(frozen=True, slots=True)
class Load:
    """How full we are: jobs not ended, and invoices that may still be paid; in all and of one customer."""

    queued: int = 0
    queued_of_customer: int = 0
    open_invoices: int = 0
    open_invoices_of_customer: int = 0


def check_load(load: Load, policy: IntakePolicy, *, prepaid: bool) -> Denial | None:
    """Return why there is no room for one more job, or None. `prepaid` jobs need room for an invoice too."""
    if load.queued >= policy.max_queued:
        return _full("the queue is full", load.queued, policy.max_queued)
    if load.queued_of_customer >= policy.max_queued_per_customer:
        return _full("you have too many open jobs here", load.queued_of_customer, policy.max_queued_per_customer)
    if not prepaid:
        return None
    if load.open_invoices >= policy.max_open_invoices:
        return _full("too many invoices wait for payment", load.open_invoices, policy.max_open_invoices)
    mine, limit = load.open_invoices_of_customer, policy.max_open_invoices_per_customer
    return _full("you have too many unpaid invoices here", mine, limit) if mine >= limit else None


def _full(sentence: str, used: int, limit: int) -> Denial:
    return Denial(ErrorPrefix.QUEUE_FULL, f"{sentence} ({used} of {limit})")


def job_deadline(accepted_at: int, timeout_s: int, expires_at: int | None) -> int:
    """Return when a job is given up, unix seconds: the lesser of our limit and the request's expiration."""
    ours = accepted_at + timeout_s
    return ours if expires_at is None else min(ours, expires_at)


class OutputBudget:
    """Counts a job's output while it grows, so that its result surely fits a relay's frame of `limit_bytes`.

    It counts bytes as they will be sent, escapes included; the sum over the pieces is the size of the whole.
    """

    __slots__ = ("_left", "exhausted")

    def __init__(self, limit_bytes: int) -> None:
        self._left = max_output_text_bytes(limit_bytes)
        self.exhausted = False

    @property
    def left_bytes(self) -> int:
        """How much more fits."""
        return self._left

    def take(self, text: str) -> str:
        """Return the part of `text` that still fits; if some did not, `exhausted` is set and the output ends.

        Lone surrogates, which no event can carry, become U+FFFD.
        """
        if self.exhausted:
            return ""
        try:
            size = text_bytes(text)
        except BadEvent:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            size = text_bytes(text)
        if size > self._left:
            text = self._beginning(text)
            self._left = 0
            self.exhausted = True
            return text
        self._left -= size
        return text

    def _beginning(self, text: str) -> str:
        used = 0
        for index, char in enumerate(text):
            used += text_bytes(char)
            if used > self._left:
                return text[:index]
        return text


# --- rates ----------------------------------------------------------------------------------------------------


class TokenBucket:
    """At most `burst` at once and `per_minute` over time; 0 a minute lets nothing through.

    Kept as one integer (the generic cell rate algorithm): the microsecond at which the bucket is full again.
    """

    __slots__ = ("_full_at", "_rule")

    def __init__(self, per_minute: int, burst: int | None = None) -> None:
        self._rule = _Rate(per_minute, burst)
        self._full_at = 0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none, and nothing is taken."""
        taken, self._full_at = self._rule.take(self._full_at, now)
        return taken

    def change(self, per_minute: int) -> None:
        """Take another rate; what was taken counts on."""
        self._rule = _Rate(per_minute, None)


class RateLimiter:
    """A token bucket per customer; of at most `max_keys` customers, the least recently seen is forgotten first.

    Who has many keys can start afresh: the global limits stand behind this one.
    """

    __slots__ = ("_full_at", "_max_keys", "_rule")

    def __init__(self, per_minute: int, burst: int | None = None, *, max_keys: int = MAX_CUSTOMERS) -> None:
        self._rule = _Rate(per_minute, burst)
        self._max_keys = max_keys
        self._full_at: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, customer: str, now: float) -> bool:
        """Take one of `customer`'s tokens; False when there is none."""
        taken, full_at = self._rule.take(self._full_at.pop(customer, 0), now)
        self._full_at[customer] = full_at  # put at the end: the order is that of last sight
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)
        return taken

    def change(self, per_minute: int) -> None:
        """Take another rate; what was taken counts on."""
        self._rule = _Rate(per_minute, None)


class _Rate:
    """The arithmetic of a bucket, apart from its state."""

    __slots__ = ("interval", "window")

    def __init__(self, per_minute: int, burst: int | None) -> None:
        burst = per_minute if burst is None else burst
        if per_minute < 0 or burst < 0:
            raise ValueError("a rate is never negative")
        self.interval = -(-_MINUTE_MICROS // per_minute) if per_minute else 0
        self.window = self.interval * burst

    def take(self, full_at: int, now: float) -> tuple[bool, int]:
        """Return whether a token was there, and the state to keep either way."""
        if not self.window:
            return False, full_at
        now_micros = int(now * _MICROS)
        # A clock that was set back must not lock anyone out for longer than an empty bucket does: hence the min().
        full_at = min(max(full_at, now_micros), now_micros + self.window)
        after = full_at + self.interval
        return (True, after) if after - now_micros <= self.window else (False, full_at)


# --- memory of fixed size -------------------------------------------------------------------------------------


class SeenIds:
    """The last event ids: at least `capacity` of them, at most twice as many, at about 130 bytes each.

    An id is added only once its signature was verified: otherwise a stranger could make us deaf to a real event by
    sending its id first. Two generations instead of an exact order: adding never searches for the oldest.
    """

    __slots__ = ("_capacity", "_older", "_recent")

    def __init__(self, capacity: int = MAX_SEEN_IDS // 2) -> None:
        if capacity < 1:
            raise ValueError("capacity is less than 1")
        self._capacity = capacity
        self._recent: set[bytes] = set()
        self._older: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def __contains__(self, event_id: str) -> bool:
        key = bytes.fromhex(event_id)
        return key in self._recent or key in self._older

    def add(self, event_id: str) -> bool:
        """Remember an id, 64 hex digits; False when it was known."""
        if event_id in self:
            return False
        key = bytes.fromhex(event_id)
        if len(self._recent) >= self._capacity:
            self._older, self._recent = self._recent, set()
        self._recent.add(key)
        return True


class TopCounts:
    """How often texts came up that strangers choose: the first `capacity` of them, the rest together."""

    REST: Final = "(others)"

    __slots__ = ("_capacity", "_counts")

    def __init__(self, capacity: int = 200) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count one."""
        known = text in self._counts or len(self._counts) < self._capacity
        self._counts[text if known else self.REST] += 1

    def as_dict(self) -> dict[str, int]:
        """Return the counts so far, the most frequent first."""
        return dict(self._counts.most_common())


class Counters:
    """How often each reason came up: those of `Drop` and `ErrorPrefix` and no others, whatever is counted."""

    OTHER: Final = "other"

    __slots__ = ("_counts",)

    _KNOWN: Final = frozenset({member.value for member in Drop} | {member.value for member in ErrorPrefix})

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one; a reason that is not known counts as `other`."""
        self._counts[str(reason) if reason in self._KNOWN else self.OTHER] += 1

    def as_dict(self) -> dict[str, int]:
        """Return the counts so far, the most frequent first."""
        return dict(self._counts.most_common())
