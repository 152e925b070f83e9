"""Which backend an attempt goes to: the rules, without I/O and without a clock of their own.

A model may be served by several backends. One that cannot take the job now is out: not ready, no free slot, or its
circuit is open. Of the others the best is the one that has the model at all, then has it loaded, then is the
fastest as measured (one never measured comes before a slow one, so that it gets measured), then is the least busy;
what is equal in all goes in the order of the settings. A model is never replaced by another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pylon.jobs.ports import BackendHealth, BackendState


@dataclass(frozen=True, slots=True)
class CircuitRule:
    """When a circuit opens: after so many failures in a row, for `open_s`, then twice as long each time."""

    failures: int = 5
    open_s: float = 10.0
    max_open_s: float = 300.0


class Circuit:
    """Keeps work away from a backend that fails although it says that it is ready. Times are monotonic seconds.

    Closed it lets everything through. Open it lets nothing through until its time is over; then it is half open:
    one attempt goes through, and what becomes of it closes the circuit or opens it again.
    """

    __slots__ = ("_failures", "_open_until", "_rests_until", "_rule", "_trying")

    def __init__(self, rule: CircuitRule) -> None:
        self._rule = rule
        self._failures = 0
        self._open_until: float | None = None
        self._rests_until = 0.0
        self._trying = False

    def allows(self, now: float) -> bool:
        """Tell whether an attempt may begin now."""
        if now < self._rests_until:
            return False
        return self._open_until is None or (now >= self._open_until and not self._trying)

    def open_for_s(self, now: float) -> float:
        """Return how long nothing goes through yet; 0 when something may."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def began(self) -> None:
        """Note that an attempt begins: a half-open circuit lets no second one through."""
        self._trying = self._open_until is not None

    def succeeded(self) -> None:
        """Note an attempt that the backend carried out, or refused for a reason of the request's own."""
        self._failures, self._open_until, self._trying = 0, None, False

    def failed(self, now: float) -> None:
        """Note an attempt that the backend failed."""
        self._failures += 1
        self._trying = False
        over = self._failures - self._rule.failures
        if over >= 0:
            self._open_until = now + min(self._rule.max_open_s, self._rule.open_s * 2.0 ** min(over, 30))

    def rests(self, until: float) -> None:
        """Note that the backend wants quiet until then. That is no failure: jobs may still be promised for it."""
        self._rests_until = max(self._rests_until, until)
        self._trying = False

    def gave_up(self) -> None:
        """Note an attempt that ended without a verdict on the backend: it was cancelled."""
        self._trying = False


class Candidate(Protocol):
    """What routing looks at of one backend that serves a model."""

    @property
    def name(self) -> str:
        """The backend's name."""
        ...

    @property
    def backend_model(self) -> str:
        """The model's name there."""
        ...

    @property
    def state(self) -> BackendState:
        """What is known of the backend without asking."""
        ...

    @property
    def circuit(self) -> Circuit:
        """Its circuit."""
        ...

    @property
    def free(self) -> int:
        """How many slots are free."""
        ...

    @property
    def token_s(self) -> float | None:
        """Seconds a token of output takes here, None before it was measured."""
        ...


C = TypeVar("C", bound=Candidate)


def choose(candidates: Iterable[C], now: float, without: Collection[str] = ()) -> C | None:
    """Return where an attempt should go now, None when it must wait. `without` names backends that are out."""
    able = [
        each
        for each in candidates
        if each.free > 0
        and each.name not in without
        and each.state.health is BackendHealth.READY
        and each.circuit.allows(now)
    ]
    return min(able, key=_rank) if len(able) > 1 else able[0] if able else None


def can_serve(candidate: Candidate, now: float) -> bool:
    """Tell whether a job may be promised for this backend, though it may have to wait for a slot."""
    state = candidate.state
    if state.health is BackendHealth.DOWN or candidate.circuit.open_for_s(now) > 0:
        return False
    return not state.models or state.lists(candidate.backend_model)


def _rank(candidate: Candidate) -> tuple[bool, bool, float, int]:
    model = next((each for each in candidate.state.models if each.name == candidate.backend_model), None)
    loaded = model is not None and model.loaded is True
    return model is None, not loaded, candidate.token_s or 0.0, -candidate.free
