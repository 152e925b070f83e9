"""What every command says and how it ends: plain lines on stdout, one line on stderr when it fails.

Light on purpose: `pylon --help` and `pylon status` import it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final, NoReturn

from pylon.text import printable

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2  # a bad key, value or argument; what typer itself exits with

_LIMIT: Final = 2_000


class UserError(Exception):
    """What `main` turns into one line on stderr and an exit code; no traceback without `--debug`."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(printable(message, limit=_LIMIT))
        self.exit_code = exit_code


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """End the command with one line. Raises `UserError`."""
    raise UserError(message, code)


def sentence_of(error: BaseException) -> str:
    """Return any exception as one sentence for the operator."""
    # Our own are written as one; others need their type to mean anything.
    if type(error).__module__.partition(".")[0] == "pylon" and str(error):
        return str(error)
    from pylon.errors import describe_error

    return describe_error(error)


def say(line: str = "") -> None:
    """Print one line. Untrusted text in it goes through `pylon.text.printable` first, where it joins the line."""
    print(line)


def warn(line: str) -> None:
    """Print one line on stderr, so that what is on stdout stays fit for another program."""
    print(printable(line, limit=_LIMIT), file=sys.stderr)


def say_json(value: Any) -> None:
    """Print a value as JSON. Escaped to ASCII, so that nothing in it can steer a terminal."""
    print(json.dumps(value, indent=2, ensure_ascii=True))
