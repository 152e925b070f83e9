"""How fast a relay is written to, within what public relays allow; and how fast one that sends rubbish is read."""

from __future__ import annotations

from typing import Final

_MINUTE_S: Final = 60.0


class Pace:
    """Lets at most `most` things pass in any window of `window_s`. `now` is any monotonic clock in seconds."""

    __slots__ = ("_at", "_held", "_per_s", "capacity")

    def __init__(self, most: int, window_s: float) -> None:
        # A full bucket and what flows in during the window are `most` together.
        self.capacity = max(1.0, most / 3)
        self._per_s = max(most - self.capacity, most / 2) / window_s
        self._held = self.capacity
        self._at: float | None = None

    @property
    def per_s(self) -> float:
        """How many pass a second in the long run."""
        return self._per_s

    def ready(self, now: float) -> bool:
        """Tell whether one may pass now."""
        if self._at is not None:
            self._held = min(self.capacity, self._held + max(0.0, now - self._at) * self._per_s)
        self._at = now
        return self._held >= 1.0

    def take(self, now: float) -> bool:
        """Let one pass; False when it has to wait."""
        if not self.ready(now):
            return False
        self._held -= 1.0
        return True


class RelayPace:
    """The pace of one relay, over all of its connections. A limit of 0 is none."""

    def __init__(self, messages_per_s: int, subscriptions_per_minute: int, publish_timeout_s: float) -> None:
        self._messages = Pace(messages_per_s, 1.0) if messages_per_s else None
        self._subscriptions = Pace(subscriptions_per_minute, _MINUTE_S) if subscriptions_per_minute else None
        self._backlog: float | None = None
        if self._messages is not None:
            # No more events wait than go out well before their answer is missed.
            self._backlog = max(self._messages.capacity, self._messages.per_s * publish_timeout_s / 2)

    def is_full(self, waiting: int) -> bool:
        """Tell whether no more events should be queued behind those that wait."""
        return self._backlog is not None and waiting >= self._backlog

    def message(self, now: float) -> bool:
        """Let a message pass; False when it has to wait."""
        return self._messages is None or self._messages.take(now)

    def subscription(self, now: float) -> bool:
        """Let a REQ pass, which is a message too; False when it has to wait."""
        if self._messages is not None and not self._messages.ready(now):
            return False
        if self._subscriptions is not None and not self._subscriptions.take(now):
            return False
        return self.message(now)


class Patience:
    """How much time a relay may cost with what is of no use: `burst_s` at once, in the long run a `share` of it.

    Time-based, since a signature that is wrong costs a hundred times what a frame of rubbish does. `now` is any
    monotonic clock in seconds.
    """

    def __init__(self, share: float, burst_s: float) -> None:
        self._share = share
        self._burst_s = burst_s
        self._spent_s = 0.0
        self._at = 0.0

    def spend(self, cost_s: float, now: float) -> None:
        """Note what something of no use has cost; at most `burst_s`, since a process may be halted meanwhile."""
        cost_s = min(cost_s, self._burst_s)
        self._spent_s = max(0.0, self._spent_s - max(0.0, now - self._at) * self._share) + cost_s
        self._at = now

    def pause_s(self, now: float) -> float:
        """Return how long nothing more should be read."""
        spent_s = self._spent_s - max(0.0, now - self._at) * self._share
        return max(0.0, spent_s - self._burst_s) / self._share
