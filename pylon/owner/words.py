"""Why no job is taken, in words: for the operator all there is, for a customer nothing of the owner's life."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pylon.owner.hours import Wall
from pylon.owner.orders import Order, Will
from pylon.owner.rules import Verdict


@dataclass(frozen=True, slots=True)
class Held:
    """Why no job is taken: as the operator sees it, and what a customer is told."""

    shown: str
    told: str


def of_order(order: Order, now: float, wall: Wall) -> Held:
    """Return the words of an order that stands."""
    by = f"by your order of {shown_time(order.since, now, wall)}"
    until = "" if order.until is None else f" until {shown_time(order.until, now, wall)}"
    why = f": {order.why}" if order.why else ""
    if order.will is Will.DRAIN:
        ends = "then the daemon ends" if order.exits else "then it pauses"
        told = "the provider finishes what it has and takes nothing new"
        return Held(f"draining {by}{why}; what was accepted is finished, {ends}", told)
    return Held(f"paused {by}{until}{why}", _told(order.until))


def of_rules(pausing: Iterable[Verdict], now: float, wall: Wall) -> Held:
    """Return the words of the rules that pause."""
    verdicts = list(pausing)
    again = [
        f" (again at {shown_time(each.until, now, wall)})" if each.until is not None else "" for each in verdicts
    ]
    shown = "; ".join(each.why + when for each, when in zip(verdicts, again, strict=True))
    return Held(f"paused: {shown}", _told(end_of(verdicts)))


def end_of(pausing: Iterable[Verdict]) -> int | None:
    """Return when rules stop to pause, where that is known: one whose end is not may be the last."""
    times = [each.until for each in pausing]
    return max((at for at in times if at is not None), default=None) if None not in times else None


def shown_time(at: float, now: float, wall: Wall) -> str:
    """Return a time as the clock on the wall shows it, with its day where that is not today."""
    shown = wall(at)
    return f"{shown:%H:%M}" if shown.date() == wall(now).date() else f"{shown:%Y-%m-%d %H:%M}"


def _told(until: int | None) -> str:
    if until is None:
        return "the provider is paused"
    return f"the provider is paused, until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC at the earliest"
