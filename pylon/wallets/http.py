"""JSON over HTTP to a wallet, with every failure sorted into "not done", "perhaps done" and "refused".

A call that changes something in the wallet says so (`mutating`). Once its request may have left this machine,
anything but a readable answer is `WalletAmbiguous`: time-out, broken connection, 5xx, garbage. A call that only
reads carries nothing out, so the same failures are `WalletUnavailable`. Nothing is sent twice here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio
import httpx
import orjson

from pylon.jobs.ports import WalletError, WalletRefused, WalletUnavailable
from pylon.text import printable
from pylon.wallets.outcomes import AccessRefused, in_doubt

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_LINE_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 64
MAX_PAUSE_S: Final = 120.0
_MIN_SECRET: Final = 8  # a shorter one would be found in words that mean nothing

_UNSENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


class TokenRefused(AccessRefused):
    """The wallet does not accept the token, so no call will succeed."""


def unclear(label: str, what: str, *, mutating: bool) -> WalletError:
    """Return the error for a request to the wallet `label` that left and was not answered as we understand it."""
    doubt = "; it may have done what was asked" if mutating else ""
    return in_doubt(f"{label} {what}{doubt}", mutating=mutating)


class WalletHttp:
    """One wallet's HTTP API. `timeout_s` bounds a whole call; `label` names the wallet in error sentences.

    With `uds` the API is behind a Unix socket and `url` only gives the host name. The token is sent as a bearer's
    unless `authorization` says how else, or `key_header` names a header of its own for it.
    """

    def __init__(
        self,
        *,
        label: str,
        url: str,
        token: str,
        timeout_s: float,
        uds: Path | None = None,
        authorization: str = "",
        key_header: str = "",
    ) -> None:
        self._label = label
        self._url = url
        self._key_header = key_header or "Authorization"
        self._key = token if key_header else authorization or f"Bearer {token}"
        self._secrets = (token, self._key.rpartition(" ")[2])
        self._timeout_s = timeout_s
        self._uds = uds
        self._client: httpx.AsyncClient | None = None
        self._paused_until = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connections; nothing is contacted on entering."""
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=8, keepalive_expiry=30)
        transport = httpx.AsyncHTTPTransport(
            verify=_trust(self._url),
            limits=limits,
            uds=None if self._uds is None else str(self._uds),
        )
        # The environment's proxies would see the token. Compressed answers could not be bounded as they are read.
        headers = {self._key_header: self._key, "Accept-Encoding": "identity"}
        async with httpx.AsyncClient(
            base_url=self._url, transport=transport, headers=headers, timeout=self._timeout(), trust_env=False
        ) as client:
            self._client = client
            try:
                yield
            finally:
                self._client = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        mutating: bool = False,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON object that the wallet answers. Raises `WalletError` in its three kinds."""
        status, raw = await self.exchange(method, path, mutating=mutating, params=params, body=body)
        return self._parse(status, raw, mutating=mutating)

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        mutating: bool = False,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        key: str = "",
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer, whatever they are but a demand to wait.

        `body` is sent as JSON, `form` as a form; `key` replaces the token. Raises `WalletError` where no answer
        came, and `WalletUnavailable` on 429, which is obeyed: for as long as it asks nothing is sent.
        """
        if (left_s := self._paused_until - anyio.current_time()) > 0:
            raise WalletUnavailable(f"{self._label} has had too many calls and asked us to wait {left_s:.0f} s")
        headers = {self._key_header: key} if key else None
        try:
            with anyio.fail_after(self._timeout_s):
                async with self._open().stream(
                    method, path, params=params, json=body, data=form, headers=headers
                ) as response:
                    raw = await self._read(response, key)
        except _UNSENT as error:
            raise WalletUnavailable(f"{self._label} cannot be reached: {_why(error)}") from error
        except (httpx.HTTPError, TimeoutError, _TooLong) as error:
            raise self.unclear(f"gave no answer: {_why(error)}", mutating=mutating) from error
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._paused_until = anyio.current_time() + _pause_s(response)
            raise WalletUnavailable(f"{self._label} has had too many calls (HTTP status 429)")
        return response.status_code, raw

    async def lines(self, path: str, *, silence_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the lines of an endless answer; empty ones, which keep it alive, too.

        Raises `WalletUnavailable` when it ends, breaks, or says nothing for `silence_s`; `WalletRefused` on a 4xx.
        """
        try:
            async with self._open().stream("GET", path, timeout=self._timeout(silence_s)) as response:
                if response.status_code != httpx.codes.OK:
                    self._parse(response.status_code, await self._read(response), mutating=False)
                    raise self.unclear(f"answered {response.status_code}", mutating=False)
                rest = b""
                async with aclosing(_chunks(response)) as chunks:
                    async for chunk in chunks:
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            yield line
                        if len(rest) > MAX_LINE_BYTES:
                            raise _TooLong("a line does not end")
        except (httpx.HTTPError, _TooLong) as error:
            raise WalletUnavailable(f"{self._label}: the stream broke: {_why(error)}") from error
        raise WalletUnavailable(f"{self._label}: the stream ended")

    def unclear(self, what: str, *, mutating: bool) -> WalletError:
        """Return the error for a request that left and was not answered in a way we understand."""
        return unclear(self._label, what, mutating=mutating)

    def _parse(self, status: int, raw: bytes, *, mutating: bool) -> dict[str, Any]:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = None
        if 400 <= status < 500:
            said = value.get("error") if isinstance(value, dict) else None
            sentence = printable(said) if isinstance(said, str) and said else f"HTTP status {status}"
            if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
                raise TokenRefused(f"{self._label} does not accept the token: {sentence}; check the wallet's token")
            raise WalletRefused(f"{self._label} refused: {sentence}")
        if not 200 <= status < 300:
            raise self.unclear(f"answered with HTTP status {status}", mutating=mutating)
        if not isinstance(value, dict):
            raise self.unclear("answered something that is not a JSON object", mutating=mutating)
        return value

    async def _read(self, response: httpx.Response, key: str = "") -> bytes:
        """Return the body, without our own secrets in it: what a wallet says ends up in errors and on screens."""
        raw = await _read(response)
        for secret in (*self._secrets, key):
            if len(secret) >= _MIN_SECRET:
                raw = raw.replace(secret.encode(), b"[token]")
        return raw

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            raise RuntimeError("the wallet is used outside of its running() block")
        return self._client

    def _timeout(self, silence_s: float | None = None) -> httpx.Timeout:
        # Pool and connect together stay below the whole, so that a call that runs into `fail_after` was sent.
        quarter_s = self._timeout_s / 4
        return httpx.Timeout(silence_s or self._timeout_s, connect=2 * quarter_s, pool=quarter_s)


class _TooLong(Exception):
    """The answer is longer than anything a wallet has to say."""


async def _read(response: httpx.Response) -> bytes:
    raw = bytearray()
    async with aclosing(_chunks(response)) as chunks:
        async for chunk in chunks:
            raw += chunk
            if len(raw) > MAX_ANSWER_BYTES:
                raise _TooLong(f"more than {MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    # httpx declares an iterator; it is a generator, and closing it at once beats leaving it to the collector.
    return cast("AsyncGenerator[bytes, None]", response.aiter_raw())


def _pause_s(response: httpx.Response) -> float:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), MAX_PAUSE_S) if asked.isdecimal() else 0.0


def _trust(url: str) -> ssl.SSLContext | bool:
    # Loading the system's certificates takes 60 ms; without TLS an empty store will do.
    return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _why(error: Exception) -> str:
    return f"{type(error).__name__} ({printable(error)})" if str(error) else type(error).__name__
