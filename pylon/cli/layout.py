"""How values look on the operator's screen: money, times, columns, colours.

Everything that is printed goes through `printable` here, because much of it was written by strangers.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pylon.text import printable

_GAP: Final = "  "
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


class Colour(StrEnum):
    """What a colour says; the value is its ANSI code."""

    NONE = ""
    BOLD = "1"
    DIM = "2"
    GOOD = "32"
    WARN = "33"
    BAD = "31"


@dataclass(frozen=True, slots=True)
class Cell:
    """One text of a table, printable already by the time it is shown."""

    text: str
    colour: Colour = Colour.NONE
    right: bool = False


def cell(value: object, colour: Colour = Colour.NONE, *, limit: int = 80) -> Cell:
    """Return a cell that shows `value`, cut to `limit` characters; numbers stand to the right."""
    return Cell(printable(value, limit=limit), colour, right=isinstance(value, int))


class Screen:
    """Lines for stdout; colours only when a terminal is there to show them."""

    def __init__(self, *, colours: bool | None = None) -> None:
        self._colours = _wants_colours() if colours is None else colours
        self._lines: list[str] = []

    def line(self, text: str = "", colour: Colour = Colour.NONE) -> None:
        """Add one line; `text` is printable already or a constant."""
        self._lines.append(self._painted(text, colour))

    def heading(self, text: str) -> None:
        """Add a heading, with an empty line before it."""
        if self._lines:
            self.line()
        self.line(text, Colour.BOLD)

    def table(self, rows: Iterable[Sequence[Cell]], *, indent: str = "") -> None:
        """Add aligned rows; a column is as wide as its widest cell."""
        held = [list(row) for row in rows]
        columns = max((len(row) for row in held), default=0)
        widths = [max(_width(row[at].text) for row in held if at < len(row)) for at in range(columns)]
        for row in held:
            parts = []
            for at, item in enumerate(row):
                space = " " * (widths[at] - _width(item.text))
                painted = self._painted(item.text, item.colour)
                parts.append(space + painted if item.right else painted + space)
            self._lines.append((indent + _GAP.join(parts)).rstrip())

    def text(self) -> str:
        """Return everything added."""
        return "\n".join(self._lines)

    def _painted(self, text: str, colour: Colour) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour and text else text


def sats(amount_msats: int) -> str:
    """Return an amount in sats, exact to the msat: `1,500.250 sats`; without decimals when there are none."""
    sign = "-" if amount_msats < 0 else ""
    whole, rest = divmod(abs(amount_msats), 1000)
    return f"{sign}{whole:,}{f'.{rest:03d}' if rest else ''} sats"


def moment(unix_s: int, *, utc: bool = False) -> str:
    """Return local date and time, or those of UTC, which says so."""
    try:
        if utc:
            return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return str(unix_s)


def duration(seconds: int) -> str:
    """Return a duration in its two largest units: `1d 2h`, `3m 20s`, `0s`."""
    parts: list[str] = []
    rest = max(0, seconds)
    for name, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count}{name}")
        elif parts:
            break
    return " ".join(parts[:2])


def size(count_bytes: int) -> str:
    """Return a size in the unit that fits: `1.2 MB`."""
    amount = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _wants_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
