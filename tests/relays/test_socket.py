"""Reading many messages at once: whole, in order, bounded, and until the connection has ended."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
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


async def test_tiny_frames_that_come_at_once_leave_the_loop_to_others() -> None:
    count = 100_000

    async def script(peer: Peer) -> None:
        peer.socket.transport.write(b"\x81\x01x" * count)
        await peer.socket.close()

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with connected(script) as socket, anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        messages, most = [], 0
        with suppress(ConnectionClosed):
            while True:
                messages += await socket.receive(64)
                most = max(most, len(socket._arrived))
        tasks.cancel_scope.cancel()
    assert messages == ["x"] * count
    assert most <= 64 + 4096 // 3
    assert turns > 3 * count // 4096


async def test_what_waits_to_be_read_is_bounded_in_bytes() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(30):
            await peer.socket.send("x" * 1_000_000)
        await peer.socket.close()

    async with connected(script) as socket:
        sizes = []
        with suppress(ConnectionClosed):
            while True:
                await anyio.sleep(0.01)  # as much as may come has come
                sizes.append(sum(map(len, await socket.receive(64))))
    assert sum(sizes) == 30_000_000
    assert max(sizes) <= 1_000_000


async def test_a_flood_of_pings_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.send("before")
        while not peer.socket.transport.is_closing():
            peer.socket.transport.write(b"\x89\x00" * 30_000)
            await peer.socket.drain()
            await anyio.lowlevel.checkpoint()

    async with connected(script) as socket:
        await read_all(socket)
        assert socket.fault == "too many pings"


async def test_compressed_frames_that_nobody_agreed_to_end_the_connection() -> None:
    async def script(peer: Peer) -> None:
        bomb = zlib.compress(bytes(10_000_000), wbits=-15)
        peer.socket.transport.write(bytes((0xC1, 126)) + len(bomb).to_bytes(2, "big") + bomb)
        await peer.socket.wait_closed()

    async with connected(script) as socket:
        with pytest.raises(ConnectionClosed, match="reserved bits"):
            await socket.receive(64)


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
