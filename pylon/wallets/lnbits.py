"""LNbits over its HTTP API: whole sats, an invoice key for receiving, an admin key for paying, push by a websocket.

Its list knows our own id (in `extra`, as the external id, and in the memo), so an invoice whose making was not
answered is found again. A payment is known by its hash alone, so `pay` asks about that before and after. Whoever
has the invoice key, which is no secret to many who take payments, can push anything: each push is looked up.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pylon.jobs.ports import (
    Clock,
    Direction,
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
from pylon.wallets import lnbits_wire as wire
from pylon.wallets.answers import BadAnswer
from pylon.wallets.http import TokenRefused, WalletHttp
from pylon.wallets.outcomes import Health, read_payable, settlement_of
from pylon.wallets.websocket import messages, websocket_url

PAGE: Final = 500
MAX_LISTED: Final = 100_000

_PAYMENTS: Final = "/api/v1/payments"
_LIST: Final = "/api/v1/payments/paginated"  # the plain list leaves out what failed
_WALLET: Final = "/api/v1/wallet"
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_RECENT: Final = 64
_ABILITIES: Final = frozenset(
    {WalletAbility.PUSH, WalletAbility.BALANCE, WalletAbility.LIST, WalletAbility.DESCRIPTION_HASH}
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LnbitsConfig:
    """Where LNbits is, the keys of one wallet in it, and how long a call may take.

    Without `pay_token`, the admin key, the wallet only receives. Raises `ValueError` with one sentence, which never
    repeats a key.
    """

    url: str
    token: str = field(repr=False)
    pay_token: str | None = field(default=None, repr=False)
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.token):
            raise ValueError("wallet.token is the invoice/read key of an LNbits wallet: letters and digits")
        if self.pay_token is not None and not _KEY.fullmatch(self.pay_token):
            raise ValueError("wallet.pay_token is the admin key of an LNbits wallet: letters and digits")
        if not self.timeout_s > 0:
            raise ValueError("LNbits' timeout_s is above 0")


class LnbitsWallet:
    """A `Wallet` in an LNbits."""

    name: Final = "lnbits"

    def __init__(self, config: LnbitsConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._http = WalletHttp(
            label=wire.LABEL,
            url=config.url.rstrip("/"),
            token=config.token,
            timeout_s=config.timeout_s,
            key_header="X-Api-Key",
        )
        self._health = Health(clock)
        self._network = ""
        self._pay_token_seen = config.pay_token is None

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the wallet's connections; see `Wallet`."""
        return self._http.running()

    def state(self) -> WalletState:
        """Return the outcome of the last call; a refusal for a reason other than a key is an answer too."""
        detail = self._health.detail()
        paying = set() if self._config.pay_token is None else {WalletAbility.PAY}
        return WalletState(
            name=self.name,
            kind=self.name,
            ready=not detail,
            detail=detail,
            network=self._network,
            abilities=_ABILITIES | paying,
        )

    async def check(self) -> WalletState:
        """Ask for the balance, and once whether the key for paying is one; never raises."""
        try:
            await self.balance_msats()
            if not self._pay_token_seen:
                await self._try_pay_token()
        except WalletError as error:
            self._health.note(error)
        return self.state()

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Make an invoice over whole sats. Not idempotent: after `WalletAmbiguous`, `find` tells what was made."""
        amount_sats, rest = divmod(request.amount_msats, 1000)
        if rest or amount_sats <= 0:
            # It would cut 0.5 sats to an invoice over nothing.
            raise WalletRefused(
                f"LNbits makes invoices over whole sats only, not over {request.amount_msats} msats"
            )
        body: dict[str, Any] = {
            **{"out": False, "unit": "sat", "amount": amount_sats, "expiry": request.expiry_s},
            **{"memo": request.description or request.own_id, **_under(request.own_id)},
        }
        if request.description_hash is not None:
            body["description_hash"] = request.description_hash

        invoice, self._network = await self._ask(
            "POST", _PAYMENTS, lambda value: wire.made(value, request), body=body, mutating=True
        )
        return invoice

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return every invoice made under `own_id`, oldest first."""
        rows = await self._rows({"search": own_id.lower()})
        return tuple(each.invoice(self._clock()) for each in rows if each.is_under(own_id, description))

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return the invoice, or None when the wallet does not know it."""
        found = await self._row(payment_hash, self._config.token, "wallet.token")
        if found is not None and found.direction is Direction.OUTGOING:
            # Paid by this very wallet: the payment hides the invoice.
            rows = await self._rows({"payment_hash": payment_hash})
            found = next((each for each in rows if each.direction is Direction.INCOMING), None)
        return None if found is None else found.invoice(self._clock())

    async def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield invoices created at or after `since`, newest last; `WalletUnavailable` past `MAX_LISTED`."""
        async with aclosing(self._pages({"time[ge]": max(0, since)})) as pages:
            async for page in pages:
                yield tuple(each.invoice(self._clock()) for each in page if each.direction is Direction.INCOMING)

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Pay an invoice unless it is paid or being paid; after `WalletAmbiguous` the same call tells more.

        The API takes no limit for the fee: LNbits keeps to a reserve of its own, and where that is more than
        `max_fee_msats` nothing is paid.
        """
        if self._config.pay_token is None:
            raise WalletRefused("this LNbits wallet only receives: wallet.pay_token, its admin key, is not set")
        invoice, _ = read_payable(bolt11)
        known = await self.look_up_payment(invoice.payment_hash)
        if known is not None and known.state is not PaymentState.FAILED:
            return known
        await self._refuse_dear(bolt11, max_fee_msats)
        body = {"out": True, "bolt11": bolt11, **_under(own_id)}
        try:
            row = await self._ask(
                "POST", _PAYMENTS, wire.row, body=body, mutating=True, key=self._config.pay_token,
                key_name="wallet.pay_token",
            )  # fmt: skip
        except (TokenRefused, WalletUnavailable):
            raise  # it has paid nothing
        except (WalletRefused, WalletAmbiguous) as error:
            return await self._outcome(invoice.payment_hash, error, failed_before=known is not None)
        if row.payment_hash != invoice.payment_hash:
            raise self._http.unclear("answered a payment of another invoice", mutating=True)
        if row.direction is Direction.INCOMING:
            # It has an invoice of its own by this hash, which is closed, and leaves it at that.
            raise WalletRefused("not paid: the invoice is of a wallet in the same LNbits, and closed")
        if row.state is PaymentState.FAILED:
            raise WalletAmbiguous("LNbits calls an earlier payment failed, and its node does not confirm it")
        return row.payment

    async def _refuse_dear(self, bolt11: str, max_fee_msats: int) -> None:
        reserve_msats = await self._ask(
            "GET", f"{_PAYMENTS}/fee-reserve", wire.fee_reserve_msats, params={"invoice": bolt11}
        )
        if reserve_msats > max_fee_msats:
            raise WalletRefused(
                f"not paid: LNbits may spend up to {reserve_msats} msats on the fee of this payment"
                f" (its own fee reserve), and {max_fee_msats} msats are allowed"
            )

    async def _outcome(self, payment_hash: str, error: WalletError, *, failed_before: bool) -> Payment:
        """Return what became of a payment that was not answered by one. Raises what is true of it."""
        try:
            found = await self.look_up_payment(payment_hash)
        except WalletError as asking:
            raise WalletAmbiguous(f"{error}, and then: {asking}") from error
        if found is not None and found.state is not PaymentState.FAILED:
            return found
        if found is not None and not failed_before:
            raise WalletRefused(f"LNbits could not pay ({error})") from error
        raise error

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return what became of a payment from this wallet, or None."""
        key = self._config.pay_token
        name = "wallet.token" if key is None else "wallet.pay_token"
        found = await self._row(payment_hash, key or self._config.token, name)
        return None if found is None or found.direction is not Direction.OUTGOING else found.payment

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Return invoices and payments from `since` on, newest last."""
        return tuple(each.transaction for each in await self._rows({"time[ge]": max(0, since)}))

    async def balance_msats(self) -> int:
        """Return the spendable balance."""
        return await self._ask("GET", _WALLET, wire.balance_msats)

    async def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as they are pushed, each looked up first. Nothing is replayed.

        Raises `WalletUnavailable` when the stream breaks. A wrong key is no fault here: it hears nothing.
        """
        url = websocket_url(f"{self._config.url.rstrip('/')}/api/v1/ws/{self._config.token}")
        told: deque[str] = deque(maxlen=_RECENT)  # each is pushed twice
        pushed = messages(url, label=wire.LABEL, headers={}, open_timeout_s=self._config.timeout_s)
        try:
            async with aclosing(pushed):
                async for text in pushed:
                    payment_hash = wire.pushed_hash(text)
                    if payment_hash is None or payment_hash in told:
                        continue
                    received = settlement_of(await self.look_up(payment_hash), self._clock())
                    if received is not None:
                        told.append(payment_hash)
                        yield received
        except WalletError as error:
            self._health.note(error)
            raise

    # --- asking -----------------------------------------------------------------------------------------------

    async def _try_pay_token(self) -> None:
        key, name = self._config.pay_token or "", "wallet.pay_token"
        if not await self._ask("GET", _WALLET, wire.is_admin, key=key, key_name=name):
            raise TokenRefused("wallet.pay_token is not the admin key of an LNbits wallet, so it cannot pay")
        self._pay_token_seen = True

    async def _row(self, payment_hash: str, key: str, key_name: str) -> wire.Row | None:
        if not is_hex(payment_hash, 64):
            return None
        try:
            return await self._ask(
                "GET", f"{_PAYMENTS}/{payment_hash}", lambda value: wire.details(value, payment_hash, key_name),
                key=key, key_name=key_name,
            )  # fmt: skip
        except wire.UnknownPayment:
            return None

    async def _rows(self, wanted: Mapping[str, str | int]) -> list[wire.Row]:
        """Return all pages, each row once, the last that was told of it."""
        rows: dict[tuple[str, str], wire.Row] = {}
        async for page in self._pages(wanted):
            rows |= {(each.direction, each.payment_hash): each for each in page}
        return list(rows.values())

    async def _pages(self, wanted: Mapping[str, str | int]) -> AsyncGenerator[Sequence[wire.Row], None]:
        """Page by offset, oldest first: what appears meanwhile is added at the end."""
        for offset in range(0, MAX_LISTED, PAGE):
            params = {**wanted, "sortby": "time", "direction": "asc", "limit": PAGE, "offset": offset}
            page, total = await self._ask("GET", _LIST, wire.page, params=params)
            yield page
            if not page or offset + PAGE >= total:
                return
        raise WalletUnavailable(f"LNbits answered a list of more than {MAX_LISTED} entries")

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[Any], _T],
        *,
        mutating: bool = False,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        key: str = "",
        key_name: str = "wallet.token",
    ) -> _T:
        try:
            status, raw = await self._http.exchange(
                method, path, mutating=mutating, params=params, body=body, key=key
            )
            value = wire.answer(status, raw, mutating=mutating, key_name=key_name)
            try:
                result = read(value)
            except BadAnswer as error:
                raise self._http.unclear(f"answered {error}", mutating=mutating) from error
        except WalletError as error:
            self._health.note(error)
            raise
        self._health.note(None)
        return result


def _under(own_id: str) -> dict[str, Any]:
    """Return the members that let a row be found by our own id; LNbits takes no external id with spaces."""
    named = {} if re.search(r"\s", own_id) else {"external_id": own_id}
    return {"extra": {wire.OWN_ID_KEY: own_id}, **named}
