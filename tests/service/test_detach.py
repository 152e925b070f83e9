"""A process in the background and the pipe that tells how it started, with stand-ins for the daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from pathlib import Path
import anyio
from pylon.service.detach import NotStarted, run_detached

class Refused(Exception):
    exit_code = 2

def ready(notifier):
    anyio.run(notifier.ready, "takes jobs")
    return 0

def refuses(notifier):
    raise Refused("nothing is\\nfor sale")

def dies(notifier):
    print("killed by a stranger", file=sys.stderr, flush=True)
    os._exit(9)

def ends(notifier):
    return 0

def dawdles(notifier):
    # Until who waits has given up: then the pipe has no reader.
    import select
    poll = select.poll()
    poll.register(notifier._manager.descriptor, 0)
    poll.poll()
    return 0

try:
    pid = run_detached(globals()[sys.argv[1]], str, Path(sys.argv[2]), wait_s=float(sys.argv[3]))
except NotStarted as error:
    print(error.exit_code, error)
else:
    print("ready", pid != os.getpid())
"""


def started(manner: str, log: Path, wait_s: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, manner, str(log), str(wait_s)],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("ready", "ready True"),
        ("refuses", "2 nothing is\\x0afor sale (log: {log})"),
        ("dies", "1 pylon ended before it was ready: killed by a stranger (log: {log})"),
        ("ends", "1 pylon ended before it was ready: it said nothing (log: {log})"),
    ],
)
def test_who_starts_it_hears_how_that_went(tmp_path: Path, manner: str, said: str) -> None:
    log = tmp_path / "log"
    assert started(manner, log) == said.format(log=log)


def test_one_that_takes_too_long_goes_on(tmp_path: Path) -> None:
    said = started("dawdles", tmp_path / "log", 0.2)
    assert said.startswith("1 pylon (process ")
    assert "is not ready after 0.2 s and goes on in the background" in said


def test_the_log_is_added_to_and_is_nobody_elses(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    started("refuses", log)
    assert log.read_text() == "before\npylon: nothing is\\x0afor sale\n"
    link = tmp_path / "link"
    link.symlink_to(log)
    with pytest.raises(subprocess.CalledProcessError):
        started("ready", link)
