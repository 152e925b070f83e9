"""Requests, responses and notifications of one NWC connection, over whatever line the daemon plugs in.

An answer counts only when the wallet signed it, it names one of our requests in `e`, and it decrypts; all else is
ignored and counted. A request carries an `expiration`, so that a wallet which was away does not act on it hours
later. That does not make a time-out certain: until it expires the wallet may still act, and some wallets know no
expiration. So a changing request that may have reached a relay and got no answer stays `WalletAmbiguous`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream

from pylon.jobs.ports import (
    Clock,
    LineDown,
    RelayLine,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.encryption import BadCiphertext, Conversation, Encryption
from pylon.nostr.event import Event, verify
from pylon.nostr.messages import Filter
from pylon.nostr.nip47 import (
    INFO_KIND,
    NOTIFICATION_KIND,
    NOTIFICATION_NIP04_KIND,
    RESPONSE_KIND,
    BadReply,
    Failure,
    Info,
    Method,
    Result,
    WalletTransaction,
    WalletUri,
    read_info,
    read_notification,
    read_response,
    request_draft,
)
from pylon.tasks import beside
from pylon.wallets.nwc_answers import ConnectionRefused
from pylon.wallets.outcomes import in_doubt

EXPIRY_MARGIN_S: Final = 60
"""How much longer than we wait a request is valid: the wallet's clock is not ours."""

_INFO_WAIT_S: Final = 3.0
_RETRY_S: Final = 1.0
_MAX_NOTICES: Final = 1_024
_REMEMBERED: Final = 4_096
_NOTICE_KINDS: Final = frozenset({NOTIFICATION_KIND, NOTIFICATION_NIP04_KIND})


@dataclass(slots=True)
class _Waiter:
    """One request under way, and what became of it."""

    method: Method
    mutating: bool
    done: anyio.Event = field(default_factory=anyio.Event)
    reply: Result | Failure | None = None
    error: WalletError | None = None
    confirmed: bool = False

    def end(self, reply: Result | Failure | None = None, error: WalletError | None = None) -> None:
        if not self.done.is_set():
            self.reply, self.error = reply, error
            self.done.set()


class NwcLink:
    """One connection; an `EventSink` for what its relays bring."""

    def __init__(self, uri: WalletUri, line: RelayLine, clock: Clock, *, timeout_s: float) -> None:
        self._uri = uri
        self._line = line
        self._clock = clock
        self._timeout_s = timeout_s
        self._conversation: Conversation | None = None
        self._waiting: dict[str, _Waiter] = {}
        self._listeners: set[MemoryObjectSendStream[WalletTransaction]] = set()
        self._told: dict[str, None] = {}  # payment hashes, the newest last
        self._info_changed = anyio.Event()
        self.info: Info | None = None
        self.counters: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the line; entering needs neither relays nor wallet to be there."""
        self._conversation = await anyio.to_thread.run_sync(Conversation, self._uri.key, self._uri.wallet)
        try:
            async with self._line.running(self._filters, self), beside(self._watch):
                yield
        finally:
            self._hang_up()

    def fault(self) -> str:
        """Return why the wallet cannot be spoken with now, in one sentence; "" while it can."""
        return self._line.fault()

    # --- asking -----------------------------------------------------------------------------------------------

    async def ready(self) -> Info:
        """Return what the wallet offers, once a relay is there. Raises `WalletUnavailable`."""
        try:
            await self._line.ready(self._timeout_s)
        except LineDown as error:
            raise WalletUnavailable(str(error)) from error
        with anyio.move_on_after(min(_INFO_WAIT_S, self._timeout_s)):
            while self.info is None:
                await self._info_changed.wait()
        if self.info is None:
            raise WalletUnavailable(
                "the wallet's relays have no info event of it: it does not run, or no longer knows this connection"
            )
        return self.info

    async def ask(
        self, method: Method, params: Mapping[str, Any], *, mutating: bool = False, timeout_s: float | None = None
    ) -> Result | Failure:
        """Return the wallet's answer to one request; a `Failure` is an answer too.

        Raises `WalletUnavailable` when it certainly reached nobody (or changes nothing), `WalletAmbiguous` when a
        changing one may have been carried out, `WalletRefused` when it can never be asked.
        """
        info = await self.ready()
        if info.encryption is None:
            raise ConnectionRefused("the wallet offers no encryption that Pylon speaks (nip44_v2, nip04)")
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        event = self._request(method, params, info.encryption, wait_s)
        waiter = self._waiting[event.id] = _Waiter(method, mutating)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._publish, event, waiter)
                with anyio.move_on_after(wait_s):
                    await waiter.done.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._waiting.pop(event.id, None)
        if waiter.error is not None:
            raise waiter.error
        if waiter.reply is None:
            heard = "a relay took it" if waiter.confirmed else "no relay confirmed it"
            raise in_doubt(f"the wallet did not answer {method} within {wait_s:g} s ({heard})", mutating=mutating)
        return waiter.reply

    def _request(self, method: Method, params: Mapping[str, Any], encryption: Encryption, wait_s: float) -> Event:
        assert self._conversation is not None, "the wallet is not running"
        now = self._clock()
        try:
            draft = request_draft(
                self._conversation,
                self._uri.wallet,
                method,
                params,
                encryption=encryption,
                expires_at=math.ceil(now + wait_s + EXPIRY_MARGIN_S),
            )
        except BadCiphertext as error:
            raise WalletRefused(f"{method} cannot be asked: {error}") from error
        return draft.sign(self._uri.key, int(now))

    async def _publish(self, event: Event, waiter: _Waiter) -> None:
        try:
            waiter.confirmed = await self._line.publish(event)
        except LineDown as error:
            waiter.end(error=WalletUnavailable(str(error)))

    # --- hearing ----------------------------------------------------------------------------------------------

    async def notices(self) -> AsyncGenerator[WalletTransaction, None]:
        """Yield received payments as they are pushed, each once. Raises `WalletUnavailable` when the line breaks.

        Opening waits for the wallet's info event. A wallet that pushes nothing yields nothing.
        """
        await self.ready()
        send, receive = anyio.create_memory_object_stream[WalletTransaction](_MAX_NOTICES)
        self._listeners.add(send)
        try:
            with receive:
                async for notice in receive:
                    yield notice
        finally:
            self._listeners.discard(send)
            send.close()
        raise WalletUnavailable("the connection to the wallet's relays broke")

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Hear an event of a relay; see `EventSink`."""
        reason = self._hear(event)
        if reason is not None:
            self.counters[reason] += 1
        return reason

    def _hear(self, event: Event) -> str | None:
        if event.pubkey != self._uri.wallet:
            return "foreign-author"
        addressed = event.tag_values("p")
        if addressed and self._uri.key.public_hex not in addressed and event.kind != INFO_KIND:
            return "not-ours"
        if event.kind == RESPONSE_KIND:
            return self._hear_response(event)
        if event.kind in _NOTICE_KINDS:
            return self._hear_notice(event)
        if event.kind != INFO_KIND:
            return "not-ours"
        return self._hear_info(event)

    def _hear_info(self, event: Event) -> str | None:
        if self.info is not None and event.created_at < self.info.created_at:
            return None
        if not verify(event):
            return "bad-signature"
        self.info = read_info(event)
        self._info_changed.set()
        return None

    def _hear_response(self, event: Event) -> str | None:
        asked = next((each for each in event.tag_values("e") if each in self._waiting), None)
        if asked is None:
            return "unasked"  # a second answer, or one that came too late: look-ups tell what it told
        if not verify(event):
            return "bad-signature"
        text = self._decrypt(event)
        if text is None:
            return "undecryptable"
        waiter = self._waiting.pop(asked)
        try:
            waiter.end(read_response(text, waiter.method))
        except BadReply as error:
            sentence = f"the wallet answered {waiter.method} with {error}"
            waiter.end(error=in_doubt(sentence, mutating=waiter.mutating))
        return None

    def _hear_notice(self, event: Event) -> str | None:
        if not self._listeners:
            return None  # whoever listens next looks up what was missed
        if not verify(event):
            return "bad-signature"
        text = self._decrypt(event)
        if text is None:
            return "undecryptable"
        try:
            kind, notice = read_notification(text)
        except BadReply:
            return "bad-notice"
        if kind == "payment_received" and notice is not None and notice.incoming is not False:
            self._tell(notice)
        return None

    def _tell(self, notice: WalletTransaction) -> None:
        if notice.payment_hash in self._told:
            return  # from another relay, or in the other encryption
        self._told[notice.payment_hash] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        for listener in tuple(self._listeners):
            try:
                listener.send_nowait(notice)
            except (anyio.WouldBlock, anyio.BrokenResourceError):
                listener.close()  # it is far behind: it looks up what it missed

    async def _watch(self) -> None:
        """End what listens whenever the line breaks, so that it looks up what it missed. Runs until cancelled."""
        while True:
            try:
                await self._line.ready(self._timeout_s)
            except LineDown:
                await anyio.sleep(_RETRY_S)
                continue
            await self._line.broken()
            self._hang_up()

    def _decrypt(self, event: Event) -> str | None:
        assert self._conversation is not None
        try:
            return self._conversation.decrypt(event.content)
        except BadCiphertext:
            return None

    def _hang_up(self) -> None:
        for listener in tuple(self._listeners):
            listener.close()

    def _filters(self, since: int) -> Sequence[Filter]:
        wallet = [self._uri.wallet]
        # Some services name no client in their responses (@getalby/sdk's does not): these are asked for by author
        # alone. One with the same key for all of its clients sends us theirs too, dropped before they cost a check.
        responses: Filter = {"kinds": [RESPONSE_KIND], "authors": wallet, "since": since}
        notices: Filter = {
            "kinds": sorted(_NOTICE_KINDS),
            "authors": wallet,
            "#p": [self._uri.key.public_hex],
            "since": since,
        }
        return [{"kinds": [INFO_KIND], "authors": wallet, "limit": 1}, responses, notices]
