"""`pylon stop`: ask, wait, and say what happened."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.output import UserError, fail, say
from pylon.cli.views import control_client
from pylon.control.client import ControlError
from pylon.lock import lock_holder
from pylon.paths import Paths

_LOOK_EVERY_S: Final = 0.1
_KILL_WAIT_S: Final = 5.0


def command(
    ctx: typer.Context,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait for it to end.")
    ] = 40.0,
    kill: Annotated[bool, typer.Option("--kill", help="Kill it when it has not ended by then.")] = False,
) -> int:
    """Stop the daemon gracefully: it takes no more jobs and ends when what runs is safe.

    Nothing that was paid is lost, not even with --kill: it goes on at the next start. Exit code 0 when no daemon
    runs afterwards, 1 when it still does.
    """
    context: CliContext = ctx.obj
    paths = context.paths
    pid = lock_holder(paths.lock_file)
    if pid is None:
        say("pylon is not running")
        return 0
    _ask(paths, pid)
    if _ended(paths, pid, timeout):
        say("pylon has stopped")
        return 0
    if not kill:
        fail(
            f"pylon (process {pid}) has not ended within {timeout:g} s: wait longer with --timeout, "
            "or end it with --kill"
        )
    _signal(pid, signal.SIGKILL)
    if not _ended(paths, pid, _KILL_WAIT_S):
        fail(f"pylon (process {pid}) was killed and its home is still locked")
    say("pylon was killed; what it had not finished goes on at the next start")
    return 0


def _ask(paths: Paths, pid: int) -> None:
    try:
        control_client(paths, timeout_s=5).request_stop()
    except ControlError:
        # Too busy, or still starting: the signal asks for the same.
        _signal(pid, signal.SIGTERM)


def _signal(pid: int, number: signal.Signals) -> None:
    if pid <= 1:
        fail("pylon does not answer and its process is not known: try again")
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended just now
    except PermissionError as error:
        raise UserError(f"no permission to stop process {pid}: the daemon belongs to another user") from error


def _ended(paths: Paths, pid: int, timeout_s: float) -> bool:
    """Wait until the process that held the lock has let it go (another may hold it by then)."""
    deadline = time.monotonic() + timeout_s
    # Without a pid it is about to be let go, or was just taken: a moment tells.
    while lock_holder(paths.lock_file) in (pid, 0):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True
