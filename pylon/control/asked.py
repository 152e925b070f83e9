"""What a client asks for, read from the query of its request: each fault is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pylon.control.owner_line import MAX_PAUSE_S, MAX_WHY
from pylon.control.views import MIN_PREFIX, BadQuery, EarningsBy
from pylon.store.records import Money, Work

_HEX: Final = frozenset("0123456789abcdef")


def asked_word(text: str | None, words: type[Work] | type[Money] | type[EarningsBy], name: str) -> str | None:
    """Return one of the words, None where none is asked for. Raises `BadQuery`."""
    if text is None:
        return None
    allowed = [str(word) for word in words]
    if text not in allowed:
        raise BadQuery(f"{name} is one of {', '.join(allowed)}")
    return text


def asked_number(text: str, name: str, least: int, most: int) -> int:
    """Return a number within its bounds. Raises `BadQuery`."""
    # Digits are counted before int() sees them: it refuses thousands of digits with its own error.
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise BadQuery(f"{name} is a number from {least} to {most}")
    return int(text)


def asked_text(text: str, name: str, least: int, most: int) -> str:
    """Return a text within its bounds, without space around it. Raises `BadQuery`."""
    if not least <= len(text.strip()) <= most:
        raise BadQuery(f"{name} is a text of {least} to {most} characters")
    return text.strip()


def asked_for_s(asked: Mapping[str, str]) -> int | None:
    """Return for how long, None where nothing is said. Raises `BadQuery`."""
    return asked_number(asked["for_s"], "for_s", 1, MAX_PAUSE_S) if "for_s" in asked else None


def asked_why(asked: Mapping[str, str]) -> str:
    """Return the owner's reason, "" where there is none. Raises `BadQuery`."""
    return asked_text(asked.get("why", ""), "why", 0, MAX_WHY)


def asked_job_id(text: str) -> str:
    """Return a job's id or what begins it. Raises `BadQuery`."""
    if not (MIN_PREFIX <= len(text) <= 64 and _HEX.issuperset(text)):
        raise BadQuery(f"a job's id is {MIN_PREFIX} to 64 lower-case hex digits")
    return text
