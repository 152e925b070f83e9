"""A real LNbits as a process of its own, and wallets in it that pay each other for real.

It runs on its FakeWallet: real invoices of the main network (`lnbc…`), settled inside this LNbits alone. It serves
lightning addresses too (`/.well-known/lnurlp/NAME`). What it does otherwise than one expects: an expired invoice
can still be paid, unpaid invoices become `failed` at its restart, and every payment is pushed twice.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import anyio.to_thread
import httpx
import pytest

from tests.support.foreign_venvs import LNBITS, foreign_python, maker_of, required

READY_LIMIT_S = 120.0
NETWORK = "bitcoin"
CREDIT_SATS = 1_000_000

# The kernel ends it with the process that started it; elsewhere it looks twice a second.
_RUN = """\
import os, signal, sys, threading, time
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
def watch():
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from uvicorn import main
main()
"""
_ENVIRON = MappingProxyType(
    {
        "LNBITS_BACKEND_WALLET_CLASS": "FakeWallet",
        "FAKE_WALLET_SECRET": "of the tests",
        "LNBITS_ADMIN_UI": "true",
        "AUTH_HTTPS_ONLY": "false",
        "AUTH_ALLOWED_METHODS": "username-password, user-id-only",
        "LNBITS_RATE_LIMIT_NO": "1000000",  # 200 by default, which a test has soon used up
        "LNBITS_RATE_LIMIT_UNIT": "minute",
        "LNBITS_LN_ADDRESS_MODE": "core_first",
        "LNBITS_ALLOW_CUSTOM_WALLET_LIGHTNING_ADDRESSES": "true",
        "LNBITS_LNURL_ALLOW_PRIVATE_IPS": "true",
        "LNBITS_CALLBACK_ALLOW_PRIVATE_IPS": "true",
        "LNBITS_CALLBACK_URL_RULES": '["https?://.*"]',
        "LNBITS_EXTENSIONS_MANIFESTS": "",
        "LNBITS_EXTENSIONS_DEFAULT_INSTALL": "",
        # Without a network every call would wait for the price of a bitcoin.
        "LNBITS_PRICE_AGGREGATOR_ENABLED": "false",
        "LNBITS_EXCHANGE_RATE_PROVIDERS": "[]",
        "ENABLE_LOG_TO_FILE": "false",
        "PYTHONUNBUFFERED": "1",
    }
)


@dataclass(frozen=True, slots=True)
class Account:
    """One wallet in LNbits: its keys, and its lightning address on this LNbits."""

    wallet_id: str
    admin_key: str = field(repr=False)
    invoice_key: str = field(repr=False)
    address: str


class Lnbits:
    """LNbits on a port and a folder that it keeps over `kill`, `stop` and `restart`.

    `provider` and `customer` are two funded wallets; `account()` makes more. `environ` is laid over its settings.
    """

    provider: Account
    customer: Account

    def __init__(self, folder: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder / "lnbits"
        for each in ("data/logs", "data/wasm_extensions", "extensions/extensions"):
            (self.folder / each).mkdir(parents=True)
        self._python = foreign_python(LNBITS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environ = environ or {}
        self._login = {"username": "superuser", "password": secrets.token_urlsafe(16)}
        self._token = ""
        self._process: subprocess.Popen[bytes] | None = None
        # It reads `.env`, and serves `lnbits/static`, of the folder where it runs.
        package = next(self._python.parents[1].glob("lib/python3*/site-packages/lnbits"))
        (self.folder / "lnbits").symlink_to(package)

    # --- the process ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait, blocking, until it answers; the first time its wallets are made, too."""
        self.launch()
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise

    async def restart(self) -> None:
        """Kill it and start it again on the same port and data."""
        self.kill()
        self.launch()
        try:
            await anyio.to_thread.run_sync(self.wait_until_ready, abandon_on_cancel=True)
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start the process and return at once."""
        assert self._process is None, "it runs already"
        # The kernel kills the child when the thread that forks ends, so this must not run in a worker thread.
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._python), "-c", _RUN, str(os.getpid()), "lnbits.__main__:app"),
                    *("--host", "127.0.0.1", "--port", str(self.port), "--no-access-log"),
                ],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        """Wait, blocking, until it answers; the first time its wallets are made, too."""
        until = time.monotonic() + READY_LIMIT_S
        while not self._answers():
            process = self._process
            assert process is not None, "LNbits was killed while it started"
            assert process.poll() is None, f"LNbits ended with {process.poll()}: {self.log()[-2000:]}"
            assert time.monotonic() < until, f"LNbits does not answer: {self.log()[-2000:]}"
            time.sleep(0.05)
        if not self._token:
            first = {**self._login, "password_repeat": self._login["password"]}
            self._token = self._call("PUT", "/api/v1/auth/first_install", first)["access_token"]
            self.provider = self.account("provider", sats=CREDIT_SATS)
            self.customer = self.account("customer", sats=CREDIT_SATS)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does; does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        return self._end(signal.SIGTERM)

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            process.send_signal(how)
            return process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout=20)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "LNBITS_", "AUTH_")) and name not in ("SUPER_USER", "HOST", "PORT")
        }
        folders = {
            "LNBITS_DATA_FOLDER": str(self.folder / "data"),
            "LNBITS_EXTENSIONS_PATH": str(self.folder / "extensions"),
            "HOME": str(self.folder),
        }
        return {**kept, **_ENVIRON, **folders, **self._environ}

    def _answers(self) -> bool:
        # It listens before it has started; until the super user is set it redirects everything but this page.
        with suppress(httpx.TransportError), _client(self.url) as client:
            return client.get("/first_install").status_code < 500
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.kill()

    # --- its wallets; all of this blocks for a moment ---------------------------------------------------------

    def account(self, name: str = "wallet", *, sats: int = 0) -> Account:
        """Make a wallet of a user of its own, with so many sats in it."""
        made = self._call("POST", "/api/v1/account", {"name": name})
        address = f"{name}-{secrets.token_hex(4)}".lower()
        self._call("PATCH", "/api/v1/wallet", {"currency": ""}, key=made["adminkey"])
        self._call("PATCH", "/api/v1/wallet", {"lightning_address": address}, key=made["adminkey"])
        account = Account(made["id"], made["adminkey"], made["inkey"], f"{address}@127.0.0.1:{self.port}")
        if sats:
            self._call("PUT", "/users/api/v1/balance", {"id": account.wallet_id, "amount": sats}, bearer=True)
        return account

    def pay(self, bolt11: str, payer: Account | None = None) -> dict[str, Any]:
        """Pay an invoice, by default from the customer's wallet. Raises `httpx.HTTPStatusError`."""
        key = (payer or self.customer).admin_key
        return self._call("POST", "/api/v1/payments", {"out": True, "bolt11": bolt11}, key=key)

    def invoice(self, payee: Account, sats: int, **more: object) -> str:
        """Make an invoice and return its BOLT11."""
        body = {"out": False, "amount": sats, "memo": "of the tests", **more}
        made = self._call("POST", "/api/v1/payments", body, key=payee.invoice_key)
        return str(made["bolt11"])

    def payments(self, account: Account) -> list[dict[str, Any]]:
        """Return everything in a wallet, newest first, as LNbits has it."""
        path = "/api/v1/payments/paginated?limit=1000&sortby=time&direction=desc"
        listed: list[dict[str, Any]] = self._call("GET", path, key=account.invoice_key)["data"]
        return listed

    def balance_msats(self, account: Account) -> int:
        """Return what a wallet holds."""
        return int(self._call("GET", "/api/v1/wallet", key=account.invoice_key)["balance"])

    def push(self, account: Account, text: str) -> None:
        """Send a text to whoever listens to a wallet, as anybody can who has its invoice key."""
        self._call("POST", f"/api/v1/ws/{account.invoice_key}?{httpx.QueryParams(data=text)}")

    def _call(
        self, method: str, path: str, body: object = None, *, key: str = "", bearer: bool = False
    ) -> dict[str, Any]:
        headers = {"X-Api-Key": key} if key else {}
        if bearer:
            headers["Authorization"] = f"Bearer {self._token}"
        with _client(self.url) as client:
            response = client.request(method, path, json=body, headers=headers)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30)


def require_lnbits() -> None:
    """Skip the test, or fail it where that is asked for, when no Python of this machine can run this LNbits.

    Anything else missing is a failure.
    """
    if maker_of(LNBITS) is None:
        missing = f"LNbits {LNBITS.version} runs on no Python of this machine"
        if required():
            pytest.fail(missing)
        pytest.skip(missing)


@contextmanager
def lnbits_process(folder: Path, *, environ: Mapping[str, str] | None = None) -> Iterator[Lnbits]:
    """Have an LNbits until the block ends; it takes about 5 s to start."""
    require_lnbits()
    with Lnbits(folder, environ=environ) as running:
        yield running


@pytest.fixture(scope="session")
def lnbits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lnbits]:
    """The LNbits of this session, shared: use `account()` where a wallet must be the test's own."""
    with lnbits_process(tmp_path_factory.mktemp("lnbits")) as running:
        yield running


@pytest.fixture
def fresh_lnbits(tmp_path: Path) -> Iterator[Lnbits]:
    """An LNbits of the test's own, for tests that restart it."""
    with lnbits_process(tmp_path) as running:
        yield running
