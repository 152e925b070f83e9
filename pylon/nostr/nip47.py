"""NIP-47, Nostr Wallet Connect: the connection's URI, and what client and wallet service say to each other.

Wallets differ in what they leave out, so reading is lenient where nothing is decided by it and strict about money:
an amount, a hash or a time is a number or 64 hex digits, or the whole answer is a `BadReply`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import orjson

from pylon.nostr.encryption import Conversation, Encryption
from pylon.nostr.event import Draft, Event, is_hex
from pylon.nostr.keys import BadKey, SecretKey, parse_public_key, parse_secret_key

INFO_KIND: Final = 13194
REQUEST_KIND: Final = 23194
RESPONSE_KIND: Final = 23195
NOTIFICATION_NIP04_KIND: Final = 23196
NOTIFICATION_KIND: Final = 23197

MAX_URI_CHARS: Final = 4_096
MAX_URI_RELAYS: Final = 8

OWN_ID: Final = "pylon_id"
"""The member of an invoice's `metadata` that carries our own id."""

_SCHEME: Final = "nostr+walletconnect://"
_MAX_MSATS: Final = 2**63 - 1
_MAX_SECONDS: Final = 2**53
_MAX_TEXT: Final = 8_192
_WORD: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


class Method(StrEnum):
    """The methods that we call."""

    GET_INFO = "get_info"
    GET_BALANCE = "get_balance"
    MAKE_INVOICE = "make_invoice"
    LOOKUP_INVOICE = "lookup_invoice"
    LIST_TRANSACTIONS = "list_transactions"
    PAY_INVOICE = "pay_invoice"


class ErrorCode(StrEnum):
    """The error codes that mean something to us."""

    RATE_LIMITED = "RATE_LIMITED"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RESTRICTED = "RESTRICTED"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNSUPPORTED_ENCRYPTION = "UNSUPPORTED_ENCRYPTION"
    PAYMENT_FAILED = "PAYMENT_FAILED"
    NOT_FOUND = "NOT_FOUND"
    INTERNAL = "INTERNAL"
    OTHER = "OTHER"


class TransactionState(StrEnum):
    """How a transaction stands."""

    PENDING = "pending"
    SETTLED = "settled"
    EXPIRED = "expired"
    FAILED = "failed"


_STATES: Final = {state.value: state for state in TransactionState} | {"accepted": TransactionState.PENDING}


class BadUri(ValueError):
    """The text is no connection of NIP-47; the message is one sentence that never repeats it."""


class BadReply(ValueError):
    """What the wallet said does not have the shape that it should; the message names what it said."""


@dataclass(frozen=True, slots=True)
class WalletUri:
    """A connection: the wallet service's public key (hex), its relays, and the key that we speak with."""

    wallet: str
    relays: tuple[str, ...]
    key: SecretKey = field(repr=False)
    lud16: str = ""


def parse_wallet_uri(text: str) -> WalletUri:
    """Return the connection that a URI describes. Raises `BadUri`."""
    text = text.strip()
    if len(text) > MAX_URI_CHARS:
        raise BadUri(f"the connection URI is longer than {MAX_URI_CHARS} characters")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise BadUri("the connection URI holds a blank or a character that is not plain ASCII")
    if not text.lower().startswith(_SCHEME):
        raise BadUri(f"the connection URI does not start with {_SCHEME}")
    name, _, query = text[len(_SCHEME) :].partition("?")
    try:
        wallet = parse_public_key(name.removesuffix("/").lower())
    except BadKey:
        raise BadUri(f"what follows {_SCHEME} is not the wallet's public key (64 hex digits)") from None
    given: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        given.setdefault(key, []).append(value)
    return WalletUri(
        wallet=wallet,
        relays=_read_relays(given.get("relay", [])),
        key=_read_secret(given.get("secret", [])),
        lud16=given.get("lud16", [""])[0],
    )


def _read_relays(given: list[str]) -> tuple[str, ...]:
    relays = tuple(dict.fromkeys(given))
    if not relays:
        raise BadUri("the connection URI names no relay (relay=wss://…)")
    if len(relays) > MAX_URI_RELAYS:
        raise BadUri(f"the connection URI names more than {MAX_URI_RELAYS} relays")
    for relay in relays:
        try:
            parts = urlsplit(relay)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("ws", "wss"):
            raise BadUri("a relay in the connection URI is not a ws:// or wss:// URL")
    return relays


def _read_secret(given: list[str]) -> SecretKey:
    if not given:
        raise BadUri("the connection URI has no secret (secret=…)")
    if len(given) > 1:
        raise BadUri("the connection URI has more than one secret")
    try:
        if len(given[0]) != 64:
            raise BadKey
        return parse_secret_key(given[0])
    except BadKey:
        raise BadUri("the secret in the connection URI is not a secret key (64 hex digits)") from None


# --- the info event -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Info:
    """What a wallet service says that it can do. Unix seconds of the event in `created_at`."""

    methods: frozenset[str]
    encryptions: frozenset[Encryption]
    notifications: frozenset[str]
    created_at: int

    @property
    def encryption(self) -> Encryption | None:
        """The scheme to speak: NIP-44 where it is offered; None when none that we know is."""
        return next((each for each in (Encryption.NIP44, Encryption.NIP04) if each in self.encryptions), None)


def read_info(event: Event) -> Info:
    """Return what an info event (kind 13194) says; never raises. Without an `encryption` tag NIP-04 is meant."""
    methods = _words(event.content)
    said = event.tag("encryption")
    schemes = _words(" ".join(said[1:])) if said is not None else {Encryption.NIP04.value}
    pushed = event.tag("notifications")
    notifications = _words(" ".join(pushed[1:])) if pushed is not None else frozenset[str]()
    if pushed is None and "notifications" in methods:
        notifications = frozenset({"payment_received"})
    return Info(
        methods=frozenset(methods),
        encryptions=frozenset(each for each in Encryption if each.value in schemes),
        notifications=frozenset(notifications),
        created_at=event.created_at,
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.split(r"[\s,]+", text[:_MAX_TEXT]) if _WORD.fullmatch(word))


# --- requests and responses -----------------------------------------------------------------------------------


def request_draft(
    conversation: Conversation,
    wallet: str,
    method: str,
    params: Mapping[str, Any],
    *,
    encryption: Encryption,
    expires_at: int,
) -> Draft:
    """Return a request (kind 23194). Raises `BadCiphertext` when it is too long to be encrypted."""
    text = orjson.dumps({"method": method, "params": params}).decode()
    tags: list[tuple[str, ...]] = [("p", wallet), ("expiration", str(expires_at))]
    if encryption is not Encryption.NIP04:  # which is what no tag says, to older services too
        tags.append(("encryption", encryption.value))
    return Draft(REQUEST_KIND, conversation.encrypt(text, encryption), tuple(tags))


@dataclass(frozen=True, slots=True)
class Failure:
    """A wallet's "no". `message` is the wallet's own, not fit for a terminal."""

    code: str
    message: str


Result = Mapping[str, Any]


def read_response(text: str, method: str) -> Result | Failure:
    """Return what the decrypted content of a response (kind 23195) says. Raises `BadReply`."""
    value = _object(text, "a response")
    said = value.get("result_type")
    if said not in (None, "", method):
        raise BadReply("the result of another method")
    error = value.get("error")
    if error is not None:
        if not isinstance(error, dict):
            raise BadReply("an error that is not an object")
        code, message = error.get("code"), error.get("message")
        return Failure(
            code[:64].upper() if isinstance(code, str) and code else ErrorCode.OTHER.value,
            message[:_MAX_TEXT] if isinstance(message, str) else "",
        )
    result = value.get("result")
    if not isinstance(result, dict):
        raise BadReply("neither a result nor an error")
    return result


@dataclass(frozen=True, slots=True)
class WalletTransaction:
    """An invoice or a payment as a wallet tells it. Amounts in msats, times in unix seconds; 0 or "" where unsaid.

    `preimage` of an invoice proves nothing: who made the invoice knows it before anybody has paid.
    """

    incoming: bool | None
    state: TransactionState
    payment_hash: str
    amount_msats: int
    fees_msats: int | None = None
    created_at: int = 0
    expires_at: int = 0
    settled_at: int | None = None
    invoice: str = ""
    description: str = ""
    description_hash: str = ""
    own_id: str = ""
    preimage: str = field(default="", repr=False)


def read_transaction(value: object) -> WalletTransaction:
    """Return a transaction of any wallet's shape. Raises `BadReply`.

    It is settled when the wallet says so in `state` or, where it has no such member, by a `settled_at`.
    """
    if not isinstance(value, dict):
        raise BadReply("a transaction that is not an object")
    payment_hash = _text(value, "payment_hash").lower()
    if not is_hex(payment_hash, 64):
        raise BadReply("a payment_hash that is not 64 hex digits")
    settled_at = _number(value, "settled_at", _MAX_SECONDS) or None
    state = _STATES.get(_text(value, "state").lower())
    if state is None:
        state = TransactionState.PENDING if settled_at is None else TransactionState.SETTLED
    amount = _number(value, "amount", _MAX_MSATS)
    if amount is None:
        raise BadReply("a transaction without an amount")
    kind = _text(value, "type").lower()
    metadata = value.get("metadata")
    own_id = metadata.get(OWN_ID) if isinstance(metadata, dict) else None
    return WalletTransaction(
        incoming={"incoming": True, "outgoing": False}.get(kind),
        state=state,
        payment_hash=payment_hash,
        amount_msats=amount,
        fees_msats=_number(value, "fees_paid", _MAX_MSATS),
        created_at=_number(value, "created_at", _MAX_SECONDS) or 0,
        expires_at=_number(value, "expires_at", _MAX_SECONDS) or 0,
        settled_at=settled_at if state is TransactionState.SETTLED else None,
        invoice=_text(value, "invoice"),
        description=_text(value, "description"),
        description_hash=_text(value, "description_hash").lower(),
        own_id=own_id if isinstance(own_id, str) else "",
        preimage=_text(value, "preimage").lower(),
    )


def read_transactions(result: Result) -> list[WalletTransaction]:
    """Return the transactions of a `list_transactions` result, as they come. Raises `BadReply`.

    What has no payment hash is left out: some wallets list payments on the chain and BOLT12 offers too.
    """
    listed = result.get("transactions")
    if not isinstance(listed, list):
        raise BadReply("no list of transactions")
    return [read_transaction(each) for each in listed if not isinstance(each, dict) or each.get("payment_hash")]


def read_preimage(result: Result) -> str:
    """Return the preimage of a `pay_invoice` result as hex, "" where there is none. Raises `BadReply`."""
    return _text(result, "preimage").lower()


def read_msats(result: Result, name: str) -> int | None:
    """Return an amount of a result, None where it is absent. Raises `BadReply`."""
    return _number(result, name, _MAX_MSATS)


def read_words(result: Result, name: str) -> frozenset[str] | None:
    """Return a list of words, as `methods` in `get_info`; None where there is none."""
    value = result.get(name)
    return _words(" ".join(each for each in value if isinstance(each, str))) if isinstance(value, list) else None


def read_notification(text: str) -> tuple[str, WalletTransaction | None]:
    """Return the type of a decrypted notification, and its transaction where it is one of a payment.

    Raises `BadReply`.
    """
    value = _object(text, "a notification")
    kind = value.get("notification_type")
    if not isinstance(kind, str) or not _WORD.fullmatch(kind):
        raise BadReply("a notification without a type")
    if kind not in ("payment_received", "payment_sent"):
        return kind, None
    return kind, read_transaction(value.get("notification"))


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, RecursionError):
        raise BadReply(f"{what} that is not JSON") from None
    if not isinstance(value, dict):
        raise BadReply(f"{what} that is not a JSON object")
    return value


def _text(value: Mapping[str, Any], name: str) -> str:
    """Return a text, "" where it is null or missing."""
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > _MAX_TEXT:
        raise BadReply(f"a {name} that is not a text of up to {_MAX_TEXT} characters")
    return found


def _number(value: Mapping[str, Any], name: str, most: int) -> int | None:
    """Return a whole number from 0 to `most`, None where it is null, empty or missing."""
    found = value.get(name)
    if found is None or found == "":
        return None
    if isinstance(found, float) and found.is_integer() and abs(found) <= _MAX_SECONDS:
        found = int(found)  # as JavaScript may write it
    if type(found) is not int or not 0 <= found <= most:
        raise BadReply(f"a {name} that is not a whole number from 0 to {most}")
    return found
