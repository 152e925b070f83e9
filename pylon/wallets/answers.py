"""Reading a wallet's JSON answers, which are no more trusted than anything else from outside.

Every method of `Fields` raises `BadAnswer` where a member is missing or of another shape, and nothing else.
"""

from __future__ import annotations

from typing import Any, Final

from pylon.jobs.ports import Invoice, PaymentState
from pylon.nostr.bolt11 import MAX_INVOICE_CHARS
from pylon.nostr.event import is_hex

MAX_MSATS: Final = 2**63 - 1
MAX_SECONDS: Final = 2**53
MAX_ID_CHARS: Final = 200


class BadAnswer(ValueError):
    """The answer does not have the shape that it should; the message names the member."""


class Fields:
    """The members of one JSON object."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise BadAnswer("something that is not a JSON object")
        self._value: dict[str, Any] = value

    def text(self, name: str, most: int = MAX_ID_CHARS) -> str:
        """Return a text of up to `most` characters."""
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > most:
            raise BadAnswer(f"a {name} that is not a text of up to {most} characters")
        return value

    def text_or_none(self, name: str, most: int = MAX_ID_CHARS) -> str | None:
        """Return a text of up to `most` characters, None when null or missing."""
        return None if self._value.get(name) is None else self.text(name, most)

    def digest(self, name: str) -> str:
        """Return 64 lower-case hex digits."""
        value = self._value.get(name)
        if not isinstance(value, str) or not is_hex(value, 64):
            raise BadAnswer(f"a {name} that is not 64 hex digits")
        return value

    def digest_or_none(self, name: str) -> str | None:
        """Return 64 lower-case hex digits, None when null or missing."""
        return None if self._value.get(name) is None else self.digest(name)

    def number(self, name: str, most: int = MAX_MSATS) -> int:
        """Return a whole number from 0 to `most`."""
        value = self._value.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise BadAnswer(f"a {name} that is not a whole number from 0 to {most}")
        return value

    def number_or_none(self, name: str, most: int = MAX_MSATS) -> int | None:
        """Return a whole number from 0 to `most`, None when null or missing."""
        return None if self._value.get(name) is None else self.number(name, most)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._value.get(name)
        if not isinstance(value, bool):
            raise BadAnswer(f"a {name} that is neither true nor false")
        return value

    def state(self, name: str) -> PaymentState:
        """Return a payment state."""
        try:
            return PaymentState(self._value[name])
        except (KeyError, ValueError):
            raise BadAnswer(f"a {name} that is not one of {', '.join(PaymentState)}") from None

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object as it came."""
        return Fields(self._value.get(name))._value

    def items(self, name: str) -> list[Any]:
        """Return a list as it came."""
        value = self._value.get(name)
        if not isinstance(value, list):
            raise BadAnswer(f"{name} that are not a list")
        return value

    def objects(self, name: str) -> list[Fields]:
        """Return a list of objects."""
        return [Fields(item) for item in self.items(name)]

    def object_or_none(self, name: str) -> Fields | None:
        """Return an object, or None where the member is null. A missing member is a fault."""
        if name not in self._value:
            raise BadAnswer(f"no {name}")
        return None if self._value[name] is None else Fields(self._value[name])

    def invoice(self, *, own_id: str | None = None, payment_hash: str | None = None) -> Invoice:
        """Return this object as an invoice: the one asked for, where `own_id` or `payment_hash` is given."""
        invoice = Invoice(
            own_id=self.text("own_id"),
            payment_hash=self.digest("payment_hash"),
            bolt11=self.text("bolt11", MAX_INVOICE_CHARS),
            amount_msats=self.number("amount_msats"),
            created_at=self.number("created_at", MAX_SECONDS),
            expires_at=self.number("expires_at", MAX_SECONDS),
            state=self.state("state"),
            received_msats=self.number("received_msats"),
            settled_at=self.number_or_none("settled_at", MAX_SECONDS),
        )
        if own_id not in (None, invoice.own_id) or payment_hash not in (None, invoice.payment_hash):
            raise BadAnswer("an invoice other than the one asked for")
        return invoice
