"""`nostr-rs-relay` as a process of its own, with NIP-42 and the limits of Nexus, which is built on it.

What it does otherwise than the local relay: it challenges on connect, demands no AUTH and confirms none; it never
answers `rate-limited:` but lets events, and on each connection subscriptions, wait; it sends no `CLOSED`; a
subscription that is asked for again, word for word, is not answered; an event that is too large gets a NOTICE only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson
from websockets.asyncio.client import connect

from pylon.nostr.event import Event, parse_event
from tests.support.rust_programs import NOSTR_RS_RELAY, rust_program

READY_LIMIT_S = 60.0
ANSWER_LIMIT_S = 30.0
NAME = "nexus of the tests"
MAX_BYTES = 131_072
MESSAGES_PER_S = 50
SUBSCRIPTIONS_PER_MINUTE = 60
REJECT_FUTURE_S = 1800

_CONFIG = """\
[info]
relay_url = "{url}"
name = "{name}"
[database]
data_directory = "{folder}"
[network]
address = "127.0.0.1"
port = {port}
[options]
reject_future_seconds = {reject_future_s}
[limits]
messages_per_sec = {messages_per_s}
subscriptions_per_min = {subscriptions_per_minute}
max_event_bytes = {max_bytes}
max_ws_message_bytes = {max_bytes}
max_ws_frame_bytes = {max_bytes}
[authorization]
nip42_auth = true
nip42_dms = true
"""


class NostrRsRelay:
    """The relay on a port and a database that it keeps across `kill` and `start`."""

    def __init__(
        self,
        folder: Path,
        *,
        messages_per_s: int = MESSAGES_PER_S,
        subscriptions_per_minute: int = SUBSCRIPTIONS_PER_MINUTE,
    ) -> None:
        self.folder = folder / "nostr-rs-relay"
        self.folder.mkdir()
        self._binary = rust_program(NOSTR_RS_RELAY)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self._port}"
        self._config = self.folder / "config.toml"
        self._config.write_text(
            _CONFIG.format(
                url=self.url,
                name=NAME,
                folder=self.folder,
                port=self._port,
                reject_future_s=REJECT_FUTURE_S,
                messages_per_s=messages_per_s,
                subscriptions_per_minute=subscriptions_per_minute,
                max_bytes=MAX_BYTES,
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        assert self._process is None, "it runs already"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--config", self._config],
                env={**os.environ, "RUST_LOG": "info", "NO_COLOR": "1"},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + READY_LIMIT_S
        while not self._listens():
            assert self._process.poll() is None, f"nostr-rs-relay ended: {self.log()[-2000:]}"
            assert time.monotonic() < until, f"nostr-rs-relay does not listen: {self.log()[-2000:]}"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=10)

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")

    def has_authenticated(self, pubkey: str) -> bool:
        """Tell whether it has taken an AUTH of a key, of which it logs the beginning."""
        taken = [line for line in self.log().splitlines() if "client is authenticated" in line]
        return any(f'pubkey: "{pubkey[:8]}"' in line for line in taken)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def nostr_rs_relay(
    folder: Path,
    *,
    messages_per_s: int = MESSAGES_PER_S,
    subscriptions_per_minute: int = SUBSCRIPTIONS_PER_MINUTE,
) -> Iterator[NostrRsRelay]:
    """Run a real `nostr-rs-relay` in a folder of its own."""
    relay = NostrRsRelay(folder, messages_per_s=messages_per_s, subscriptions_per_minute=subscriptions_per_minute)
    try:
        relay.start()
        yield relay
    finally:
        relay.kill()


async def asked(relay: NostrRsRelay, **filters: Any) -> list[Event]:
    """Return what the relay has stored, as a client sees it that answers no AUTH."""
    found: list[Event] = []
    async with connect(relay.url, compression=None, max_size=2**24) as socket:
        await socket.send(orjson.dumps(["REQ", "asked", filters]).decode())
        with anyio.fail_after(ANSWER_LIMIT_S):
            while (message := orjson.loads(await socket.recv()))[0] != "EOSE":
                if message[0] == "EVENT":
                    found.append(parse_event(message[2]))
    return found
