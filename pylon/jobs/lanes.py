"""What the runner keeps of its lanes and of the attempts that run in them. Values only: nothing here runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf
from typing import Final

from pylon.jobs.catalogue import Offer, Route
from pylon.jobs.policy import OutputBudget
from pylon.jobs.ports import Backend, BackendState
from pylon.jobs.router import Circuit, CircuitRule
from pylon.nostr.event import Event
from pylon.store.records import Job
from pylon.tasks import Worker

_MEMORY: Final = 0.2  # how much the newest attempt weighs in what was measured


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What running needs of the settings; times in seconds. `limit_bytes` is the largest frame relays take."""

    limit_bytes: int = 65_536
    first_partial_s: float = 0.02  # what ends sooner needs no partial: its result says it all
    partial_interval_s: float = 0.5
    partial_min_chars: int = 16
    retry_delay_s: float = 1.0
    health_interval_s: float = 5.0
    health_interval_down_s: float = 1.0
    announce_after_s: float = 0.2
    running_per_customer: int | None = None
    longest_wait_s: float = 60.0  # how long one attempt may wait in all because backends want to be asked later
    longest_rest_s: float = 300.0  # how long a backend is left alone because it wants that
    circuit: CircuitRule = field(default_factory=CircuitRule)
    relay_hint: str = ""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model is on a backend: seconds until the first token, and for each one after it."""

    first_token_s: float
    token_s: float


@dataclass(slots=True)
class Place:
    """The slots of one model on one backend, and how fast it is there. See `router.Candidate`."""

    route: Route
    backend: Backend
    circuit: Circuit  # the backend's, shared with the other models that it serves
    busy: int = 0
    expected: Speed | None = None  # what a bench measured; it holds until a job has
    live_first_token_s: float | None = None
    live_token_s: float | None = None

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.route.backend

    @property
    def backend_model(self) -> str:
        """The model's name there."""
        return self.route.backend_model

    @property
    def state(self) -> BackendState:
        """What is known of the backend without asking."""
        return self.backend.state()

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.route.slots - self.busy

    @property
    def first_token_s(self) -> float | None:
        """Seconds until the first token: as jobs took of late, else as a bench measured, else None."""
        if self.live_first_token_s is not None:
            return self.live_first_token_s
        return None if self.expected is None else self.expected.first_token_s

    @property
    def token_s(self) -> float | None:
        """Seconds that a token of output takes, likewise."""
        if self.live_token_s is not None:
            return self.live_token_s
        return None if self.expected is None else self.expected.token_s

    def measured(self, first_token_s: float, rest_s: float, tokens: int) -> None:
        """Take an attempt of `tokens` output tokens into what is known of the place's speed."""
        self.live_first_token_s = _mixed(self.live_first_token_s, first_token_s)
        if tokens > 1:
            self.live_token_s = _mixed(self.live_token_s, rest_s / (tokens - 1))

    def longest_s(self, max_tokens: int) -> float | None:
        """Return what an attempt takes that uses all its tokens; None before any was measured."""
        if self.first_token_s is None or self.token_s is None:
            return None
        return self.first_token_s + max_tokens * self.token_s


@dataclass(slots=True)
class Lane:
    """The queue of one model (job id -> customer), and the places where it is served.

    `sold`: whether new jobs may come; one that is no longer sold does those that it has.
    """

    offer: Offer
    places: tuple[Place, ...]
    sold: bool = True
    queue: OrderedDict[str, str] = field(default_factory=OrderedDict)
    attempt_s: float | None = None  # how long an attempt takes of late

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return sum(place.busy for place in self.places)

    @property
    def holds_jobs(self) -> bool:
        """Whether a job waits or runs here."""
        return bool(self.queue or self.busy)

    @property
    def slots(self) -> int:
        """How many jobs may run at once."""
        return sum(place.route.slots for place in self.places)

    def place(self, backend: str) -> Place | None:
        """Return the place on a backend of this name."""
        return next((place for place in self.places if place.name == backend), None)

    def ran(self, took_s: float) -> None:
        """Take an attempt's duration into the estimate of the lane's speed."""
        self.attempt_s = _mixed(self.attempt_s, took_s)

    def eta_s(self, max_tokens: int) -> int:
        """Estimate how long one more job takes, those before it included; 0 before anything was measured.

        The work itself takes as long as others did of late, but no longer than its own tokens can take. Before any
        was run, all are taken to use as many tokens as this one may, at the speed that a bench measured.
        """
        longest = min((each for place in self.places if (each := place.longest_s(max_tokens))), default=inf)
        usual = longest if self.attempt_s is None else self.attempt_s
        if usual == inf:
            return 0
        waits_s = (self.busy + len(self.queue)) // self.slots * usual
        return max(1, round(waits_s + min(usual, longest)))


def _mixed(before: float | None, newest: float) -> float:
    return newest if before is None else before + _MEMORY * (newest - before)


@dataclass(slots=True)
class Attempt:
    """One run, as it goes."""

    job: Job
    event: Event
    lane: Lane
    place: Place
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
    place: Place
    started: float
    worker: Worker | None = None
    announced: bool = False
    waited_s: float = 0.0  # because backends wanted to be asked later
