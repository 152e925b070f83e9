"""A stand-in for phoenixd, on loopback. It is not phoenixd: it has no channels and speaks its HTTP API alone.

The shapes (paths, fields, plain-text refusals, milliseconds, whole sats cut off) are those of phoenixd 0.8's
documented API and of its `Api.kt`; what the real server does in time and with money is not shown here. Like it,
this one pays an invoice again while the first payment of it is under way.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pylon.nostr.bolt11 import read_invoice
from pylon.wallets.fake_server.node import Draft, Node
from pylon.wallets.phoenixd import PhoenixdConfig, PhoenixdWallet

FULL = "full-access-password"
LIMITED = "limited-access-password"

Answer = Callable[[Request], Awaitable[Response]]


@dataclass
class PhoenixdStandIn:
    """Its books, what it was asked, and `routes`, which replace the answer of a path."""

    url: str = ""
    chain: str = "regtest"
    balance_sats: int = 50_000
    incoming: list[dict[str, Any]] = field(default_factory=list)  # oldest first
    outgoing: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    routes: dict[str, Answer] = field(default_factory=dict)
    listeners: list[WebSocket] = field(default_factory=list)
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    before_paying: Callable[[], Awaitable[None]] | None = None
    fails_with: str = ""
    node: Node = field(default_factory=lambda: Node("22" * 32))

    def wallet(self, password: str = FULL, *, timeout_s: float = 5.0) -> PhoenixdWallet:
        """Return a client, to be entered with `running()`."""
        return PhoenixdWallet(PhoenixdConfig(self.url, password, timeout_s), time.time)

    def paths(self, path: str) -> int:
        """How often a path was asked for."""
        return self.asked.count(path)

    async def settle(self, payment_hash: str, *, fee_sats: int = 0, push: bool = True) -> None:
        """Receive the payment of an invoice; `fee_sats` is taken off for liquidity."""
        entry = next(each for each in self.incoming if each["paymentHash"] == payment_hash)
        received = entry["requestedSat"] - fee_sats
        entry |= {"isPaid": True, "receivedSat": received, "fees": fee_sats * 1000, "completedAt": now_ms()}
        if push:
            event = {"type": "payment_received", "timestamp": now_ms(), "amountSat": received}
            await self.push(event | {"paymentHash": payment_hash, "externalId": entry.get("externalId")})

    async def push(self, event: object) -> None:
        """Send an event to everybody who listens."""
        for listener in self.listeners:
            await listener.send_json(event)

    # --- the API ------------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append(path)
        form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        if request.method == "POST":
            self.forms.append(form)
        password = _password(request.headers.get("authorization", ""))
        if password not in (FULL, LIMITED) or (path == "/payinvoice" and password != FULL):
            return PlainTextResponse("Invalid authentication (use basic auth with the http password)", 401)
        if path in self.routes:
            return await self.routes[path](request)
        match request.method, path.strip("/").split("/"):
            case "GET", ["getinfo"]:
                return JSONResponse({"nodeId": self.node.public_hex, "chain": self.chain, "version": "0.8.0"})
            case "GET", ["getbalance"]:
                return JSONResponse({"balanceSat": self.balance_sats, "feeCreditSat": 7})
            case "POST", ["createinvoice"]:
                return self._create(form)
            case "POST", ["payinvoice"]:
                return await self._pay(form)
            case "GET", ["payments", "incoming"]:
                return self._list(self.incoming[::-1], request)
            case "GET", ["payments", "outgoing"]:
                return self._list(self.outgoing, request)
            case "GET", ["payments", "incoming", key]:
                return _one([each for each in self.incoming if each["paymentHash"] == key])
            case "GET", ["payments", "outgoingbyhash", key]:
                found = [each for each in self.outgoing if each["paymentHash"] == key]
                return _one(sorted(found, key=lambda each: (each["isPaid"], "completedAt" not in each)))
        return PlainTextResponse("Unknown endpoint (check api doc)", 404)

    def _create(self, form: dict[str, str]) -> Response:
        if ("description" in form) == ("descriptionHash" in form):
            return PlainTextResponse("Must provide either a description or descriptionHash", 400)
        if len(form.get("description", "")) > 128:
            return PlainTextResponse("Request parameter description is too long (max 128 characters)", 400)
        amount, expiry = int(form["amountSat"]), int(form["expirySeconds"])
        draft = Draft("x", amount * 1000, expiry, form.get("description", ""), form.get("descriptionHash"))
        at = now_ms()
        signed = self.node.sign(draft, at // 1000)
        entry: dict[str, Any] = {
            "type": "incoming_payment",
            "subType": "lightning",
            "paymentHash": signed.payment_hash,
        }
        entry |= {"preimage": signed.preimage, "invoice": signed.bolt11, "isPaid": False, "isExpired": False}
        entry |= {"requestedSat": amount, "receivedSat": 0, "fees": 0, "createdAt": at}
        entry |= {"expiresAt": at + expiry * 1000, "externalId": form.get("externalId")}
        entry |= {"description": form.get("description")}
        self.incoming.append({key: value for key, value in entry.items() if value is not None})
        return JSONResponse({"amountSat": amount, "paymentHash": signed.payment_hash, "serialized": signed.bolt11})

    async def _pay(self, form: dict[str, str]) -> Response:
        if not form.get("invoice"):
            return PlainTextResponse("Request parameter invoice couldn't be parsed/converted to bolt11invoice", 400)
        facts = read_invoice(form["invoice"])
        assert facts.amount_msats is not None
        mine = [each for each in self.outgoing if each["paymentHash"] == facts.payment_hash]
        if any(each["isPaid"] for each in mine):
            return _failed(facts.payment_hash, "this invoice has already been paid")
        fee = 4_000 + facts.amount_msats * 4 // 1000
        entry: dict[str, Any] = {
            "type": "outgoing_payment",
            "subType": "lightning",
            "paymentId": str(len(self.asked)),
        }
        entry |= {"paymentHash": facts.payment_hash, "isPaid": False, "sent": facts.amount_msats // 1000, "fees": 0}
        entry |= {"invoice": form["invoice"], "createdAt": now_ms()}
        self.outgoing.append(entry)
        if self.fails_with:
            entry["completedAt"] = now_ms()
            return _failed(facts.payment_hash, self.fails_with)
        if self.before_paying is not None:
            await self.before_paying()
        preimage = "ab" * 32
        entry |= {"isPaid": True, "sent": (facts.amount_msats + fee) // 1000, "fees": fee}
        entry |= {"preimage": preimage, "completedAt": now_ms()}
        self.balance_sats -= entry["sent"]
        return JSONResponse(
            {
                "recipientAmountSat": facts.amount_msats // 1000,
                "routingFeeSat": fee // 1000,
                "paymentId": entry["paymentId"],
                "paymentHash": facts.payment_hash,
                "paymentPreimage": preimage,
            }
        )

    def _list(self, entries: list[dict[str, Any]], request: Request) -> Response:
        asked = request.query_params
        first, last = int(asked.get("from", 0)), int(asked.get("to", now_ms()))
        name, everything = asked.get("externalId"), asked.get("all") == "true"
        found = [
            each
            for each in entries
            if first <= each["createdAt"] <= last
            and (everything or each["isPaid"])
            and (name is None or each.get("externalId") == name)
        ]
        offset, limit = int(asked.get("offset", 0)), int(asked.get("limit", 20))
        return JSONResponse(found[offset : offset + limit])

    async def listen(self, socket: WebSocket) -> None:
        if _password(socket.headers.get("authorization", "")) not in (FULL, LIMITED):
            await socket.close()  # before it is accepted: HTTP status 403
            return
        await socket.accept()
        self.listeners.append(socket)
        self.listening.set()
        with suppress(WebSocketDisconnect):
            while True:
                await socket.receive_text()


def now_ms() -> int:
    """Return the time as phoenixd has it."""
    return int(time.time() * 1000)


@asynccontextmanager
async def phoenixd() -> AsyncIterator[PhoenixdStandIn]:
    """Run a stand-in for the length of the block."""
    stand_in = PhoenixdStandIn()
    routes = [
        WebSocketRoute("/websocket", stand_in.listen),
        Route("/{path:path}", stand_in.handle, methods=["GET", "POST"]),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    sock.listen()  # whoever comes before the server is up waits
    stand_in.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    serving = asyncio.create_task(server.serve([sock]))
    try:
        yield stand_in
    finally:
        server.should_exit = True
        await serving
        sock.close()


def _password(header: str) -> str:
    scheme, _, rest = header.partition(" ")
    user, _, password = base64.b64decode(rest).decode().partition(":") if scheme == "Basic" else ("?", "", "")
    return password if user == "" else ""


def _one(found: list[dict[str, Any]]) -> Response:
    return JSONResponse(found[-1]) if found else PlainTextResponse("Not found", 404)


def _failed(payment_hash: str, reason: str) -> Response:
    return JSONResponse({"paymentHash": payment_hash, "reason": reason})
