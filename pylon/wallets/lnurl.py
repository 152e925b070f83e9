"""The wallet of an operator who has a lightning address and nothing else.

An invoice comes by LNURL-pay, with a zap request of ours where the address takes one. That it was paid is learnt
from the zap receipt, which the address's host publishes on our relays, or at the `verify` URL (LUD-21) that came
with the invoice. An address with neither is refused: it would take the money and say nothing. It cannot pay, tell a
balance or list. How long an invoice lasts and what it says is the host's choice, so our own id goes into the zap
request and the comment, and `find` looks into a file of ours. An invoice whose answer was lost is never published,
so nobody pays it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream

from pylon.jobs.ports import (
    Clock,
    Invoice,
    InvoiceRequest,
    LineDown,
    Payment,
    PaymentState,
    Received,
    RelayLine,
    Transaction,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)
from pylon.net.web import Web
from pylon.nostr.bolt11 import BadInvoice, proves
from pylon.nostr.event import Draft, Event
from pylon.nostr.lnurl import InvoiceAnswer, LightningAddress, PayOffer, description_hash, encode_lnurl
from pylon.nostr.nip57 import zap_request_draft
from pylon.tasks import beside
from pylon.wallets.lnurl_file import LnurlFile, Remembered
from pylon.wallets.lnurl_pay import AddressHosts, Failing, HostFault, read_beside
from pylon.wallets.lnurl_receipts import ZapReceipts

OFFER_FRESH_S: Final = 60
RETRY_S: Final = 15
RETRY_MUTE_S: Final = 600
"""Each try of an address that told us nothing costs its host an invoice that nobody wants."""

PAGE: Final = 500

LATE_S: Final = 7 * 86_400
"""How long after its expiry an invoice's receipt is still looked for."""

_LINE_RETRY_S: Final = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LnurlConfig:
    """The address, the key that is zapped (hex), and the relays that receipts are asked to be published on."""

    address: LightningAddress
    pubkey: str
    relays: tuple[str, ...]
    network: str
    file: Path
    timeout_s: float = 15.0


class LnurlWallet:
    """A `Wallet` behind a lightning address. `sign` makes our zap requests, `line` brings the receipts."""

    name: Final = "lnurl"

    def __init__(
        self, config: LnurlConfig, web: Web, line: RelayLine, sign: Callable[[Draft], Event], clock: Clock
    ) -> None:
        self._config = config
        self._hosts = AddressHosts(web)
        self._line = line
        self._sign = sign
        self._clock = clock
        self._file: LnurlFile | None = None
        self._disk = anyio.Lock()
        self._offer: PayOffer | None = None
        self._fault = "not asked yet"
        self._mute: bool | None = None  # whether it offers neither receipts nor verify; None: not known yet
        self._fresh_until = 0.0
        self._receipts = ZapReceipts(config.pubkey, config.network, self._settle)
        self._listeners: set[MemoryObjectSendStream[Received]] = set()

    @property
    def counters(self) -> Counter[str]:
        """Receipts that were for an open invoice and did not count, by reason."""
        return self._receipts.counters

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the file and the connections to the relays; see `Wallet`."""
        now = int(self._clock())
        try:
            file = await anyio.to_thread.run_sync(LnurlFile, self._config.file, now)
        except (OSError, sqlite3.Error) as error:
            raise WalletUnavailable(f"the wallet's file {self._config.file} cannot be used: {error}") from error
        self._file = file
        try:
            rows = await self._on_disk(lambda it: it.awaiting_receipt(now - LATE_S))
            self._receipts.expect(*rows)
            line = self._line.running(self._receipts.filters, self._receipts)
            async with line, beside(self._receipts.run), beside(self._watch_line):
                yield
        finally:
            self._file = None
            file.close()

    def state(self) -> WalletState:
        """Return what the last exchange with the address showed."""
        pushes = self._offer is not None and self._offer.nostr_pubkey is not None
        abilities = frozenset({WalletAbility.PUSH}) if pushes else frozenset()
        ready = not self._fault
        return WalletState(self.name, self.name, ready, self._fault, self._config.network, abilities)

    async def check(self) -> WalletState:
        """Ask what the address offers, unless that is known and fresh; never raises, a fault becomes the state."""
        if self._clock() >= self._fresh_until:
            with suppress(WalletError):
                await self._ask_offer()
        return self.state()

    # --- invoices ---------------------------------------------------------------------------------------------

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Get an invoice from the address and remember it; its expiry and description are the host's choice."""
        if request.description_hash is not None:
            raise WalletRefused("a lightning address makes no invoice for a description hash of ours")
        offer = self._offer
        if offer is None or self._fault or self._clock() >= self._fresh_until:
            offer = await self._ask_offer()
        row = await self._make(offer, request)
        if not await self._on_disk(lambda it: it.add(row)):
            raise WalletRefused(f"{self._config.address} gave an invoice that it gave before")
        self._receipts.expect(row)
        return self._invoice(row)

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return the invoices made under `own_id`: all whose answer reached us, and no others can be paid."""
        return tuple(map(self._invoice, await self._on_disk(lambda it: it.by_own_id(own_id))))

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return an invoice as its host or its receipt tells; None when we never got it.

        Raises `WalletUnavailable` when neither can be asked: nothing is known then.
        """
        row = await self._on_disk(lambda it: it.get(payment_hash))
        if row is None or row.settled_at is not None:
            return None if row is None else self._invoice(row)
        fault: WalletError | None = None
        known = True
        if row.verify_url is not None:
            try:
                known = await self._verify(row, row.verify_url)
            except WalletUnavailable as error:
                fault = error
        if row.zap_author is not None:
            try:
                await self._line.ready(self._config.timeout_s)
            except LineDown as error:
                if row.verify_url is None:
                    fault = WalletUnavailable(f"zap receipts: {error}")
            await self._receipts.work_off()
        row = await self._on_disk(lambda it: it.get(payment_hash)) or row
        if row.settled_at is None and fault is not None:
            raise fault
        return self._invoice(row, PaymentState.PENDING if known else PaymentState.UNKNOWN)

    async def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield the invoices that we got from `since` on, with what is known of them; nobody is asked."""
        listed = await self._on_disk(lambda it: it.since(since))
        for start in range(0, len(listed), PAGE):
            yield tuple(map(self._invoice, listed[start : start + PAGE]))

    async def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as their zap receipts arrive; see `Wallet`."""
        try:
            await self._line.ready(self._config.timeout_s)
        except LineDown as error:
            raise WalletUnavailable(f"zap receipts: {error}") from error
        send, receive = anyio.create_memory_object_stream[Received](inf)
        self._listeners.add(send)
        try:
            async with receive:
                async for received in receive:
                    yield received
        finally:
            self._listeners.discard(send)
            send.close()
        raise WalletUnavailable(f"zap receipts: {self._line.fault() or 'the relays were away'}")

    # --- what an address cannot do ----------------------------------------------------------------------------

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Refuse: an address only receives."""
        raise WalletRefused("a lightning address only receives: pay from a wallet of kind nwc, lnbits or phoenixd")

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return None: nothing was ever paid."""
        return None

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Refuse: the host tells of no others than we ask about."""
        raise WalletRefused("a lightning address cannot list what it received")

    async def balance_msats(self) -> int:
        """Refuse: the host does not tell."""
        raise WalletRefused("a lightning address does not tell its balance")

    # --- the address's host -----------------------------------------------------------------------------------

    async def _ask_offer(self) -> PayOffer:
        """Return the offer of an address that can tell of payments. Raises `WalletError`, noted in the state."""
        try:
            offer = await self._hosts.offer(self._config.address)
            if offer.nostr_pubkey is None and self._mute is not False:
                trial = await self._hosts.invoice(offer, offer.min_msats)
                self._mute = trial.verify is None
            if offer.nostr_pubkey is None and self._mute:
                self._note(self._mute_words(), RETRY_MUTE_S)
                raise WalletRefused(self._mute_words())
        except HostFault as fault:
            self._note(str(fault), RETRY_S)
            kind: type[WalletError] = WalletRefused if fault.failing is Failing.FINAL else WalletUnavailable
            raise kind(str(fault)) from fault
        self._offer = offer
        self._note("", OFFER_FRESH_S)
        self._receipts.forget_expired(int(self._clock()) - LATE_S)
        return offer

    async def _make(self, offer: PayOffer, request: InvoiceRequest) -> Remembered:
        zap = self._zap_request(offer, request)
        zap_json = "" if zap is None else zap.to_json()
        lnurl = encode_lnurl(self._config.address.url)
        try:
            answer = await self._hosts.invoice(
                offer, request.amount_msats, comment=request.description, zap_request_json=zap_json, lnurl=lnurl
            )
        except HostFault as fault:
            raise self._not_made(fault) from fault
        return await self._read(offer, request, answer, zap, zap_json)

    async def _read(
        self, offer: PayOffer, request: InvoiceRequest, answer: InvoiceAnswer, zap: Event | None, zap_json: str
    ) -> Remembered:
        try:
            facts = await read_beside(answer.bolt11)
        except BadInvoice as error:
            raise WalletAmbiguous(f"{self._config.address} gave no readable invoice: {error}") from error
        if facts.amount_msats != request.amount_msats:
            asked = f"{facts.amount_msats} msats where {request.amount_msats} msats were wanted"
            raise WalletRefused(f"{self._config.address} gave an invoice over {asked}")
        # Only what the invoice commits to can be proved by a receipt: a host may have passed the zap request over.
        zapped = zap is not None and facts.description_hash == description_hash(zap_json)
        if not zapped and answer.verify is None:
            self._mute = True
            self._note(self._mute_words(), RETRY_MUTE_S)
            raise WalletRefused(self._mute_words())
        return Remembered(
            payment_hash=facts.payment_hash,
            own_id=request.own_id,
            bolt11=answer.bolt11.lower(),
            amount_msats=request.amount_msats,
            created_at=facts.created_at,
            expires_at=facts.expires_at,
            verify_url=answer.verify,
            zap_request_id=zap.id if zapped and zap is not None else None,
            zap_author=offer.nostr_pubkey if zapped else None,
        )

    def _zap_request(self, offer: PayOffer, request: InvoiceRequest) -> Event | None:
        if offer.nostr_pubkey is None:
            return None
        draft = zap_request_draft(
            recipient=self._config.pubkey,
            relays=self._config.relays,
            amount_msats=request.amount_msats,
            lnurl=encode_lnurl(self._config.address.url),
            content=request.description,
        )
        return self._sign(draft)

    def _not_made(self, fault: HostFault) -> WalletError:
        match fault.failing:
            case Failing.FINAL | Failing.REFUSED:
                return WalletRefused(str(fault))
            case Failing.AWAY:
                self._note(str(fault), RETRY_S)
                return WalletUnavailable(str(fault))
            case Failing.UNCLEAR:
                self._note(str(fault), RETRY_S)
                return WalletAmbiguous(f"{fault}; it may have made an invoice")

    async def _verify(self, row: Remembered, url: str) -> bool:
        """Ask the host and note a payment; False when it does not know the invoice. Raises `WalletUnavailable`."""
        try:
            answer = await self._hosts.verify(url)
        except HostFault as fault:
            raise WalletUnavailable(str(fault)) from fault
        if answer is None or not answer.settled:
            return answer is not None
        other = answer.bolt11 is not None and answer.bolt11.lower() != row.bolt11
        preimage = answer.preimage
        if other or (preimage and not proves(preimage, row.payment_hash)):
            raise WalletUnavailable(f"{self._config.address} speaks of another invoice than it was asked about")
        await self._settle(row, int(self._clock()))
        return True

    def _mute_words(self) -> str:
        what = f"{self._config.address}: this address cannot tell whether an invoice was paid"
        return f"{what} (neither zap receipts nor verify): use nwc, lnbits or phoenixd"

    def _note(self, fault: str, fresh_s: float) -> None:
        self._fault = fault
        self._fresh_until = self._clock() + fresh_s

    # --- settlements ------------------------------------------------------------------------------------------

    async def _watch_line(self) -> None:
        """End the listening of everyone when the relays go: receipts may have been missed."""
        while True:
            await self._line.broken()
            for listener in tuple(self._listeners):
                listener.close()
            with suppress(LineDown):
                await self._line.ready(self._config.timeout_s)
                continue
            await anyio.sleep(_LINE_RETRY_S)

    async def _settle(self, row: Remembered, settled_at: int) -> None:
        settled_at = min(settled_at, int(self._clock()))
        await self._on_disk(lambda it: it.settle(row.payment_hash, settled_at))
        self._receipts.forget(row)
        for listener in tuple(self._listeners):
            listener.send_nowait(Received(row.payment_hash, row.amount_msats, settled_at))

    # --- the file ---------------------------------------------------------------------------------------------

    async def _on_disk(self, work: Callable[[LnurlFile], _T]) -> _T:
        file = self._file
        if file is None:
            raise RuntimeError("the wallet is used outside of its running() block")
        async with self._disk:
            try:
                return await anyio.to_thread.run_sync(work, file)
            except sqlite3.Error as error:
                raise WalletUnavailable(f"the wallet's file {self._config.file} fails: {error}") from error

    def _invoice(self, row: Remembered, unpaid: PaymentState = PaymentState.PENDING) -> Invoice:
        paid = row.settled_at is not None
        if not paid and unpaid is PaymentState.PENDING and self._clock() >= row.expires_at:
            unpaid = PaymentState.EXPIRED
        return Invoice(
            own_id=row.own_id,
            payment_hash=row.payment_hash,
            bolt11=row.bolt11,
            amount_msats=row.amount_msats,
            created_at=row.created_at,
            expires_at=row.expires_at,
            state=PaymentState.SETTLED if paid else unpaid,
            received_msats=row.amount_msats if paid else 0,
            settled_at=row.settled_at,
        )
