"""What `pylon init` finds on this machine and proposes to sell. It only proposes: nothing is offered by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from pylon.text import printable

if TYPE_CHECKING:
    from pylon.jobs.ports import ModelInfo

PROBE_TIMEOUT_S: Final = 1.0
MAX_MODELS_PROPOSED: Final = 50
_MAX_NAME_CHARS: Final = 128


@dataclass(frozen=True, slots=True)
class Place:
    """A place where a local inference server usually answers."""

    name: str
    title: str
    url: str


KNOWN_PLACES: Final = (
    Place("llama-cpp", "llama.cpp", "http://127.0.0.1:8080/v1"),
    Place("ollama", "Ollama", "http://127.0.0.1:11434/v1"),
    Place("lm-studio", "LM Studio", "http://127.0.0.1:1234/v1"),
    Place("vllm", "vLLM", "http://127.0.0.1:8000/v1"),
)

PROPOSED_PRICE: Final = {"base_msats": 1_000, "input_msats_per_1k": 500, "output_msats_per_1k": 2_000}
"""What a proposal costs, in msats: something to change, so that no model is sold for nothing by oversight."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that could be sold: `name` for customers, `backend_model` for its server."""

    name: str
    backend_model: str


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that listed real models when it was asked."""

    place: Place
    offers: tuple[Offer, ...]


async def find_servers(places: Sequence[Place] | None = None) -> list[FoundServer]:
    """Ask every place (by default the known ones) at once, for `PROBE_TIMEOUT_S`; return those that list models."""
    import anyio

    places = KNOWN_PLACES if places is None else places
    found: dict[str, FoundServer] = {}

    async def ask(place: Place) -> None:
        offers = _offers(await _list_models(place))
        if offers:
            found[place.url] = FoundServer(place, offers)

    with anyio.move_on_after(PROBE_TIMEOUT_S + 0.5):
        async with anyio.create_task_group() as tasks:
            for place in places:
                tasks.start_soon(ask, place)
    return [found[place.url] for place in places if place.url in found]


async def _list_models(place: Place) -> tuple[ModelInfo, ...]:
    from pylon.backends.openai import OpenAIBackend, OpenAIConfig
    from pylon.jobs.ports import BackendHealth

    config = OpenAIConfig(place.name, place.url, connect_timeout_s=PROBE_TIMEOUT_S, check_timeout_s=PROBE_TIMEOUT_S)
    backend = OpenAIBackend(config)
    async with backend.running():
        state = await backend.check()
    return state.models if state.health is BackendHealth.READY else ()


def _offers(models: Iterable[ModelInfo]) -> tuple[Offer, ...]:
    offers: dict[str, Offer] = {}
    for model in models:
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

    at_url = {url: name for name, url in (backends or {}).items()}
    name = at_url.get(server.place.url) or _free_name(server.place.name, backends or {})
    blocks = [f"# Found by pylon init: {server.place.title} at {server.place.url}"]
    if server.place.url not in at_url:
        backend = {"name": name, "kind": "openai", "url": server.place.url}
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
    return f"{server.place.title} at {server.place.url}: {names}{more}"
