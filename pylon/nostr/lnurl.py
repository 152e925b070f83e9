"""LNURL-pay as values: lightning addresses (LUD-16), what their hosts answer (LUD-06, LUD-12, LUD-21), callbacks.

No host is contacted here. What a host answers is as little trusted as anything a stranger sends: another shape
than the specification's is `BadLnurl`, its own refusal `LnurlError`, and nothing else is raised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import orjson
from pynostr import bech32

from pylon.nostr.bolt11 import MAX_AMOUNT_MSATS, MAX_INVOICE_CHARS
from pylon.nostr.event import is_hex
from pylon.text import printable

MAX_ADDRESS_CHARS: Final = 320
MAX_LNURL_CHARS: Final = 2_048
MAX_METADATA_CHARS: Final = 48 * 1024  # a picture may be in it
MAX_COMMENT_CHARS: Final = 2_000
MAX_URL_CHARS: Final = 2_048

_NAME: Final = re.compile(r"[a-z0-9_.+-]{1,64}", re.ASCII)
_HOST: Final = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}(?::[0-9]{1,5})?", re.ASCII)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})


class BadLnurl(ValueError):
    """The text or answer is not LNURL-pay; the message is one printable sentence."""


class LnurlError(Exception):
    """The host understood and answered `ERROR`; the message is its reason, printable."""


@dataclass(frozen=True, slots=True)
class LightningAddress:
    """`name@host`, in lower case; the host may carry a port."""

    name: str
    host: str

    @property
    def url(self) -> str:
        """Where the address answers (LUD-16): with TLS, but on this machine itself."""
        scheme = "http" if self.host.partition(":")[0] in _LOOPBACK else "https"
        return f"{scheme}://{self.host}/.well-known/lnurlp/{quote(self.name)}"

    def __str__(self) -> str:
        return f"{self.name}@{self.host}"


def parse_lightning_address(text: str) -> LightningAddress:
    """Return a lightning address (LUD-16), put in lower case. Raises `BadLnurl`."""
    name, at, host = text.strip().lower().partition("@") if len(text) <= MAX_ADDRESS_CHARS else ("", "", "")
    if not at or not _NAME.fullmatch(name) or not _HOST.fullmatch(host) or len(host) > 253:
        raise BadLnurl(
            f"{printable(text, limit=80)!r} is not a lightning address, which looks like name@example.com"
        )
    return LightningAddress(name, host)


def decode_lnurl(text: str) -> str:
    """Return the URL in a bech32 LNURL (LUD-01) or an `lnurlp:` link (LUD-17). Raises `BadLnurl`."""
    text = text.strip()
    if len(text) > MAX_LNURL_CHARS:
        raise BadLnurl(f"the LNURL is longer than {MAX_LNURL_CHARS} characters")
    if text.lower().startswith("lightning:"):
        text = text[len("lightning:") :]
    if text.lower().startswith("lnurlp:"):
        rest = text[len("lnurlp:") :].removeprefix("//")
        scheme = "http" if re.split(r"[:/?#]", rest, maxsplit=1)[0] in _LOOPBACK else "https"
        return _url(f"{scheme}://{rest}", "the link")
    prefix, data, encoding = bech32.bech32_decode(text)
    if prefix != "lnurl" or data is None or encoding is not bech32.Encoding.BECH32:
        raise BadLnurl("not a valid LNURL")
    raw = bech32.convertbits(data, 5, 8, False)
    try:
        return _url(bytes(raw or ()).decode("ascii"), "the LNURL")
    except UnicodeDecodeError:
        raise BadLnurl("the LNURL holds no URL") from None


def encode_lnurl(url: str) -> str:
    """Return a URL as a bech32 LNURL, in lower case."""
    return str(bech32.bech32_encode("lnurl", bech32.convertbits(url.encode(), 8, 5), bech32.Encoding.BECH32))


@dataclass(frozen=True, slots=True)
class PayOffer:
    """What an address takes (LUD-06). `nostr_pubkey` is the author of its zap receipts, None when it makes none."""

    callback: str
    min_msats: int
    max_msats: int
    metadata: str = field(repr=False)
    comment_chars: int = 0
    nostr_pubkey: str | None = None

    @property
    def description_hash(self) -> str:
        """What an invoice without a zap request commits to, hex."""
        return description_hash(self.metadata)


@dataclass(frozen=True, slots=True)
class InvoiceAnswer:
    """What a callback answers. `verify` (LUD-21) is where the host tells whether the invoice is paid."""

    bolt11: str
    verify: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class VerifyAnswer:
    """What a `verify` URL answers (LUD-21). `preimage` is hex, None where the host keeps it."""

    settled: bool
    bolt11: str | None = None
    preimage: str | None = field(default=None, repr=False)


def description_hash(text: str) -> str:
    """Return what an invoice commits to for this metadata or zap request: the sha256 of its UTF-8, hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_pay_offer(value: object) -> PayOffer:
    """Return what an address offers. Raises `BadLnurl`, or `LnurlError` with the host's own reason."""
    fields = _object(value)
    if fields.get("tag") != "payRequest":
        raise BadLnurl("the answer is not that of a place to pay to (no payRequest)")
    lowest, highest = _msats(fields, "minSendable"), _msats(fields, "maxSendable")
    if not 1 <= lowest <= highest:
        raise BadLnurl("the answer's minSendable and maxSendable are no range")
    return PayOffer(
        callback=_url(fields.get("callback"), "the answer's callback"),
        min_msats=lowest,
        max_msats=highest,
        metadata=_metadata(fields.get("metadata")),
        comment_chars=_comment_chars(fields.get("commentAllowed")),
        nostr_pubkey=_nostr_pubkey(fields),
    )


def parse_invoice_answer(value: object) -> InvoiceAnswer:
    """Return a callback's invoice, unread. Raises `BadLnurl` or `LnurlError`."""
    fields = _object(value)
    bolt11, verify = fields.get("pr"), fields.get("verify")
    if not isinstance(bolt11, str) or not 0 < len(bolt11) <= MAX_INVOICE_CHARS:
        raise BadLnurl("the answer holds no invoice")
    return InvoiceAnswer(bolt11, None if verify in (None, "") else _url(verify, "the answer's verify"))


def parse_verify_answer(value: object) -> VerifyAnswer:
    """Return whether an invoice is paid. Raises `BadLnurl` or `LnurlError`."""
    fields = _object(value)
    settled, preimage, bolt11 = fields.get("settled"), fields.get("preimage"), fields.get("pr")
    if type(settled) is not bool:
        raise BadLnurl("the answer does not say whether the invoice is settled")
    if preimage in (None, ""):
        preimage = None
    elif not isinstance(preimage, str) or not is_hex(preimage.lower(), 64):
        raise BadLnurl("the answer's preimage is not 64 hex digits")
    if bolt11 is not None and not isinstance(bolt11, str):
        raise BadLnurl("the answer's pr is not a text")
    return VerifyAnswer(settled, bolt11, None if preimage is None else preimage.lower())


def callback_url(
    offer: PayOffer, amount_msats: int, *, comment: str = "", zap_request_json: str = "", lnurl: str = ""
) -> str:
    """Return where the invoice over `amount_msats` is asked for (LUD-06, LUD-12, NIP-57).

    A comment is left out where the address takes none, and cut to what it takes.
    """
    query = {"amount": str(amount_msats)}
    if comment and offer.comment_chars:
        query["comment"] = comment[: offer.comment_chars]
    if zap_request_json:
        query["nostr"] = zap_request_json
        if lnurl:
            query["lnurl"] = lnurl
    base = offer.callback.partition("#")[0]
    joint = "&" if "?" in base else "?"
    return f"{base}{joint}{urlencode(query, quote_via=quote, errors='replace')}"


# --- shapes -------------------------------------------------------------------------------------------------------


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadLnurl("the answer is not a JSON object")
    status = value.get("status")
    if isinstance(status, str) and status.upper() == "ERROR":
        raise LnurlError(printable(value.get("reason") or "no reason given"))
    return value


def _msats(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT_MSATS:
        raise BadLnurl(f"the answer's {name} is not a whole number of millisats")
    return value


def _url(value: object, where: str) -> str:
    """Return a text that begins like a web URL; whether its host may be contacted is the guard's question."""
    if not isinstance(value, str) or len(value) > MAX_URL_CHARS or not value.isascii() or not value.isprintable():
        raise BadLnurl(f"{where} is no URL")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise BadLnurl(f"{where} is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadLnurl(f"{where} is no web URL")
    return value


def _metadata(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_METADATA_CHARS:
        raise BadLnurl("the answer's metadata is not a text")
    try:
        entries = orjson.loads(value)
    except orjson.JSONDecodeError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, list) for entry in entries):
        raise BadLnurl("the answer's metadata is not a list in JSON")
    return value


def _comment_chars(value: object) -> int:
    return min(value, MAX_COMMENT_CHARS) if type(value) is int and value > 0 else 0


def _nostr_pubkey(fields: Mapping[str, Any]) -> str | None:
    pubkey = fields.get("nostrPubkey")
    if fields.get("allowsNostr") is not True or not isinstance(pubkey, str):
        return None
    return pubkey.lower() if is_hex(pubkey.lower(), 64) else None
