"""Reading what a request carries: bounded, typed, refused with a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.requests import Request

from pylon.nostr.event import is_hex
from pylon.wallets.fake_server.ledger import Refused

MAX_BODY_BYTES: Final = 64 * 1024


class Body:
    """The members of a JSON object or of a query. Each method raises `Refused` where the member does not fit."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def text(self, name: str, most: int, *, default: str | None = None) -> str:
        """Return a text of up to `most` characters; without a default it may not be missing or empty."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or len(value) > most or (default is None and not value):
            raise Refused(400, f"{name} is a text of up to {most} characters")
        return value

    def number(self, name: str, least: int, most: int) -> int:
        """Return a whole number within bounds."""
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise Refused(400, f"{name} is a whole number from {least} to {most}")
        return value

    def digits(self, name: str) -> int:
        """Return a whole number written in decimal digits, 0 when missing."""
        value = self.values.get(name, "0")
        if not isinstance(value, str) or not value.isdecimal() or not value.isascii() or len(value) > 15:
            raise Refused(400, f"{name} is a whole number")
        return int(value)

    def digest(self, name: str) -> str | None:
        """Return a SHA-256 as 64 lower-case hex digits, None when missing or null."""
        value = self.values.get(name)
        if value is not None and not is_hex(value, 64):
            raise Refused(400, f"{name} is 64 lower-case hex digits")
        return value


async def json_body(request: Request) -> Body:
    """Return the JSON object that a request carries. Raises `Refused`."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise Refused(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return Body(value)
