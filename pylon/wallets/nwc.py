"""The NWC wallet (NIP-47): whatever wallet the operator has, spoken with over relays.

What NIP-47 leaves open, decided here:
- Whether a wallet takes fractions of a sat is not told, so `MSAT_PRECISION` is never declared; an amount is asked
  for as it is, and the caller compares the invoice.
- A payment has no fee limit: the budget that the operator gave the connection bounds what can be lost.
- `INTERNAL`, `OTHER` and codes that we do not know say nothing of whether a changing request was carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

import anyio.to_thread

from pylon.jobs.ports import (
    Clock,
    Invoice,
    InvoiceRequest,
    Payment,
    PaymentState,
    Received,
    RelayLine,
    Transaction,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import InvoiceFacts, proves
from pylon.nostr.nip47 import (
    OWN_ID,
    BadReply,
    ErrorCode,
    Failure,
    Method,
    Result,
    TransactionState,
    WalletTransaction,
    WalletUri,
    read_msats,
    read_preimage,
)
from pylon.text import printable
from pylon.wallets.nwc_answers import (
    description_of,
    error_of,
    invoice_of,
    is_ours,
    made_invoice,
    payment_of,
    received_of,
    transaction_of,
)
from pylon.wallets.nwc_calls import LOOK_BACK_S, NwcCalls
from pylon.wallets.nwc_link import EXPIRY_MARGIN_S, NwcLink
from pylon.wallets.outcomes import read_payable

PAY_TIMEOUT_S: Final = 60.0
"""How long a payment may be under way before it is asked about instead."""

_MAX_ASKED: Final = 4_096


class NwcWallet:
    """A `Wallet` over a `RelayLine`. `timeout_s` is how long an answer may take, payments apart."""

    name: Final = "nwc"

    def __init__(self, uri: WalletUri, line: RelayLine, clock: Clock, *, timeout_s: float) -> None:
        self._link = NwcLink(uri, line, clock, timeout_s=timeout_s)
        self._clock = clock
        self._timeout_s = timeout_s
        self._calls = NwcCalls(self._link, clock)
        self._paying: set[str] = set()
        self._asked: dict[str, float] = {}  # payment hashes we asked to pay -> until when the wallet may act on it

    @property
    def counters(self) -> Counter[str]:
        """What came over the relays and was ignored, by reason."""
        return self._link.counters

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the connections to the wallet's relays; see `Wallet`."""
        return self._link.running()

    def state(self) -> WalletState:
        """Return the outcome of the last call; a refusal of one call is an answer too."""
        detail = self._calls.fault()
        return WalletState(
            self.name, self.name, not detail, detail, printable(self._calls.network), self._calls.abilities()
        )

    async def check(self) -> WalletState:
        """Ask the wallet how it is, unless it has just answered; never raises, a fault becomes the state."""
        try:
            await self._calls.check()
        except WalletError:
            return self.state()
        return self.state()

    # --- invoices ---------------------------------------------------------------------------------------------

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Make an invoice. Not idempotent: after `WalletAmbiguous`, `find` tells what was made."""
        params: dict[str, Any] = {
            "amount": request.amount_msats,
            "expiry": request.expiry_s,
            "metadata": {OWN_ID: request.own_id},
        }
        if request.description_hash is None:
            params["description"] = description_of(request.own_id, request.description)
        else:
            params["description_hash"] = request.description_hash
        return await self._calls.ask(
            Method.MAKE_INVOICE, params, lambda result: made_invoice(result, request), mutating=True
        )

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        """Return every invoice made under `own_id` within the last eight days, oldest first.

        It is known by our id in its metadata or its description, or by the hash of its description.
        """
        listed = await self._calls.list_all(int(self._clock()) - LOOK_BACK_S, incoming=True, unpaid=True)

        def ours() -> list[WalletTransaction]:
            return [each for each in listed if each.invoice and is_ours(each, own_id, description)]

        # Beside the loop: where a wallet keeps nothing but the invoices, each of them is read.
        return tuple(invoice_of(each, own_id) for each in await anyio.to_thread.run_sync(ours))

    async def look_up(self, payment_hash: str) -> Invoice | None:
        """Return the invoice, or None when the wallet does not know it."""
        found = await self._calls.by_hash(payment_hash, incoming=True)
        return None if found is None else invoice_of(found)

    async def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        """Yield invoices created at or after `since`; none where the wallet keeps no list."""
        async with aclosing(self._calls.list_pages(since, incoming=True, unpaid=True)) as pages:
            async for page in pages:
                yield tuple(map(invoice_of, page))

    async def settlements(self) -> AsyncGenerator[Received, None]:
        """Yield settlements as they are pushed, each once; from a wallet that pushes none, nothing.

        Raises `WalletUnavailable` when the last connection to the wallet's relays breaks.
        """
        async with aclosing(self._link.notices()) as notices:
            async for notice in notices:
                if notice.state is TransactionState.SETTLED:
                    yield received_of(notice, self._clock())
                    continue
                # Pushed as received, without the word or the time that says so: then the wallet is asked.
                asked = await self._calls.by_hash(notice.payment_hash, incoming=True)
                if asked is not None and asked.state is TransactionState.SETTLED:
                    yield received_of(asked, self._clock())

    # --- payments ---------------------------------------------------------------------------------------------

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        """Pay an invoice of a known amount once: the wallet is asked first what it knows of the payment.

        After `WalletAmbiguous`, or a crash, the same call (or `look_up_payment`) tells what came of it; it pays
        again only when the wallet knows of no payment and an earlier request has expired.
        `max_fee_msats` cannot be told to the wallet.
        """
        facts, _ = await anyio.to_thread.run_sync(read_payable, bolt11)
        if facts.payment_hash in self._paying:
            raise WalletAmbiguous("the payment is under way")
        self._paying.add(facts.payment_hash)
        try:
            known = await self._known_payment(facts.payment_hash)
            return known if known is not None else await self._pay(bolt11, facts, own_id)
        finally:
            self._paying.discard(facts.payment_hash)

    async def _pay(self, bolt11: str, facts: InvoiceFacts, own_id: str) -> Payment:
        if facts.expires_at <= self._clock():
            raise WalletRefused("not paid: the invoice has expired")
        timeout_s = max(self._timeout_s, PAY_TIMEOUT_S)
        self._remember(facts.payment_hash, self._clock() + timeout_s + EXPIRY_MARGIN_S)
        params = {"invoice": bolt11, "metadata": {OWN_ID: own_id}}
        try:
            reply = await self._calls.call(Method.PAY_INVOICE, params, mutating=True, timeout_s=timeout_s)
        except (WalletUnavailable, WalletRefused):
            self._asked.pop(facts.payment_hash, None)
            raise
        if isinstance(reply, Failure):
            return await self._after_failure(facts, reply)
        return await self._after_success(facts, reply)

    async def _known_payment(self, payment_hash: str) -> Payment | None:
        """Return the payment where it was made, None when it may be made now."""
        asked = payment_hash in self._asked
        try:
            found = await self.look_up_payment(payment_hash)
        except WalletError as error:
            if asked:  # that nobody can be asked says nothing of the request before
                raise WalletAmbiguous(f"whether the invoice was paid is not known: {error}") from error
            raise
        if found is None:
            if asked and self._clock() < self._asked[payment_hash]:
                raise WalletAmbiguous("the wallet was asked to pay, and knows nothing of it yet")
            return None
        return self._outcome(found, asked=asked)

    def _outcome(self, found: Payment, *, asked: bool) -> Payment | None:
        match found.state:
            case PaymentState.SETTLED:
                self._asked.pop(found.payment_hash, None)
                return found
            case PaymentState.FAILED | PaymentState.EXPIRED:
                self._asked.pop(found.payment_hash, None)
                if asked:
                    raise WalletRefused("the payment failed")
                return None
            case _:
                raise WalletAmbiguous("the payment is under way")

    async def _after_failure(self, facts: InvoiceFacts, failure: Failure) -> Payment:
        """Tell what came of a payment that the wallet calls failed: some call so what is made or under way."""
        error = error_of(failure, Method.PAY_INVOICE, mutating=True)
        if failure.code == ErrorCode.PAYMENT_FAILED or isinstance(error, WalletAmbiguous):
            try:
                found = await self.look_up_payment(facts.payment_hash)
            except WalletError:
                raise WalletAmbiguous(f"whether the invoice was paid is not known: {error}") from error
            if found is not None and (paid := self._outcome(found, asked=True)) is not None:
                return paid
        if not isinstance(error, WalletAmbiguous):
            self._asked.pop(facts.payment_hash, None)
        raise error

    async def _after_success(self, facts: InvoiceFacts, result: Result) -> Payment:
        """Return the payment that the wallet says it made; a preimage proves it, or else its own list does."""
        try:
            preimage, fee_msats = read_preimage(result), read_msats(result, "fees_paid")
        except BadReply:
            preimage, fee_msats = "", None
        proved = proves(preimage, facts.payment_hash)
        found = None
        if not proved or fee_msats is None:
            try:
                found = await self.look_up_payment(facts.payment_hash)
            except WalletError:
                found = None
        settled = found is not None and found.state is PaymentState.SETTLED
        if not proved and not settled:
            raise WalletAmbiguous("the wallet says that it paid, and shows no proof of it")
        self._asked.pop(facts.payment_hash, None)
        if fee_msats is None:
            fee_msats = found.fee_msats if found is not None else 0
        assert facts.amount_msats is not None
        proof = preimage if proved else found.preimage if found is not None else None
        return Payment(facts.payment_hash, PaymentState.SETTLED, facts.amount_msats, fee_msats, proof)

    def _remember(self, payment_hash: str, until: float) -> None:
        if len(self._asked) >= _MAX_ASKED:
            now = self._clock()
            self._asked = {each: end for each, end in self._asked.items() if end > now}
        self._asked[payment_hash] = until

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        """Return what became of a payment of ours, or None when the wallet knows of none."""
        found = await self._calls.by_hash(payment_hash, incoming=False)
        return None if found is None else payment_of(found)

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        """Return what was received and sent from `since` on, newest last. Raises `WalletRefused` without a list."""
        if not await self._calls.offers(Method.LIST_TRANSACTIONS):
            raise WalletRefused("the wallet keeps no list of transactions (list_transactions)")
        listed = await self._calls.list_all(since, incoming=None, unpaid=False)
        return tuple(map(transaction_of, listed))

    async def balance_msats(self) -> int:
        """Return the spendable balance."""

        def read(result: Result) -> int:
            balance = read_msats(result, "balance")
            if balance is None:
                raise BadReply("no balance")
            return balance

        return await self._calls.ask(Method.GET_BALANCE, {}, read)
