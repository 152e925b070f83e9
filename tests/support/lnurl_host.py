"""The host of a lightning address, in the test's process: what it offers and answers is the test's to say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream

from pylon.nostr.event import Draft, Event, parse_event
from pylon.nostr.keys import SecretKey
from pylon.nostr.lnurl import description_hash
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND
from tests.support.lnurl_node import make_invoice

HOST_KEY = SecretKey(b"\x31" * 32)
METADATA = json.dumps([["text/plain", "Pays the tests"]])
Answer = tuple[int, Any]
Maker = Callable[[int, str | None], Awaitable[str]]


async def regtest_invoice(amount_msats: int, hashed: str | None) -> str:
    return make_invoice(amount_msats, description_hash=hashed, description="").bolt11


@dataclass
class LnurlHost:
    """`zaps` and `verifies` are what it offers; `answers` replaces what a path answers, `breaks` hangs up there."""

    port: int = 0
    zaps: bool = False
    verifies: bool = False
    hashes: bool = True
    make: Maker = regtest_invoice
    paid: Callable[[str], Awaitable[bool]] | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    breaks: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    invoices: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    zap_requests: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"pylon@127.0.0.1:{self.port}"

    def count(self, path: str) -> int:
        return self.asked.count(path)

    def receipt(self, bolt11: str, key: SecretKey = HOST_KEY) -> Event:
        """Return the zap receipt for an invoice of ours."""
        text = self.zap_requests[bolt11]
        request = parse_event(json.loads(text))
        tags = (("p", *request.tag_values("p")), ("bolt11", bolt11), ("description", text), ("P", request.pubkey))
        return Draft(ZAP_RECEIPT_KIND, "", tags).sign(key, request.created_at + 1)

    async def answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        if path in self.answers:
            return self.answers[path]
        base = f"http://127.0.0.1:{self.port}"
        if path == "/.well-known/lnurlp/pylon":
            zaps = {"allowsNostr": True, "nostrPubkey": HOST_KEY.public_hex} if self.zaps else {}
            offer = {"tag": "payRequest", "callback": f"{base}/cb", "metadata": METADATA, "commentAllowed": 100}
            return 200, {**offer, "minSendable": 1_000, "maxSendable": 10_000_000, **zaps}
        if path == "/cb":
            request = query.get("nostr", [""])[0]
            bolt11 = await self.make(
                int(query["amount"][0]), description_hash(request or METADATA) if self.hashes else None
            )
            self.invoices.append(bolt11)
            self.comments += query.get("comment", [])
            self.zap_requests[bolt11] = request
            name = hashlib.sha256(bolt11.encode()).hexdigest()
            return 200, {"pr": bolt11, "routes": []} | (
                {"verify": f"{base}/verify/{name}"} if self.verifies else {}
            )
        if path.startswith("/verify/"):
            for bolt11 in self.invoices:
                if hashlib.sha256(bolt11.encode()).hexdigest() == path.removeprefix("/verify/"):
                    paid = bolt11 in self.settled if self.paid is None else await self.paid(bolt11)
                    return 200, {"status": "OK", "settled": paid, "preimage": None, "pr": bolt11}
            return 200, {"status": "ERROR", "reason": "Not found"}
        return 404, {"status": "ERROR", "reason": "no such page"}

    async def serve(self, stream: SocketStream) -> None:
        try:
            async with stream:
                raw = b""
                while b"\r\n\r\n" not in raw:
                    raw += await stream.receive()
                parts = urlsplit(raw.split(b" ", 2)[1].decode())
                self.asked.append("/verify" if parts.path.startswith("/verify/") else parts.path)
                if self.asked[-1] in self.breaks:
                    return
                status, value = await self.answer(parts.path, parse_qs(parts.query))
                body = json.dumps(value).encode()
                head = (
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                await stream.send(head.encode() + body)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            return


@asynccontextmanager
async def lnurl_host(**options: Any) -> AsyncIterator[LnurlHost]:
    """Run a host until the block ends."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    served = LnurlHost(port=listener.extra(SocketAttribute.local_port), **options)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, served.serve)
        yield served
        tasks.cancel_scope.cancel()
