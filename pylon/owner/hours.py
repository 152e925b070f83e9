"""When work is allowed: windows of the week, in what the clock on the wall shows. Pure.

A window is written `mon-fri 18:00-08:00`: days, then two times. Without days it is every day. One whose end is not
after its start goes on into the next day; its days are those on which it begins. Where a clock is set forward or
back, what it shows counts: an hour that comes twice is allowed twice, one that is left out never comes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60
WEEK_MIN: Final = 7 * DAY_MIN

_TIMES: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})", re.ASCII)
_QUARTER_S: Final = 900  # clocks are set forward or back at such a moment of UTC, everywhere
_LOOK_AHEAD_S: Final = 15 * 86_400  # the one hour of a week that is allowed may be left out once

Wall = Callable[[float], datetime]
"""Returns what the clock on the wall shows at a unix time."""


def wall_of(zone: tzinfo | None = None) -> Wall:
    """Return the clock of a time zone, by default this machine's."""
    return lambda at: datetime.fromtimestamp(at, zone)


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the day on some days of the week (0: Monday), into the next day if `end` is not after `start`."""

    days: frozenset[int]
    start: int
    end: int

    def minutes(self) -> Iterable[int]:
        """Yield the minutes of the week that it covers, counted from Monday 00:00."""
        length = (self.end - self.start) % DAY_MIN or DAY_MIN
        for day in self.days:
            first = day * DAY_MIN + self.start
            yield from (minute % WEEK_MIN for minute in range(first, first + length))


def parse_window(text: str) -> Window:
    """Return the window that a text describes. Raises `ValueError` with what is wrong with it."""
    words = text.lower().split()
    if not 1 <= len(words) <= 2:
        raise ValueError("not days and times, such as mon-fri 18:00-08:00")
    days = _days(words[0]) if len(words) == 2 else frozenset(range(7))
    times = _TIMES.fullmatch(words[-1])
    if times is None:
        raise ValueError("not two times, such as 18:00-08:00")
    hour, minute, end_hour, end_minute = (int(each) for each in times.groups())
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if minute > 59 or end_minute > 59 or start >= DAY_MIN or end > DAY_MIN:
        raise ValueError("a time is 00:00 to 23:59, and 24:00 at the end")
    return Window(days, start, end)


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"days are {', '.join(DAYS)}, such as mon-fri or sat,sun")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        found.update((begin + each) % 7 for each in range(length + 1))
    return frozenset(found)


@dataclass(frozen=True)
class Hours:
    """All windows together."""

    windows: tuple[Window, ...]

    @cached_property
    def _week(self) -> bytes:
        """A byte for each minute of the week: whether it is allowed."""
        week = bytearray(WEEK_MIN)
        for window in self.windows:
            for minute in window.minutes():
                week[minute] = 1
        return bytes(week)

    @property
    def always(self) -> bool:
        """Whether all hours are allowed, so that they say nothing."""
        return 0 not in self._week

    def allow(self, shown: datetime) -> bool:
        """Tell whether work is allowed while the clock shows this."""
        return bool(self._week[_minute_of_week(shown)])

    def next_change(self, now: float, wall: Wall) -> int | None:
        """Return when it changes next whether work is allowed, unix seconds; None when it never does."""
        if self.always or 1 not in self._week:
            return None
        at = math.floor(now)
        allowed, end = self.allow(wall(at)), at + _LOOK_AHEAD_S
        while at < end:
            shown = wall(at)
            if self.allow(shown) is not allowed:
                return at
            # As far as neither the windows nor the clock itself can change anything.
            left_s = self._left_min(_minute_of_week(shown)) * 60 - shown.second
            at += min(left_s, _QUARTER_S - at % _QUARTER_S)
        return None

    def _left_min(self, minute: int) -> int:
        """Return how many minutes on it is not as it is in this minute of the week."""
        other = bytes([1 - self._week[minute]])
        found = self._week.find(other, minute)
        return found - minute if found >= 0 else self._week.find(other) + WEEK_MIN - minute


def _minute_of_week(shown: datetime) -> int:
    return shown.weekday() * DAY_MIN + shown.hour * 60 + shown.minute
