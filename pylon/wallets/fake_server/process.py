"""The process around the fake wallet: arguments, tokens, socket, signals, and its end with its parent."""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import secrets
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import anyio
import orjson
import uvicorn

from pylon.wallets.fake_server.app import FakeWalletApp, Tokens
from pylon.wallets.fake_server.faults import Dice, Faults, parse_fault_words
from pylon.wallets.fake_server.ledger import Ledger

OWNER_TOKEN_VARIABLE: Final = "PYLON_FAKE_WALLET_TOKEN"  # noqa: S105 - the variable's name
PAYER_TOKEN_VARIABLE: Final = "PYLON_FAKE_PAYER_TOKEN"  # noqa: S105 - the variable's name
PARENT_CHECK_S: Final = 0.5
KEEP_ALIVE_S: Final = 75
_PR_SET_PDEATHSIG: Final = 1


class _Server(uvicorn.Server):
    """uvicorn, except that signals are handled here and readiness is told on standard output."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"READY {self._address}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the wallet until SIGTERM or SIGINT. Returns the exit code, 2 for wrong arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        faults = parse_fault_words(options.faults)
    except ValueError as error:
        parser.error(f"--faults: {error}")
    os.umask(0o077)  # database, tokens and socket are the owner's alone
    parent = None if options.die_with_parent is None else options.die_with_parent or os.getppid()
    if parent is not None:
        if sys.platform == "linux":
            # At once, and even while this process is stuck; `_stop_without_parent` does it elsewhere.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return 0
    try:
        ledger = Ledger(options.db, time.time)
    except sqlite3.Error as error:
        return _fail(f"cannot use {options.db}: {error}")
    with closing(ledger):
        try:
            listener, address = _listen(options.uds, options.port)
        except OSError as error:
            return _fail(f"cannot listen: {error}")
        anyio.run(_serve, options, ledger, faults, parent, listener, address)
    return 0


def _fail(sentence: str) -> int:
    sys.stderr.write(f"fake wallet: {sentence}\n")
    return 2


async def _serve(
    options: argparse.Namespace,
    ledger: Ledger,
    faults: Faults,
    parent: int | None,
    listener: socket.socket,
    address: str,
) -> None:
    # Another sequence after each restart, yet the same one when the whole run is repeated.
    dice = Dice(faults, random.Random(f"{options.seed}:{ledger.boots}"))  # noqa: S311 - faults, not secrets
    app = FakeWalletApp(ledger, dice, _tokens(options.db), time.time)
    await app.fail_invoices()
    config = uvicorn.Config(
        app.asgi(),
        loop="asyncio",
        http=app.connections.protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, address)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_signal, server, app)
        if parent is not None:
            tasks.start_soon(_stop_without_parent, server, app, parent)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def _stop_on_signal(server: _Server, app: FakeWalletApp) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            _stop(server, app)


async def _stop_without_parent(server: _Server, app: FakeWalletApp, parent: int) -> None:
    while True:
        await anyio.sleep(PARENT_CHECK_S)
        if os.getppid() != parent:
            return _stop(server, app)


def _stop(server: _Server, app: FakeWalletApp) -> None:
    app.notices.close_all()
    server.should_exit = True


def _listen(uds: Path | None, port: int) -> tuple[socket.socket, str]:
    if uds is None:
        # asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 44 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"
    # The database is locked by now, so a socket that is still there was left by a process that was killed.
    if uds.is_socket():
        uds.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(uds))
    listener.listen()
    return listener, str(uds)


def _tokens(db: Path) -> Tokens:
    """Return the tokens of the environment, else those kept beside the database, made where missing."""
    owner, payer = os.environ.get(OWNER_TOKEN_VARIABLE), os.environ.get(PAYER_TOKEN_VARIABLE)
    if owner and payer:
        return Tokens(owner, payer)
    path = tokens_path(db)
    if not path.exists():
        made = {"owner": secrets.token_urlsafe(32), "payer": secrets.token_urlsafe(32)}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(made))
    kept = orjson.loads(path.read_bytes())
    return Tokens(owner or kept["owner"], payer or kept["payer"])


def tokens_path(db: Path) -> Path:
    """Return where the tokens of a database lie when the environment does not give them (JSON: owner, payer)."""
    return db.with_name(db.name + ".tokens.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pylon.wallets.fake_server",
        description="A Lightning wallet in which only the sats are not real (regtest).",
        epilog=f"Tokens come from {OWNER_TOKEN_VARIABLE} and {PAYER_TOKEN_VARIABLE}, or lie beside the database.",
    )
    parser.add_argument("--db", type=Path, required=True, help="database file, made when missing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    where.add_argument("--uds", type=Path, help="Unix socket instead of a port")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    parser.add_argument("--faults", nargs="*", default=[], help="fault=probability words, or one JSON object")
    parser.add_argument(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=0,
        metavar="PID",
        help="end when the process that started this one ends; its PID closes the gap while this one starts",
    )
    return parser
