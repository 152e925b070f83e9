"""The client of the fake wallet (`pylon.wallets.fake_server`), and the customer's purse that pays its invoices.

Whatever answers is not trusted: an answer of another shape than the API's is a `WalletError`, never a `KeyError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import orjson

from pylon.jobs.ports import (
    Clock,
    Direction,
    Invoice,
    InvoiceRequest,
    Payment,
    Received,
    Transaction,
    WalletAbility,
    WalletError,
    WalletRefused,
    WalletState,
)
from pylon.nostr.bolt11 import BadInvoice, Network, proves, read_invoice
from pylon.nostr.event import is_hex
from pylon.wallets.answers import MAX_SECONDS, BadAnswer, Fields
from pylon.wallets.http import WalletHttp
from pylon.wallets.outcomes import Health, invoice_line

SILENCE_S: Final = 15.0
"""The server says something every 5 s; a stream that is silent for longer is dead."""

MAX_LISTED: Final = 100_000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FakeWalletConfig:
    """Where the fake wallet listens (`url`, or the Unix socket `uds`), a token, and how long a call may take.

    Raises `ValueError` with one sentence, which never repeats the token.
    """

    token: str = field(repr=False)
    url: str = ""
    uds: Path | None = None
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.token or not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ValueError("the fake wallet's token is printable ASCII without spaces")
        if bool(self.url) == (self.uds is not None):
            raise ValueError("the fake wallet needs either a url or a Unix socket")
        if self.url and not _is_http(self.url):
            raise ValueError("the fake wallet's url is of the form http://127.0.0.1:PORT")
        if not self.timeout_s > 0:
            raise ValueError("the fake wallet's timeout_s is above 0")

    def connect(self) -> WalletHttp:
        """Return the HTTP side of this wallet, not yet running."""
        return WalletHttp(
            label="the fake wallet",
            url=self.url or "http://fake-wallet",
            token=self.token,
            timeout_s=self.timeout_s,
            uds=self.uds,
        )


class FakeWallet:
    """A `Wallet` whose invoices are real and whose sats are not."""

    name: Final = "fake"

    def __init__(self, config: FakeWalletConfig, clock: Clock) -> None:
        self._http = config.connect()
        self._clock = clock
        self._health = Health(clock)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the wallet's connections; see `Wallet`."""
        return self._http.running()

    def state(self) -> WalletState:
        """Return the outcome of the last call; a refusal for a reason other than the token is an answer too."""
        detail = self._health.detail()
        return WalletState(
            name=self.name,
            kind=self.name,
            ready=not detail,
            detail=detail,
            network=Network.REGTEST,
            abilities=frozenset(WalletAbility),
        )

    async def check(self) -> WalletState:
        """Ask for the balance; never raises, a fault becomes the state."""
        try:
            await self.balance_msats()
        except WalletError:
            return self.state()
        return self.state()

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Make an invoice. Not idempotent: after `WalletAmbiguous`, `find` tells what was made."""
        body: dict[str, Any] = {
            "own_id": request.own_id,
            "amount_msats": request.amount_msats,
            "expiry_s": request.expiry_s,
            "description": request.description,
            "description_hash": request.description_hash,
        }

        def read(answer: Fields) -> Invoice:
            return answer.invoice(own_id=request.own_id)

        return await self._ask("POST", "/v1/invoices", read, body=body, mutating=True)

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return every invoice made under `own_id`, oldest first."""

        def read(answer: Fields) -> tuple[Invoice, ...]:
            return tuple(item.invoice(own_id=own_id) for item in answer.objects("invoices"))

        return await self._ask("GET", "/v1/invoices", read, params={"own_id": own_id})

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return the invoice, or None when the wallet does not know it."""
        if not is_hex(payment_hash, 64):
            return None

        def read(answer: Fields) -> Invoice | None:
            item = answer.object_or_none("invoice")
            return None if item is None else item.invoice(payment_hash=payment_hash)

        return await self._ask("GET", f"/v1/invoices/{payment_hash}", read)

    def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield invoices created at or after `since`, newest last; `WalletUnavailable` past `MAX_LISTED`."""

        def read(answer: Fields) -> list[Invoice]:
            return [item.invoice() for item in answer.objects("invoices")]

        return self._pages("/v1/invoices", since, read)

    async def _pages(
        self, path: str, since: int, read: Callable[[Fields], list[_T]]
    ) -> AsyncGenerator[tuple[_T, ...], None]:
        def read_page(answer: Fields) -> tuple[list[_T], int | None]:
            items = read(answer)
            if listed + len(items) > MAX_LISTED:
                raise BadAnswer(f"more than {MAX_LISTED} entries")
            following = answer.number_or_none("next")
            if following is not None and (not items or following <= after):
                raise BadAnswer("a list without an end")
            return items, following

        listed = after = 0
        while True:
            page, following = await self._ask(
                "GET", path, read_page, params={"since": max(0, since), "after": after}
            )
            yield tuple(page)
            if following is None:
                return
            listed += len(page)
            after = following

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Pay an invoice once per `own_id`; after `WalletAmbiguous` the same call again tells what came of it."""
        body = {"own_id": own_id, "bolt11": bolt11, "max_fee_msats": max_fee_msats}

        return await self._ask("POST", "/v1/payments", _payment, body=body, mutating=True)

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return what became of a payment of ours, or None."""
        if not is_hex(payment_hash, 64):
            return None

        def read(answer: Fields) -> Payment | None:
            item = answer.object_or_none("payment")
            return None if item is None else _payment(item)

        return await self._ask("GET", f"/v1/payments/{payment_hash}", read)

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Return invoices and payments from `since` on, newest last."""

        def read(answer: Fields) -> list[Transaction]:
            return [_outgoing(item) for item in answer.objects("payments")]

        invoices = [invoice async for page in self.list_invoices(since) for invoice in page]
        made = [invoice_line(invoice, invoice.own_id) for invoice in invoices]
        paid = [payment async for page in self._pages("/v1/payments", since, read) for payment in page]
        return tuple(sorted([*made, *paid], key=lambda each: each.created_at))

    async def balance_msats(self) -> int:
        """Return the spendable balance."""
        return await self._ask("GET", "/v1/balance", lambda answer: answer.number("balance_msats"))

    async def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as they are pushed. Nothing is replayed on opening, except under a fault.

        Raises `WalletUnavailable` when the stream breaks, `WalletRefused` when the wallet denies it.
        """
        try:
            async with aclosing(self._http.lines("/v1/settlements", silence_s=SILENCE_S)) as lines:
                async for line in lines:
                    received = self._settlement(line) if line else None
                    self._health.note(None)
                    if received is not None:
                        yield received
        except WalletError as error:
            self._health.note(error)
            raise

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[Fields], _T],
        *,
        mutating: bool = False,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> _T:
        try:
            answer = await self._http.call(method, path, mutating=mutating, params=params, body=body)
            result = self._understood(lambda: read(Fields(answer)), mutating=mutating)
        except WalletError as error:
            self._health.note(error)
            raise
        self._health.note(None)
        return result

    def _settlement(self, line: bytes) -> Received:
        def read() -> Received:
            try:
                notice = Fields(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise BadAnswer("something that is not JSON") from error
            return Received(
                payment_hash=notice.digest("payment_hash"),
                amount_msats=notice.number("amount_msats"),
                settled_at=notice.number("settled_at", MAX_SECONDS),
            )

        return self._understood(read, mutating=False)

    def _understood(self, read: Callable[[], _T], *, mutating: bool) -> _T:
        try:
            return read()
        except BadAnswer as error:
            raise self._http.unclear(f"answered {error}", mutating=mutating) from error


class FakePayer:
    """A customer's purse without bottom, for invoices of the fake wallet. `token` is the payer's."""

    def __init__(
        self, url: str = "", payer_token: str = "", *, uds: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        self._config = FakeWalletConfig(token=payer_token, url=url, uds=uds, timeout_s=timeout_s)

    async def pay(self, bolt11: str) -> str:
        """Pay an invoice and return its preimage, hex, checked against the invoice's payment hash.

        Raises `WalletRefused` (not an invoice, already paid, expired), `WalletUnavailable`, `WalletAmbiguous`.
        """
        try:
            payment_hash = read_invoice(bolt11).payment_hash
        except BadInvoice as error:
            raise WalletRefused(f"not paid: {error}") from error
        http = self._config.connect()
        async with http.running():
            answer = await http.call("POST", "/v1/payer/pay", body={"bolt11": bolt11}, mutating=True)
        try:
            preimage = Fields(answer).digest("preimage")
        except BadAnswer as error:
            raise http.unclear(f"answered {error}", mutating=True) from error
        if not proves(preimage, payment_hash):
            raise http.unclear("answered a preimage of another invoice", mutating=True)
        return preimage


def _payment(answer: Fields) -> Payment:
    return Payment(
        payment_hash=answer.digest("payment_hash"),
        state=answer.state("state"),
        amount_msats=answer.number("amount_msats"),
        fee_msats=answer.number("fee_msats"),
        preimage=answer.digest_or_none("preimage"),
    )


def _outgoing(answer: Fields) -> Transaction:
    paid, at = _payment(answer), answer.number("paid_at", MAX_SECONDS)
    return Transaction(
        Direction.OUTGOING,
        paid.payment_hash,
        paid.state,
        paid.amount_msats,
        created_at=at,
        fee_msats=paid.fee_msats,
        settled_at=at,
    )


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme == "http" and bool(parsed.host) and not parsed.userinfo
