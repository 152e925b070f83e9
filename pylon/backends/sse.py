"""Server-sent events of a server that may misbehave: bounded before anything is buffered.

`httpx_sse` keeps an unfinished line, and an unfinished event, for as long as it grows. The bound therefore sits
below it, on the raw bytes, and a compressed stream is not taken at all (few bytes could become many).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

import httpx
from httpx_sse import EventSource

MAX_EVENT_BYTES: Final = 1 << 20
MAX_STREAM_BYTES: Final = 64 << 20
# Two line ends in a row close an event; of the nine pairs of CRLF, LF and CR each holds one of these.
_EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\n\r")


class BadStream(ValueError):
    """The answer is no usable event stream; the message names the fault in a few words."""


async def event_data(
    response: httpx.Response,
    *,
    max_event_bytes: int = MAX_EVENT_BYTES,
    max_stream_bytes: int = MAX_STREAM_BYTES,
) -> AsyncGenerator[str, None]:
    """Yield the non-empty `data` of each event of an unread streaming response.

    Raises `BadStream` when it is something else or passes a bound, and what `httpx` raises when it breaks off.
    """
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "text/event-stream":
        raise BadStream(f"answered {content_type or 'no content type'} instead of an event stream")
    if is_compressed(response):
        raise BadStream("compressed its event stream")
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _Bounded(response.stream, max_event_bytes, max_stream_bytes)
    response.encoding = "utf-8"  # the only one the format knows, whatever the header says
    async with aclosing(_aiter_sse(response)) as events:
        async for data in events:
            yield data


async def _aiter_sse(response: httpx.Response) -> AsyncGenerator[str, None]:
    async for event in EventSource(response).aiter_sse():
        if event.data:
            yield event.data


async def read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the body of an unread streaming response. Raises `BadStream` past `max_bytes` or when compressed."""
    if is_compressed(response):
        raise BadStream("compressed its answer")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise BadStream(f"sent an answer of more than {max_bytes} bytes")
    return bytes(body)


def is_compressed(response: httpx.Response) -> bool:
    """Tell whether the server encoded the body although we asked it not to."""
    return response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}


class _Bounded(httpx.AsyncByteStream):
    """Passes the bytes through until one event, or all of them together, are too many."""

    def __init__(self, inner: httpx.AsyncByteStream, max_event_bytes: int, max_stream_bytes: int) -> None:
        self._inner = inner
        self._max_event_bytes = max_event_bytes
        self._max_stream_bytes = max_stream_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        open_event = 0
        last = b""
        async for piece in self._inner:
            total += len(piece)
            seam = last + piece  # the two bytes of an event's end may come in two pieces
            end = max(seam.rfind(pair) for pair in _EVENT_ENDS)
            open_event = open_event + len(piece) if end < 0 else len(seam) - end - 2
            if open_event > self._max_event_bytes:
                raise BadStream(f"sent an event of more than {self._max_event_bytes} bytes")
            if total > self._max_stream_bytes:
                raise BadStream(f"sent a stream of more than {self._max_stream_bytes} bytes")
            last = piece[-1:] or last
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()
