"""BOLT11: what a Lightning invoice says, read from text that nobody vouches for.

The `bolt11` library decodes the fields and recovers the signer. It is more lenient than money allows, so the
reader here is strict where it is not: mixed case is refused, the prefix must be exactly that of a known network
and a whole number of millisatoshis, and every fault it may raise becomes a `BadInvoice`.

An invoice whose amount was altered and whose checksum was computed again still reads well when it names no payee:
its signature then recovers to a key that nobody holds. Whoever knows the payee compares it. Feature bits are not
judged: they are the paying node's concern.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import bolt11

from pylon.nostr.event import is_hex

MAX_INVOICE_CHARS: Final = 4096
"""Longest text that is looked at: decoding costs up to 35 µs a character."""

MAX_AMOUNT_MSATS: Final = 21_000_000 * 100_000_000_000
MAX_EXPIRES_AT: Final = 2**53

_PREFIX: Final = re.compile(r"ln(bcrt|bc|tbs|tb)(?:([1-9][0-9]{0,18})([munp]?))?", re.ASCII)
_MSATS_PER_UNIT: Final = {"": 100_000_000_000, "m": 100_000_000, "u": 100_000, "n": 100}


class BadInvoice(ValueError):
    """The text is not an invoice that may be paid or published; the message is one sentence without the text."""


class Network(StrEnum):
    """The chain an invoice is for, as its prefix says."""

    BITCOIN = "bitcoin"
    TESTNET = "testnet"
    SIGNET = "signet"
    REGTEST = "regtest"


_NETWORKS: Final = {
    "bc": Network.BITCOIN,
    "tb": Network.TESTNET,
    "tbs": Network.SIGNET,
    "bcrt": Network.REGTEST,
}


@dataclass(frozen=True, slots=True)
class InvoiceFacts:
    """What an invoice says of itself. Times are unix seconds, keys and hashes lower-case hex.

    `amount_msats` is None when the payer may choose; `payee` is the node that signed (33 bytes, compressed).
    """

    payment_hash: str
    amount_msats: int | None
    network: Network
    created_at: int
    expires_at: int
    description: str | None
    description_hash: str | None
    payee: str


def read_invoice(text: str) -> InvoiceFacts:
    """Return what a BOLT11 invoice says. Raises `BadInvoice` and nothing else.

    The signature is checked against the named payee, or the payee is recovered from it. About 7 ms for a usual
    invoice, 140 ms for the longest allowed: call it from a thread where a stranger chooses the text.
    """
    if not isinstance(text, str) or not text.isascii():
        raise BadInvoice("an invoice is ASCII text")
    if len(text) > MAX_INVOICE_CHARS:
        raise BadInvoice(f"the invoice is longer than {MAX_INVOICE_CHARS} characters")
    lowered = text.lower()
    if text not in (lowered, text.upper()):
        raise BadInvoice("the invoice mixes upper and lower case")
    network, amount_msats = _read_prefix(lowered)
    decoded = _decode(lowered)
    payee, payment_hash = decoded.payee, decoded.payment_hash
    if payee is None or not is_hex(payee, 66) or not is_hex(payment_hash, 64):
        raise BadInvoice("the invoice has no valid payee or payment hash")
    expires_at = decoded.date + decoded.expiry
    if expires_at >= MAX_EXPIRES_AT:
        raise BadInvoice("the invoice never expires")
    return InvoiceFacts(
        payment_hash=payment_hash,
        amount_msats=amount_msats,
        network=network,
        created_at=decoded.date,
        expires_at=expires_at,
        description=decoded.description,
        description_hash=decoded.description_hash,
        payee=payee,
    )


def read_amount(text: str) -> int | None:
    """Return the amount (msats) that an invoice's prefix names, None where the payer may choose; decodes nothing.

    Raises `BadInvoice`.
    """
    if not text.isascii() or len(text) > MAX_INVOICE_CHARS:
        raise BadInvoice(f"an invoice is ASCII text of at most {MAX_INVOICE_CHARS} characters")
    return _read_prefix(text.lower())[1]


def check_invoice(
    facts: InvoiceFacts,
    *,
    amount_msats: int,
    network: str,
    now: float,
    description_hash: str | None = None,
    payee: str | None = None,
) -> None:
    """Raise `BadInvoice` unless the invoice is for exactly this amount on this network and still open at `now`.

    `description_hash` and `payee` are compared when given.
    """
    if facts.network != network:
        raise BadInvoice(f"the invoice is for {facts.network}, not for {network}")
    if facts.amount_msats is None:
        raise BadInvoice(f"the invoice names no amount where {amount_msats} msats were agreed")
    if facts.amount_msats != amount_msats:
        raise BadInvoice(f"the invoice asks {facts.amount_msats} msats where {amount_msats} msats were agreed")
    if facts.expires_at <= now:
        raise BadInvoice(f"the invoice expired {int(now) - facts.expires_at} s ago")
    if description_hash is not None and facts.description_hash != description_hash:
        raise BadInvoice("the invoice commits to another description")
    if payee is not None and facts.payee != payee:
        raise BadInvoice("the invoice was signed by another node")


def proves(preimage: str, payment_hash: str) -> bool:
    """Tell whether a preimage (hex) is that of a payment hash; False for whatever is no preimage."""
    return is_hex(preimage, 64) and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash


def _read_prefix(lowered: str) -> tuple[Network, int | None]:
    match = _PREFIX.fullmatch(lowered[: max(lowered.rfind("1"), 0)])
    if match is None:
        raise BadInvoice("the text does not start like an invoice of a known network")
    currency, digits, unit = match.groups()
    if digits is None:
        return _NETWORKS[currency], None
    if unit == "p":
        amount_msats, rest = divmod(int(digits), 10)
        if rest:
            raise BadInvoice("the invoice asks for a fraction of a millisatoshi")
    else:
        amount_msats = int(digits) * _MSATS_PER_UNIT[unit]
    if amount_msats > MAX_AMOUNT_MSATS:
        raise BadInvoice("the invoice asks for more than there is")
    return _NETWORKS[currency], amount_msats


def _decode(lowered: str) -> bolt11.Bolt11:
    try:
        return bolt11.decode(lowered)
    except bolt11.Bolt11Exception as error:
        raise BadInvoice(f"not a valid invoice: {error}") from error
    except Exception as error:  # the library lets through whatever bitstring, secp256k1 and UTF-8 raise
        raise BadInvoice("not a valid invoice: a field or the signature is malformed") from error
