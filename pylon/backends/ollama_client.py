"""Ollama's own Python client, made to reach the configured server and nothing else, and bounded in what it reads.

The client trusts its server and its environment: it reads answers and lines of any size, follows redirects, sends
`OLLAMA_API_KEY` along, and already its import makes a second client, which fails on a SOCKS proxy that the
environment names. The import is therefore shielded, and a transport below the client does the rest.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import httpx
import orjson

from pylon.backends.sse import BadStream, is_compressed

MAX_LINE_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 4 << 20
MAX_ERROR_BYTES: Final = 64 << 10
_STREAMS: Final = ("/api/chat", "/api/pull")
# The client parts lines where Python does; JSON lets these stand in a text, and Ollama writes the first as it is.
_LINE_ENDS: Final = {
    "\x85".encode(): rb"\u0085",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}


@contextmanager
def _bare_environment() -> Iterator[None]:
    """Hide what the import would read: proxies, certificates, Ollama's own variables."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.lower().endswith("_proxy") or name.startswith(("OLLAMA_", "SSL_CERT_"))
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


with _bare_environment():
    from ollama import AsyncClient, ResponseError


__all__ = ["AsyncClient", "GuardedTransport", "ResponseError", "make_client"]


def make_client(url: str, connect_timeout_s: float, tls: ssl.SSLContext | bool) -> AsyncClient:
    """Return a client of the server at `url`, verified by `tls`. Each request has a connection of its own, so none
    is ever stale.
    """
    transport = httpx.AsyncHTTPTransport(
        verify=tls,
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
    return AsyncClient(
        url,
        transport=GuardedTransport(transport),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=connect_timeout_s),
        headers={"Accept-Encoding": "identity"},
    )


class GuardedTransport(httpx.AsyncBaseTransport):
    """Takes from a request what the environment added, asks that no prompt be cut, and bounds what comes back.

    Of an answer's headers none is passed on: cookies, redirects and character sets are not for us.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises `BadStream`, then or while the answer is read, and what `httpx` raises."""
        request.headers.pop("authorization", None)
        if request.url.path.endswith("/api/chat"):
            request = await _uncut(request)
        response = await self._inner.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        if is_compressed(response):
            await response.aclose()
            raise BadStream("compressed its answer")
        stream: httpx.AsyncByteStream
        if not response.is_success:
            stream = _Bounded(response.stream, MAX_ERROR_BYTES, cut=True)
        elif request.url.path.endswith(_STREAMS):
            stream = _Lines(response.stream)
        else:
            stream = _Bounded(response.stream, MAX_BODY_BYTES)
        return httpx.Response(
            response.status_code,
            headers={"Content-Type": "application/json"},
            stream=stream,
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


async def _uncut(request: httpx.Request) -> httpx.Request:
    """Return a chat request with `truncate` and `shift` off, which the client (0.6) has no parameters for."""
    body = orjson.loads(await request.aread()) | {"truncate": False, "shift": False}
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    return httpx.Request(
        request.method, request.url, headers=headers, content=orjson.dumps(body), extensions=request.extensions
    )


class _Bounded(httpx.AsyncByteStream):
    """Passes a body through up to a bound; past it, ends it (`cut`) or raises `BadStream`."""

    def __init__(self, inner: httpx.AsyncByteStream, max_bytes: int, *, cut: bool = False) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._cut = cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        async for piece in self._inner:
            yield piece[:left]
            left -= len(piece)
            if left < 0 and self._cut:
                return
            if left < 0:
                raise BadStream(f"sent an answer of more than {self._max_bytes} bytes")

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Lines(httpx.AsyncByteStream):
    """Passes whole, non-empty lines through; raises `BadStream` when one grows too long."""

    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pending = bytearray()
        async for piece in self._inner:
            end = piece.rfind(b"\n") + 1
            pending += piece[:end] if end else piece
            if len(pending) > MAX_LINE_BYTES:
                raise BadStream(f"sent a line of more than {MAX_LINE_BYTES} bytes")
            if end:
                yield _whole_lines(bytes(pending))
                pending = bytearray(piece[end:])
        yield _whole_lines(bytes(pending))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _whole_lines(block: bytes) -> bytes:
    for end, escaped in _LINE_ENDS.items():
        block = block.replace(end, escaped)
    return b"".join(line + b"\n" for line in block.split(b"\n") if line.strip())
