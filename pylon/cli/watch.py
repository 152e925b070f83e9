"""`pylon status --watch`: the status again and again, over the daemon's restarts, until Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import typer

from pylon.cli.layout import Colour, Screen, moment
from pylon.cli.output import say
from pylon.cli.status import show
from pylon.control.client import ControlError, DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.control.views import DaemonStatus
from pylon.text import printable

_LEAST_S: Final = 0.1
_MOST_S: Final = 3600.0


def parse_interval(text: str) -> float:
    """Return seconds. Raises `typer.BadParameter`."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_S <= seconds <= _MOST_S:
        said = f"{printable(text)} is not {_LEAST_S:g} to {_MOST_S:g} seconds"
        raise typer.BadParameter(said, param_hint="SECONDS")
    return seconds


def watch_status(ask: Callable[[], DaemonStatus], interval_s: float, *, json: bool = False) -> int:
    """Ask and show, every `interval_s`, until Ctrl-C. Returns the exit code.

    On a terminal the screen is drawn anew; elsewhere one plain status follows the other, with `json` one a line.
    """
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not json
    try:
        with _drawing() if live else _printing() as put:
            missing_since: float | None = None
            while True:
                started_at = time.monotonic()
                try:
                    answer: DaemonStatus | ControlError = ask()
                    missing_since = None
                except ControlError as error:
                    answer, missing_since = error, missing_since or time.time()
                put(_json(answer) if json else _text(answer, missing_since, interval_s))
                time.sleep(max(0.0, started_at + interval_s - time.monotonic()))
    except KeyboardInterrupt:
        return 0


def _json(answer: DaemonStatus | ControlError) -> str:
    if isinstance(answer, DaemonStatus):
        return dump_json(answer)
    state = "not-running" if isinstance(answer, DaemonNotRunning) else "unknown"
    return dump_json({"state": state, "because": str(answer)})


def _text(answer: DaemonStatus | ControlError, missing_since: float | None, interval_s: float) -> str:
    screen = Screen()
    screen.line(f"{moment(int(time.time()))}, every {interval_s:g} s (Ctrl-C ends)", Colour.DIM)
    screen.line()
    if isinstance(answer, DaemonStatus):
        show(answer, screen)
    else:
        since = "" if missing_since is None else f" (since {moment(int(missing_since))})"
        screen.line(printable(f"{answer}{since}; waiting for it to come back", limit=500), Colour.WARN)
    return screen.text()


@contextmanager
def _printing() -> Generator[Callable[[str], None], None, None]:
    def put(text: str) -> None:
        say(text)
        sys.stdout.flush()

    yield put


@contextmanager
def _drawing() -> Generator[Callable[[str], None], None, None]:
    """Draw on the terminal's other screen, which gives the first one back at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:

        def put(text: str) -> None:
            live.update(Text.from_ansi(text, no_wrap=True, overflow="ellipsis"), refresh=True)

        yield put
