"""A scripted OpenAI-compatible server on loopback, byte-exact, so that it can misbehave in any way.

`/health` and `/v1/models` answer well unless `routes` says otherwise; each POST is answered by the next of
`chats`, the last one again and again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Wire:
    """One request and the connection it came on."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(1024):
                pass

    def cut(self) -> None:
        """Close the connection in the middle of whatever it is."""
        self.writer.transport.abort()


Handler = Callable[[Wire], Awaitable[None]]


@dataclass
class ScriptedServer:
    """What it answers, and what it was asked."""

    url: str = ""
    models: tuple[str, ...] = ("m",)
    chats: list[Handler] = field(default_factory=list)
    routes: dict[str, Handler] = field(default_factory=dict)
    asked: list[Wire] = field(default_factory=list)
    connections: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def posts(self) -> list[Wire]:
        return [wire for wire in self.asked if wire.method == "POST"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                wire = await _read_request(reader, writer, connection)
                self.asked.append(wire)
                await self._handler(wire)(wire)
        writer.transport.abort()

    def _handler(self, wire: Wire) -> Handler:
        if wire.path in self.routes:
            return self.routes[wire.path]
        if wire.method == "POST":
            return self.chats.pop(0) if len(self.chats) > 1 else self.chats[0]
        if wire.path == "/v1/models":
            return answer(200, {"object": "list", "data": [{"id": model} for model in self.models]})
        return answer(200, {"status": "ok"})


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> Wire:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Wire(method, path, headers, body, connection, reader, writer)


@asynccontextmanager
async def scripted_server(*chats: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """Run one for the length of the `async with`."""
    script = ScriptedServer(chats=list(chats))
    server = await asyncio.start_server(script._serve, "127.0.0.1", 0, ssl=tls)
    script.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        for task in script.tasks:
            task.cancel()
        await asyncio.gather(*script.tasks)


# --- answers ---------------------------------------------------------------------------------------------------

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def framed(data: bytes) -> bytes:
    """Return one chunk of a chunked HTTP body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def piece(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"model": "another-name", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage(prompt: Any, output: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


def stream(*parts: bytes, end: bool = True) -> Handler:
    """Answer 200 with these parts of an event stream, each in a chunk of its own; without `end` cut it off."""

    async def handle(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for part in parts:
            await wire.send(framed(part))
        if end:
            await wire.send(STREAM_END)
        else:
            wire.cut()

    return handle


def answer(status: int, value: Any, *headers: str) -> Handler:
    """Answer with a JSON body (or these bytes)."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} Said", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]

    async def handle(wire: Wire) -> None:
        await wire.send("\r\n".join([*lines, "", ""]).encode() + body)

    return handle


def raw(data: bytes) -> Handler:
    """Send these bytes and close."""

    async def handle(wire: Wire) -> None:
        await wire.send(data)
        wire.writer.close()
        await wire.gone()

    return handle


async def hang(wire: Wire) -> None:
    """Say nothing until the client goes."""
    await wire.gone()
