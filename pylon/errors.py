"""Any exception as one line for an operator: the command line and the log both speak through this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon.text import printable

_MOST_LEAVES: Final = 3
_LINE_LIMIT: Final = 500


def describe_error(error: BaseException, redact: Callable[[str], str] = str) -> str:
    """Return `Type: message` in one printable line; `redact` sees the text before it is cut to length.

    An exception group is what its members say ("unhandled errors in a TaskGroup" helps nobody), at most three.
    """
    leaves: list[str] = []
    for leaf in _leaves(error):
        line = printable(redact(_one(leaf)), limit=_LINE_LIMIT)
        if line not in leaves:
            leaves.append(line)
    more = f" (and {len(leaves) - _MOST_LEAVES} more)" if len(leaves) > _MOST_LEAVES else ""
    return "; ".join(leaves[:_MOST_LEAVES]) + more


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for member in error.exceptions for leaf in _leaves(member)]


def _one(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (somebody's __str__: naming the type must still work)
        message = ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name
