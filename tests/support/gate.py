"""What stands between a relay and the intake, for fuzzing: frames in, outcomes counted, none uncounted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from pylon.jobs import facts
from pylon.jobs.policy import Counters, Drop
from pylon.nostr.event import Event
from pylon.nostr.messages import BadMessage, EventMessage, parse_relay_message
from pylon.nostr.nip90_replies import parse_feedback
from pylon.store.records import Work
from tests.support.events import STRANGER
from tests.support.house import House, World, until


class Gate:
    """Frames in, outcomes counted, as a relay's reading loop does it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.offered = 0
        self.cancelled = 0
        self.outcomes: Counter[str] = Counter()

    def take(self, frame: str | bytes) -> None:
        try:
            message = parse_relay_message(frame)
        except BadMessage as error:
            self.outcomes[error.reason] += 1
            return
        if isinstance(message, EventMessage):
            self.offer(message.event)
        else:
            self.outcomes[type(message).__name__] += 1

    def offer(self, event: Event) -> None:
        self.offered += 1
        reason = self.house.intake.offer(event, "wss://hostile.example")
        assert reason is None or reason in set(Drop)
        self.cancelled += event.kind == 5 and reason is None
        assert len(self.house.engine.open_jobs) <= self.house.world.policy.max_queued

    async def settle(self) -> None:
        """Everything that was offered was accepted, refused or dropped, under a name that is known."""
        house = self.house
        await until(lambda: not len(house.engine.open_jobs), within_s=60)
        counts = house.intake.counters.as_dict()
        assert Counters.OTHER not in counts
        counted = sum(count for reason, count in counts.items() if reason != Drop.NO_REPLY_BUDGET)
        assert counted + house.intake.accepted + self.cancelled == self.offered
        assert len(house.intake._seen) <= self.offered
        assert len(house.intake._customers) <= 3
        for event in house.world.relays.live:
            assert parse_feedback(event).info.isprintable()

    async def serves(self) -> None:
        """A good request is served after all of it."""
        self.house.world.clock.advance(60)
        request = self.house.ask("a good one", key=STRANGER)
        await self.house.reaches(request.id, Work.DELIVERED)


def world(path: Path, *, limit_s: float = 600) -> World:
    """Return a world that gives its work away, with a small queue and few replies."""
    made = World(path / "db", mode=facts.Mode.FREE, limit_s=limit_s)
    made.policy = replace(made.policy, max_queued=50, max_queued_per_customer=20, replies_per_minute=100)
    return made
