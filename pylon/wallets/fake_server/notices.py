"""Pushing settlements to the owner's open streams, with the faults of a push."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from pylon.wallets.fake_server.faults import Dice

STREAM_QUEUE: Final = 1024
KEEP_ALIVE_S: Final = 5.0


class Notices:
    """The open streams. A stream that does not keep up is closed: its reader looks up what it missed."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._streams: set[MemoryObjectSendStream[bytes]] = set()

    @property
    def open_streams(self) -> int:
        """How many readers there are."""
        return len(self._streams)

    def publish(self, line: bytes) -> None:
        """Send a line to every stream; the dice decide for each whether it is lost, doubled or late."""
        dice = self._dice
        for stream in tuple(self._streams):
            if dice.roll("notice_loss"):
                continue
            for _ in range(2 if dice.roll("notice_duplicate") else 1):
                if dice.roll("notice_delay"):
                    delay_s = dice.seconds(dice.faults.notice_delay_s)
                    asyncio.get_running_loop().call_later(delay_s, self._send, stream, line)
                else:
                    self._send(stream, line)

    async def lines(self, replay: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of one new stream until it is closed; an empty line now and then shows it is alive."""
        send, receive = anyio.create_memory_object_stream[bytes](STREAM_QUEUE)
        self._streams.add(send)
        try:
            with receive:
                yield b"\n"  # the reader knows from it that later settlements will be seen
                for line in replay:
                    yield line
                while True:
                    line = b"\n"
                    with anyio.move_on_after(KEEP_ALIVE_S):
                        line = await receive.receive()
                    yield line
        except anyio.EndOfStream:
            return
        finally:
            self._close(send)

    def close_all(self) -> None:
        """End every stream."""
        for stream in tuple(self._streams):
            self._close(stream)

    def _send(self, stream: MemoryObjectSendStream[bytes], line: bytes) -> None:
        if stream not in self._streams:
            return
        try:
            stream.send_nowait(line)
        except (anyio.WouldBlock, anyio.BrokenResourceError):
            self._close(stream)

    def _close(self, stream: MemoryObjectSendStream[bytes]) -> None:
        self._streams.discard(stream)
        stream.close()
