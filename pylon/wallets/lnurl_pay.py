"""Lightning addresses as places to pay to (LUD-16): what an address offers, and invoices of it, checked.

Every host is reached through the guarded GET, the operator's own included: one way, one set of bounds.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final

import anyio.to_thread

from pylon.jobs.ports import Clock, PayeeError, PayeeRefused, PayeeUnavailable
from pylon.net.web import Web, WebAnswer, WebError, WebRefused
from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, check_invoice, read_invoice
from pylon.nostr.lnurl import (
    BadLnurl,
    InvoiceAnswer,
    LightningAddress,
    LnurlError,
    PayOffer,
    VerifyAnswer,
    callback_url,
    parse_invoice_answer,
    parse_lightning_address,
    parse_pay_offer,
    parse_verify_answer,
)

MIN_LIFE_S: Final = 30
"""An invoice that expires sooner may be too old once it is paid."""

_GONE: Final = frozenset({404, 410})


class Failing(Enum):
    """What a failed exchange with a host leaves behind."""

    FINAL = "final"  # there is no such address, or we will not go there: asking again is of no use
    REFUSED = "refused"  # the host understood and said no
    AWAY = "away"  # certainly nothing was done
    UNCLEAR = "unclear"  # it was asked, and may have done it


class HostFault(Exception):
    """An address's host gave nothing usable; the message is one printable sentence."""

    def __init__(self, failing: Failing, sentence: str) -> None:
        super().__init__(sentence)
        self.failing = failing


class AddressHosts:
    """Speaks LNURL-pay with hosts. Every method raises `HostFault` and nothing else."""

    def __init__(self, web: Web) -> None:
        self._web = web

    async def offer(self, address: LightningAddress) -> PayOffer:
        """Return what an address takes."""
        answer = await self._get(address.url)
        if answer.status in _GONE:
            raise HostFault(Failing.FINAL, f"{answer.host} knows no lightning address {address}")
        try:
            return parse_pay_offer(answer.value)
        except LnurlError as error:
            raise HostFault(_said_no(answer, Failing.FINAL), f"{answer.host} refuses {address}: {error}") from error
        except BadLnurl as error:
            raise _unclear(answer, error) from error

    async def invoice(
        self, offer: PayOffer, amount_msats: int, *, comment: str = "", zap_request_json: str = "", lnurl: str = ""
    ) -> InvoiceAnswer:
        """Return the invoice that a callback answers with, unread; a `verify` where we would not go is left out."""
        if not offer.min_msats <= amount_msats <= offer.max_msats:
            allowed = f"{offer.min_msats} to {offer.max_msats} msats"
            raise HostFault(Failing.FINAL, f"the address takes {allowed} at once, not {amount_msats} msats")
        url = callback_url(offer, amount_msats, comment=comment, zap_request_json=zap_request_json, lnurl=lnurl)
        answer = await self._get(url)
        try:
            made = parse_invoice_answer(answer.value)
        except LnurlError as error:
            raise HostFault(
                _said_no(answer, Failing.REFUSED), f"{answer.host} makes no invoice: {error}"
            ) from error
        except BadLnurl as error:
            raise _unclear(answer, error) from error
        if made.verify is not None and not self._would_go(made.verify):
            return replace(made, verify=None)
        return made

    async def verify(self, url: str) -> VerifyAnswer | None:
        """Return what a `verify` URL (LUD-21) answers, or None when the host says that it knows no such invoice."""
        answer = await self._get(url)
        if answer.status in _GONE:
            return None
        try:
            return parse_verify_answer(answer.value)
        except LnurlError as error:
            if answer.status == 200 and "not found" in str(error).lower():  # the reason that LUD-21 gives
                return None
            raise HostFault(Failing.AWAY, f"{answer.host} does not say whether it is paid: {error}") from error
        except BadLnurl as error:
            raise _unclear(answer, error) from error

    def _would_go(self, url: str) -> bool:
        try:
            self._web.check(url)
        except WebRefused:
            return False
        return True

    async def _get(self, url: str) -> WebAnswer:
        try:
            return await self._web.get_json(url)
        except WebRefused as error:
            raise HostFault(Failing.FINAL, str(error)) from error
        except WebError as error:
            raise HostFault(Failing.UNCLEAR if error.sent else Failing.AWAY, str(error)) from error


def _said_no(answer: WebAnswer, failing: Failing) -> Failing:
    """Return how an `ERROR` counts: with a status that speaks of the moment, it does too."""
    return Failing.AWAY if answer.status == 429 or answer.status >= 500 else failing


def _unclear(answer: WebAnswer, error: BadLnurl) -> HostFault:
    words = str(error) if answer.status == 200 else f"HTTP status {answer.status}"
    limited = answer.status == 429
    return HostFault(Failing.AWAY if limited else Failing.UNCLEAR, f"{answer.host} answers nonsense: {words}")


async def read_beside(bolt11: str) -> InvoiceFacts:
    """Return what an invoice says, read beside the loop: a stranger chose the text. Raises `BadInvoice`."""
    return await anyio.to_thread.run_sync(read_invoice, bolt11)


class LightningAddresses:
    """The `Payees`: whoever has a lightning address. `network` is the one whose invoices are paid."""

    def __init__(self, web: Web, *, network: str, clock: Clock) -> None:
        self._hosts = AddressHosts(web)
        self._network = network
        self._clock = clock

    async def zap_author(self, address: str) -> str | None:
        """Return whose key signs the zap receipts of an address (hex), None where it makes none. `PayeeError`."""
        try:
            return (await self._hosts.offer(parse_lightning_address(address))).nostr_pubkey
        except BadLnurl as error:
            raise PayeeRefused(str(error)) from error
        except HostFault as fault:
            raise PayeeUnavailable(str(fault)) from fault

    async def invoice_for(self, address: str, amount_msats: int) -> str:
        """Return an invoice over exactly this amount, in lower case; see `Payees`."""
        try:
            offer = await self._hosts.offer(parse_lightning_address(address))
            bolt11 = (await self._hosts.invoice(offer, amount_msats)).bolt11
        except BadLnurl as error:
            raise PayeeRefused(str(error)) from error
        except HostFault as fault:
            # What a callback refuses may be a matter of the moment: the address has said that it takes as much.
            kind: type[PayeeError] = PayeeRefused if fault.failing is Failing.FINAL else PayeeUnavailable
            raise kind(str(fault)) from fault
        try:
            facts = await read_beside(bolt11)
            check_invoice(facts, amount_msats=amount_msats, network=self._network, now=self._clock() + MIN_LIFE_S)
        except BadInvoice as error:
            raise PayeeUnavailable(f"{address} gives an invoice that is not to be paid: {error}") from error
        # Hosts that cannot make an invoice with a hash put a text there instead; a hash must be the right one.
        if facts.description_hash not in (None, offer.description_hash):
            raise PayeeUnavailable(f"{address} gives an invoice that was made for something else")
        return bolt11.lower()
