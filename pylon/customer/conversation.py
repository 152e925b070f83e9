"""One job request and the replies to it: signed events in, updates or the reason of a drop out; no I/O.

Replies come from relays that may be hostile, in any order, several times, and from anybody: nothing is believed
before its signature and its author are checked, nothing raises, and what is remembered is bounded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import StrEnum
from typing import Final

from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Remark, Result, Success, Update
from pylon.nostr.event import Event, verify
from pylon.nostr.keys import BadKey, parse_public_key
from pylon.nostr.nip90 import FEEDBACK_KIND, FeedbackStatus, JobRequest, parse_request, result_kind
from pylon.nostr.nip90_replies import (
    MAX_INFO,
    BadReply,
    Feedback,
    JobResult,
    OtherFeedback,
    parse_feedback,
    parse_other_feedback,
    parse_result,
)

MAX_REMEMBERED: Final = 4096
"""Event ids that are known again; an older one that comes once more does no harm, it only says old things."""

MAX_PROVIDERS: Final = 256
"""How many providers may answer a broadcast; the ones after them are not heard."""


_Reply = Feedback | OtherFeedback | JobResult


class Drop(StrEnum):
    """Why an event was not an update."""

    UNRELATED = "unrelated"  # another kind, or about another request
    DUPLICATE = "duplicate"
    STRANGER = "stranger"  # not from whom the request was addressed to, or whom we paid
    FORGED = "forged"  # id or signature do not hold
    MALFORMED = "malformed"  # neither a feedback with a status nor a result
    STALE = "stale"  # a partial that a newer one, or the result, has overtaken
    CROWDED = "crowded"  # more providers answer than are heard


class Conversation:
    """What was said about one request. `providers` are those it is addressed to; none means anybody may answer."""

    def __init__(self, event: Event) -> None:
        """Raises `nip90.BadRequest` when `event` is no job request."""
        self.request: JobRequest = parse_request(event)
        self.providers: frozenset[str] = frozenset(map(_public_hex, self.request.providers))
        self.dropped: Counter[Drop] = Counter()
        self._result_kind = result_kind(event.kind)
        self._only: str | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._newest: dict[str, tuple[int, int]] = {}  # provider -> (attempt, number) of its latest partial
        self._done: set[str] = set()  # providers whose result is here

    def listen_only_to(self, provider: str | None) -> None:
        """Hear one provider from now on (it was paid), or again all that may answer."""
        self._only = provider

    def hear(self, event: Event) -> Update | Drop:
        """Return what a reply says, or why it says nothing. Never raises, whatever the event."""
        heard = self._hear(event)
        if isinstance(heard, Drop):
            self.dropped[heard] += 1
        return heard

    def _hear(self, event: Event) -> Update | Drop:
        reply = self._read(event)
        if isinstance(reply, Drop):
            return reply
        if not verify(event):
            return Drop.FORGED
        if event.pubkey not in self._newest and len(self._newest) >= MAX_PROVIDERS:
            return Drop.CROWDED
        self._newest.setdefault(event.pubkey, (0, 0))
        # Only now: a forged copy must not keep the true event out.
        self._remember(event.id)
        if isinstance(reply, Feedback):
            return self._feedback(event.pubkey, reply)
        if isinstance(reply, OtherFeedback):
            return Remark(event.pubkey, reply.status, reply.info)
        return self._result(event, reply)

    def _read(self, event: Event) -> _Reply | Drop:
        """Return what an event says of this request, if its author may say it; its signature is not checked."""
        if event.kind not in (FEEDBACK_KIND, self._result_kind):
            return Drop.UNRELATED
        if event.id in self._seen:
            return Drop.DUPLICATE
        if not self._may_speak(event.pubkey):
            return Drop.STRANGER
        try:
            reply = _parse(event)
        except BadReply:
            return Drop.MALFORMED
        return reply if reply.request_id == self.request.id else Drop.UNRELATED

    def _may_speak(self, pubkey: str) -> bool:
        if self._only is not None:
            return pubkey == self._only
        return not self.providers or pubkey in self.providers

    def _remember(self, event_id: str) -> None:
        self._seen[event_id] = None
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)

    def _feedback(self, provider: str, said: Feedback) -> Update | Drop:
        match said.status:
            case FeedbackStatus.PAYMENT_REQUIRED:
                return PaymentRequired(provider, said.amount_msats, said.bolt11, said.info)
            case FeedbackStatus.PROCESSING:
                return Processing(provider, said.info)
            case FeedbackStatus.PARTIAL:
                return self._partial(provider, said)
            case FeedbackStatus.SUCCESS:
                return Success(provider, said.info)
            case FeedbackStatus.ERROR:
                return _failed(provider, said)

    def _result(self, event: Event, said: JobResult) -> Update | Drop:
        if event.pubkey in self._done:
            return Drop.DUPLICATE
        self._done.add(event.pubkey)
        return Result(event.pubkey, said.content, event, said.amount_msats, said.bolt11)

    def _partial(self, provider: str, said: Feedback) -> Update | Drop:
        if provider in self._done:
            return Drop.STALE
        if said.number is not None and said.attempt is not None:
            place = (said.attempt, said.number)
            if place <= self._newest[provider]:
                return Drop.STALE
            self._newest[provider] = place
        return Partial(provider, said.content, said.number, said.attempt)


def _parse(event: Event) -> _Reply:
    """Return a reply. Raises `BadReply`."""
    if event.kind != FEEDBACK_KIND:
        return parse_result(event)
    try:
        return parse_feedback(event)
    except BadReply:
        return parse_other_feedback(event)


def _failed(provider: str, said: Feedback) -> Failed:
    # Other providers put their reason into the content.
    text = said.info or said.content[:MAX_INFO]
    if said.prefix is None:
        return Failed(provider, "", text, said.amount_msats)
    return Failed(provider, said.prefix.value, text.partition(":")[2].strip(), said.amount_msats)


def _public_hex(written: str) -> str:
    """Return a `p` tag's key; one that is no key stays as it is, and nobody can answer under it."""
    try:
        return parse_public_key(written)
    except BadKey:
        return written
