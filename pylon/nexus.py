"""What a Nexus relay says of its market, at `/api/stats`: read within bounds, and understood as far as it goes.

Two shapes are known: nested (`events`, `jobs`, `rlm`, `timestamp`) and flat (`pylons_online_now`, `nexus_…`,
`compute_…`, `recent_pylons`). Fields come and go: what is missing or of another type is left out, what is unknown
is shown under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpx
import orjson

from pylon.text import printable

MAX_ANSWER_BYTES: Final = 1 << 20
MAX_FIELDS: Final = 1_000

_PATH: Final = "/api/stats"
_MAX_DEPTH: Final = 4
_MAX_LISTED: Final = 20

Scalar = str | int | float | bool


class NexusError(Exception):
    """The statistics cannot be had; the message is one sentence fit for a terminal."""


@dataclass(frozen=True, slots=True)
class NexusStats:
    """Statistics by dotted name, in the order they came; none of the texts is fit for a terminal yet.

    `by_kind` has the counts of lists and tables of that name; other lists are in `lists`, one text an entry.
    """

    url: str
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


async def fetch_stats(url: str, *, timeout_s: float) -> NexusStats:
    """Return the statistics of the Nexus at a base URL. Raises `NexusError`."""
    place = f"{url}{_PATH}"
    try:
        with anyio.fail_after(timeout_s):
            headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
            async with (
                httpx.AsyncClient(timeout=timeout_s) as client,
                client.stream("GET", place, headers=headers) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise NexusError(f"{printable(place)} answered HTTP {response.status_code}")
                body = await _read(response, place)
    except TimeoutError:
        raise NexusError(f"{printable(place)} did not answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise NexusError(
            f"{printable(place)} cannot be reached: {printable(error) or type(error).__name__}"
        ) from None
    return parse_stats(url, body)


def parse_stats(url: str, body: bytes) -> NexusStats:
    """Return what an answer says. Raises `NexusError` when it is no JSON object."""
    try:
        value = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        raise NexusError(f"{printable(url)} did not answer with JSON") from None
    if not isinstance(value, dict):
        raise NexusError(f"{printable(url)} answered with JSON that holds no statistics")
    found = _Found()
    found.take("", value, 0)
    return NexusStats(url, found.fields, found.by_kind, found.lists)


class _Found:
    def __init__(self) -> None:
        self.fields: dict[str, Scalar] = {}
        self.by_kind: dict[str, dict[str, int]] = {}
        self.lists: dict[str, tuple[str, ...]] = {}

    def take(self, name: str, value: Any, depth: int) -> None:
        """Sort a value in under its dotted name."""
        if len(self.fields) + len(self.by_kind) + len(self.lists) >= MAX_FIELDS or value is None:
            return
        if isinstance(value, (str, int, float)):
            self.fields[name] = value
        elif name.rpartition(".")[2].endswith("by_kind") and (counts := _counts(value)):
            self.by_kind[name] = counts
        elif isinstance(value, list):
            self.lists[name] = tuple(_entry(each) for each in value[:_MAX_LISTED])
        elif isinstance(value, dict) and depth < _MAX_DEPTH:
            for key, each in value.items():
                self.take(f"{name}.{key}" if name else key, each, depth + 1)


def _counts(value: Any) -> dict[str, int]:
    """Return counts by kind: `{kind: count}`, `[{kind, count}]` or `[[kind, count]]`; the rest is left out."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        for each in value:
            match each:
                case {"kind": kind, "count": count} | [kind, count]:
                    pairs.append((kind, count))
    return {
        str(kind): count
        for kind, count in pairs[:MAX_FIELDS]
        if isinstance(kind, (str, int)) and type(count) is int and count >= 0
    }


def _entry(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items() if isinstance(each, (str, int, float)))
    return str(value)


async def _read(response: httpx.Response, place: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw(16_384):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise NexusError(f"{printable(place)} answered with more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)
