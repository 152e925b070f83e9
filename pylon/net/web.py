"""One JSON document by HTTP GET from a host that a stranger names, and nothing more of HTTP than that.

The socket comes from the guarded dialer, so nothing here resolves a name. No redirects (they would lead elsewhere),
no compression (a small answer could become a large one), no cookies, no second request on a connection. Time, size
and concurrent requests are bounded in total. h11 is the protocol without a socket; this is the shell around it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import h11
import orjson
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSStream

from pylon.net.dialer import Dialer, DialPolicy, Resolver
from pylon.net.urls import DialRefused, Target
from pylon.text import printable

MAX_URL_CHARS: Final = 8_192
"""A callback of LNURL-pay carries a whole signed event."""

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_INTERIM_ANSWERS: Final = 4

_PIECE_BYTES: Final = 16 * 1024
_JSON_TYPES: Final = frozenset(
    {"", "application/json", "text/json", "text/plain", "application/octet-stream"}
)  # the last two: what a file server says of a file without an ending
_FINAL_REASONS: Final = frozenset({"bad-url", "bad-scheme", "user-info", "bad-port", "bad-host", "private-host"})


class WebError(Exception):
    """There is no JSON answer. `reason` is a short word for counters, the message one printable sentence.

    `sent` tells whether the request may have reached the host, which may then have acted on it.
    """

    def __init__(self, reason: str, sentence: str, *, sent: bool) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sent = sent


class WebRefused(WebError):
    """We will never contact what was named: asking again is of no use."""


@dataclass(frozen=True, slots=True)
class WebPolicy:
    """Bounds of a request. With `allow_private` (tests, a demo) private hosts pass, and http on this machine."""

    allow_private: bool = False
    timeout_s: float = 10.0
    max_bytes: int = 64 * 1024
    max_concurrent: int = 8


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """What came back. `value` is the parsed JSON; None where an error status came with something else."""

    host: str
    status: int
    value: Any


@dataclass(slots=True)
class _Progress:
    """How far a request has come when it is cut off."""

    sent: bool = False


class Web:
    """Fetches JSON within one policy. `resolver` and `tls` replace the system's, for tests."""

    def __init__(
        self,
        policy: WebPolicy | None = None,
        *,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy or WebPolicy()
        schemes = {"https", "http"} if self.policy.allow_private else {"https"}
        self._dialer = Dialer(
            DialPolicy(
                allow_private=self.policy.allow_private,
                schemes=frozenset(schemes),
                max_concurrent=self.policy.max_concurrent,
                max_url_chars=MAX_URL_CHARS,
            ),
            resolver,
        )
        self._tls = tls
        self._slots = anyio.Semaphore(self.policy.max_concurrent)

    def check(self, url: str) -> Target:
        """Return where `url` points, without contacting anything. Raises `WebRefused` and nothing else."""
        try:
            target = self._dialer.check(url)
        except DialRefused as error:
            raise WebRefused(error.reason, str(error), sent=False) from error
        if not target.secure and not _is_this_machine(target):
            raise WebRefused("bad-scheme", f"{target.host} is asked for without TLS: use https://", sent=False)
        return target

    async def get_json(self, url: str) -> WebAnswer:
        """Return what `url` answers, errors included. Raises `WebError`."""
        target = self.check(url)
        progress = _Progress()
        try:
            with anyio.fail_after(self.policy.timeout_s):
                async with self._slots:
                    return await self._get(target, progress)
        except TimeoutError as error:
            raise WebError("timeout", f"{target.host} did not answer in time", sent=progress.sent) from error
        except DialRefused as error:
            kind = WebRefused if error.reason in _FINAL_REASONS else WebError
            raise kind(error.reason, str(error), sent=False) from error
        except ssl.SSLError as error:
            words = printable(getattr(error, "verify_message", "") or error.reason or "no handshake")
            raise WebError("tls", f"{target.host}: TLS: {words}", sent=progress.sent) from error
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise WebError("broken", f"the connection to {target.host} broke", sent=progress.sent) from error
        except h11.RemoteProtocolError as error:
            raise WebError("not-http", f"{target.host} does not answer in HTTP", sent=progress.sent) from error

    async def _get(self, target: Target, progress: _Progress) -> WebAnswer:
        dialed = await self._dialer.dial(target.url)
        try:
            stream: ByteStream = await SocketStream.from_socket(dialed.sock)
        except BaseException:
            dialed.sock.close()
            raise
        try:
            if dialed.server_hostname is not None:
                stream = await TLSStream.wrap(
                    stream,
                    server_side=False,
                    hostname=dialed.server_hostname,
                    ssl_context=await self._trust(),
                    standard_compatible=False,  # HTTP's own framing tells where the answer ends
                )
            return await _Exchange(target, stream, self.policy.max_bytes, progress).run()
        finally:
            await anyio.aclose_forcefully(stream)

    async def _trust(self) -> ssl.SSLContext:
        if self._tls is None:
            # Loading the certificates takes 20 ms and more: once, and beside the loop.
            self._tls = await anyio.to_thread.run_sync(ssl.create_default_context)
        return self._tls


class _Exchange:
    """One request and its answer on a connected stream."""

    def __init__(self, target: Target, stream: ByteStream, max_bytes: int, progress: _Progress) -> None:
        self._target = target
        self._stream = stream
        self._max_bytes = max_bytes
        self._progress = progress
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._received = 0

    async def run(self) -> WebAnswer:
        await self._ask()
        response = await self._head()
        encoding = _header(response, b"content-encoding")
        if 300 <= response.status_code < 400:
            raise self._fault("redirect", "leads elsewhere, and redirects are not followed")
        if encoding not in ("", "identity"):
            raise self._fault("encoding", f"answers in the encoding {printable(encoding)}, which was not asked for")
        kind = _header(response, b"content-type").partition(";")[0].strip()
        is_json = kind in _JSON_TYPES or kind.endswith("+json")
        if response.status_code == 200 and not is_json:
            raise self._fault("content-type", f"answers {printable(kind)} where JSON is due")
        value = _parse(await self._body()) if is_json else None
        if response.status_code == 200 and value is None:
            raise self._fault("not-json", "answers something that is not JSON")
        return WebAnswer(self._target.host, response.status_code, value)

    async def _ask(self) -> None:
        parts = urlsplit(self._target.url)
        request = h11.Request(
            method="GET",
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=[
                ("Host", parts.netloc),
                ("Accept", "application/json"),
                ("Accept-Encoding", "identity"),
                ("User-Agent", "pylon"),
                ("Connection", "close"),
            ],
        )
        raw = self._http.send(request) + self._http.send(h11.EndOfMessage())
        self._progress.sent = True
        await self._stream.send(raw)

    async def _head(self) -> h11.Response:
        for _ in range(MAX_INTERIM_ANSWERS):
            event = await self._next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        raise self._fault("not-http", "gives no answer")

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > self._max_bytes:
                raise self._fault("too-long", f"answers more than {self._max_bytes} bytes")
        if not isinstance(event, h11.EndOfMessage):
            raise self._fault("not-http", "broke off its answer")
        return bytes(body)

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                piece = await self._stream.receive(_PIECE_BYTES)
            except anyio.EndOfStream:
                piece = b""
            self._received += len(piece)
            # What is no body (chunk headers, trailers, interim answers) must not be endless either.
            if self._received > 2 * self._max_bytes + MAX_INTERIM_ANSWERS * MAX_HEAD_BYTES:
                raise self._fault("too-long", "answers without end")
            self._http.receive_data(piece)
        return event

    def _fault(self, reason: str, words: str) -> WebError:
        return WebError(reason, f"{self._target.host} {words}", sent=True)


def _header(response: h11.Response, name: bytes) -> str:
    found = b",".join(value for key, value in response.headers if key == name)
    return found.decode("latin-1").strip().lower()


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _is_this_machine(target: Target) -> bool:
    return target.host == "localhost" if target.address is None else target.address.is_loopback
