"""Bars of plain text blocks, for amounts beside each other."""

from __future__ import annotations

from typing import Final

_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_FULL: Final = "█"


def bar(amount: int, most: int, width: int, *, blocks: bool = True) -> str:
    """Return a bar whose length is to `width` columns as `amount` is to `most`; what is not nothing shows.

    Without `blocks` it is made of `#`, for a terminal that has nothing finer.
    """
    if amount <= 0 or most <= 0 or width <= 0:
        return ""
    eighths = max(1, min(amount, most) * width * 8 // most)
    if not blocks:
        return "#" * max(1, eighths // 8)
    return (_FULL * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
