"""The owner's rules, and what the state of the machine makes of them. Pure: times and readings are passed in.

`judge` says of each rule whether it allows work now; `settle` says which of them pause the provider, so that one
which wavers does not make it start and stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pylon.owner.hours import Hours, Wall

MB: Final = 1_000_000

ONSET_S: Final = 15.0
"""How long too little GPU memory, or what cannot be told, must last before it pauses."""


class Rule(StrEnum):
    """A rule, by its key in `[owner]`, in the order in which they are named."""

    HOURS = "hours"
    IDLE = "idle_only"
    POWER = "ac_only"
    GPU = "gpu_memory_floor_mb"


@dataclass(frozen=True, slots=True)
class OwnerRules:
    """What the owner wants. What is None or False is no rule.

    `idle_s` is for how long nobody may have used the machine; `gpu_floor_bytes` how much GPU memory must be free or
    ours. What cannot be told pauses unless `unknown_allows`. `settle_s` is for how long power and GPU memory must
    allow work before it goes on. `put_back`: a rule that pauses does not wait for the attempts under way.
    """

    hours: Hours | None = None
    idle_s: float | None = None
    ac_only: bool = False
    gpu_floor_bytes: int | None = None
    unknown_allows: bool = False
    settle_s: float = 60.0
    put_back: bool = False

    @property
    def named(self) -> tuple[Rule, ...]:
        """The rules that there are."""
        wanted = {
            Rule.HOURS: self.hours is not None,
            Rule.IDLE: self.idle_s is not None,
            Rule.POWER: self.ac_only,
            Rule.GPU: self.gpu_floor_bytes is not None,
        }
        return tuple(rule for rule, there in wanted.items() if there)


@dataclass(frozen=True, slots=True)
class Unknown:
    """What cannot be told here, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Readings:
    """The state of the machine: seconds since somebody used it, whether it runs on mains power, GPU memory.

    `gpu_bytes` is what is free, with what our own models hold.
    """

    idle_s: float | Unknown = Unknown("not looked yet")
    on_mains: bool | Unknown = Unknown("not looked yet")
    gpu_bytes: int | Unknown = Unknown("not looked yet")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says now; `allows` is None when it cannot be told. `until`: when that changes, if it is known."""

    rule: Rule
    allows: bool | None
    why: str
    until: int | None = None


def judge(rules: OwnerRules, seen: Readings, now: float, wall: Wall) -> tuple[Verdict, ...]:
    """Return what each rule says."""
    found = []
    if rules.hours is not None:
        allowed, until = rules.hours.allow(wall(now)), rules.hours.next_change(now, wall)
        found.append(
            Verdict(Rule.HOURS, allowed, f"{'within' if allowed else 'outside'} the hours of [owner]", until)
        )
    if rules.idle_s is not None:
        found.append(_judge_idle(rules.idle_s, seen.idle_s))
    if rules.ac_only:
        found.append(_judge_power(seen.on_mains))
    if rules.gpu_floor_bytes is not None:
        found.append(_judge_gpu(rules.gpu_floor_bytes, seen.gpu_bytes))
    return tuple(found)


def _judge_idle(wanted_s: float, idle_s: float | Unknown) -> Verdict:
    if isinstance(idle_s, Unknown):
        return Verdict(Rule.IDLE, None, f"it cannot be told whether somebody uses this machine: {idle_s.why}")
    if idle_s < wanted_s:
        return Verdict(Rule.IDLE, False, f"somebody used this machine within the last {wanted_s:g} s")
    return Verdict(Rule.IDLE, True, f"nobody used this machine for {wanted_s:g} s")


def _judge_power(on_mains: bool | Unknown) -> Verdict:
    if isinstance(on_mains, Unknown):
        return Verdict(Rule.POWER, None, f"it cannot be told what powers this machine: {on_mains.why}")
    return Verdict(Rule.POWER, on_mains, f"this machine runs on {'mains power' if on_mains else 'its battery'}")


def _judge_gpu(floor_bytes: int, gpu_bytes: int | Unknown) -> Verdict:
    if isinstance(gpu_bytes, Unknown):
        return Verdict(Rule.GPU, None, f"it cannot be told how much GPU memory is free: {gpu_bytes.why}")
    enough = gpu_bytes >= floor_bytes
    said = f"others leave {'enough' if enough else 'less than'} GPU memory: "
    return Verdict(Rule.GPU, enough, f"{said}{gpu_bytes // MB:,} MB of at least {floor_bytes // MB:,} MB")


@dataclass(frozen=True, slots=True)
class Track:
    """Whether a rule pauses, and since when (monotonic seconds) its verdict says otherwise; None: it agrees."""

    pauses: bool
    contrary_since: float | None = None


def settle(
    before: Mapping[Rule, Track], verdicts: Iterable[Verdict], at_s: float, rules: OwnerRules
) -> dict[Rule, Track]:
    """Return which rules pause now. `at_s` are monotonic seconds; a rule that is new pauses at once."""
    return {each.rule: _settled(before.get(each.rule), each, at_s, rules) for each in verdicts}


def _settled(before: Track | None, verdict: Verdict, at_s: float, rules: OwnerRules) -> Track:
    pauses = not (rules.unknown_allows if verdict.allows is None else verdict.allows)
    if before is None or before.pauses is pauses:
        return Track(pauses)
    since = at_s if before.contrary_since is None else before.contrary_since
    return Track(pauses) if at_s - since >= _patience_s(verdict, pauses, rules) else Track(before.pauses, since)


def _patience_s(verdict: Verdict, pauses: bool, rules: OwnerRules) -> float:
    """Return for how long a verdict must last before it counts."""
    if pauses:
        return ONSET_S if verdict.allows is None or verdict.rule is Rule.GPU else 0.0
    return rules.settle_s if verdict.rule in _WAVERING else 0.0


_WAVERING: Final = frozenset({Rule.POWER, Rule.GPU})
"""The others wait by themselves: hours for their time, idleness for as long as it is set to."""
