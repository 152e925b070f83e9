"""ACINQ's phoenixd over its HTTP API: form-encoded calls, basic authentication, whole sats, push by a websocket.

The server pays an invoice again that it is paying already and knows no id of ours for payments, so `pay` asks it
by payment hash before and after. It counts what came in after its fees for liquidity and cuts most amounts to whole
sats; what the customer paid and what left the wallet are worked out from that in `pylon.wallets.phoenixd_wire`.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import httpx

from pylon.jobs.ports import (
    Clock,
    Invoice,
    InvoiceRequest,
    Payment,
    PaymentState,
    Received,
    Transaction,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)
from pylon.nostr.event import is_hex
from pylon.wallets import phoenixd_wire as wire
from pylon.wallets.answers import BadAnswer
from pylon.wallets.http import TokenRefused, WalletHttp
from pylon.wallets.outcomes import Health, read_payable, settlement_of
from pylon.wallets.websocket import messages, websocket_url

PAGE: Final = 500
MAX_LISTED: Final = 100_000
MAX_TRANSIT_S: Final = 60.0
"""How long a payment may be on its way to the server before the server shows it in its list."""

_LABEL: Final = "phoenixd"
_ABILITIES: Final = frozenset(
    {WalletAbility.PUSH, WalletAbility.BALANCE, WalletAbility.LIST, WalletAbility.DESCRIPTION_HASH}
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PhoenixdConfig:
    """Where phoenixd listens, one of its two passwords, and how long a call may take.

    Raises `ValueError` with one sentence, which never repeats the password.
    """

    url: str
    password: str = field(repr=False)
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        if not self.password or not self.password.isascii() or not self.password.isprintable():
            raise ValueError("phoenixd's password is printable ASCII: http-password of its phoenix.conf")
        if not self.timeout_s > 0:
            raise ValueError("phoenixd's timeout_s is above 0")

    @property
    def authorization(self) -> str:
        """The header's value: basic authentication without a user name."""
        return f"Basic {base64.b64encode(f':{self.password}'.encode()).decode()}"


class PhoenixdWallet:
    """A `Wallet` in a phoenixd. Whether its password may pay is found out by the first `check`."""

    name: Final = "phoenixd"

    def __init__(self, config: PhoenixdConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._http = WalletHttp(
            label=_LABEL,
            url=config.url,
            token=config.password,
            timeout_s=config.timeout_s,
            authorization=config.authorization,
        )
        self._health = Health(clock)
        self._network = ""
        self._may_pay: bool | None = None
        self._sent: dict[str, float] = {}

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the wallet's connections; see `Wallet`."""
        return self._http.running()

    def state(self) -> WalletState:
        """Return the outcome of the last call; a refusal for a reason other than the password is an answer too."""
        detail = self._health.detail()
        paying = {WalletAbility.PAY} if self._may_pay else set()
        return WalletState(
            name=self.name,
            kind=self.name,
            ready=not detail,
            detail=detail,
            network=self._network,
            abilities=_ABILITIES | paying,
        )

    async def check(self) -> WalletState:
        """Ask for the node's chain, and once whether the password may pay; never raises."""
        try:
            self._network = await self._ask("GET", "/getinfo", wire.network)
            if self._may_pay is None:
                await self._try_paying_nothing()
        except WalletError:
            return self.state()
        return self.state()

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Make an invoice over whole sats. Not idempotent: after `WalletAmbiguous`, `find` tells what was made."""
        amount_sats, rest = divmod(request.amount_msats, 1000)
        if rest:
            raise WalletRefused(
                f"phoenixd makes invoices over whole sats only, not over {request.amount_msats} msats"
            )
        form = {
            "amountSat": str(amount_sats),
            "expirySeconds": str(request.expiry_s),
            "externalId": request.own_id,
        }
        if request.description_hash is None:
            form["description"] = request.description
        else:
            form["descriptionHash"] = request.description_hash
        return await self._ask(
            "POST", "/createinvoice", lambda raw: wire.created(raw, request), form=form, mutating=True
        )

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return every invoice made under `own_id`, oldest first."""
        params: dict[str, str | int] = {"externalId": own_id, "all": "true", "limit": PAGE}
        made = await self._ask("GET", "/payments/incoming", wire.invoices, params=params)
        return tuple(each for each in reversed(made) if each.own_id == own_id)

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return the invoice, or None when the wallet does not know it."""
        if not is_hex(payment_hash, 64):
            return None
        return await self._ask(
            "GET",
            f"/payments/incoming/{payment_hash}",
            lambda raw: wire.invoice_by_hash(raw, payment_hash),
            none=True,
        )

    async def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield invoices created at or after `since`, newest first; `WalletUnavailable` past `MAX_LISTED`."""
        async with aclosing(self._incoming(since)) as pages:
            async for page in pages:
                yield tuple(each.invoice for each in page)

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Pay an invoice unless it is paid or being paid; phoenixd's fixed fee may be `max_fee_msats` at most.

        After `WalletAmbiguous` the same call again tells what came of it.
        """
        invoice, amount_msats = read_payable(bolt11)
        payment_hash = invoice.payment_hash
        known = await self.look_up_payment(payment_hash)
        if known is not None and known.state is not PaymentState.FAILED:
            return known
        self._refuse_early(payment_hash, amount_msats, max_fee_msats, failed=known is not None)
        self._sent[payment_hash] = self._clock()
        try:
            reason = await self._ask(
                "POST", "/payinvoice", wire.pay_outcome, form={"invoice": bolt11}, mutating=True
            )
        except TokenRefused as error:
            # The look-up before was answered, so the password is right and may not pay.
            del self._sent[payment_hash]
            self._may_pay = False
            self._health.note(None)
            raise WalletRefused(
                "phoenixd does not let this password pay: it is the one for limited access; use http-password"
            ) from error
        except (WalletRefused, WalletUnavailable):
            del self._sent[payment_hash]
            raise
        return await self._outcome(payment_hash, reason, amount_msats)

    def _refuse_early(self, payment_hash: str, amount_msats: int, max_fee_msats: int, *, failed: bool) -> None:
        fee_msats = wire.expected_fee_msats(amount_msats)
        if fee_msats > max_fee_msats:
            raise WalletRefused(
                f"not paid: phoenixd takes {fee_msats} msats for this payment and {max_fee_msats} msats are allowed"
            )
        sent_at = self._sent.get(payment_hash)
        if sent_at is not None and not failed and self._clock() < sent_at + MAX_TRANSIT_S:
            raise WalletAmbiguous("phoenixd was asked to pay and does not show the payment yet")

    async def _outcome(self, payment_hash: str, answer: wire.PayOutcome, amount_msats: int) -> Payment:
        """Return what became of a payment that was answered; the server's list is exact where its answer is not."""
        try:
            payment = await self.look_up_payment(payment_hash)
        except WalletError as error:
            if answer.paid is None:
                raise WalletAmbiguous(f"phoenixd says '{answer.reason}', and then: {error}") from error
            payment = None
        if payment is not None and payment.state is not PaymentState.FAILED:
            return payment
        if answer.paid is not None:
            return wire.sent_payment(answer.paid, payment_hash, amount_msats)
        self._sent.pop(payment_hash, None)
        raise WalletRefused(f"phoenixd could not pay: {answer.reason}")

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return what became of a payment by this node, or None; of several attempts the best."""
        if not is_hex(payment_hash, 64):
            return None
        path = f"/payments/outgoingbyhash/{payment_hash}"
        return await self._ask("GET", path, lambda raw: wire.payment_by_hash(raw, payment_hash), none=True)

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Return invoices and Lightning payments from `since` on, newest last."""
        received = {each.invoice.payment_hash: each async for page in self._incoming(since) for each in page}
        made = [each.transaction for each in sorted(received.values(), key=lambda each: each.created_ms)]
        paid = await self._outgoing(since)
        return tuple(sorted([*made, *paid], key=lambda each: each.created_at))

    async def balance_msats(self) -> int:
        """Return the balance in channels; phoenixd's fee credit cannot be spent and is not in it."""
        return await self._ask("GET", "/getbalance", wire.balance_msats)

    async def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as they are pushed, each looked up for what the customer paid. Nothing is replayed.

        Raises `WalletUnavailable` when the stream breaks, `TokenRefused` when the password is wrong.
        """
        url = websocket_url(f"{self._config.url}/websocket")
        headers = {"Authorization": self._config.authorization}
        try:
            async with aclosing(
                messages(url, label=_LABEL, headers=headers, open_timeout_s=self._config.timeout_s)
            ) as pushed:
                async for text in pushed:
                    payment_hash = self._understood(partial(wire.pushed_hash, text), mutating=False)
                    found = None if payment_hash is None else await self.look_up(payment_hash)
                    received = settlement_of(found, self._clock())
                    if received is not None:
                        yield received
        except WalletError as error:
            self._health.note(error)
            raise

    # --- asking -----------------------------------------------------------------------------------------------

    async def _incoming(self, since: int) -> AsyncGenerator[Sequence[wire.Incoming], None]:
        """Page back by time: invoices that appear or expire meanwhile shift offsets, not times.

        Those of the millisecond where one page ends come again with the next.
        """
        from_ms, to_ms = max(0, since) * 1000, int(self._clock() * 1000) + 1
        seen = 0
        params: dict[str, str | int]
        while True:
            params = {"all": "true", "from": from_ms, "to": to_ms, "limit": PAGE}
            page = await self._ask("GET", "/payments/incoming", wire.incoming_page, params=params)
            yield page.invoices
            if page.entries < PAGE:
                return
            seen += len(page.invoices)
            if page.oldest_ms >= to_ms or seen > MAX_LISTED:
                raise WalletUnavailable("phoenixd answered a list without an end")
            to_ms = page.oldest_ms

    async def _outgoing(self, since: int) -> list[Transaction]:
        """Page by offset: the server lists payments in the order that they were made, and deletes none."""
        to_ms = int(self._clock() * 1000) + 1
        listed: list[Transaction] = []
        for offset in range(0, MAX_LISTED, PAGE):
            params: dict[str, str | int] = {"all": "true", "from": max(0, since) * 1000, "to": to_ms}
            params |= {"limit": PAGE, "offset": offset}
            count, page = await self._ask("GET", "/payments/outgoing", wire.outgoing_page, params=params)
            listed += page
            if count < PAGE:
                return listed
        raise WalletUnavailable("phoenixd answered a list without an end")

    async def _try_paying_nothing(self) -> None:
        """Find out whether the password may pay: of an empty invoice the server complains only to who may.

        Any other answer says nothing, and is no fault of the wallet's.
        """
        status, _ = await self._http.exchange("POST", "/payinvoice", form={"invoice": ""})
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            self._may_pay = False
        elif status == httpx.codes.BAD_REQUEST:
            self._may_pay = True

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], _T],
        *,
        mutating: bool = False,
        none: bool = False,
        params: Mapping[str, str | int] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> _T:
        """Return what `read` makes of the answer; with `none` it reads `null` where nothing is known there."""
        try:
            status, raw = await self._http.exchange(method, path, mutating=mutating, params=params, form=form)
            body = self._body(status, raw, mutating=mutating, none=none)
            result = self._understood(lambda: read(body), mutating=mutating)
        except WalletError as error:
            self._health.note(error)
            raise
        self._health.note(None)
        return result

    def _body(self, status: int, raw: bytes, *, mutating: bool, none: bool) -> bytes:
        said = wire.sentence(raw)
        if status == httpx.codes.NOT_FOUND and none and said.startswith(wire.NOT_KNOWN):
            return b"null"
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise TokenRefused(f"phoenixd does not accept the password (HTTP status {status}); check wallet.token")
        if status == httpx.codes.NOT_FOUND:
            text = f"phoenixd is not at this address, or too old: {said or 'HTTP status 404'}; check wallet.url"
            raise WalletRefused(text) if mutating else WalletUnavailable(text)
        if 400 <= status < 500:
            raise WalletRefused(f"phoenixd refused: {said or f'HTTP status {status}'}")
        if not 200 <= status < 300:
            raise self._http.unclear(
                f"answered with HTTP status {status}{said and f' ({said})'}", mutating=mutating
            )
        return raw

    def _understood(self, read: Callable[[], _T], *, mutating: bool) -> _T:
        try:
            return read()
        except BadAnswer as error:
            raise self._http.unclear(f"answered {error}", mutating=mutating) from error
