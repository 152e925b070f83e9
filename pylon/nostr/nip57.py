"""NIP-57: zap requests (9734) that we make, and zap receipts (9735) that are believed only after every check.

A receipt is the word of the address's host that an invoice was paid; it proves nothing to a third party. So it
counts only when that host's own key signed it and everything in it fits together, invoice included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson

from pylon.nostr.bolt11 import BadInvoice, InvoiceFacts, read_invoice
from pylon.nostr.event import BadEvent, Draft, Event, parse_event, verify
from pylon.nostr.lnurl import description_hash

ZAP_REQUEST_KIND: Final = 9734
ZAP_RECEIPT_KIND: Final = 9735
MAX_REQUEST_CHARS: Final = 16 * 1024


class ZapFault(StrEnum):
    """Why a receipt does not count; for counters."""

    KIND = "not-a-receipt"
    AUTHOR = "foreign-author"  # not the key that the address names
    SIGNATURE = "bad-signature"
    REQUEST = "no-request"  # no zap request in the description, or several
    REQUEST_SIGNATURE = "bad-request-signature"
    RECIPIENT = "other-recipient"
    EVENT = "other-event"
    SENDER = "other-sender"
    INVOICE = "no-invoice"
    NETWORK = "other-network"
    DESCRIPTION = "other-description"  # the invoice was not made for this zap request
    AMOUNT = "other-amount"


class BadZap(ValueError):
    """The receipt does not count; `fault` says why, the message in one sentence."""

    def __init__(self, fault: ZapFault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Zap:
    """A zap whose receipt was verified in full. The amount is the invoice's, in msats."""

    receipt_id: str
    request: Event
    invoice: InvoiceFacts
    amount_msats: int
    received_at: int


def zap_request_draft(
    *,
    recipient: str,
    relays: Sequence[str],
    amount_msats: int,
    lnurl: str = "",
    event_id: str | None = None,
    content: str = "",
) -> Draft:
    """Return a zap request to `recipient` (hex); its receipt is published on `relays`, it itself nowhere."""
    tags = [("relays", *relays), ("amount", str(amount_msats)), ("p", recipient)]
    if lnurl:
        tags.append(("lnurl", lnurl))
    if event_id is not None:
        tags.append(("e", event_id))
    return Draft(ZAP_REQUEST_KIND, content, tuple(tags))


def verify_zap_receipt(receipt: Event, *, author: str, recipient: str, event_id: str | None, network: str) -> Zap:
    """Return what a receipt proves. Raises `BadZap` and nothing else.

    `author` is the `nostrPubkey` of the address that was paid, `recipient` the key that was zapped, `event_id` the
    event that was (None: the zap names no event). About 7 ms, most of it for the invoice: see `read_invoice`.
    """
    if receipt.kind != ZAP_RECEIPT_KIND:
        raise BadZap(ZapFault.KIND, f"kind {receipt.kind} is no zap receipt")
    if receipt.pubkey != author:
        raise BadZap(ZapFault.AUTHOR, "the receipt is not by the key that the address names")
    if not verify(receipt):
        raise BadZap(ZapFault.SIGNATURE, "the receipt's signature is wrong")
    description, request = _request(receipt)
    _check_parties(receipt, request, recipient, event_id)
    invoice = _invoice(receipt, network)
    if invoice.description_hash != description_hash(description):
        raise BadZap(ZapFault.DESCRIPTION, "the invoice was not made for this zap request")
    amount_msats = invoice.amount_msats
    if amount_msats is None or amount_msats <= 0:
        raise BadZap(ZapFault.AMOUNT, "the invoice names no amount")
    named = request.tag_values("amount")
    if request.tag("amount") is not None and named != [str(amount_msats)]:
        raise BadZap(ZapFault.AMOUNT, "the invoice asks another amount than the zap request names")
    stated = receipt.tag_values("amount")
    if stated and stated != [str(amount_msats)]:
        raise BadZap(ZapFault.AMOUNT, "the receipt states another amount than the invoice")
    return Zap(receipt.id, request, invoice, amount_msats, receipt.created_at)


def _request(receipt: Event) -> tuple[str, Event]:
    descriptions = receipt.tag_values("description")
    if len(descriptions) != 1 or len(descriptions[0]) > MAX_REQUEST_CHARS:
        raise BadZap(ZapFault.REQUEST, "the receipt does not hold exactly one zap request")
    try:
        request = parse_event(orjson.loads(descriptions[0]))
    except (orjson.JSONDecodeError, BadEvent) as error:
        raise BadZap(ZapFault.REQUEST, "the receipt's description is no event") from error
    if request.kind != ZAP_REQUEST_KIND:
        raise BadZap(ZapFault.REQUEST, f"the receipt's description is an event of kind {request.kind}")
    if not verify(request):
        raise BadZap(ZapFault.REQUEST_SIGNATURE, "the zap request's id or signature is wrong")
    return descriptions[0], request


def _check_parties(receipt: Event, request: Event, recipient: str, event_id: str | None) -> None:
    events = [] if event_id is None else [event_id]
    for name, each in (("receipt", receipt), ("zap request", request)):
        if each.tag_values("p") != [recipient]:
            raise BadZap(ZapFault.RECIPIENT, f"the {name} is for another recipient")
        if each.tag_values("e") != events:
            raise BadZap(ZapFault.EVENT, f"the {name} is for another event")
    if any(sender != request.pubkey for sender in receipt.tag_values("P")):
        raise BadZap(ZapFault.SENDER, "the receipt names another sender than the zap request's author")


def _invoice(receipt: Event, network: str) -> InvoiceFacts:
    invoices = receipt.tag_values("bolt11")
    if len(invoices) != 1:
        raise BadZap(ZapFault.INVOICE, "the receipt does not hold exactly one invoice")
    try:
        invoice = read_invoice(invoices[0])
    except BadInvoice as error:
        raise BadZap(ZapFault.INVOICE, f"the receipt's invoice cannot be read: {error}") from error
    if invoice.network != network:
        raise BadZap(ZapFault.NETWORK, f"the receipt's invoice is for {invoice.network}, not for {network}")
    return invoice
