"""Who answers at the places where inference servers usually listen; `marks` says what the answers prove.

Every place is asked at once and within `PLACE_TIMEOUT_S`, whatever it does: a server that accepts and says nothing,
or sends without end, costs that time and one bounded buffer. Proxies of the environment and redirects are not
followed: what is asked about is what listens at that address.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx

from pylon.backends.marks import Finding, Readiness, further_asks, judge
from pylon.backends.openai_wire import normalise_url
from pylon.backends.probing import FIRST_ASKS, Answer, Ask
from pylon.backends.sse import BadStream, read_bounded
from pylon.backends.trust import CaFault, context_for

_FIRST_TIMEOUT_S: Final = 1.0
_FURTHER_TIMEOUT_S: Final = 0.5
PLACE_TIMEOUT_S: Final = _FIRST_TIMEOUT_S + _FURTHER_TIMEOUT_S
"""How long one place, and so all of them, may take."""
_MAX_BODY_BYTES: Final = 1 << 20
_AT_ONCE: Final = 4  # connections to one server: several accept no more than five that they have not read yet
_OLLAMA_PORT: Final = 11434


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: `url` is a root, without `/v1`; `usual` who usually listens there, `name` the operator's."""

    url: str
    usual: str
    name: str | None = None
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Detected:
    """What was found at one place."""

    place: Place
    finding: Finding


KNOWN_PLACES: Final = (
    Place("http://127.0.0.1:11434", "Ollama"),
    Place("http://127.0.0.1:8080", "llama.cpp, LocalAI"),
    Place("http://127.0.0.1:8000", "vLLM, llama-cpp-python"),
    Place("http://127.0.0.1:1234", "LM Studio"),
    Place("http://127.0.0.1:11435", "Apple FM bridge"),
    Place("http://127.0.0.1:8081", "Apple FM bridge"),
    Place("http://127.0.0.1:5001", "KoboldCpp"),
    Place("http://127.0.0.1:1337", "Jan"),
)


def places_to_ask(environ: Mapping[str, str], configured: Iterable[Place] = ()) -> tuple[Place, ...]:
    """Return the configured places, that of `OLLAMA_HOST` and the known ones, each address once."""
    ollama = ollama_url(environ.get("OLLAMA_HOST", ""))
    named = (Place(ollama, "Ollama (OLLAMA_HOST)"),) if ollama else ()
    places: dict[str, Place] = {}
    for place in (*configured, *named, *KNOWN_PLACES):
        key = place.url.replace("://localhost", "://127.0.0.1", 1)
        known = places.setdefault(key, place)
        if known is not place and not known.usual:
            places[key] = replace(known, usual=place.usual)
    return tuple(places.values())


def ollama_url(host: str) -> str | None:
    """Return the URL that `OLLAMA_HOST` stands for, None when it is empty or unreadable.

    It may be a host, a port, both or a URL, and may name the address that the server binds to (0.0.0.0).
    """
    text = host.strip().strip("\"'")
    if not text:
        return None
    scheme, mark, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if mark else ("http", text)
    default = {"http": 80, "https": 443}[scheme] if mark and scheme in {"http", "https"} else _OLLAMA_PORT
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        name, port = parts.hostname or "127.0.0.1", parts.port or default
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # noqa: S104 - nothing is bound here
        shown = f"[{name}]" if ":" in name else name
        return normalise_url(f"{scheme}://{shown}:{port}{parts.path}")
    except ValueError:
        return None


async def detect(places: Sequence[Place]) -> tuple[Detected, ...]:
    """Ask every place at once, for `PLACE_TIMEOUT_S`, and return what each is, in their order. Never raises."""
    findings: dict[Place, Finding] = {}

    async def look(client: httpx.AsyncClient, place: Place) -> None:
        findings[place] = await _look(client, place)

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        clients: dict[tuple[bool, Path | None], httpx.AsyncClient] = {}
        for place in places:
            trusts = (place.url.startswith("https"), place.ca_file)
            try:
                if trusts not in clients:
                    clients[trusts] = await stack.enter_async_context(
                        _client(context_for(place.url, place.ca_file))
                    )
            except CaFault as fault:
                findings[place] = Finding(Readiness.OTHER, detail=f"is not asked: {fault}")
                continue
            tasks.start_soon(look, clients[trusts], place)
    return tuple(Detected(place, findings[place]) for place in places)


async def _look(client: httpx.AsyncClient, place: Place) -> Finding:
    seen: dict[Ask, Answer] = {}
    listens = False
    with anyio.move_on_after(_FIRST_TIMEOUT_S):
        try:
            await _knock(place.url)
        except (OSError, ValueError):
            return Finding(Readiness.NOT_RUNNING)
        listens = True
        await _ask_all(client, place, FIRST_ASKS, seen)
    if not listens:
        return Finding(Readiness.NOT_RUNNING, detail=f"no connection within {_FIRST_TIMEOUT_S:g} s")
    if not seen:
        trust = " with a certificate that is trusted here" if place.url.startswith("https") else ""
        return Finding(Readiness.OTHER, detail=f"takes connections but does not answer HTTP{trust}")
    finding = judge(seen)
    further = further_asks(seen, finding)
    if not further:
        return finding
    with anyio.move_on_after(_FURTHER_TIMEOUT_S):
        await _ask_all(client, place, further, seen)
    return judge(seen)


async def _knock(url: str) -> None:
    """Connect and leave. Raises `OSError`; a place where nothing listens is not asked eleven times."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    stream = await anyio.connect_tcp(parts.hostname or "", port)
    await stream.aclose()


async def _ask_all(client: httpx.AsyncClient, place: Place, asks: Sequence[Ask], seen: dict[Ask, Answer]) -> None:
    """Put the answers into `seen` as they come, so that those which came in time are there when it is cancelled."""
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def put(ask: Ask) -> None:
        async with limiter:
            await _ask(client, place, ask, seen)

    async with anyio.create_task_group() as tasks:
        for ask in asks:
            tasks.start_soon(put, ask)


async def _ask(client: httpx.AsyncClient, place: Place, ask: Ask, seen: dict[Ask, Answer]) -> None:
    headers = {"Authorization": f"Bearer {place.api_key}"} if place.api_key else {}
    if ask.body is not None:
        headers["Content-Type"] = "application/json"
    method = "GET" if ask.body is None else "POST"
    try:
        async with client.stream(method, place.url + ask.path, content=ask.body, headers=headers) as response:
            seen[ask] = Answer(response.status_code, dict(response.headers))
            body = await read_bounded(response, _MAX_BODY_BYTES)
            seen[ask] = Answer(response.status_code, dict(response.headers), body)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, BadStream, OSError, ValueError):
        return  # whatever it was, it is no answer; its status, when it had one, stays


def _client(tls: ssl.SSLContext | bool) -> httpx.AsyncClient:
    client = httpx.AsyncClient(
        headers={"Accept-Encoding": "identity"},
        verify=tls,
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # noqa: S113 - `_look` bounds everything
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return client
