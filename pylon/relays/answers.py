"""What a relay's OK says of a published event."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pylon.nostr.messages import OkMessage


class Verdict(StrEnum):
    """What a relay said of an event, by the prefix of its OK (NIP-01, NIP-42)."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    RATE_LIMITED = "rate-limited"
    ERROR = "error"
    INVALID = "invalid"
    BLOCKED = "blocked"
    POW = "pow"
    RESTRICTED = "restricted"
    AUTH_REQUIRED = "auth-required"
    NO_ANSWER = "no-answer"  # no OK came in time: it may or may not have been stored
    OTHER = "other"

    @property
    def confirms(self) -> bool:
        """Whether the relay has the event."""
        return self is Verdict.ACCEPTED or self is Verdict.DUPLICATE

    @property
    def final(self) -> bool:
        """Whether sending the same bytes to the same relay again is pointless."""
        return self in _FINAL


_FINAL: Final = frozenset({Verdict.INVALID, Verdict.BLOCKED, Verdict.POW})
_PREFIXES: Final = {
    f"{verdict}:": verdict
    for verdict in Verdict
    if verdict not in {Verdict.ACCEPTED, Verdict.NO_ANSWER, Verdict.OTHER}
}


@dataclass(frozen=True, slots=True)
class Answer:
    """How one publish ended on this connection; `text` is the relay's, printable."""

    event_id: str
    verdict: Verdict
    text: str = ""


def read_verdict(message: OkMessage) -> Verdict:
    """Return what an OK says. `OK false "duplicate: …"` means that the relay has the event, as OK true does."""
    prefix = message.text.partition(":")[0] + ":"
    verdict = _PREFIXES.get(prefix)
    if message.accepted:
        return Verdict.DUPLICATE if verdict is Verdict.DUPLICATE else Verdict.ACCEPTED
    return verdict if verdict is not None else Verdict.OTHER


class AnswerOrder:
    """Which event an OK speaks of, where a relay leaves the id of a refused event out, as nostr-relay does.

    A relay that answers in the order of sending speaks of the oldest event that it has not answered. One that ever
    answered in another order, or left an id out where something else could be meant, is not guessed at again.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: more events than this without an answer are not kept in order."""
        self._limit = limit
        self._ids: deque[str] | None = deque()

    def sent(self, event_id: str) -> None:
        """Hear of an event that goes out; it may do so again."""
        if self._ids is not None:
            self._ids.append(event_id)
            if len(self._ids) > self._limit:
                self._ids = None

    def whose(self, message: OkMessage, *, auth_open: bool) -> str:
        """Return the id of the event that an OK answers, empty when unknown. `auth_open`: it may answer an AUTH."""
        ids, event_id = self._ids, message.event_id
        if not ids:
            return event_id
        if event_id == ids[0] or (not event_id and not message.accepted and not auth_open):
            return ids.popleft()
        if not event_id or event_id in ids:
            self._ids = None
        return event_id
