"""Reading many messages at once: whole, in order, bounded, and until the connection has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from pylon.relays.socket import RelaySocket, open_configured
from pylon.relays.state import PoolConfig
from tests.support.scripted_relay import Peer, scripted_relay, silent

LIMIT_S = 10.0


@asynccontextmanager
async def connected(script: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[RelaySocket]:
    async with scripted_relay(script) as relay:
        socket = await open_configured(relay.url, PoolConfig(urls=(relay.url,)), None)
        try:
            with anyio.fail_after(LIMIT_S):
                yield socket
        finally:
            socket.abort()


async def read_all(socket: RelaySocket) -> list[str | bytes]:
    """Return every message until the connection ends."""
    messages: list[str | bytes] = []
    while True:
        try:
            messages += await socket.receive(64)
        except ConnectionClosed:
            return messages


async def test_messages_come_in_order_and_at_most_as_many_as_asked_for() -> None:
    async def script(peer: Peer) -> None:
        for number in range(150):
            await peer.socket.send(str(number))
        await peer.socket.close()

    async with connected(script) as socket:
        lots = []
        with pytest.raises(ConnectionClosed):
            while True:
                lots.append(await socket.receive(64))
    assert [message for lot in lots for message in lot] == [str(number) for number in range(150)]
    assert max(map(len, lots)) <= 64


async def test_fragments_are_one_message() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.send(iter(["a message ", "in three ", "parts"]))
        await peer.socket.send("a whole one")
        await peer.socket.close()

    async with connected(script) as socket:
        assert await read_all(socket) == ["a message in three parts", "a whole one"]


async def test_binary_stays_binary_and_text_that_is_no_utf_8_becomes_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.send(b"\x01\x02")
        protocol = peer.socket.protocol
        protocol.send_frame(Frame(Opcode.TEXT, b"\xff\xfe"))
        peer.socket.transport.write(b"".join(protocol.data_to_send()))
        await peer.socket.send("text")
        await peer.socket.close()

    async with connected(script) as socket:
        assert await read_all(socket) == [b"\x01\x02", b"\xff\xfe", "text"]


async def test_a_message_of_endless_fragments_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        protocol = peer.socket.protocol
        protocol.send_text(b"", fin=False)
        for _ in range(1500):
            protocol.send_continuation(b"", fin=False)
        protocol.send_continuation(b"its end", fin=True)
        peer.socket.transport.write(b"".join(protocol.data_to_send()))  # all in one piece
        await peer.socket.wait_closed()

    async with connected(script) as socket:
        assert await read_all(socket) == []


async def test_what_is_not_read_holds_up_the_peer_and_none_of_it_is_lost() -> None:
    sent, text = [], "x" * 1_000

    async def script(peer: Peer) -> None:
        for number in range(20_000):
            await peer.socket.send(f"{number} {text}")
            sent.append(number)
        await peer.socket.close()

    async with connected(script) as socket:
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.3)  # nothing tells that a peer cannot go on
        assert 0 < len(sent) < 20_000
        messages = await read_all(socket)
    assert [int(str(message).split()[0]) for message in messages] == list(range(20_000))


async def test_what_arrived_before_the_end_is_still_read() -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.socket.send("last words")
        await peer.socket.close(1001, "going")
        gone.set()

    async with connected(script) as socket:
        await gone.wait()
        assert await socket.receive(64) == ["last words"]
        with pytest.raises(ConnectionClosed, match="going"):
            await socket.receive(64)


async def test_a_reader_that_waits_hears_of_an_abort() -> None:
    async with connected(silent) as socket, anyio.create_task_group() as tasks:

        async def end() -> None:
            await anyio.wait_all_tasks_blocked()
            socket.abort()

        tasks.start_soon(end)
        with pytest.raises(ConnectionClosed):
            await socket.receive(64)
