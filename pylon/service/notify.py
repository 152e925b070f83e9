"""What a service manager is told while we run: systemd's notify protocol, and the pipe of `pylon start --detach`.

systemd names a datagram socket in NOTIFY_SOCKET (`@` begins an abstract name); one message holds lines KEY=VALUE.
Whoever detached us reads the same lines from a pipe. A manager that cannot be reached holds nothing up.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
import structlog

from pylon.text import printable

log = structlog.get_logger("pylon.service")

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"

_PATIENCE_S: Final = 2.0
_AGAIN_S: Final = 0.05
_STATUS_CHARS: Final = 200


class Manager(Protocol):
    """Takes one message. Raises `BlockingIOError` when it has no room now, `OSError` when nobody is there."""

    def send(self, message: bytes, /) -> None:
        """Take a message whole."""
        ...


@dataclass(frozen=True, slots=True)
class SocketManager:
    """The socket at NOTIFY_SOCKET."""

    address: str

    def send(self, message: bytes, /) -> None:
        """Send one datagram."""
        name = self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message, f"\0{name[1:]}" if name.startswith("@") else name)


@dataclass(frozen=True, slots=True)
class PipeManager:
    """The write end of a pipe, whose reader waits to hear that we are ready."""

    descriptor: int

    def send(self, message: bytes, /) -> None:
        """Write one message; a reader that has heard enough and gone is an `OSError`."""
        os.write(self.descriptor, message + b"\n")


class Notifier:
    """Tells the manager how the daemon is; without one it tells nobody. `watchdog_s`: how long silence may last."""

    def __init__(self, manager: Manager | None = None, watchdog_s: float | None = None) -> None:
        self._manager = manager
        self.watchdog_s = watchdog_s

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """Return the notifier that the environment asks for, and take it out there: no child is to speak for us."""
        address = environ.pop("NOTIFY_SOCKET", "")
        micros, meant_for = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        watched = micros.isascii() and micros.isdigit() and int(micros) > 0 and meant_for in ("", str(pid))
        return cls(SocketManager(address), int(micros) / 1e6 if watched else None)

    async def ready(self, status: str) -> None:
        """Say that everything runs."""
        await self._say(READY, _status(status))

    async def status(self, status: str) -> None:
        """Say in a few words what goes on."""
        await self._say(_status(status))

    async def reloading(self) -> None:
        """Say that the settings are read again; `ready` ends it."""
        await self._say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def stopping(self, status: str) -> None:
        """Say that a stop has begun."""
        await self._say(STOPPING, _status(status))

    async def alive(self) -> None:
        """Feed the watchdog, once."""
        await self._say(WATCHDOG)

    async def more_time(self, seconds: float) -> None:
        """Ask for more time to start or to stop, from now on."""
        await self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    async def _say(self, *lines: str) -> None:
        if self._manager is None:
            return
        message = "\n".join(lines).encode()
        with anyio.move_on_after(_PATIENCE_S):
            while True:
                try:
                    self._manager.send(message)
                except BlockingIOError:
                    await anyio.sleep(_AGAIN_S)  # its queue is full: it has a moment to read
                    continue
                except BrokenPipeError:
                    self._manager = None  # who waited has heard what it wanted
                except OSError as error:
                    log.warning("the service manager cannot be told anything", error=printable(error))
                return
        log.warning("the service manager does not read what it is told")


def _status(text: str) -> str:
    return f"STATUS={printable(text, limit=_STATUS_CHARS)}"
