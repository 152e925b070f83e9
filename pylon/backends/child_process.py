"""What the backends share that run a model in a child process of ours: its environment, its end and its threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from pylon.backends.child_log import open_log

_END_S: Final = 3.0


class ChildFault(Exception):
    """Why there is no child, in words for `pylon status`."""


def default_threads() -> int:
    """Return half of the cores that this process may use, at least 1.

    Half are usually the physical ones, and the other half stays with the owner. llama.cpp's threads wait for each
    other by spinning, so a core that others use too costs dearly: on 2 busy cores, 2 threads were slower than 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def child_environment() -> dict[str, str]:
    """Return our environment without what may hold the operator's secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYLON_") and name != "CREDENTIALS_DIRECTORY"
    }


async def open_child(python: str, program: str, log_path: Path, *, called: str) -> anyio.abc.Process:
    """Start a program of ours that is spoken to by its pipes and writes its errors to a log.

    Raises `ChildFault`, with the name that the operator knows it by where it cannot be started.
    """
    try:
        log = open_log(log_path)
    except OSError as error:
        raise ChildFault(f"the log {log_path} cannot be written: {error.strerror}") from error
    with log, anyio.CancelScope(shield=True):  # a cancelled start must not leave a child behind
        try:
            process = await anyio.open_process(
                [python, "-P", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                start_new_session=True,  # a Ctrl-C is for the daemon, which then ends the child itself
            )
        except OSError as error:
            raise ChildFault(f"{called} cannot be started: {error.strerror}") from error
    return process


async def end_process(process: anyio.abc.Process) -> None:
    """Ask a child to end, wait a little, then kill it."""
    signal_process(process)
    with anyio.move_on_after(_END_S):
        await process.wait()
    signal_process(process, kill=True)
    await process.aclose()


def signal_process(process: anyio.abc.Process, *, kill: bool = False) -> None:
    """Have a child end, or kill it; one that has ended already is left alone."""
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except ProcessLookupError:
        pass  # it has ended


def ending(code: int) -> str:
    """Return how a child ended, for a sentence about it."""
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
