"""PyPI's `nostr-relay` as a process of its own: a relay that we did not write.

What it does otherwise than the local relay: it challenges on connect, a successful AUTH gets no OK, a REQ before it
gets a NOTICE alone, a refused event gets an OK with an empty id, and each refusal makes it slower (2, 4, 8 s).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.foreign_venvs import NOSTR_RELAY, foreign_python

READY_LIMIT_S = 60.0
_RUN = "from nostr_relay.cli import main; main()"
_CONFIG = """\
DEBUG: false
relay_name: foreign
storage:
  sqlalchemy.url: sqlite+aiosqlite:///{folder}/relay.sqlite3
  validators:
    - nostr_relay.validators.is_not_too_large
    - nostr_relay.validators.is_signed
    - nostr_relay.validators.is_recent
gunicorn: {{bind: "127.0.0.1:{port}", workers: 1, loglevel: warning}}
authentication: {{enabled: {auth}, relay_urls: ["ws://127.0.0.1:{port}"], actions: {{save: w, query: r}}}}
"""


class ForeignRelay:
    """The relay on a port and a database that it keeps across `kill` and `start`."""

    def __init__(self, folder: Path, *, roles: Mapping[str, str] | None = None) -> None:
        """With `roles` (public key -> roles: r, w) it demands AUTH, and others may do nothing."""
        self.folder = folder / "foreign-relay"
        self.folder.mkdir()
        self._python = foreign_python(NOSTR_RELAY)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._port = port
        self.url = f"ws://127.0.0.1:{port}"
        auth = str(roles is not None).lower()
        self._config = self.folder / "relay.yaml"
        self._config.write_text(_CONFIG.format(folder=self.folder, port=port, auth=auth))
        self._roles = roles or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            self._command("serve"), env=self._environ(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        until = time.monotonic() + READY_LIMIT_S
        while not self._listens():
            assert self._process.poll() is None, f"nostr-relay ended: {self.log()[-2000:]}"
            assert time.monotonic() < until, f"nostr-relay does not listen: {self.log()[-2000:]}"
            time.sleep(0.05)
        for pubkey, roles in self._roles.items():
            command = self._command("role", "set", "-p", pubkey, "-r", roles)
            subprocess.run(command, env=self._environ(), cwd=self.folder, check=True, capture_output=True)
        self._roles = {}

    def kill(self) -> None:
        """Kill it, and its worker, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)
            self._process = None

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")

    def _command(self, *arguments: str) -> list[str]:
        return [str(self._python), "-c", _RUN, "-c", str(self._config), *arguments]

    def _environ(self) -> dict[str, str]:
        names = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**names, "HOME": str(self.folder)}  # it writes ~/.gunicorn

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def foreign_relay(folder: Path, *, roles: Mapping[str, str] | None = None) -> Iterator[ForeignRelay]:
    """Run a real `nostr-relay` in a folder of its own."""
    relay = ForeignRelay(folder, roles=roles)
    try:
        relay.start()
        yield relay
    finally:
        relay.kill()
