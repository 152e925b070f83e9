"""The real daemon (`python -m pylon start`) as a process of its own on a home of its own, for end-to-end tests.

`kill()` is a crash, `stop()` a graceful end; the home and the key stay, so `start()` afterwards is the same
provider. Whatever goes wrong says so together with the last lines of the daemon's log.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
import tomlkit

from pylon.control.client import ControlClient, ControlError
from pylon.control.views import DaemonState, DaemonStatus
from pylon.nostr.keys import SecretKey
from pylon.paths import Paths, paths_under
from pylon.store.reports import Reports
from tests.support.wallet import WalletProcess

ROOT = Path(__file__).parents[2]
READY_LIMIT_S = 60.0
END_LIMIT_S = 30.0
POLL_S = 0.03
MODEL = "echo"

Table = Mapping[str, Any]


class ProviderFailed(AssertionError):
    """The daemon did not do what the test needs of it; the message ends with the last lines of its log."""


def market_settings(
    *relays: str, paid_to: WalletProcess | None = None, backend_url: str = "", slots: int = 4, **tables: Table
) -> dict[str, Table | list[Table]]:
    """Return the settings of a provider whose waits are short: free, or prepaid to a fake wallet.

    The work is done by the echo backend, or by the OpenAI-compatible server at `backend_url`. `tables` are laid
    over the rest, key by key.
    """
    backend: Table = {"name": "b", "kind": "echo", "slots": slots}
    if backend_url:
        backend = {"name": "b", "kind": "openai", "url": f"{backend_url}/v1", "slots": slots}
    made: dict[str, dict[str, Any]] = {
        "relays": {"urls": list(relays), "backoff_min_s": 0.05, "backoff_max_s": 0.3, "publish_timeout_s": 2},
        "payment": {"mode": "prepay" if paid_to else "free", "lookup_min_s": 0.1, "lookup_max_s": 0.5},
        "jobs": {"partial_interval_s": 0.05, "partial_min_chars": 1},
        "intake": {"requests_per_customer_per_minute": 1_000_000},
    }
    if paid_to:
        made["wallet"] = {"kind": "fake", "url": paid_to.url, "network": "regtest", "timeout_s": 5}
    for name, table in tables.items():
        made.setdefault(name, {}).update(table)
    model = {"name": MODEL, "backend": "b", "base_msats": 1000, "output_msats_per_1k": 10_000}
    return {**made, "backends": [backend], "models": [model]}


class Provider:
    """One home in `folder`, and the daemon that runs on it. Secrets reach it by its environment."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        key: SecretKey | None = None,
        wallet: WalletProcess | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.key = key or SecretKey.generate()
        self.pubkey = self.key.public_hex
        self.paths: Paths = paths_under(folder / "home")
        self.control = ControlClient(self.paths.control_socket, timeout_s=5)
        self.log_path = folder / "provider.log"
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYLON_")},
            "PYLON_HOME": str(self.paths.state_dir),
            "PYLON_NSEC": self.key.reveal_nsec(),
            "NO_COLOR": "1",
        }
        # A start compiles nothing twice, whatever the shell of the tests says.
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if wallet is not None:
            self._environ["PYLON_WALLET_TOKEN"] = wallet.owner_token
        self._environ |= environ or {}
        self._process: subprocess.Popen[bytes] | None = None
        self.paths.state_dir.mkdir(mode=0o700, parents=True)
        self.configure(settings)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, for the next start."""
        self.paths.config_file.write_text(tomlkit.dumps(settings))

    # --- the process ------------------------------------------------------------------------------------------

    def launch(self, *arguments: str) -> None:
        """Start the process and return at once."""
        assert self._process is None, "it runs already"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pylon", "start", *arguments],
                env=self._environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def start(self, *arguments: str) -> DaemonStatus:
        """Start the process and wait until it takes jobs from every relay."""
        self.launch(*arguments)
        return await self.until(is_ready, "ready for jobs")

    def kill(self) -> None:
        """End it as a crash does, with SIGKILL. Fails when it had ended by itself."""
        process = self._take()
        code = process.poll()
        process.kill()
        process.wait(END_LIMIT_S)
        if code is not None:
            raise self.failure(f"had ended by itself with code {code}")

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal and return its exit code."""
        self.send(how)
        return await self.ended()

    async def ended(self, limit_s: float = END_LIMIT_S) -> int:
        """Wait for its end and return its exit code."""
        process = self._running()
        with anyio.move_on_after(limit_s):
            while process.poll() is None:  # noqa: ASYNC110 - a process announces its end to nobody but its parent
                await anyio.sleep(POLL_S)
            self._process = None
            return process.returncode
        raise self.failure(f"has not ended within {limit_s:g} s")

    def send(self, how: signal.Signals) -> None:
        """Send it a signal."""
        self._running().send_signal(how)

    def dispose(self) -> None:
        """End whatever is left, and remove what lies outside the test's folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_LIMIT_S)
            self._process = None
        folder = self.paths.control_socket.parent
        if folder != self.paths.state_dir:  # where the test's folder has too long a name for a socket
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise self.failure("has no memory")

    # --- what it says -----------------------------------------------------------------------------------------

    async def status(self) -> DaemonStatus:
        """Return its status. Raises `ControlError`."""
        return await anyio.to_thread.run_sync(self.control.status)

    async def until(
        self, condition: Callable[[DaemonStatus], bool], what: str, *, limit_s: float = READY_LIMIT_S
    ) -> DaemonStatus:
        """Wait until its status fulfils a condition; `what` says which, for the failure."""
        last = "it never answered"
        with anyio.move_on_after(limit_s):
            while True:
                if (code := self._running().poll()) is not None:
                    raise self.failure(f"ended with code {code} before it was {what}")
                try:
                    status = await self.status()
                except ControlError as error:
                    last = str(error)
                else:
                    if condition(status):
                        return status
                    last = str(status)
                await anyio.sleep(POLL_S)
        raise self.failure(f"was not {what} within {limit_s:g} s; its last status: {last}")

    async def pylon(self, *arguments: str, limit_s: float = END_LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run another command of `pylon` on this home."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                timeout=limit_s,
                env=self._environ,
                cwd=ROOT,
                check=False,
            )

        return await anyio.to_thread.run_sync(run)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of another command of `pylon`, for `environ`."""
        return [sys.executable, "-m", "pylon", *arguments]

    @property
    def environ(self) -> dict[str, str]:
        """What a command of this home sees of its environment."""
        return dict(self._environ)

    def reports(self) -> Reports:
        """Return read-only questions to its database."""
        return Reports(self.paths.database)

    def log(self) -> str:
        """Return everything it has logged, over all its lives."""
        return self.log_path.read_text(errors="replace")

    def log_lines(self, level: str) -> list[str]:
        """Return what it logged at one level, as the JSON lines of a daemon without a terminal."""
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if orjson.loads(line).get("level") == level]

    async def logged(self, words: str, limit_s: float = END_LIMIT_S) -> None:
        """Wait until some words are in its log."""
        with anyio.move_on_after(limit_s):
            while words not in self.log():  # noqa: ASYNC110 - a file tells nobody that it grew
                await anyio.sleep(POLL_S)
            return
        raise self.failure(f"has not logged '{words}' within {limit_s:g} s")

    def failure(self, what: str) -> ProviderFailed:
        """Return the error that says what happened, with the end of the log."""
        tail = "\n".join(self.log().splitlines()[-30:]) if self.log_path.exists() else ""
        return ProviderFailed(f"the provider {what}\n--- the end of {self.log_path}\n{tail}")

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the provider was not started"
        return self._process

    def _take(self) -> subprocess.Popen[bytes]:
        process = self._running()
        self._process = None
        return process


def is_ready(status: DaemonStatus) -> bool:
    """Tell whether it takes jobs, and from all of its relays."""
    return status.state is DaemonState.READY and all(relay.status == "connected" for relay in status.relays)


@asynccontextmanager
async def provider(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    key: SecretKey | None = None,
    wallet: WalletProcess | None = None,
    environ: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    started: bool = True,
) -> AsyncIterator[Provider]:
    """Have a provider until the block ends, by default started and ready for jobs."""
    made = Provider(folder, settings, key=key, wallet=wallet, environ=environ)
    try:
        if started:
            await made.start(*arguments)
        yield made
    finally:
        made.dispose()
