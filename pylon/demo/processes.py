"""Child processes of the demo: each with a log file, a READY line where it has one, and an end with its owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from pylon.text import printable

_STOP_S: Final = 5.0
_MAX_READY_BYTES: Final = 4096
_TAIL_BYTES: Final = 16_384


class ChildFailed(Exception):
    """A child process ended or did not become ready; the message is one sentence, `log_lines` its last words."""

    def __init__(self, sentence: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.log_lines = tuple(log_lines)


@dataclass(frozen=True, slots=True)
class Child:
    """One running child process. What it says on stderr is in `log_path`."""

    name: str
    process: anyio.abc.Process
    log_path: Path

    async def ready(self, timeout_s: float) -> str:
        """Return what follows READY on its first line. Raises `ChildFailed`."""
        assert self.process.stdout is not None
        line = b""
        try:
            with anyio.fail_after(timeout_s):
                while b"\n" not in line and len(line) < _MAX_READY_BYTES:
                    line += await self.process.stdout.receive()
        except TimeoutError:
            raise self.failure(f"was not ready within {timeout_s:g} s") from None
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise self.failure("closed its output before it was ready") from None
        word, _, rest = line.decode(errors="replace").strip().partition(" ")
        if word != "READY":
            raise self.failure("said something else than READY")
        return rest

    async def watch(self) -> None:
        """Wait for its end, which nobody asked for. Always raises `ChildFailed`."""
        code = await self.process.wait()
        ending = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise self.failure(ending)

    def failure(self, what: str) -> ChildFailed:
        """Return the error that says what happened to this child."""
        return ChildFailed(f"{self.name} {what}", self.log_lines())

    def log_lines(self, count: int = 8) -> list[str]:
        """Return the last lines of its log, printable."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [printable(line, limit=300) for line in text.splitlines()[-count:] if line.strip()]


@asynccontextmanager
async def child(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    environ: Mapping[str, str],
    log_path: Path,
    says_ready: bool = False,
    stop_s: float = _STOP_S,
) -> AsyncIterator[Child]:
    """Run `python -m module` until the block ends; then SIGTERM, and SIGKILL after `stop_s`.

    It dies with this process in any case. An end that nobody asked for is a `ChildFailed` in an exception group.
    `environ` is its whole environment. One that does not say READY has its standard output in the log as well.
    """
    command = [sys.executable, "-m", "pylon.demo.leash", str(os.getpid()), module, *arguments]
    with log_path.open("ab") as log, anyio.CancelScope(shield=True):  # a cancelled start must not leave one behind
        # Its own session: a Ctrl-C is for the demo, which then ends its children in order.
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if says_ready else log,
            stderr=log,
            env=dict(environ),
            start_new_session=True,
        )
    running = Child(name, process, log_path)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.watch)
            try:
                yield running
            finally:
                tasks.cancel_scope.cancel()  # from here on it may end
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process, stop_s)


def clean_environment() -> dict[str, str]:
    """Return our environment without any settings of the user's own pylon."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYLON_") and name not in ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET")
    }


async def _end(process: anyio.abc.Process, stop_s: float) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.move_on_after(stop_s):
        await process.wait()
    with suppress(ProcessLookupError):
        process.kill()
    await process.aclose()
