"""URLs that strangers write: taken apart strictly, before anything is resolved or contacted.

Only one spelling of each thing is understood. A host written as `0x7f000001`, `127.1` or `2130706433`, with a
trailing dot, a user name or a control character is refused rather than guessed at, because two parsers that
guess differently are how a guard is walked around.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import idna

from pylon.net.addresses import IPAddress, parse_address
from pylon.text import printable

MAX_URL_CHARS: Final = 512
MAX_HOST_CHARS: Final = 253

_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443, "http": 80, "https": 443}
_SECURE: Final = frozenset({"wss", "https"})
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f-\x9f\\<>\"{}|^`\s]")


class DialRefused(Exception):
    """We will not contact what was named.

    `reason` is a short word for counters; the message is one sentence fit for the operator, safe for a terminal.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL points. `host` is lower-case ASCII, `url` the one canonical spelling of the whole."""

    url: str
    scheme: str
    host: str
    port: int
    address: IPAddress | None = None

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme in _SECURE


def parse_target(url: str, schemes: frozenset[str], max_chars: int = MAX_URL_CHARS) -> Target:
    """Return where `url` points. Raises `DialRefused` and nothing else.

    Checks the spelling only: whether the host may be contacted is the dialer's question.
    """
    if not isinstance(url, str) or len(url) > max_chars:
        raise DialRefused("bad-url", f"the URL is longer than {max_chars} characters")
    if _FORBIDDEN.search(url):
        raise DialRefused("bad-url", f"the URL {printable(url)} holds a blank, a control character or a bracket")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise DialRefused("bad-url", f"{printable(url)} is not a URL") from None
    scheme = parts.scheme
    if scheme not in schemes or scheme not in _DEFAULT_PORTS:
        raise DialRefused("bad-scheme", f"{printable(url)} does not start with {_spoken(schemes)}")
    if "@" in parts.netloc:
        raise DialRefused("user-info", "the URL carries a user name or password")
    if port == 0 or parts.netloc.endswith(":"):
        raise DialRefused("bad-port", f"{printable(url)} names no usable port")
    host, address = _parse_host(parts)
    port = port if port is not None else _DEFAULT_PORTS[scheme]
    return Target(_canonical(parts, host, port, address), scheme, host, port, address)


def _parse_host(parts: SplitResult) -> tuple[str, IPAddress | None]:
    host = parts.hostname or ""
    if "[" in parts.netloc:
        address = parse_address(host) if ":" in host and "%" not in host else None
        if address is None:
            raise DialRefused("bad-host", f"[{printable(host)}] is not an IPv6 address")
        return address.compressed, address
    host = _to_ascii(host)
    labels = host.split(".")
    if not host or len(host) > MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise DialRefused("bad-host", f"{printable(host)!r} is not a host name")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        # What ends in a number is an IPv4 address to many resolvers; only the plain spelling is one to us.
        address = parse_address(host)
        if address is None:
            raise DialRefused("bad-host", f"{printable(host)} is an odd spelling of an address")
        return host, address
    return host, None


def _to_ascii(host: str) -> str:
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True).decode("ascii").lower()
    except (UnicodeError, ValueError, IndexError):
        raise DialRefused("bad-host", f"{printable(host)} is not a valid international host name") from None


def _canonical(parts: SplitResult, host: str, port: int, address: IPAddress | None) -> str:
    netloc = f"[{host}]" if address is not None and address.version == 6 else host
    if port != _DEFAULT_PORTS[parts.scheme]:
        netloc += f":{port}"
    resource = parts.path + (f"?{parts.query}" if parts.query else "")
    if not resource.isascii():
        raise DialRefused("bad-url", "the URL's path is not plain ASCII")
    # Relay URLs are compared as text: `wss://host` and `wss://host/` are one relay.
    return f"{parts.scheme}://{netloc}{'' if resource == '/' else resource}"


def _spoken(schemes: frozenset[str]) -> str:
    return " or ".join(f"{scheme}://" for scheme in sorted(schemes))
