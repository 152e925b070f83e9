"""The real daemon and a service manager's notify socket: ready when it is, alive while it is, and what it does."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from pylon.store.records import RESTORED_MARK
from tests.support.notify import NotifySocket, notify_socket
from tests.support.provider import READY_LIMIT_S, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

ALLOWED_S = 3.0


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[Provider, NotifySocket]]:
    """Have a daemon that is ready, as its service manager knows."""
    with relay_process() as relay, notify_socket() as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(round(ALLOWED_S * 1e6))}
        async with provider(folder, market_settings(relay.url), environ=environ, started=False) as daemon:
            daemon.launch()
            await manager.until("READY")
            yield daemon, manager


async def test_it_is_ready_when_it_says_so_and_leaves_as_it_says(tmp_path: Path) -> None:
    async with watched(tmp_path) as (daemon, manager):
        assert [message.keys() for message in manager.heard] == [{"READY", "STATUS"}]
        status = await daemon.status()  # the control socket listens: no second try
        assert status.pid == daemon.pid
        assert status.store.healthy
        await manager.until("WATCHDOG")
        daemon.send(signal.SIGTERM)
        await manager.until("STOPPING")
        assert await daemon.ended() == 0


async def test_what_cannot_start_is_never_ready(tmp_path: Path) -> None:
    with notify_socket() as manager:
        environ = {"NOTIFY_SOCKET": manager.address}
        settings = market_settings("ws://127.0.0.1:9")
        async with provider(tmp_path, settings, environ=environ, started=False) as daemon:
            (daemon.paths.control_socket / "in the way").mkdir(parents=True)
            daemon.launch()
            assert await daemon.ended(READY_LIMIT_S) == 1
            assert manager.next(0.1) is None


async def test_a_reload_is_told_and_so_is_its_end(tmp_path: Path) -> None:
    async with watched(tmp_path) as (daemon, manager):
        for spoil in (False, True):
            if spoil:
                daemon.paths.config_file.write_text("nonsense")
            daemon.send(signal.SIGHUP)
            told = await manager.until("RELOADING")
            assert int(told["MONOTONIC_USEC"]) > 0
            await manager.until("READY")
        assert daemon.running


async def test_a_writer_that_hangs_stops_the_watchdog(tmp_path: Path) -> None:
    """Another process holds the database's write lock: the writer's thread waits, and the loop turns on."""
    async with watched(tmp_path) as (daemon, manager):
        await manager.until("WATCHDOG")
        with closing(sqlite3.connect(daemon.paths.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await manager.silence("WATCHDOG", ALLOWED_S)
            assert (await daemon.status()).pid == daemon.pid, "the loop itself hangs: this shows nothing"
            other.execute("ROLLBACK")
        await manager.until("WATCHDOG")


async def test_restored_books_take_their_time_and_a_reload_waits_for_them(tmp_path: Path) -> None:
    """While they are compared it is not ready, and no start that is too long: more time is asked for."""
    with relay_process() as relay, WalletProcess(tmp_path) as wallet, notify_socket() as manager:
        settings = market_settings(relay.url, paid_to=wallet)
        environ = {"NOTIFY_SOCKET": manager.address}
        async with provider(tmp_path, settings, wallet=wallet, environ=environ, started=False) as daemon:
            daemon.launch()
            await manager.until("READY")
            assert await daemon.stop() == 0
            with closing(sqlite3.connect(daemon.paths.database)) as db, db:
                db.execute("INSERT INTO marks VALUES (?, ?)", (RESTORED_MARK, int(time.time())))
            wallet.kill()
            while manager.next(0.1) is not None:
                continue  # how the first one stopped
            manager.heard.clear()
            daemon.launch()
            told = await manager.until("EXTEND_TIMEOUT_USEC")
            assert int(told["EXTEND_TIMEOUT_USEC"]) >= 30_000_000
            await daemon.until(lambda status: "compared first" in status.intake.paused, "comparing")
            early = await daemon.pylon("reload")
            assert (early.returncode, early.stderr) == (1, "pylon: the provider is starting: try again\n")
            daemon.configure({**settings, "name": "renamed"})
            daemon.send(signal.SIGHUP)
            await daemon.logged("the settings are not read again now")
            while manager.next(0.1) is not None:
                continue  # all that was said so far
            assert not any("READY" in message for message in manager.heard)
            await wallet.restart()
            await manager.until("READY")
            await manager.until("RELOADING")
            await daemon.until(
                lambda status: status.settings is not None and bool(status.settings.applied), "reloaded"
            )
