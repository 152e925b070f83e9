"""The fake wallet as a real process, for tests that need a wallet that can be killed, restarted and told to lie."""

from __future__ import annotations

import os
import secrets
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import httpx

from pylon.jobs.ports import Invoice, Wallet
from pylon.wallets.fake import FakePayer, FakeWallet, FakeWalletConfig

READY_LIMIT_S = 30.0


class WalletProcess:
    """Starts the wallet on entering, kills it on leaving. Plain `with` and `async with` both work.

    The port and the tokens stay the same over `restart()`. With `uds` it listens on a Unix socket.
    """

    def __init__(
        self, folder: Path, *, faults: Mapping[str, object] | None = None, seed: int = 0, uds: bool = False
    ) -> None:
        self.db = folder / "fake-wallet.sqlite"
        self.uds = folder / "wallet.sock" if uds else None
        self.url = ""
        self.owner_token = secrets.token_urlsafe(16)
        self.payer_token = secrets.token_urlsafe(16)
        self._faults = [f"{name}={value}" for name, value in (faults or {}).items()]
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None

    # --- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process and wait, blocking, until it is ready."""
        self._launch()
        try:
            self._ready(_wait_until_ready(self._process))
        except BaseException:
            self.kill()
            raise

    async def restart(self) -> None:
        """Kill the process and start it again on the same port and database."""
        self.kill()
        self._launch()
        try:
            self._ready(await anyio.to_thread.run_sync(_wait_until_ready, self._process, abandon_on_cancel=True))
        except BaseException:
            self.kill()
            raise

    def _launch(self) -> None:
        where = ["--uds", str(self.uds)] if self.uds else ["--port", self.url.rpartition(":")[2] or "0"]
        # The kernel kills the child when the thread that forks ends, so this must not run in a worker thread.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pylon.wallets.fake_server", "--db", str(self.db), *where),
                *("--seed", str(self._seed), "--die-with-parent", str(os.getpid()), "--faults", *self._faults),
            ],
            env={
                **os.environ,
                "PYLON_FAKE_WALLET_TOKEN": self.owner_token,
                "PYLON_FAKE_PAYER_TOKEN": self.payer_token,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ready(self, address: str) -> None:
        if not self.uds:
            self.url = address

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does; does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End the process with SIGTERM and return its exit code."""
        return self._end(signal.SIGTERM)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            process.send_signal(how)
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout=10)
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.kill()

    async def __aenter__(self) -> Self:
        await self.restart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.kill()

    # --- its users ----------------------------------------------------------------------------------------------

    def config(self, *, timeout_s: float = 5.0, token: str = "") -> FakeWalletConfig:
        """Return what the owner's client needs."""
        return FakeWalletConfig(token=token or self.owner_token, url=self.url, uds=self.uds, timeout_s=timeout_s)

    def client(self, *, timeout_s: float = 5.0, token: str = "") -> FakeWallet:
        """Return the owner's client, to be entered with `running()`."""
        return FakeWallet(self.config(timeout_s=timeout_s, token=token), time.time)

    def payer(self, *, timeout_s: float = 5.0) -> FakePayer:
        """Return the customer's purse."""
        return FakePayer(self.url, self.payer_token, uds=self.uds, timeout_s=timeout_s)

    async def set_faults(self, **faults: object) -> None:
        """Replace the faults; those not named are off. Waits out a restart that a fault began."""
        with anyio.fail_after(READY_LIMIT_S):
            while True:
                with suppress(httpx.TransportError):
                    await self._control("PUT", "/v1/faults", faults)
                    return
                await anyio.sleep(0.02)

    async def report(self) -> dict[str, Any]:
        """Return `{faults, struck, streams}`: what is set, how often it struck, how many streams are open."""
        return await self._control("GET", "/v1/faults")

    async def books(self) -> dict[str, int]:
        """Return `{balance_msats, received_msats, paid_msats, fees_msats}`, the truth beyond all lies."""
        return await self._control("GET", "/v1/balance")

    async def streams(self, count: int, *, within_s: float = 10.0) -> None:
        """Wait until `count` settlement streams are open. Raises `TimeoutError`."""
        with anyio.fail_after(within_s):
            while True:
                if (await self.report())["streams"] == count:
                    return
                await anyio.sleep(0.02)

    @asynccontextmanager
    async def misbehaving(self, **faults: object) -> AsyncIterator[None]:
        """Set faults for the length of the block."""
        await self.set_faults(**faults)
        try:
            yield
        finally:
            await self.set_faults()

    async def drop_everything(self) -> None:
        """Let the wallet do what a restart looks like from outside, without ending the process."""
        try:
            await self._control("POST", "/v1/restart")
        except httpx.TransportError:
            return  # this call's connection is dropped with the others
        raise AssertionError("the wallet answered although it should have dropped every connection")

    async def _control(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        async with self._open() as client:
            response = await client.request(method, path, json=body)
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
            return answer

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[httpx.AsyncClient]:
        # Loading the system's certificates, for which there is no use here, takes 60 ms.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx.AsyncHTTPTransport(verify=no_tls, uds=str(self.uds) if self.uds else None)
        headers = {"Authorization": f"Bearer {self.owner_token}"}
        async with httpx.AsyncClient(
            base_url=self.url or "http://fake-wallet", transport=transport, headers=headers, trust_env=False
        ) as client:
            yield client


def _wait_until_ready(process: subprocess.Popen[str] | None) -> str:
    """Return the address after READY. Raises `RuntimeError` when the process ends or takes too long."""
    assert process is not None
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], READY_LIMIT_S)
    line = process.stdout.readline() if ready else ""
    word, _, address = line.strip().partition(" ")
    if word != "READY":
        raise RuntimeError(f"the fake wallet did not become ready: {line!r}, exit code {process.poll()}")
    return address


async def listed_by(wallet: Wallet, since: int) -> tuple[Invoice, ...]:
    """Return all that a wallet lists, each invoice once."""
    found = {each.payment_hash: each async for page in wallet.list_invoices(since) for each in page}
    return tuple(found.values())
