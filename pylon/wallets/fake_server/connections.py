"""The wallet's open connections, so that it can drop one without an answer, or all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio.lowlevel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_TRANSPORT: Final = "pylon.transport"


class Connections:
    """Knows every connection and whether new ones are taken."""

    def __init__(self) -> None:
        self._open: set[asyncio.Transport] = set()
        self._refuse_until = 0.0

    async def drop(self, request: Request) -> None:
        """End the request's connection without another byte."""
        request.scope[_TRANSPORT].abort()
        await anyio.lowlevel.checkpoint()  # uvicorn learns of it before a response is tried

    async def drop_all(self, refuse_s: float) -> None:
        """End every connection and refuse new ones for `refuse_s`."""
        self._refuse_until = asyncio.get_running_loop().time() + refuse_s
        for transport in tuple(self._open):
            transport.abort()
        await anyio.lowlevel.checkpoint()

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol class for uvicorn whose connections are known here."""
        connections = self

        class KnownConnection(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if asyncio.get_running_loop().time() < connections._refuse_until:
                    transport.abort()
                    return
                connections._open.add(transport)
                self.app = _with_transport(self.app, transport)

            def connection_lost(self, exc: Exception | None) -> None:
                connections._open.discard(self.transport)
                super().connection_lost(exc)

        return KnownConnection


def _with_transport(app: Callable[..., Awaitable[None]], transport: asyncio.Transport) -> Any:
    async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_TRANSPORT] = transport
        await app(scope, receive, send)

    return with_transport
