"""The client's side of NIP-01 and NIP-42 on one connection: frames in, values and frames out; no socket, no loop.

The shell (`connection.py`) feeds `receive` with each text frame and `tick` with the time, hands on what they
return, and writes what `take` gives. `now` is any monotonic clock in seconds; only an AUTH event needs the date.

AUTH: a challenge is answered at once. Whatever the relay refused for want of it (`auth-required:`) is parked and
sent again, once per challenge, when the relay confirms, or after `auth_wait_s`, since some relays confirm nothing.

Longer than other files: subscriptions, publishes and AUTH wait for each other, so they are one machine.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pylon.jobs.ports import Clock
from pylon.nostr.event import BadEvent
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import (
    AuthMessage,
    BadMessage,
    ClosedMessage,
    EoseMessage,
    EventMessage,
    Filter,
    NoticeMessage,
    OkMessage,
    RelayMessage,
    auth_draft,
    auth_frame,
    close_frame,
    parse_relay_message,
    req_frame,
)
from pylon.relays.answers import Answer, AnswerOrder, Verdict, read_verdict
from pylon.relays.pace import RelayPace
from pylon.relays.state import Counters, PoolConfig, SubscriptionState, SubscriptionStatus
from pylon.text import printable

MAX_AUTHS: Final = 8
DATE_SLACK_S: Final = 3600
"""How much older than what was asked for an event may be: not every relay applies `since` to what comes in now."""

RESUBSCRIBE_MIN_S: Final = 5.0
RESUBSCRIBE_MAX_S: Final = 300.0


# What any stranger can make a relay pass on; hanging up for it would let strangers cut us off.
_STRANGERS_FAULTS: Final = frozenset({"oversize", "bad-event"})


_ENDED: Final = frozenset({SubscriptionStatus.CLOSED, SubscriptionStatus.AUTH})

Heard = EventMessage | EoseMessage | ClosedMessage | Answer


class _Auth(Enum):
    NONE = "none"
    SENT = "sent"
    CONFIRMED = "confirmed"
    REFUSED = "refused"


@dataclass(slots=True)
class _Unanswered:
    frame: bytes
    sent_at: float
    epoch: int  # how many authentications were confirmed when it was sent


@dataclass(slots=True)
class _Subscription:
    filters: Sequence[Filter]
    status: SubscriptionStatus = SubscriptionStatus.WAITING
    epoch: int = 0
    tries: int = 0
    retry_at: float = 0.0
    detail: str = ""

    @property
    def since(self) -> int:
        """The date before which nothing was asked for, unix seconds."""
        return min((each.get("since", 0) for each in self.filters), default=0)


class Session:
    """One connection's protocol state. Nothing in it raises on anything a relay sends."""

    def __init__(
        self,
        url: str,
        config: PoolConfig,
        *,
        key: SecretKey | None,
        clock: Clock,
        rng: random.Random,
        counters: Counters | None = None,
        guest: bool = False,
        pace: RelayPace | None = None,
    ) -> None:
        """A `guest` is a stranger's relay.

        It is answered one AUTH, which proves nothing but that we hold our public key, and whatever it says that
        answers nothing of ours counts as a bad frame.
        """
        self.url = url
        self.counters = counters if counters is not None else Counters()
        self.auth_error = ""
        self.useless = ""  # why the last frame was of no use, empty when it was of some
        self._config = config
        self._key = key
        self._clock = clock
        self._rng = rng
        self._guest = guest
        self._pace = pace
        self._auths_left = 0 if key is None else 1 if guest else MAX_AUTHS
        self._auth = _Auth.NONE
        self._auth_id = ""
        self._auth_sent_at = 0.0
        self._challenge = ""  # the newest one not answered
        self._epoch = 0
        self._subscriptions: dict[str, _Subscription] = {}
        self._unanswered: dict[str, _Unanswered] = {}  # ordered by sent_at
        self._parked: dict[str, str] = {}  # event ids that wait for AUTH, with the relay's words
        self._control: dict[str, bytes] = {}  # REQ, CLOSE, AUTH; a newer REQ replaces an unsent older one
        self._events: deque[tuple[str, bytes]] = deque()  # ids and frames
        self._event_bytes = 0
        self._order = AnswerOrder(2 * config.max_unanswered)
        self._nameless = 0  # refusals without an id
        self._too_late = False
        self._bad = 0.0
        self._nonsense: Counter[str] = Counter()  # by words of ours
        self._ticked_at: float | None = None

    # --- what we want -----------------------------------------------------------------------------------------

    def subscribe(self, name: str, filters: Sequence[Filter]) -> None:
        """Open or replace a subscription; no filters end it."""
        if not filters:
            if self._subscriptions.pop(name, None) is not None:
                self._control.pop(f"REQ {name}", None)
                self._control[f"CLOSE {name}"] = close_frame(name).encode()
            return
        subscription = self._subscriptions.get(name)
        if subscription is None:
            subscription = self._subscriptions[name] = _Subscription(filters)
        subscription.filters = filters
        self._request(name, subscription)

    def publish(self, event_id: str, frame: bytes, now: float, *, live: bool = False) -> bool:
        """Queue an event's frame. False when this relay's bounds are reached: nothing was queued.

        Live events may use half of the bounds, so that they cannot crowd out durable ones.
        """
        if event_id in self._unanswered:
            return True
        share = 2 if live else 1
        config = self._config
        if (
            len(self._unanswered) >= config.max_unanswered // share
            or len(self._events) >= config.queue_frames // share
            or self._event_bytes + len(frame) > config.queue_bytes // share
            or (self._pace is not None and self._pace.is_full(len(self._events) * share))
        ):
            return False
        self._unanswered[event_id] = _Unanswered(frame, now, self._epoch)
        self._queue_event(event_id, frame)
        return True

    # --- what goes out ----------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._events or self._control)

    @property
    def queued(self) -> int:
        """How many events wait to be written."""
        return len(self._events)

    @property
    def unanswered(self) -> int:
        """How many events wait for their OK."""
        return len(self._unanswered)

    def take(self, budget_bytes: int, now: float = 0.0) -> list[bytes]:
        """Return frames to write now, control frames first, until about `budget_bytes` or as the pace allows."""
        pace = self._pace
        frames = self._take_control(now)
        size = sum(map(len, frames))
        while self._events and size < budget_bytes and (pace is None or pace.message(now)):
            event_id, frame = self._events.popleft()
            self._order.sent(event_id)
            size += len(frame)
            self._event_bytes -= len(frame)
            self.counters.sent += 1
            frames.append(frame)
        return frames

    def _take_control(self, now: float) -> list[bytes]:
        if self._pace is None:
            frames = list(self._control.values())
            self._control.clear()
            return frames
        frames = []
        for name in list(self._control):
            # A subscription that waits is replaced by a newer one of its name; nothing else waits for it.
            if self._pace.subscription(now) if name.startswith("REQ ") else self._pace.message(now):
                frames.append(self._control.pop(name))
        return frames

    # --- what the relay said ----------------------------------------------------------------------------------

    def receive(self, frame: str | bytes, now: float) -> Heard | None:
        """Return what a frame says to those outside, or None when it ended here (and was counted)."""
        self.useless = ""
        message = self._parse(frame)
        heard: Heard | None = None
        match message:
            case EventMessage():
                heard = self._on_event(message)
            case OkMessage():
                heard = self._on_ok(message, now)
            case EoseMessage():
                heard = self._on_eose(message)
            case ClosedMessage():
                heard = self._on_closed(message, now)
            case NoticeMessage():
                self.counters.last_notice = printable(message.text)
                self.useless = "notice"
            case AuthMessage():
                self.useless = "challenge"
                self._on_challenge(message.challenge, now)
        if heard is None and self._guest:
            self._bad += 1
            self._nonsense[self.useless or "unasked"] += 1
        return heard

    def tick(self, now: float) -> list[Answer]:
        """Let time pass: return the publishes whose OK did not come; confirm a silent AUTH; ask again for what was
        closed. Call it every fraction of a second."""
        if self._ticked_at is not None:
            self._bad = max(0.0, self._bad - (now - self._ticked_at))
        self._ticked_at = now
        if self._auth is _Auth.SENT and now - self._auth_sent_at >= self._config.auth_wait_s:
            self._on_auth_silence(now)
        for name, subscription in self._subscriptions.items():
            if subscription.status in _ENDED and now >= subscription.retry_at:
                self._request(name, subscription)
        refused = list(self._parked) if self._auth is _Auth.REFUSED else []
        answers = [self._give_up(event_id, Verdict.AUTH_REQUIRED, self.auth_error) for event_id in refused]
        oldest = now - self._config.publish_timeout_s
        overdue = []
        for event_id, unanswered in self._unanswered.items():
            if unanswered.sent_at > oldest:
                break
            overdue.append(event_id)
        for event_id in overdue:
            parked = self._parked.get(event_id)
            verdict = Verdict.NO_ANSWER if parked is None else Verdict.AUTH_REQUIRED
            self._too_late = self._too_late or self._nameless > 0
            answers.append(self._give_up(event_id, verdict, parked or "no answer"))
        return answers

    @property
    def hopeless(self) -> bool:
        """Whether the relay sent so many frames that mean nothing that the connection should end."""
        return self._bad > self._config.max_bad_frames

    @property
    def nonsense(self) -> str:
        """What the frames that mean nothing mostly were, in a word."""
        return max(self._nonsense, key=lambda reason: self._nonsense[reason], default="")

    @property
    def throttled(self) -> bool:
        """Whether the relay, having refused events, answers too late: nostr-relay waits twice as long after each
        refusal, and takes nothing meanwhile. A new connection starts afresh."""
        return self._too_late

    @property
    def authenticated(self) -> bool:
        """Whether an AUTH was confirmed (or its wait for an OK is over)."""
        return self._auth is _Auth.CONFIRMED

    def subscriptions(self) -> tuple[SubscriptionState, ...]:
        """Return how each subscription stands."""
        return tuple(
            SubscriptionState(name, subscription.status, subscription.detail)
            for name, subscription in self._subscriptions.items()
        )

    # --- inside -----------------------------------------------------------------------------------------------

    def _request(self, name: str, subscription: _Subscription) -> None:
        subscription.status = SubscriptionStatus.WAITING
        subscription.epoch = self._epoch
        self._control.pop(f"CLOSE {name}", None)
        self._control[f"REQ {name}"] = req_frame(name, subscription.filters).encode()

    def _queue_event(self, event_id: str, frame: bytes) -> None:
        self._events.append((event_id, frame))
        self._event_bytes += len(frame)

    def _parse(self, frame: str | bytes) -> RelayMessage | None:
        reason = "binary"
        if isinstance(frame, str):
            reason = "oversize"
            if len(frame) <= self._config.max_frame_bytes:
                try:
                    return parse_relay_message(frame)
                except BadMessage as error:
                    reason = error.reason
        self._drop(reason, held_against_it=reason not in _STRANGERS_FAULTS)
        return None

    def _drop(self, reason: str, *, held_against_it: bool = False) -> None:
        self.useless = reason
        self.counters.drop(reason)
        if held_against_it:
            self._bad += 1
            self._nonsense[reason] += 1

    def _give_up(self, event_id: str, verdict: Verdict, text: str) -> Answer:
        del self._unanswered[event_id]
        self._parked.pop(event_id, None)
        return Answer(event_id, verdict, text)

    def _on_event(self, message: EventMessage) -> EventMessage | None:
        subscription = self._subscriptions.get(message.subscription)
        if subscription is None:
            self._drop("unknown-subscription")
            return None
        self.counters.received += 1
        if message.event.created_at < subscription.since - DATE_SLACK_S:
            self._drop("before-since")  # checking its signature would be the dearer part
            return None
        return message

    def _on_ok(self, message: OkMessage, now: float) -> Answer | None:
        event_id = message.event_id
        if event_id and event_id == self._auth_id:
            self._on_auth_ok(message, now)
            return None
        if not event_id and not message.accepted:
            self._nameless += 1
        event_id = self._order.whose(message, auth_open=self._auth is _Auth.SENT)
        unanswered = self._unanswered.get(event_id)
        if unanswered is None:
            self._drop("unknown-ok" if event_id else "empty-ok")
            return None
        verdict = read_verdict(message)
        text = printable(message.text)
        if verdict is Verdict.AUTH_REQUIRED and self._auth_may_help(unanswered.epoch, now):
            self._parked[event_id] = text
            if self._auth is _Auth.CONFIRMED:
                self._resend(event_id, now)
            return None
        if verdict.confirms:
            self.counters.accepted += 1
        else:
            self.counters.refused += 1
        return self._give_up(event_id, verdict, text)

    def _on_eose(self, message: EoseMessage) -> EoseMessage | None:
        subscription = self._subscriptions.get(message.subscription)
        if subscription is None:
            self._drop("unknown-subscription")
            return None
        if subscription.status is not SubscriptionStatus.WAITING:
            self._drop("repeated-eose", held_against_it=True)
            return None
        subscription.status = SubscriptionStatus.LIVE
        subscription.detail = ""
        return message

    def _on_closed(self, message: ClosedMessage, now: float) -> ClosedMessage | None:
        name = message.subscription
        subscription = self._subscriptions.get(name)
        if subscription is None:  # the relay's answer to our CLOSE, or about nothing of ours
            self._drop("unknown-closed", held_against_it=True)
            return None
        if subscription.status in _ENDED:
            self._drop("repeated-closed", held_against_it=True)
            return None
        subscription.detail = printable(message.text) or "closed by the relay"
        pause_s = min(RESUBSCRIBE_MAX_S, RESUBSCRIBE_MIN_S * 2.0 ** min(subscription.tries, 16))
        subscription.tries += 1
        subscription.retry_at = now + pause_s * self._rng.uniform(0.5, 1.0)
        if message.text.startswith("auth-required:") and self._auth_may_help(subscription.epoch, now):
            subscription.status = SubscriptionStatus.AUTH
            if self._auth is _Auth.CONFIRMED:
                self._request(name, subscription)
            return None
        subscription.status = SubscriptionStatus.CLOSED
        return message

    def _auth_may_help(self, epoch: int, now: float) -> bool:
        """Whether what was sent in `epoch` and refused should be sent again, after an authentication if need be."""
        if self._auth is _Auth.CONFIRMED and epoch == self._epoch and self._auths_left > 0:
            self._auth = _Auth.NONE  # the relay no longer honours it: answer the next challenge, or the last one
            if self._challenge:
                self._authenticate(now)
        match self._auth:
            case _Auth.NONE:
                return self._auths_left > 0
            case _Auth.SENT:
                return True
            case _Auth.CONFIRMED:
                return epoch < self._epoch
            case _Auth.REFUSED:
                return False

    def _on_challenge(self, challenge: str, now: float) -> None:
        # LocalRelay sends a new one with each refusal, a hundred with a burst of events. One answer at a time is
        # enough; the newest unanswered one is kept for when that fails.
        self._challenge = challenge
        if self._auth is _Auth.NONE or self._auth is _Auth.REFUSED:
            self._authenticate(now)

    def _authenticate(self, now: float) -> None:
        challenge, self._challenge = self._challenge, ""
        if self._key is None or self._auths_left <= 0:
            self._drop("auth-unanswered", held_against_it=True)
            return
        self._auths_left -= 1
        try:
            event = auth_draft(self.url, challenge).sign(self._key, int(self._clock()))
        except BadEvent:
            self._drop("auth-unanswered", held_against_it=True)
            return
        self._auth = _Auth.SENT
        self._auth_id = event.id
        self._auth_sent_at = now
        self._control["AUTH"] = auth_frame(event).encode()

    def _on_auth_ok(self, message: OkMessage, now: float) -> None:
        if message.accepted:
            if self._auth is _Auth.SENT:
                self._authenticated(now)
            return
        self._auth = _Auth.REFUSED
        self.auth_error = f"AUTH refused: {printable(message.text) or 'no reason given'}"
        if self._challenge:
            self._authenticate(now)
            return
        for subscription in self._subscriptions.values():
            if subscription.status is SubscriptionStatus.AUTH:
                subscription.status = SubscriptionStatus.CLOSED

    def _on_auth_silence(self, now: float) -> None:
        if self._challenge and self._auths_left > 0:
            self._authenticate(now)
        else:
            self._authenticated(now)

    def _authenticated(self, now: float) -> None:
        self._auth = _Auth.CONFIRMED
        self.auth_error = ""
        self._epoch += 1
        for event_id in list(self._parked):
            self._resend(event_id, now)
        for name, subscription in self._subscriptions.items():
            # What was asked before and is not answered may have been refused: some relays say so in a NOTICE alone.
            waiting = subscription.status is SubscriptionStatus.WAITING and subscription.epoch < self._epoch
            if waiting or subscription.status is SubscriptionStatus.AUTH:
                self._request(name, subscription)

    def _resend(self, event_id: str, now: float) -> None:
        del self._parked[event_id]
        unanswered = self._unanswered.pop(event_id)
        self._unanswered[event_id] = _Unanswered(unanswered.frame, now, self._epoch)
        self._queue_event(event_id, unanswered.frame)
