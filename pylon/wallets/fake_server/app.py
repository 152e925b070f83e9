"""The fake wallet's HTTP API. Bodies and answers are JSON; money is msats, times are unix seconds.

With the owner's token (`Authorization: Bearer …`):

- `POST /v1/invoices` `{own_id, amount_msats, expiry_s, description | description_hash}` answers an invoice. It is
  not idempotent by `own_id`: a repeated call makes a second invoice, and both are found under it.
- `GET /v1/invoices/HASH` answers `{invoice}`, null when unknown.
- `GET /v1/invoices?own_id=ID`, or `?since=SECONDS&after=NUMBER`, answers `{invoices, next}`, oldest first; `next`,
  when not null, is the `after` of the next page.
- `POST /v1/payments` `{own_id, bolt11, max_fee_msats}` answers a payment; idempotent by `own_id`.
  Its `preimage` is null when the invoice is another wallet's.
- `GET /v1/balance` answers `{balance_msats, received_msats, paid_msats, fees_msats}`.
- `GET /v1/settlements` streams one JSON object `{payment_hash, amount_msats, settled_at}` a line; empty lines keep
  the connection alive.
- `GET /v1/faults`, `PUT /v1/faults` `{fault: probability, …}` (what is not named is off), `POST /v1/restart`: never
  hit by faults themselves.

With the payer's token: `POST /v1/payer/pay` `{bolt11}` answers `{preimage, payment_hash, amount_msats}`.

A refusal is a 4xx with `{error}`, one sentence. An invoice is `{own_id, payment_hash, bolt11, amount_msats,
created_at, expires_at, state, received_msats, settled_at}` with `state` one of pending, settled, expired, failed.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pylon.wallets.fake_server.bodies import Body, json_body
from pylon.wallets.fake_server.connections import Connections
from pylon.wallets.fake_server.faults import PAYER_ACT, Dice, parse_faults
from pylon.wallets.fake_server.ledger import PAGE, InvoiceRecord, Kept, Ledger, PaymentRecord, Refused
from pylon.wallets.fake_server.node import MAX_AMOUNT_MSATS, MAX_DESCRIPTION_BYTES, MAX_EXPIRY_S, Draft
from pylon.wallets.fake_server.notices import Notices

REPLAYED: Final = 20

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The two secrets that divide the wallet."""

    owner: str = field(repr=False)
    payer: str = field(repr=False)


class FakeWalletApp:
    """Answers requests from the ledger, unless the dice say otherwise."""

    def __init__(self, ledger: Ledger, dice: Dice, tokens: Tokens, clock: Callable[[], float]) -> None:
        self.connections = Connections()
        self.notices = Notices(dice)
        self._ledger = ledger
        self._dice = dice
        self._tokens = tokens
        self._clock = clock
        self._one_call = anyio.CapacityLimiter(1)
        self._told_stale: set[str] = set()

    def asgi(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/v1/invoices", self._owner(self._create, "create"), methods=["POST"]),
                Route("/v1/invoices", self._owner(self._find_or_list, "find"), methods=["GET"]),
                Route("/v1/invoices/{payment_hash}", self._owner(self._look_up, "look_up"), methods=["GET"]),
                Route("/v1/payments", self._owner(self._pay, "pay"), methods=["POST"]),
                Route("/v1/payments", self._owner(self._list_payments, "list"), methods=["GET"]),
                Route(
                    "/v1/payments/{payment_hash}", self._owner(self._look_up_payment, "look_up"), methods=["GET"]
                ),
                Route("/v1/balance", self._owner(self._balance, "balance"), methods=["GET"]),
                Route("/v1/settlements", self._owner(self._settlements), methods=["GET"]),
                Route("/v1/faults", self._owner(self._faults), methods=["GET", "PUT"]),
                Route("/v1/restart", self._owner(self._restart_now), methods=["POST"]),
                Route(
                    "/v1/payer/pay", self._guarded(self._payer_pay, self._tokens.payer, PAYER_ACT), methods=["POST"]
                ),
            ]
        )

    async def fail_invoices(self) -> None:
        """Fail open invoices as a restart may; also called when the process starts on an old database."""
        if self._dice.faults.fail_on_restart:
            hashes = await self._call(self._ledger.open_hashes)
            await self._call(
                self._ledger.lose, [h for h in hashes if self._dice.roll("fail_on_restart")], Kept.FAILED
            )

    # --- handlers -----------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        body = await json_body(request)
        description = body.text("description", MAX_DESCRIPTION_BYTES, default="")
        if len(description.encode()) > MAX_DESCRIPTION_BYTES:
            raise Refused(400, f"a description has at most {MAX_DESCRIPTION_BYTES} bytes")
        draft = Draft(
            own_id=body.text("own_id", 200),
            amount_msats=body.number("amount_msats", 1, MAX_AMOUNT_MSATS),
            expiry_s=body.number("expiry_s", 1, MAX_EXPIRY_S),
            description=description,
            description_hash=body.digest("description_hash"),
        )
        return _answer(self._shown(await self._call(self._ledger.create, draft)), 201)

    async def _find_or_list(self, request: Request) -> Response:
        query = Body(request.query_params)
        if "own_id" in request.query_params:
            found = await self._call(self._ledger.find, query.text("own_id", 200))
            return _answer({"invoices": [self._shown(invoice) for invoice in found], "next": None})
        since, after = query.digits("since"), query.digits("after")
        page = await self._call(self._ledger.page, since, after)
        more = page[-1].number if len(page) == PAGE else None
        return _answer({"invoices": [self._shown(invoice) for invoice in page], "next": more})

    async def _look_up(self, request: Request) -> Response:
        payment_hash = request.path_params["payment_hash"]
        invoice = await self._call(self._ledger.look_up, payment_hash)
        if invoice is not None and invoice.state is Kept.OPEN and self._dice.roll("forget"):
            await self._call(self._ledger.lose, [payment_hash], Kept.FORGOTTEN)
            invoice = await self._call(self._ledger.look_up, payment_hash)
        return _answer({"invoice": None if invoice is None else self._shown(invoice)})

    async def _pay(self, request: Request) -> Response:
        body = await json_body(request)
        payment = await self._call(
            self._ledger.pay,
            body.text("own_id", 200),
            body.text("bolt11", 4096),
            body.number("max_fee_msats", 0, MAX_AMOUNT_MSATS),
        )
        if payment.settled is not None:
            self.notices.publish(_line(payment.settled))
        return _answer(_paid(payment))

    async def _look_up_payment(self, request: Request) -> Response:
        payment = await self._call(self._ledger.payment, request.path_params["payment_hash"])
        return _answer({"payment": None if payment is None else _paid(payment)})

    async def _list_payments(self, request: Request) -> Response:
        query = Body(request.query_params)
        page = await self._call(self._ledger.payments_since, query.digits("since"), query.digits("after"))
        more = page[-1][0] if len(page) == PAGE else None
        return _answer({"payments": [_paid(payment) for _, payment in page], "next": more})

    async def _balance(self, _: Request) -> Response:
        totals = await self._call(self._ledger.totals)
        return _answer({"balance_msats": totals.balance_msats, **asdict(totals)})

    async def _payer_pay(self, request: Request) -> Response:
        body = await json_body(request)
        receipt = await self._call(
            self._ledger.receive,
            body.text("bolt11", 4096),
            expired_too=self._dice.roll("pay_expired"),
            twice=self._dice.roll("pay_twice"),
            short=self._dice.roll("short"),
        )
        invoice = receipt.invoice
        self.notices.publish(_line(invoice))
        return _answer(
            {
                "preimage": receipt.preimage,
                "payment_hash": invoice.payment_hash,
                "amount_msats": invoice.amount_msats,
            }
        )

    async def _settlements(self, _: Request) -> Response:
        old = await self._call(self._ledger.last_settled, REPLAYED) if self._dice.roll("notice_replay") else []
        return StreamingResponse(self.notices.lines([_line(i) for i in old]), media_type="application/x-ndjson")

    async def _faults(self, request: Request) -> Response:
        if request.method == "PUT":
            try:
                self._dice.faults = parse_faults((await json_body(request)).values)
            except ValueError as error:
                raise Refused(400, str(error)) from error
        return _answer(
            {
                "faults": asdict(self._dice.faults),
                "struck": dict(self._dice.struck),
                "streams": self.notices.open_streams,
            }
        )

    async def _restart_now(self, request: Request) -> Response:
        await self._restart()
        return Response()

    # --- what stands around every handler -----------------------------------------------------------------------

    def _owner(self, handler: _Handler, act: str | None = None) -> _Handler:
        return self._guarded(handler, self._tokens.owner, act)

    def _guarded(self, handler: _Handler, token: str, act: str | None) -> _Handler:
        expected = b"Bearer " + token.encode()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refused as refusal:
                return _answer({"error": str(refusal)}, refusal.status)

        async def endpoint(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, expected):
                return _answer({"error": "the token is not the right one for this call"}, 401)
            name = "list" if act == "find" and "own_id" not in request.query_params else act
            if name is None or not self._dice.strikes_act(name):
                return await answer(request)
            return await self._with_faults(answer, request)

        return endpoint

    async def _with_faults(self, answer: _Handler, request: Request) -> Response:
        dice = self._dice
        if dice.roll("delay"):
            await anyio.sleep(dice.seconds(dice.faults.delay_s))
        if dice.roll("restart"):
            if dice.coin():
                await answer(request)
            await self._restart()
            return Response()
        if dice.roll("lost"):
            await self.connections.drop(request)
            return Response()
        if dice.roll("error_before"):
            return _answer({"error": "something broke"}, 500)
        response = await answer(request)
        if dice.roll("hang"):
            await anyio.sleep(dice.faults.hang_s)
            await self.connections.drop(request)
        elif dice.roll("ambiguous"):
            await self.connections.drop(request)
        elif dice.roll("error_after"):
            return _answer({"error": "something broke"}, 500)
        return response

    async def _restart(self) -> None:
        """Do to the outside what a restart of the process does: streams and connections are gone.

        What it does to invoices comes first: whoever sees the connections drop finds it done.
        """
        await self.fail_invoices()
        self.notices.close_all()
        await self.connections.drop_all(self._dice.faults.restart_s)

    async def _call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._one_call)

    def _shown(self, invoice: InvoiceRecord) -> dict[str, Any]:
        state, received_msats, settled_at = self._claim(invoice)
        return {
            "own_id": invoice.own_id,
            "payment_hash": invoice.payment_hash,
            "bolt11": invoice.bolt11,
            "amount_msats": invoice.amount_msats,
            "created_at": invoice.created_at,
            "expires_at": invoice.expires_at,
            "state": state,
            "received_msats": received_msats,
            "settled_at": settled_at,
        }

    def _claim(self, invoice: InvoiceRecord) -> tuple[str, int, int | None]:
        """Return state, received amount and time of settlement as the wallet claims them now."""
        if invoice.state is Kept.SETTLED:
            if invoice.payment_hash in self._told_stale or not self._dice.roll("stale"):
                return "settled", invoice.reported_msats, invoice.settled_at
            self._told_stale.add(invoice.payment_hash)
            return "pending", 0, None
        if invoice.state is Kept.OPEN:
            return ("pending" if self._clock() < invoice.expires_at else "expired"), 0, None
        return "failed", 0, None


def _answer(value: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _paid(payment: PaymentRecord) -> dict[str, Any]:
    return {
        "own_id": payment.own_id,
        "payment_hash": payment.payment_hash,
        "state": "settled",
        "amount_msats": payment.amount_msats,
        "fee_msats": payment.fee_msats,
        "paid_at": payment.paid_at,
        "preimage": payment.preimage,
    }


def _line(invoice: InvoiceRecord) -> bytes:
    notice = {
        "payment_hash": invoice.payment_hash,
        "amount_msats": invoice.reported_msats,
        "settled_at": invoice.settled_at,
    }
    return orjson.dumps(notice) + b"\n"
