"""Calls of an NWC wallet, one like the other: asked, understood, and what each says of the wallet's health."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, TypeVar

from pylon.jobs.ports import (
    Clock,
    WalletAbility,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.event import is_hex
from pylon.nostr.nip47 import (
    BadReply,
    ErrorCode,
    Failure,
    Method,
    Result,
    WalletTransaction,
    read_transaction,
    read_transactions,
    read_words,
)
from pylon.wallets.nwc_answers import ConnectionRefused, error_of, is_fault
from pylon.wallets.nwc_link import NwcLink
from pylon.wallets.outcomes import Health, in_doubt

PAGE: Final = 20
"""Transactions asked for at once: more would not fit into the 64 KiB that NIP-44 and many relays carry."""

MAX_LISTED: Final = 100_000
LOOK_BACK_S: Final = 8 * 86_400
"""How far back a wallet's list is searched: longer than any job lives."""

_FRESH_S: Final = 10.0  # for so long after an answer the wallet is not asked how it is
_NOT_OFFERED: Final = frozenset({ErrorCode.RESTRICTED, ErrorCode.NOT_IMPLEMENTED})
_NOT_LOOKED_UP: Final = _NOT_OFFERED | {ErrorCode.OTHER}
_NETWORKS: Final = {"mainnet": "bitcoin"}
_ABILITIES: Final = {
    Method.PAY_INVOICE: WalletAbility.PAY,
    Method.GET_BALANCE: WalletAbility.BALANCE,
    Method.LIST_TRANSACTIONS: WalletAbility.LIST,
    Method.MAKE_INVOICE: WalletAbility.DESCRIPTION_HASH,
}

_T = TypeVar("_T")


class NwcCalls:
    """The wallet as its methods see it. Raises the errors of `jobs.ports`, each one sentence."""

    def __init__(self, link: NwcLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._health = Health(clock)
        self._methods: frozenset[str] | None = None
        self._withheld: set[str] = set()  # methods that were announced, and refused
        self.network = ""

    # --- health -----------------------------------------------------------------------------------------------

    def fault(self) -> str:
        """Return what the last call says is wrong with the wallet, "" when nothing is."""
        return self._health.detail(self._link.fault())

    async def check(self) -> None:
        """Ask for the wallet's own account of itself, unless it has just answered. Raises `WalletError`."""
        if self._methods is None or self._link.fault() or not self._health.is_fresh(_FRESH_S):
            await self._look_around()

    def abilities(self) -> frozenset[WalletAbility]:
        """Return what the wallet can do, as far as it has told."""
        info = self._link.info
        if info is None:
            return frozenset()
        methods = (self._methods or info.methods) - self._withheld
        found = {ability for method, ability in _ABILITIES.items() if method in methods}
        return frozenset(found | {WalletAbility.PUSH} if "payment_received" in info.notifications else found)

    async def offers(self, method: Method) -> bool:
        """Tell whether this connection has a method. Raises `WalletUnavailable`."""
        methods = self._methods or (await self._link.ready()).methods
        return method not in self._withheld and (not methods or method in methods)

    # --- calls ------------------------------------------------------------------------------------------------

    async def ask(
        self, method: Method, params: Mapping[str, Any], read: Callable[[Result], _T], *, mutating: bool = False
    ) -> _T:
        """Return what `read` makes of an answer. A changing call that fails unclearly is `WalletAmbiguous`."""
        reply = await self.call(method, params, mutating=mutating)
        return self._understood(reply, method, read, mutating=mutating)

    async def call(
        self, method: Method, params: Mapping[str, Any], *, mutating: bool = False, timeout_s: float | None = None
    ) -> Result | Failure:
        """Ask, and keep what the answer says of the wallet's health."""
        try:
            reply = await self._link.ask(method, params, mutating=mutating, timeout_s=timeout_s)
        except WalletError as error:
            if not isinstance(error, WalletRefused) or isinstance(error, ConnectionRefused):
                self._health.note(error)
            raise
        fault = None
        if isinstance(reply, Failure) and is_fault(reply):
            fault = error_of(reply, method, mutating=mutating)
        self._health.note(fault)
        return reply

    async def by_hash(self, payment_hash: str, *, incoming: bool) -> WalletTransaction | None:
        """Return what the wallet knows under a payment hash, in one direction.

        The wallet's list tells where a look-up does not: one that paid itself has it in both directions and shows
        one, some know no look-ups or none of payments, and of a payment it must be certain that it was not made.
        """
        if not is_hex(payment_hash, 64):
            return None
        reply = await self.call(Method.LOOKUP_INVOICE, {"payment_hash": payment_hash})
        missing = isinstance(reply, Failure) and reply.code == ErrorCode.NOT_FOUND
        if missing and incoming:
            return None
        helpless = isinstance(reply, Failure) and reply.code in (_NOT_OFFERED if incoming else _NOT_LOOKED_UP)
        if not missing and not (helpless and await self.offers(Method.LIST_TRANSACTIONS)):
            found = self._understood(reply, Method.LOOKUP_INVOICE, _transaction_under(payment_hash), mutating=False)
            if found.incoming in (incoming, None):
                return found
        since = int(self._clock()) - LOOK_BACK_S
        listed = await self.list_all(since, incoming=incoming, unpaid=True)
        if isinstance(reply, Failure) and not missing and not await self.offers(Method.LIST_TRANSACTIONS):
            raise error_of(reply, Method.LOOKUP_INVOICE, mutating=False)  # the list is withheld too
        return next((each for each in listed if each.payment_hash == payment_hash), None)

    async def list_all(self, since: int, *, incoming: bool | None, unpaid: bool) -> list[WalletTransaction]:
        """Return the transactions from `since` on, newest last; none where it keeps no list."""
        found: dict[tuple[str, bool | None], WalletTransaction] = {}
        async for page in self.list_pages(since, incoming=incoming, unpaid=unpaid):
            for each in page:
                found.setdefault((each.payment_hash, each.incoming), each)
        oldest_first = list(reversed(found.values()))
        return sorted(oldest_first, key=lambda each: each.created_at)

    async def list_pages(
        self, since: int, *, incoming: bool | None, unpaid: bool
    ) -> AsyncGenerator[list[WalletTransaction], None]:
        """Yield the transactions from `since` on, newest first; none where it keeps no list.

        Pages are asked for until an empty one: wallets give fewer than were asked for. One that gives the same
        page again knows no offset.
        """
        if not await self.offers(Method.LIST_TRANSACTIONS):
            return
        params: dict[str, Any] = {"from": max(0, since), "limit": PAGE, "unpaid": unpaid}
        if incoming is not None:
            params["type"] = "incoming" if incoming else "outgoing"
        before: list[WalletTransaction] = []
        offset = 0
        while offset < MAX_LISTED:
            reply = await self.call(Method.LIST_TRANSACTIONS, {**params, "offset": offset})
            if isinstance(reply, Failure) and reply.code in _NOT_OFFERED:
                self._withheld.add(Method.LIST_TRANSACTIONS)
                return
            count, page = self._understood(reply, Method.LIST_TRANSACTIONS, _page, mutating=False)
            if (
                not count
                or (page and page == before)
                or (page and all(0 < each.created_at < since for each in page))
            ):
                return
            yield [
                each
                for each in page
                if each.created_at >= since and (incoming is None or each.incoming in (incoming, None))
            ]
            offset, before = offset + count, page
        raise WalletUnavailable(f"the wallet lists more than {MAX_LISTED:,} transactions")

    # --- inside -----------------------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Ask for methods and network; a wallet without get_info has its info event. Raises `WalletError`."""
        try:
            result = await self.ask(Method.GET_INFO, {}, lambda result: result)
        except ConnectionRefused:
            raise
        except WalletRefused:
            result = {}
        network = result.get("network")
        self.network = _NETWORKS.get(network, network[:32]) if isinstance(network, str) else ""
        info = self._link.info
        self._methods = read_words(result, "methods") or (info.methods if info is not None else frozenset())

    def _understood(
        self, reply: Result | Failure, method: Method, read: Callable[[Result], _T], *, mutating: bool
    ) -> _T:
        if isinstance(reply, Failure):
            raise error_of(reply, method, mutating=mutating)
        try:
            return read(reply)
        except BadReply as error:
            doubt = in_doubt(f"the wallet answered {method} with {error}", mutating=mutating)
            self._health.note(doubt)
            raise doubt from error


def _transaction_under(payment_hash: str) -> Callable[[Result], WalletTransaction]:
    def read(result: Result) -> WalletTransaction:
        found = read_transaction(result if result.get("payment_hash") else {**result, "payment_hash": payment_hash})
        if found.payment_hash != payment_hash:
            raise BadReply("a transaction other than the one asked for")
        return found

    return read


def _page(result: Result) -> tuple[int, list[WalletTransaction]]:
    """Return how many entries a page has, and those of them that have a payment hash."""
    page = read_transactions(result)
    return len(result["transactions"]), page
