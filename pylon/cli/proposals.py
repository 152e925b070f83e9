"""What `pylon init` finds on this machine and proposes to sell. It only proposes: nothing is offered by itself."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from pylon.text import printable

if TYPE_CHECKING:
    from pylon.backends.detect import Place
    from pylon.backends.marks import DetectedModel, ServerKind

MAX_MODELS_PROPOSED: Final = 50
_MAX_NAME_CHARS: Final = 128

PROPOSED_PRICE: Final = {"base_msats": 1_000, "input_msats_per_1k": 500, "output_msats_per_1k": 2_000}
"""What a proposal costs, in msats: something to change, so that no model is sold for nothing by oversight."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that could be sold: `name` for customers, `backend_model` for its server."""

    name: str
    backend_model: str


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that listed real models when it was asked: what it is, and the backend that it would be.

    `name` is the backend's, and no other server's that was found; `backend_kind` and `url` are for the settings.
    """

    name: str
    title: str
    backend_kind: str
    url: str
    offers: tuple[Offer, ...]


async def find_servers(places: Sequence[Place] | None = None) -> list[FoundServer]:
    """Ask every place (by default the known ones) and return the servers that are ready to generate."""
    from pylon.backends.detect import detect, places_to_ask
    from pylon.backends.marks import TITLES, Readiness

    found: list[FoundServer] = []
    for at in await detect(places_to_ask(os.environ) if places is None else places):
        kind, offers = at.finding.kind, _offers(at.finding.models)
        if kind is not None and offers and at.finding.readiness is Readiness.READY:
            name = _free_name(kind.replace(".", "-"), [server.name for server in found])
            backend_kind, url = _proposed_backend(kind, at.place.url)
            found.append(FoundServer(name, TITLES[kind], backend_kind, url, offers))
    return found


def _proposed_backend(kind: ServerKind, root: str) -> tuple[str, str]:
    """Return the kind of backend that is proposed for a server, and its url in the settings.

    The one place that chooses: Ollama has an API of its own, all others speak OpenAI's chat completions.
    """
    from pylon.backends.marks import ServerKind

    return ("ollama", root) if kind is ServerKind.OLLAMA else ("openai", f"{root}/v1")


def _offers(models: Iterable[DetectedModel]) -> tuple[Offer, ...]:
    offers: dict[str, Offer] = {}
    for model in models:
        if not model.generates:
            continue
        name = _public_name(model.name)
        if 0 < len(name) <= _MAX_NAME_CHARS and len(model.name) <= _MAX_NAME_CHARS and model.name.isprintable():
            offers.setdefault(name, Offer(name, model.name))
    return tuple(offers.values())[:MAX_MODELS_PROPOSED]


def _public_name(name: str) -> str:
    """Return a name for customers: of a file's path, which llama.cpp lists, only the file's own name."""
    if name.endswith(".gguf"):
        return PurePosixPath(name.replace("\\", "/")).name.removesuffix(".gguf")
    return name.strip()


def proposal_toml(
    server: FoundServer, sold: Collection[str] = (), backends: Mapping[str, str] | None = None
) -> str:
    """Return the tables of a server for the settings file.

    For a new file (`backends` None): every model, those in `sold` in force, all others commented. For a file that
    has `backends` already (name to URL): what is sold alone, on the backend of that URL where there is one.
    """
    from pylon.settings.example import toml_value

    name = backend_name(server, backends or {})
    blocks = [f"# Found by pylon init: {server.title} at {server.url}"]
    if server.url not in (backends or {}).values():
        backend = {"name": name, "kind": server.backend_kind, "url": server.url}
        blocks.append(_table("backends", {key: toml_value(value) for key, value in backend.items()}, bool(sold)))
    for offer in server.offers:
        if backends is not None and offer.name not in sold:
            continue
        values: dict[str, object] = {"name": offer.name, "backend": name}
        if offer.backend_model != offer.name:
            values["backend_model"] = offer.backend_model
        lines = {key: toml_value(value) for key, value in {**values, **PROPOSED_PRICE}.items()}
        blocks.append(_table("models", lines, offer.name in sold))
    return "\n\n".join(blocks) + "\n"


def backend_name(server: FoundServer, backends: Mapping[str, str]) -> str:
    """Return the name of the backend (name to URL) that is at a server's URL, or a free one for a new backend."""
    at_url = {url: name for name, url in backends.items()}
    return at_url.get(server.url) or _free_name(server.name, backends)


def _table(name: str, lines: dict[str, str], active: bool) -> str:
    mark = "" if active else "#"
    return "\n".join([f"{mark}[[{name}]]", *(f"{mark}{key} = {value}" for key, value in lines.items())])


def _free_name(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def describe(server: FoundServer) -> str:
    """Return one line on a server and its models, fit for a terminal."""
    names = ", ".join(printable(offer.name, limit=128) for offer in server.offers[:8])
    more = f" and {len(server.offers) - 8} more" if len(server.offers) > 8 else ""
    return f"{server.title} at {server.url}: {names}{more}"
