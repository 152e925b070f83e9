"""A wallet service of NIP-47 over a real relay: a small ledger with real invoices, and every awkward manner.

    async with nwc_service(relay.url) as service:
        service.manner.silent = {"make_invoice"}
        ... a wallet on `service.uri` ...
        await service.receive(bolt11)

`stop()` and `start()` are the service's own; ledger and key stay.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
from anyio.abc import TaskGroup, TaskStatus

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.encryption import Conversation, Encryption
from pylon.nostr.event import Draft as EventDraft
from pylon.nostr.event import Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import event_frame
from pylon.relays.connection import Relay
from pylon.relays.pool import RelayPool
from pylon.relays.state import PoolConfig
from pylon.wallets.fake_server.node import Draft, Node

METHODS = ("get_info", "get_balance", "make_invoice", "lookup_invoice", "list_transactions", "pay_invoice")
PUSHED = ("payment_received", "payment_sent")
FEE_MSATS = 1_000


@dataclass
class Manner:
    """How the service behaves; the defaults are those of a good one. Methods by their names."""

    encryption: str | None = "nip44_v2 nip04"  # the info event's tag, None for none
    notifications: bool = True
    methods: tuple[str, ...] = METHODS
    states: bool = True  # else a `settled_at` alone tells what is settled
    leaks_preimages: bool = False  # of invoices that nobody has paid
    hashes_descriptions: bool = False  # a description's hash is all that is kept of it
    keeps_metadata: bool = True
    pages: int = 7  # the most transactions in one page
    knows_offset: bool = True
    names_client: bool = True  # in the `p` of its responses
    answers_twice: bool = False
    first_by_stranger: bool = False  # another key answers first, and a wrong signature second
    terse_notices: bool = False  # neither state nor settled_at in them
    gives_proof: bool = True  # a preimage for what it paid
    silent: set[str] = field(default_factory=set)  # does not act and does not answer
    mute: set[str] = field(default_factory=set)  # acts and does not answer
    slow_s: dict[str, float] = field(default_factory=dict)  # acts and answers late
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)  # code and message instead of acting
    late_errors: dict[str, tuple[str, str]] = field(default_factory=dict)  # the same after acting
    nonsense: dict[str, str] = field(default_factory=dict)  # the plain text of the answer


@dataclass
class Entry:
    """A line of the ledger."""

    incoming: bool
    bolt11: str
    payment_hash: str
    preimage: str
    amount_msats: int
    created_at: int
    expires_at: int
    description: str
    description_hash: str
    metadata: Any
    fees_msats: int = 0
    state: str = "pending"
    settled_at: int | None = None


class Refusal(Exception):
    """The service says no: a code and a message."""


class NwcService:
    """One wallet, one connection to it."""

    def __init__(self, *urls: str) -> None:
        self.manner = Manner()
        self.key = SecretKey.generate()
        self.client = SecretKey.generate()
        self.balance_msats = 1_000_000
        self.entries: list[Entry] = []
        self.preimages: dict[str, str] = {}  # of invoices elsewhere that can be paid
        self.asked: Counter[str] = Counter()
        self.requests: list[Mapping[str, Any]] = []
        self.encryptions: set[Encryption] = set()
        self.expired = 0
        self._urls = urls
        self._node = Node(secrets.token_hex(32))
        self._elsewhere = Node(secrets.token_hex(32))
        self._stranger = SecretKey.generate()
        self._conversation = Conversation(self.key, self.client.public_hex)
        self._group: TaskGroup | None = None
        self._scope: anyio.CancelScope | None = None
        self._stopped = anyio.Event()
        self._pool: RelayPool | None = None
        self._seen: set[str] = set()
        self._heard = anyio.Event()

    @property
    def uri(self) -> str:
        """The connection as the wallet's owner copies it."""
        relays = "&".join(f"relay={url}" for url in self._urls)
        return f"nostr+walletconnect://{self.key.public_hex}?{relays}&secret={self.client.reveal_hex()}"

    # --- its life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, leave the info event and listen."""
        config = PoolConfig(urls=self._urls, backoff_min_s=0.02, backoff_max_s=0.1)
        pool = RelayPool(config, key=self.key, sink=self, clock=time.time, rng=random.Random(3))
        wanted = [{"kinds": [23194], "#p": [self.key.public_hex]}]
        pool.subscribe("requests", lambda since: wanted)
        assert self._group is not None
        self._stopped = anyio.Event()
        self._pool = pool
        self._scope = await self._group.start(self._run, pool)
        with anyio.fail_after(10):
            await pool.wait_caught_up("requests", len(self._urls))
        await self.announce()

    async def stop(self) -> None:
        """Go away without a word."""
        if self._scope is not None:
            self._scope.cancel()
            await self._stopped.wait()
            self._scope = self._pool = None

    async def _run(
        self, pool: RelayPool, *, task_status: TaskStatus[anyio.CancelScope] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        async with anyio.create_task_group() as self._tasks:
            task_status.started(self._tasks.cancel_scope)
            await pool.run()
        self._stopped.set()

    async def announce(self) -> None:
        """Publish the info event of the manner of now."""
        tags: list[tuple[str, ...]] = []
        if self.manner.encryption is not None:
            tags.append(("encryption", self.manner.encryption))
        if self.manner.notifications:
            tags.append(("notifications", " ".join(PUSHED)))
        self._send(EventDraft(13194, " ".join(self.manner.methods), tuple(tags)))

    async def until_asked(self, method: str, count: int = 1) -> None:
        """Wait until a method was asked for so many times."""
        with anyio.fail_after(10):
            while self.asked[method] < count:
                self._heard = anyio.Event()
                await self._heard.wait()

    # --- money ------------------------------------------------------------------------------------------------

    async def receive(self, bolt11: str) -> str:
        """Have somebody pay one of its invoices, tell it and return the preimage."""
        entry = next(each for each in self.entries if each.incoming and each.bolt11 == bolt11)
        assert entry.state == "pending", "an invoice is paid once"
        entry.state, entry.settled_at = "settled", int(time.time())
        self.balance_msats += entry.amount_msats
        self.notify(entry)
        return entry.preimage

    def notify(self, entry: Entry) -> None:
        """Push what happened, in both encryptions, to whoever listens."""
        if not self.manner.notifications or self._pool is None:
            return
        told = self._tell(entry)
        if self.manner.terse_notices:
            told = {name: value for name, value in told.items() if name not in ("state", "settled_at")}
        kind = "payment_received" if entry.incoming else "payment_sent"
        text = orjson.dumps({"notification_type": kind, "notification": told}).decode()
        for number, scheme in ((23197, Encryption.NIP44), (23196, Encryption.NIP04)):
            if scheme.value in (self.manner.encryption or "nip04"):
                content = self._conversation.encrypt(text, scheme)
                self._send(EventDraft(number, content, (("p", self.client.public_hex),)))

    def invoice_elsewhere(self, amount_msats: int = 21_000, *, expiry_s: int = 600) -> str:
        """Return an invoice of another node, which this wallet can pay."""
        signed = self._elsewhere.sign(Draft("x", amount_msats, expiry_s, "elsewhere", None), int(time.time()))
        self.preimages[signed.payment_hash] = signed.preimage
        return signed.bolt11

    def sent(self) -> list[Entry]:
        """Return what was paid."""
        return [each for each in self.entries if not each.incoming and each.state == "settled"]

    # --- requests ---------------------------------------------------------------------------------------------

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take a request from a relay."""
        if event.id in self._seen or event.pubkey != self.client.public_hex or not verify(event):
            return "unwanted"
        self._seen.add(event.id)
        if int(event.tag_values("expiration")[0]) < time.time():
            self.expired += 1
            return "expired"
        scheme = Encryption.NIP04 if event.tag("encryption") is None else Encryption.NIP44
        request = orjson.loads(self._conversation.decrypt(event.content))
        assert ("?iv=" in event.content) == (scheme is Encryption.NIP04)
        self.encryptions.add(scheme)
        self.requests.append(request)
        self._tasks.start_soon(self._serve, event, request, scheme)
        return None

    async def _serve(self, event: Event, request: Mapping[str, Any], scheme: Encryption) -> None:
        method, manner = request["method"], self.manner
        answer = self._act(method, request["params"]) if method not in manner.silent else None
        self.asked[method] += 1
        self._heard.set()
        if answer is None or method in manner.mute:
            return
        await anyio.sleep(manner.slow_s.get(method, 0.0))
        text = manner.nonsense.get(method) or orjson.dumps({"result_type": method, **answer}).decode()
        whose = (("p", self.client.public_hex),) if manner.names_client else ()
        draft = EventDraft(23195, self._conversation.encrypt(text, scheme), (*whose, ("e", event.id)))
        if manner.first_by_stranger:
            self._send(draft, self._stranger)
            lie = orjson.dumps({"result_type": method, "result": {"balance": 1}}).decode()
            self._send(
                EventDraft(
                    23195,
                    self._conversation.encrypt(lie, scheme),
                    (("p", self.client.public_hex), ("e", "00" * 32)),
                )
            )
            self._send(EventDraft(23195, "not encrypted at all", draft.tags))
        self._send(draft)
        if manner.answers_twice:
            self._send(EventDraft(23195, self._conversation.encrypt(text, scheme), draft.tags))

    def _act(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if method in self.manner.errors:
                raise Refusal(*self.manner.errors[method])
            result = getattr(self, f"_{method}")(params)
            if method in self.manner.late_errors:
                raise Refusal(*self.manner.late_errors[method])
        except Refusal as refusal:
            return {"error": {"code": refusal.args[0], "message": refusal.args[1]}, "result": None}
        return {"result": result, "error": None}

    def _get_info(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"alias": "test", "network": "regtest", "methods": list(self.manner.methods)}

    def _get_balance(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"balance": self.balance_msats}

    def _make_invoice(self, params: Mapping[str, Any]) -> dict[str, Any]:
        now, words = int(time.time()), params.get("description", "")
        hashed = params.get("description_hash")
        if self.manner.hashes_descriptions and words:
            words, hashed = "", hashlib.sha256(words.encode()).hexdigest()
        signed = self._node.sign(Draft("", params["amount"], params["expiry"], words, hashed), now)
        metadata = params.get("metadata") if self.manner.keeps_metadata else None
        amount_msats, ends_at = params["amount"], now + params["expiry"]
        entry = Entry(
            True, signed.bolt11, signed.payment_hash, signed.preimage, amount_msats, now, ends_at, words,
            hashed or "", metadata,
        )  # fmt: skip
        self.entries.append(entry)
        return self._tell(entry)

    def _lookup_invoice(self, params: Mapping[str, Any]) -> dict[str, Any]:
        for entry in self.entries:
            if entry.payment_hash == params["payment_hash"]:
                return self._tell(entry)
        raise Refusal("NOT_FOUND", "no such invoice")

    def _list_transactions(self, params: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {"incoming": (True,), "outgoing": (False,)}.get(params.get("type", ""), (True, False))
        found = [
            self._tell(each)
            for each in reversed(self.entries)
            if each.incoming in wanted and each.created_at >= params["from"]
            and (params.get("unpaid") or each.state == "settled")
        ]  # fmt: skip
        offset = params["offset"] if self.manner.knows_offset else 0
        return {"transactions": found[offset : offset + min(params["limit"], self.manner.pages)]}

    def _pay_invoice(self, params: Mapping[str, Any]) -> dict[str, Any]:
        facts = read_invoice(params["invoice"])
        if any(each.payment_hash == facts.payment_hash and not each.incoming for each in self.entries):
            raise Refusal("PAYMENT_FAILED", "already paid")
        assert facts.amount_msats is not None
        if self.balance_msats < facts.amount_msats + FEE_MSATS:
            raise Refusal("INSUFFICIENT_BALANCE", "not enough")
        own = next((each for each in self.entries if each.payment_hash == facts.payment_hash), None)
        preimage = own.preimage if own is not None else self.preimages[facts.payment_hash]
        now = int(time.time())
        entry = Entry(
            False, params["invoice"], facts.payment_hash, preimage, facts.amount_msats, now, facts.expires_at,
            facts.description or "", "", None, FEE_MSATS, "settled", now,
        )  # fmt: skip
        self.entries.append(entry)
        self.balance_msats -= facts.amount_msats + FEE_MSATS
        if own is not None:
            own.state, own.settled_at = "settled", now
            self.balance_msats += own.amount_msats
        self.notify(entry)
        return {"preimage": preimage if self.manner.gives_proof else "", "fees_paid": FEE_MSATS}

    def _tell(self, entry: Entry) -> dict[str, Any]:
        settled = entry.state == "settled"
        told: dict[str, Any] = {
            "type": "incoming" if entry.incoming else "outgoing",
            "invoice": entry.bolt11,
            "description": entry.description or None,
            "description_hash": entry.description_hash,
            "preimage": entry.preimage if settled or self.manner.leaks_preimages else "",
            "payment_hash": entry.payment_hash,
            "amount": entry.amount_msats,
            "fees_paid": entry.fees_msats,
            "created_at": entry.created_at,
            "expires_at": entry.expires_at,
            "settled_at": entry.settled_at,
            "metadata": entry.metadata,
        }
        return {**told, "state": entry.state} if self.manner.states else told

    def _send(self, draft: EventDraft, key: SecretKey | None = None) -> None:
        assert self._pool is not None, "the service is stopped"
        event = draft.sign(key or self.key, int(time.time()))
        for url in self._pool.configured:
            relay = self._pool.outlet(url)
            assert isinstance(relay, Relay)
            relay.publish(event.id, event_frame(event).encode())


@asynccontextmanager
async def nwc_service(*urls: str, manner: Manner | None = None) -> AsyncIterator[NwcService]:
    """Run a service on these relays until the block ends."""
    service = NwcService(*urls)
    service.manner = manner or service.manner
    async with anyio.create_task_group() as service._group:
        await service.start()
        yield service
        await service.stop()
