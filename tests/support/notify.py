"""A service manager's end of the notify socket, as systemd has it; what is said is kept."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio.to_thread

LIMIT_S = 60.0


class NotifySocket:
    """`address` goes into NOTIFY_SOCKET. Each message is its lines, by their keys."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self._listener = listener
        self.address = address
        self.heard: list[dict[str, str]] = []

    def next(self, within_s: float = LIMIT_S) -> dict[str, str] | None:
        """Return the next message, None when none comes in time."""
        self._listener.settimeout(within_s)
        try:
            raw = self._listener.recv(65_536)
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in raw.decode().splitlines())
        self.heard.append(message)
        return message

    async def until(self, key: str, within_s: float = LIMIT_S) -> dict[str, str]:
        """Wait for a message that has a key; those before it are kept in `heard`."""
        with anyio.fail_after(within_s):
            while True:
                message = await anyio.to_thread.run_sync(partial(self.next, 0.5), abandon_on_cancel=True)
                if message is not None and key in message:
                    return message

    async def silence(self, key: str, seconds: float, within_s: float = LIMIT_S) -> None:
        """Wait until no message with a key has come for so long."""

        def silent() -> bool:
            while (message := self.next(seconds)) is not None:
                if key in message:
                    return False
            return True

        with anyio.fail_after(within_s):
            while not await anyio.to_thread.run_sync(silent, abandon_on_cancel=True):
                pass


@contextmanager
def notify_socket(address: str | None = None) -> Iterator[NotifySocket]:
    """Listen, by default at an abstract name of our own."""
    name = address or f"@pylon-test-{os.getpid()}-{secrets.token_hex(6)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        yield NotifySocket(listener, name)
