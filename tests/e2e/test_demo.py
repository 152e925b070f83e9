"""`pylon demo` as a process: the story it tells, how it ends, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon.nostr.bolt11 import Network, read_invoice

pytestmark = pytest.mark.e2e

LIMIT_S = 120.0
MARK = "DEMO_TEST_MARK"


class Demo:
    """One running demo. Its processes are known by a mark in their environment, whoever their parent is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.seen = ""
        self._deadline = time.monotonic() + LIMIT_S
        # What an operator has set for the own pylon must not reach the demo: it would refuse to start.
        environ = {**os.environ, MARK: self.mark, "TMPDIR": str(folder), "PYLON_PAYMENT__MODE": "nonsense"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pylon", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )

    def until(self, landmark: str) -> re.Match[str]:
        """Read the story until it matches `landmark`; the whole of it is then in `seen`."""
        assert self.process.stdout is not None
        while (found := re.search(landmark, self.seen)) is None:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, self._deadline - time.monotonic()))
            assert ready, f"no {landmark!r} in time: {self.seen}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"ended without {landmark!r}: {self.seen} {self.errors()}"
            self.seen += piece.decode()
        return found

    def finish(self) -> int:
        """Read the rest and return the exit code."""
        out, self._errors = self.process.communicate(timeout=max(1, self._deadline - time.monotonic()))
        self.seen += out.decode()
        return self.process.returncode

    def errors(self) -> str:
        """Return what it said on stderr; after `finish`."""
        if not hasattr(self, "_errors"):
            self.finish()
        return self._errors.decode()

    def processes(self) -> dict[int, str]:
        """Return the living processes of this demo with their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def pid_of(self, words: str) -> int:
        """Return the one process whose command line ends like this."""
        [pid] = [pid for pid, line in self.processes().items() if line.strip().endswith(words)]
        return pid

    def gone(self, within_s: float = 10.0) -> bool:
        """Wait until no process of it is left."""
        until = time.monotonic() + within_s
        while self.processes():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def kill_all(self) -> None:
        """Leave nothing behind, whatever the test found."""
        for pid in [self.process.pid, *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(timeout=10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def begin(*arguments: str) -> Demo:
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield begin
    for demo in started:
        demo.kill_all()


def test_the_whole_market_is_played_and_nothing_stays_behind(start: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start("--max-tokens", "8", "Say", "hello.")
    assert demo.finish() == 0, demo.errors()
    story = demo.seen
    labels = re.findall(r"^  (\w+)  ", story, re.M)
    landmarks = [
        "relay",
        "wallet",
        "provider",
        "customer",
        "request",
        "invoice",
        "paid",
        "answer",
        "result",
        "speed",
    ]
    assert [label for label in dict.fromkeys(labels) if label in landmarks] == landmarks
    assert "“Say hello.”" in story
    assert re.search(r"npub1[a-z0-9]{58}", story)
    assert re.search(r"paid +(\d+) sats? in \d+ ms", story)
    [price] = re.findall(r"payment-required, (\d+) sats?: lnbcrt\d", story)
    assert f"received {price} sats = earned {price} sats + owed 0 sats" in story
    assert f"wallet holds {price} sats" in story
    [tokens] = re.findall(r" tokens in, (\d+) out in [\d.]+ s: \d+ tokens/s", story)
    assert 1 <= int(tokens) <= 8
    assert "\x1b" not in story, "colours and lines in place are for terminals"
    assert demo.errors() == ""
    assert demo.gone()
    assert list(tmp_path.iterdir()) == []


def test_it_serves_until_it_is_interrupted(start: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start("--serve", "--max-tokens", "4")
    home = demo.until(r"PYLON_HOME=(\S+) pylon status")[1]
    environ = {**os.environ, "PYLON_HOME": home}
    status = json.loads(pylon("status", "--json", environ=environ))
    assert status["state"] == "ready"
    assert status["npub"] in demo.seen
    [job] = json.loads(pylon("jobs", "list", "--json", environ=environ))
    assert (job["work"], job["money"]) == ("delivered", "settled")
    detail = json.loads(pylon("jobs", "show", job["id"], "--json", environ=environ))
    [invoice] = detail["invoices"]
    facts = read_invoice(invoice["bolt11"])
    assert (facts.network, facts.amount_msats) == (Network.REGTEST, job["price_msats"])
    assert invoice["bolt11"][:40] in demo.seen
    earned = json.loads(pylon("earnings", "--json", environ=environ))["total"]
    assert (earned["earned_msats"], earned["owed_msats"]) == (job["price_msats"], 0)
    demo.process.send_signal(signal.SIGINT)
    assert demo.finish() == 0, demo.errors()
    assert demo.gone()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["starting the daemon", "paid  "])
def test_killed_it_takes_all_its_processes_along(start: Callable[..., Demo], moment: str) -> None:
    demo = start("--max-tokens", "400", "Tell a long story.")
    demo.until(moment)
    lines = " ".join(demo.processes().values())
    assert "pylon.wallets.fake_server" in lines
    assert ("llama_child" in lines) == (moment != "starting the daemon"), "the model's server, a grandchild"
    demo.process.kill()
    assert demo.gone(), demo.processes()


def test_a_daemon_that_dies_ends_it_with_one_sentence(start: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start("--serve", "--max-tokens", "4")
    demo.until("stays open")
    os.kill(demo.pid_of("pylon start"), signal.SIGKILL)
    assert demo.finish() == 1
    assert demo.errors() == "pylon: the demo failed: the provider's daemon was ended by signal 9\n"
    assert "The last lines of its log:" in demo.seen
    assert "pylon is running" in demo.seen
    assert demo.gone()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_on_the_way_cleans_up(start: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start("--max-tokens", "400", "Tell a long story.")
    demo.until("starting the daemon")
    demo.process.terminate()
    assert demo.finish() == 130
    assert demo.errors() == ""
    assert demo.gone()
    assert list(tmp_path.iterdir()) == []


def pylon(*arguments: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pylon", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
