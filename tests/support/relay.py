"""A real relay (`nostr_sdk.LocalRelay`) as a process of its own, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pylon.relays.local import Nip42


class RelayProcess:
    """A relay on a port that it keeps across `kill` and `start`; its memory does not survive them."""

    def __init__(self, nip42: Nip42 | None = None, port: int = 0) -> None:
        self._nip42 = nip42
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> str:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "pylon.relays.local", "--port", str(self._port), "--die-with-parent"]
        if self._nip42 is not None:
            command += ["--nip42", self._nip42]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        word, _, self.url = self._process.stdout.readline().strip().partition(" ")
        assert word == "READY", "the relay did not start"
        self._port = int(self.url.rpartition(":")[2])
        return self.url

    def pause(self) -> None:
        """Stop it where it stands: its connections stay, and nothing is answered, until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def relay_process(nip42: Nip42 | None = None) -> Iterator[RelayProcess]:
    """Run a real relay; use its `.url`."""
    relay = RelayProcess(nip42)
    relay.start()
    try:
        yield relay
    finally:
        relay.kill()
