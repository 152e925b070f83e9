"""Asks a program of the system one thing, bounded in time and in what it may say, in a small environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import anyio

TIMEOUT_S: Final = 3.0
_MAX_ANSWER_BYTES: Final = 256 * 1024
_KEPT: Final = ("PATH", "HOME", "DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")

Ask = Callable[[Sequence[str]], Coroutine[Any, Any, str]]
"""Runs a program and returns what it printed. Raises `Silent`."""


class Silent(Exception):
    """The program is not there, failed, or did not answer; the message is a clause that says so."""


async def ask_program(command: Sequence[str]) -> str:
    """Run a program of the system and return its standard output. Raises `Silent`."""
    name = command[0]
    environ = {each: os.environ[each] for each in _KEPT if each in os.environ} | {"LC_ALL": "C"}
    try:
        with anyio.fail_after(TIMEOUT_S):
            done = await anyio.run_process(command, stderr=subprocess.DEVNULL, check=False, env=environ)
    except FileNotFoundError:
        raise Silent(f"{name} is not installed") from None
    except TimeoutError:
        raise Silent(f"{name} did not answer within {TIMEOUT_S:g} s") from None
    except OSError as error:
        raise Silent(f"{name} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise Silent(f"{name} failed with code {done.returncode}")
    return done.stdout[:_MAX_ANSWER_BYTES].decode("utf-8", "replace")
