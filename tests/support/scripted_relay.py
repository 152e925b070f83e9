"""A relay whose every answer a test scripts: a websocket server on loopback without rules of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

TIME_LIMIT_S = 10.0


class Peer:
    """One client's connection as the script sees it. `number` counts connections from 0."""

    def __init__(self, socket: ServerConnection, number: int, log: list[list[Any]]) -> None:
        self.socket = socket
        self.number = number
        self._log = log

    async def get(self, verb: str | None = None) -> list[Any]:
        """Return the client's next message, or the next one that starts with `verb`."""
        with anyio.fail_after(TIME_LIMIT_S):
            while True:
                message = json.loads(await self.socket.recv())
                self._log.append(message)
                if verb is None or message[0] == verb:
                    return list(message)

    async def send(self, *message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def ok(self, event_id: str, accepted: bool = True, text: str = "") -> None:
        await self.send("OK", event_id, accepted, text)

    async def hang_up(self) -> None:
        """Break the connection without a farewell."""
        self.socket.transport.abort()
        await self.socket.wait_closed()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedRelay:
    """The running server: its URL, what it heard, how many connections it had."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard: list[list[Any]] = []
        self.connections = 0
        self.faults: list[BaseException] = []

    def verbs(self) -> list[str]:
        return [message[0] for message in self.heard]

    def events(self) -> list[str]:
        """Return the ids of the events it heard, in order, repeats included."""
        return [message[1]["id"] for message in self.heard if message[0] == "EVENT"]


async def polite(peer: Peer) -> None:
    """Accept everything: EOSE for each REQ, OK true for each EVENT and AUTH."""
    while True:
        match await peer.get():
            case ["REQ", name, *_]:
                await peer.send("EOSE", name)
            case ["EVENT" | "AUTH", event]:
                await peer.ok(event["id"])


async def silent(peer: Peer) -> None:
    """Read and never say anything."""
    while True:
        await peer.get()


@asynccontextmanager
async def scripted_relay(
    script: Script = polite, *, port: int = 0, document: str | None = None, date: str | None = None
) -> AsyncIterator[ScriptedRelay]:
    """Run a relay that treats each connection with `script`; when the script returns, it hangs up.

    `document` is what plain HTTP is answered with (NIP-11), `date` the Date header of every HTTP answer. A
    script's failed assertion fails the test at the end of the block.
    """

    def before(socket: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            return None
        assert request.headers["Accept"] == "application/nostr+json"
        if document is None:
            return dated(socket, request, socket.respond(404, "not here"))
        return dated(socket, request, socket.respond(200, document))

    def dated(_socket: ServerConnection, _request: Request, response: Response) -> Response:
        if date is not None:
            del response.headers["Date"]
            response.headers["Date"] = date
        return response

    scopes: set[anyio.CancelScope] = set()

    async def handle(socket: ServerConnection) -> None:
        peer = Peer(socket, relay.connections, relay.heard)
        relay.connections += 1
        scopes.add(scope := anyio.CancelScope())
        try:
            with scope:
                await script(peer)
        except (ConnectionClosed, TimeoutError):
            return
        except Exception as fault:  # noqa: BLE001 - the test raises it at its end
            relay.faults.append(fault)
        finally:
            scopes.discard(scope)
            socket.transport.abort()  # the end of a script is the end of the connection, even a stalled one

    options: dict[str, Any] = {"compression": None, "close_timeout": 0.2}
    async with serve(
        handle, "127.0.0.1", port, process_request=before, process_response=dated, **options
    ) as server:
        (sock,) = server.sockets
        relay = ScriptedRelay(f"ws://127.0.0.1:{sock.getsockname()[1]}")
        yield relay
        for scope in scopes:
            scope.cancel()
    if relay.faults:
        raise relay.faults[0]


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait until something outside the loop's notice is true, polling, with a time limit."""
    with anyio.move_on_after(TIME_LIMIT_S):
        while not condition():  # noqa: ASYNC110 - some conditions announce nothing
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"not within {TIME_LIMIT_S} s: {what or 'the condition'}")
