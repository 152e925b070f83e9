"""A command of `pylon` at a terminal of its own, for prompts that only a terminal gets; and what one printed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT_S = 30.0


class Terminal:
    """What a person at the keyboard sees and types. `seen` is everything that was shown."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self.seen = b""

    def until(self, wanted: str) -> None:
        """Wait until something is shown, after what was waited for before."""
        start, deadline = len(self.seen), time.monotonic() + LIMIT_S
        while wanted.encode() not in self.seen[start:]:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{wanted!r} did not come; seen: {self.seen!r}"
            self.seen += os.read(self._descriptor, 4096)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._descriptor, line.encode() + b"\n")

    def ended(self) -> int:
        """Wait for the end and return the exit code."""
        while True:
            try:
                piece = os.read(self._descriptor, 4096)
            except OSError:  # Linux says that nobody has the other end any more
                break
            if not piece:
                break
            self.seen += piece
        return self._process.wait(LIMIT_S)


@contextmanager
def at_terminal(*arguments: str, home: Path | None = None) -> Iterator[Terminal]:
    """Run `pylon` with these arguments at a terminal, with our environment, on a home if one is given."""
    environ = {**os.environ, **({} if home is None else {"PYLON_HOME": str(home)})}
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pylon", *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environ,
        start_new_session=True,
    )
    os.close(its)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def at_a_terminal(words: list[str], home: Path, prompt: str, answer: str) -> tuple[int, str]:
    """Run `pylon WORDS` at a terminal, answer its prompt, and return exit code and everything shown."""
    with at_terminal(*words, home=home) as terminal:
        if prompt:
            terminal.until(prompt)
            terminal.type(answer)
        return terminal.ended(), terminal.seen.decode()


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command printed: no complaint, and nothing that would move the cursor."""
    out, err = capsys.readouterr()
    assert err == ""
    assert all(char.isprintable() or char == "\n" for char in out)
    return out
