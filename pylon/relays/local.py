"""The embedded relay: `nostr_sdk.LocalRelay` (Rust) with its defaults made fit for a market on one machine.

For the demo, tests and benchmarks; it keeps events in memory only. What is handled here: it allows 60 events a
minute per connection by default, and it leaves Nagle's algorithm on, which costs 44 ms a hop on a quiet
connection. What is not, because it has no setting that works: it closes a connection at its 6,001st message,
refuses events over 64 KiB, and answers a subscription with the newest 500 stored events at most.

Run alone: `python -m pylon.relays.local --port N [--nip42 read|write|both] [--die-with-parent]` prints
`READY ws://127.0.0.1:PORT` once it listens, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import anyio

Nip42 = Literal["read", "write", "both"]

_HOST: Final = "127.0.0.1"
_NO_LIMIT: Final = 10_000_000
_PARENT_CHECK_S: Final = 0.25


@asynccontextmanager
async def local_relay(port: int = 0, nip42: Nip42 | None = None) -> AsyncIterator[str]:
    """Run a relay on loopback in this process and yield its URL. Port 0 takes a free one.

    Raises `OSError` when the port is taken.
    """
    from nostr_sdk import (  # loads 40 MB of Rust: only here
        LocalRelayBuilder,
        LocalRelayBuilderNip42,
        LocalRelayBuilderNip42Mode,
        NostrSdkError,
        RateLimit,
    )

    # Given port 0 the relay takes a free one, but believes in 0 and refuses every AUTH that names its real URL.
    port = port or _free_port()
    builder = (
        LocalRelayBuilder()
        .addr(_HOST)
        .port(port)
        .rate_limit(RateLimit(max_reqs=_NO_LIMIT, notes_per_minute=_NO_LIMIT))
        .max_connections(1000)
    )
    if nip42 is not None:
        builder = builder.nip42(LocalRelayBuilderNip42(mode=LocalRelayBuilderNip42Mode[nip42.upper()]))
    relay = builder.build()
    try:
        await relay.run()
    except NostrSdkError as error:
        raise OSError(f"the local relay cannot listen on {_HOST}:{port}: {error}") from error
    try:
        _set_nodelay(port)
        yield f"ws://{_HOST}:{port}"
    finally:
        relay.shutdown()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _set_nodelay(port: int) -> None:
    """Set TCP_NODELAY on the listening socket of `port`, which is somewhere in this process.

    The relay does not hand it out; accepted sockets inherit the option (Linux, BSD, macOS).
    """
    for sock in _open_sockets():
        with sock, suppress(OSError):
            if sock.family == socket.AF_INET and sock.getsockname() == (_HOST, port):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _open_sockets() -> Iterator[socket.socket]:
    for entry in list(Path("/dev/fd").iterdir()):
        try:
            duplicate = os.dup(int(entry.name))
        except OSError:
            continue
        try:
            yield socket.socket(fileno=duplicate)
        except OSError:  # not a socket
            os.close(duplicate)


async def _serve(port: int, nip42: Nip42 | None, die_with_parent: bool) -> None:
    parent = os.getppid()
    async with local_relay(port, nip42) as url, anyio.create_task_group() as tasks:
        if die_with_parent:
            tasks.start_soon(_until_orphaned, parent, tasks.cancel_scope)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            sys.stdout.write(f"READY {url}\n")
            sys.stdout.flush()
            async for _ in signals:
                break
        tasks.cancel_scope.cancel()


async def _until_orphaned(parent: int, scope: anyio.CancelScope) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells a process that its parent died
        await anyio.sleep(_PARENT_CHECK_S)
    scope.cancel()


def main() -> int:
    """Run the relay as a process of its own. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pylon.relays.local", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    parser.add_argument("--nip42", choices=["read", "write", "both"], help="demand AUTH")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the starting process is gone")
    arguments = parser.parse_args()
    try:
        anyio.run(_serve, arguments.port, arguments.nip42, arguments.die_with_parent)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
