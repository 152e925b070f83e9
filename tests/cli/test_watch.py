"""`pylon status --watch`: on a terminal and off it, over a daemon that goes away and comes back."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylon.cli.app import run
from tests.support.fake_daemon import fake_daemon

LIMIT_S = 20.0
GONE = "pylon is not running (since "


class Watched:
    """A watching command and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self.said = ""
        self._output = output

    def until(self, text: str, *, times: int = 1) -> None:
        """Read on until it has said `text`, counted from here."""
        seen_from = len(self.said)
        deadline = time.monotonic() + LIMIT_S
        while self.said[seen_from:].count(text) < times:
            assert time.monotonic() < deadline, (
                f"not said within {LIMIT_S} s: {text!r} in {self.said[seen_from:]!r}"
            )
            self._read(0.1)

    def interrupted(self) -> int:
        """Press Ctrl-C, read the rest and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def _read(self, patience_s: float) -> bool:
        ready, _, _ = select.select([self._output], [], [], patience_s)
        if not ready:
            return False
        chunk = os.read(self._output, 65536)
        self.said += chunk.decode()
        return bool(chunk)


@contextmanager
def watching(home: Path, *arguments: str, terminal: bool = False) -> Iterator[Watched]:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "PYLON_HOME": str(home), "TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "pylon", "status", "--watch", *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    try:
        yield Watched(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("terminal", [True, False])
def test_it_goes_on_when_the_daemon_goes_away_and_comes_back(tmp_path: Path, terminal: bool) -> None:
    with watching(tmp_path, "0.2", terminal=terminal) as watched:
        watched.until(GONE)
        with fake_daemon(tmp_path):
            watched.until("wss://relay.one", times=2)
        watched.until(GONE)
        with fake_daemon(tmp_path, state="degraded"):
            watched.until("degraded")
        assert watched.interrupted() == 0
    assert "Traceback" not in watched.said
    if terminal:
        assert watched.said.startswith("\x1b[?1049h")  # another screen, given back at the end, with its cursor
        assert watched.said.endswith("\x1b[?25h\x1b[?1049l")
    else:
        assert "\x1b" not in watched.said


def test_as_json_each_line_is_one_status(tmp_path: Path) -> None:
    with watching(tmp_path, "0.2", "--json") as watched:
        watched.until("\n")
        with fake_daemon(tmp_path):
            watched.until('"state": "ready"')
            watched.until("\n")
        assert watched.interrupted() == 0
    answers = [json.loads(line) for line in watched.said.splitlines()]
    assert answers[0] == {"state": "not-running", "because": "pylon is not running"}
    assert "ready" in {answer["state"] for answer in answers}


def test_by_default_a_second_passes_between_two(tmp_path: Path) -> None:
    with watching(tmp_path) as watched:
        watched.until("every 1 s (Ctrl-C ends)", times=2)
        assert watched.interrupted() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--watch", "soon"], "soon is not 0.1 to 3600 seconds"),
        (["--watch", "nan"], "nan is not 0.1 to 3600 seconds"),
        (["--watch", "0"], "0 is not 0.1 to 3600 seconds"),
        (["5"], "seconds go with --watch"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    assert run(["status", *arguments]) == 2
    assert said in capsys.readouterr().err
