"""A model's server that answers when the test lets it."""

from __future__ import annotations

import anyio

from tests.support.openai_server import STREAM_HEAD, ScriptedServer, Wire, framed, piece
from tests.support.provider import MODEL


class GatedServer:
    """A model's server whose answers wait until the gate is opened."""

    def __init__(self, script: ScriptedServer) -> None:
        self.url = script.url
        self.open = anyio.Event()
        self.waiting = 0
        self._arrived = anyio.Event()
        script.models = (MODEL,)
        script.chats = [self._chat]

    async def _chat(self, wire: Wire) -> None:
        self.waiting += 1
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()
        await self.open.wait()
        await wire.send(STREAM_HEAD + framed(piece("done", "stop")) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def until_waiting(self, count: int) -> None:
        """Wait until so many requests are at the gate."""
        with anyio.fail_after(60):
            while self.waiting < count:
                await self._arrived.wait()
