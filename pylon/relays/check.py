"""`pylon relays check`: whether a relay really serves us, found by using it once.

Connect, answer AUTH where it is demanded, publish a small ephemeral event and read it back through a subscription;
beside that, the relay's NIP-11 document and its clock. Every step that fails is one printable sentence.
"""

from __future__ import annotations

import random
import secrets
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final

import anyio
import httpx
from websockets.exceptions import ConnectionClosed, WebSocketException

from pylon.jobs.ports import Clock
from pylon.net.urls import DialRefused, parse_target
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import ClosedMessage, EoseMessage, EventMessage, event_frame
from pylon.nostr.nip11 import MAX_DOCUMENT_BYTES, MEDIA_TYPE, BadDocument, RelayDocument, parse_relay_document
from pylon.relays.answers import Answer, Verdict
from pylon.relays.session import Heard, Session
from pylon.relays.socket import LOOPBACK, RELAY_SCHEMES, RelaySocket, describe, open_configured
from pylon.relays.state import PoolConfig, SubscriptionStatus
from pylon.text import printable

CHECK_KIND: Final = 20_190
"""The kind of the event that is published: ephemeral (NIP-01), so that no relay keeps it."""

DEFAULT_LIMIT_S: Final = 10.0

_SUBSCRIPTION: Final = "check"
_TICK_S: Final = 0.1
_OK_WAIT_S: Final = 1.0
_BURST: Final = 64
_FLUSH_BYTES: Final = 64 * 1024
_CLOSE_S: Final = 0.5


class Step(StrEnum):
    """What is tried, in this order."""

    CONNECT = "connect"
    DOCUMENT = "nip-11"
    SUBSCRIBE = "subscribe"
    AUTH = "auth"
    PUBLISH = "publish"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Fault:
    """A step that failed, in one printable sentence."""

    step: Step
    sentence: str


@dataclass(frozen=True, slots=True)
class RelayCheck:
    """What one relay did. `round_trip_ms` is from publishing an event to reading it back.

    `skew_s` is how far the relay's clock is ahead of ours, to the second; None where it tells no time.
    A missing `document` is no fault: NIP-11 is optional.
    """

    url: str
    faults: tuple[Fault, ...] = ()
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    authenticated: bool = False
    document: RelayDocument | None = None
    document_note: str = ""
    skew_s: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the relay serves us."""
        return not self.faults


async def check_relays(
    urls: Sequence[str],
    config: PoolConfig,
    *,
    key: SecretKey,
    clock: Clock,
    rng: random.Random,
    limit_s: float = DEFAULT_LIMIT_S,
) -> tuple[RelayCheck, ...]:
    """Check all relays at once, each within `limit_s`, and return the outcomes in the order of `urls`."""
    tls = None
    if any(url.lower().startswith("wss:") for url in urls):
        # Loading the certificates takes 20 ms and more: once, and beside the loop.
        tls = await anyio.to_thread.run_sync(ssl.create_default_context)
    found: dict[int, RelayCheck] = {}

    async def one(at: int, url: str) -> None:
        found[at] = await check_relay(url, config, key=key, clock=clock, rng=rng, tls=tls, limit_s=limit_s)

    async with anyio.create_task_group() as tasks:
        for at, url in enumerate(urls):
            tasks.start_soon(one, at, url)
    return tuple(found[at] for at in range(len(urls)))


async def check_relay(
    url: str,
    config: PoolConfig,
    *,
    key: SecretKey,
    clock: Clock,
    rng: random.Random,
    tls: ssl.SSLContext | None,
    limit_s: float = DEFAULT_LIMIT_S,
) -> RelayCheck:
    """Check one relay. Never raises; takes `limit_s` and little more."""
    try:
        parse_target(url, RELAY_SCHEMES)
    except DialRefused as refused:
        return RelayCheck(printable(url), (Fault(Step.CONNECT, str(refused)),))
    within = replace(config, connect_timeout_s=min(config.connect_timeout_s, limit_s), publish_timeout_s=limit_s)
    attempt = _Attempt(url, within, key, clock, rng, RelayCheck(printable(url)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt.ask_for_document, tls, limit_s)
        await attempt.use(tls, limit_s)
    return attempt.found


class Exchange:
    """Subscribe, publish, read back: what is said and heard on one connection, without the connection.

    `fault` is set, or `done`, when there is nothing more to do; `waiting_for` names the step under way.
    """

    def __init__(self, session: Session, event: Event) -> None:
        self.waiting_for = Step.SUBSCRIBE
        self.fault: Fault | None = None
        self.round_trip_ms: float | None = None
        self._session = session
        self._event = event
        self._published_at = 0.0
        self._back_at: float | None = None
        self._accepted = False
        session.subscribe(_SUBSCRIPTION, [{"kinds": [event.kind], "authors": [event.pubkey], "limit": 1}])

    @property
    def done(self) -> bool:
        """Whether the event was accepted and came back."""
        return self._accepted and self.round_trip_ms is not None

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.done or self.fault is not None

    def hear(self, heard: Heard, now: float) -> None:
        """Take what the relay said; `now` is the loop's clock in seconds."""
        match heard:
            case EoseMessage() if self.waiting_for is Step.SUBSCRIBE:
                self.waiting_for = Step.PUBLISH
                self._published_at = now
                self._session.publish(self._event.id, event_frame(self._event).encode(), now)
            case ClosedMessage(text=text):
                self.fault = self._refusal(Step.SUBSCRIBE, "the relay ended the subscription", printable(text))
            case EventMessage(event=event) if event == self._event and self._back_at is None:
                self._back_at = now
                self.round_trip_ms = round((now - self._published_at) * 1000, 1)
            case Answer(verdict=verdict, text=text) if verdict.confirms:
                self._accepted = True
                self.waiting_for = Step.READ
            case Answer(verdict=Verdict.NO_ANSWER):
                self.fault = Fault(Step.PUBLISH, "the relay did not answer the event that was published")
            case Answer(text=text):
                self.fault = self._refusal(Step.PUBLISH, "the relay refused the event", text)

    def tick(self, now: float) -> None:
        """Let time pass: older nostr-rs-relay hands ephemeral events on and answers them with nothing."""
        if self._back_at is not None and now - self._back_at >= _OK_WAIT_S and self.fault is None:
            self._accepted = True

    def late(self, limit_s: float) -> Fault:
        """Return the fault of a time limit that passed now."""
        words = {
            Step.SUBSCRIBE: "the relay did not answer the subscription",
            Step.PUBLISH: "the relay did not answer the event that was published",
            Step.READ: "the relay accepted the event and never sent it to the subscription",
        }
        return Fault(self.waiting_for, f"{words[self.waiting_for]} within {limit_s:g} s")

    def _refusal(self, step: Step, what: str, text: str) -> Fault:
        if self._session.auth_error:
            return Fault(Step.AUTH, f"the relay demands AUTH and did not take ours: {self._session.auth_error}")
        return Fault(step, f"{what}: {text or 'no reason given'}")


@dataclass(slots=True)
class _Attempt:
    url: str
    config: PoolConfig
    key: SecretKey
    clock: Clock
    rng: random.Random
    found: RelayCheck

    def note(self, **found: Any) -> None:
        self.found = replace(self.found, **found)

    def fault(self, fault: Fault) -> None:
        self.note(faults=(*self.found.faults, fault))

    # --- the websocket ----------------------------------------------------------------------------------------

    async def use(self, tls: ssl.SSLContext | None, limit_s: float) -> None:
        """Connect, publish and read back. Never raises."""
        started_at = anyio.current_time()
        try:
            with anyio.fail_after(limit_s):
                socket = await open_configured(self.url, self.config, tls)
        except (OSError, WebSocketException, DialRefused, ValueError, EOFError) as error:
            self.fault(Fault(Step.CONNECT, f"no connection: {describe(error)}"))
            return
        self.note(connect_ms=round((anyio.current_time() - started_at) * 1000, 1))
        if socket.response is not None:
            self._note_date(socket.response.headers.get("Date"))
        try:
            with anyio.move_on_after(_CLOSE_S + limit_s):
                await self._exchange(socket, started_at + limit_s, limit_s)
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await socket.close()
            socket.abort()

    async def _exchange(self, socket: RelaySocket, deadline: float, limit_s: float) -> None:
        session = Session(self.url, self.config, key=self.key, clock=self.clock, rng=self.rng)
        draft = Draft(CHECK_KIND, content=f"pylon relays check {secrets.token_hex(8)}")
        exchange = Exchange(session, draft.sign(self.key, int(self.clock())))
        try:
            with anyio.move_on_at(deadline):
                while not exchange.over:
                    await _turn(socket, session, exchange)
        except ConnectionClosed as error:
            self.fault(Fault(exchange.waiting_for, f"the connection ended: {describe(error)}"))
        else:
            if not exchange.over:
                self.fault(exchange.late(limit_s))
            elif exchange.fault is not None:
                self.fault(exchange.fault)
        self.note(authenticated=session.authenticated, round_trip_ms=exchange.round_trip_ms)

    # --- the document -----------------------------------------------------------------------------------------

    async def ask_for_document(self, tls: ssl.SSLContext | None, limit_s: float) -> None:
        """Ask for the NIP-11 document. Never raises; not having one is no fault."""
        target = parse_target(self.url, RELAY_SCHEMES)
        url = "http" + target.url.removeprefix("ws")  # wss becomes https
        try:
            with anyio.fail_after(limit_s):
                async with (
                    httpx.AsyncClient(
                        verify=tls or False, trust_env=target.host not in LOOPBACK, timeout=limit_s
                    ) as client,
                    client.stream(
                        "GET", url, headers={"Accept": MEDIA_TYPE, "Accept-Encoding": "identity"}
                    ) as response,
                ):
                    self._note_date(response.headers.get("Date"))
                    if response.status_code != httpx.codes.OK:
                        self.note(document_note=f"none (HTTP {response.status_code})")
                        return
                    self.note(document=parse_relay_document(await _read(response)))
        except BadDocument as error:
            self.note(document_note=f"unreadable: {error}")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            self.note(document_note="no answer in time" if _is_time_out(error) else "none")

    def _note_date(self, date: str | None) -> None:
        with suppress(TypeError, ValueError):
            if date is not None and self.found.skew_s is None:
                self.note(skew_s=round(parsedate_to_datetime(date).timestamp() + 0.5 - self.clock()))


async def _turn(socket: RelaySocket, session: Session, exchange: Exchange) -> None:
    """Write what is to be written, read what has arrived within a tick, let time pass."""
    socket.write_texts(session.take(_FLUSH_BYTES))
    frames: Sequence[str | bytes] = ()
    with anyio.move_on_after(_TICK_S):
        frames = await socket.receive(_BURST)
    now = anyio.current_time()
    for frame in frames:
        heard = session.receive(frame, now)
        if heard is not None and not exchange.over:
            exchange.hear(heard, now)
    for answer in session.tick(now):
        exchange.hear(answer, now)
    exchange.tick(now)
    if session.hopeless and not exchange.over:
        exchange.fault = Fault(exchange.waiting_for, "the relay sends frames that mean nothing")
    for subscription in session.subscriptions():
        if session.auth_error and subscription.status is SubscriptionStatus.CLOSED and not exchange.over:
            exchange.hear(ClosedMessage(subscription.name, subscription.detail), now)


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw(4096):
        body += chunk
        if len(body) > MAX_DOCUMENT_BYTES:
            raise BadDocument(f"larger than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


def _is_time_out(error: Exception) -> bool:
    return isinstance(error, (TimeoutError, httpx.TimeoutException))
