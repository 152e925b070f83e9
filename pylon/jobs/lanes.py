"""What the runner keeps of its lanes and of the attempts that run in them. Values only: nothing here runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from pylon.jobs.catalogue import Offer
from pylon.jobs.openjobs import LaneKey
from pylon.jobs.policy import OutputBudget
from pylon.jobs.ports import Backend, BackendHealth
from pylon.nostr.event import Event
from pylon.store.records import Job
from pylon.tasks import Worker

_SPEED_MEMORY: Final = 0.2  # how much the newest attempt weighs in the estimate of a lane's speed


@dataclass(slots=True)
class Lane:
    """The queue and the slots of one model on one backend."""

    offer: Offer
    backend: Backend
    queue: OrderedDict[str, None] = field(default_factory=OrderedDict)
    busy: int = 0
    attempt_s: float | None = None  # how long an attempt takes of late

    @property
    def key(self) -> LaneKey:
        """The lane's name: backend and offered model."""
        return (self.offer.backend, self.offer.name)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.offer.slots - self.busy

    def ran(self, took_s: float) -> None:
        """Take an attempt's duration into the estimate of the lane's speed."""
        before = took_s if self.attempt_s is None else self.attempt_s
        self.attempt_s = before + _SPEED_MEMORY * (took_s - before)

    @property
    def ready(self) -> bool:
        """Whether the backend can work now."""
        return self.backend.state().health is BackendHealth.READY


@dataclass(slots=True)
class Attempt:
    """One run, as it goes."""

    job: Job
    event: Event
    lane: Lane
    started: float
    budget: OutputBudget
    parts: list[str] = field(default_factory=list)
    first_token: float | None = None
    last_partial: float = 0.0
    partials: int = 0
    unsent_chars: int = 0

    @property
    def text(self) -> str:
        """The output so far."""
        return "".join(self.parts)


@dataclass(slots=True)
class Run:
    """An attempt that is on its backend, as the others see it."""

    job: Job
    started: float
    worker: Worker | None = None
    announced: bool = False
