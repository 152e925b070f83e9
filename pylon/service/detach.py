"""Running in the background: two forks, a session of its own, and a pipe that tells who started it how that went.

A fork and no new program: a passphrase that was typed stays in memory and is in no environment and no argument.
Nothing has threads or an event loop before the daemon runs.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from pylon.service.notify import READY, Notifier, PipeManager
from pylon.text import printable

_FAILED: Final = "FAILED"
_PID: Final = "PID"
_MOST_BYTES: Final = 16_384
_LAST_BYTES: Final = 4_096
_LOG_MODE: Final = 0o600


class NotStarted(Exception):
    """The daemon in the background is not ready; the message says why, and where its log is."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def run_detached(
    run: Callable[[Notifier], int], describe: Callable[[BaseException], str], log_file: Path, *, wait_s: float
) -> int:
    """Run `run` in a process of its own, its output appended to `log_file`, and return its pid once it is ready.

    `describe` makes one sentence of what `run` raises. Raises `NotStarted`, or `OSError` for a log that cannot be
    written. Only a daemon that is not ready within `wait_s` goes on in the background then.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, _LOG_MODE)
    hears, tells = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(hears)
        _leave_session(log)
        _run(run, describe, tells)
    os.close(log)
    os.close(tells)
    os.waitpid(child, 0)
    try:
        return _await_ready(hears, log_file, wait_s)
    finally:
        os.close(hears)


def _leave_session(log: int) -> None:
    """Become a process that no terminal can reach, whose parent has ended; output goes to the log."""
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in (nothing, log):
        if descriptor > 2:
            os.close(descriptor)
    os.chdir("/")  # no file system is held for the sake of where it was started


def _run(run: Callable[[Notifier], int], describe: Callable[[BaseException], str], tells: int) -> NoReturn:
    """Run, and end without what the starting process had planned for its own end."""
    pipe, code = PipeManager(tells), 1
    try:
        pipe.send(f"{_PID}={os.getpid()}".encode())
        code = run(Notifier(pipe))
    except BaseException as error:  # noqa: BLE001 - whatever it is, who waits must hear of it
        sentence = printable(describe(error), limit=2_000)
        code = int(getattr(error, "exit_code", 1))
        print(f"pylon: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - the log, as without --detach
        with contextlib.suppress(OSError):  # who started it may wait no more
            pipe.send(f"{_FAILED}={code} {sentence}".encode())
    finally:
        os._exit(code)


def _await_ready(hears: int, log_file: Path, wait_s: float) -> int:
    deadline = time.monotonic() + wait_s
    heard = b""
    while True:
        lines = heard.decode(errors="replace").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        pid = int(told.get(_PID, "0"))
        if READY in lines:
            return pid
        if _FAILED in told and heard.endswith(b"\n"):
            code, _, sentence = told[_FAILED].partition(" ")
            raise NotStarted(f"{sentence} (log: {log_file})", int(code))
        readable, _, _ = select.select([hears], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise NotStarted(
                f"pylon (process {pid}) is not ready after {wait_s:g} s and goes on in the background: "
                f"see pylon status (log: {log_file})"
            )
        more = os.read(hears, _MOST_BYTES)
        if not more:
            raise NotStarted(f"pylon ended before it was ready: {_last_line(log_file)} (log: {log_file})")
        heard = (heard + more)[-_MOST_BYTES:]


def _last_line(log_file: Path) -> str:
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "its log cannot be read"
    return printable(next((line for line in reversed(lines) if line.strip()), "it said nothing"), limit=500)
