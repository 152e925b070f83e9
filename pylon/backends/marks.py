"""What an answer proves: from status, headers and body to the kind of server, its state and its models. No I/O.

A server is told by marks of its own, never by its port or by answering at all: several of them imitate the APIs of
others, so the order in which the marks are looked at matters (`_MARKS`). Nothing here raises, whatever was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import orjson

from pylon.backends.openai_wire import MAX_MODEL_NAME, MAX_MODELS, context_of
from pylon.backends.probing import (
    HEALTH,
    KOBOLD_CONTEXT,
    KOBOLD_VERSION,
    LM_STUDIO_MODELS,
    MODELS,
    OLLAMA_TAGS,
    OLLAMA_VERSION,
    OPENAPI,
    PROPS,
    ROOT,
    SYSTEM,
    VERSION,
    Answer,
    Answers,
    Ask,
    as_count,
    as_dict,
    as_list,
    as_word,
    as_words,
    body_of,
    named_entries,
    object_of,
)
from pylon.text import printable

MAX_SHOWN: Final = 32
"""Of how many models an Ollama server is asked for more than its list tells."""


class ServerKind(StrEnum):
    """Which program answers."""

    OLLAMA = "ollama"
    LLAMA_CPP = "llama.cpp"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    VLLM = "vllm"
    LM_STUDIO = "lm-studio"
    KOBOLDCPP = "koboldcpp"
    LOCALAI = "localai"
    LITELLM = "litellm"
    JAN = "jan"
    APPLE_FM = "apple-fm"
    OPENAI = "openai"  # lists models as OpenAI's API does, and nothing tells which program it is


TITLES: Final[Mapping[ServerKind, str]] = {
    ServerKind.OLLAMA: "Ollama",
    ServerKind.LLAMA_CPP: "llama.cpp",
    ServerKind.LLAMA_CPP_PYTHON: "llama-cpp-python",
    ServerKind.VLLM: "vLLM",
    ServerKind.LM_STUDIO: "LM Studio",
    ServerKind.KOBOLDCPP: "KoboldCpp",
    ServerKind.LOCALAI: "LocalAI",
    ServerKind.LITELLM: "LiteLLM",
    ServerKind.JAN: "Jan",
    ServerKind.APPLE_FM: "Apple FM bridge",
    ServerKind.OPENAI: "OpenAI-compatible server",
}
"""The kinds as their makers write them."""

CAVEATS: Final[Mapping[ServerKind, str]] = {
    ServerKind.LLAMA_CPP_PYTHON: (
        "unless it was started with --interrupt_requests false, a second request cuts the first one off; "
        "streams without token counts, so these are estimated"
    ),
}
"""What an operator must know of a kind of server before it is sold, as one clause."""


class Readiness(StrEnum):
    """How far a server is."""

    READY = "ready"
    NOT_READY = "not-ready"  # it is that API, but it is loading, or lists no model
    LOCKED = "locked"  # it is that API and wants a key that we do not have
    OTHER = "other"  # something answers, and it is no model server
    NOT_RUNNING = "not-running"  # nothing listens there


@dataclass(frozen=True, slots=True)
class DetectedModel:
    """A model as its server describes it; what the server does not tell is None or empty."""

    name: str
    size_bytes: int | None = None
    quantization: str | None = None
    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether it can write text: false only when the server says that it makes embeddings and nothing else."""
        return not self.capabilities or any(word not in _EMBEDDING for word in self.capabilities)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the answers of one place prove. `kind` is None where no model server answers; `detail` is one clause."""

    readiness: Readiness
    kind: ServerKind | None = None
    version: str | None = None
    models: tuple[DetectedModel, ...] = ()
    detail: str = ""


_EMBEDDING: Final = frozenset({"embedding", "embeddings"})
_LOCALAI_VERSION: Final = re.compile(r"v?\d+\.\d+\.\d+\S* \([0-9a-f]{6,40}\)")
_LISTS: Final[Mapping[ServerKind, Ask]] = {ServerKind.OLLAMA: OLLAMA_TAGS}  # of the others it is OpenAI's
_NO_KEY: Final = frozenset({401, 403})


def further_asks(answers: Answers, finding: Finding) -> tuple[Ask, ...]:
    """Return what else a server of the kind that was found can tell about its models and its state.

    LiteLLM is not asked for its health, and nor is one that could be it: that runs a request on each of its models.
    """
    match finding.kind:
        case ServerKind.OLLAMA:
            return tuple(_show(model.name) for model in finding.models[:MAX_SHOWN])
        case ServerKind.KOBOLDCPP:
            return (KOBOLD_CONTEXT,)
        case ServerKind.LITELLM:
            return ()
        case None | ServerKind.OPENAI if finding.models or not body_of(answers, MODELS):
            return ()
        case _:
            return (HEALTH,)


def judge(answers: Answers) -> Finding:
    """Return what the answers prove; those to `further_asks` may be among them. At least one thing has answered."""
    kind = next((kind for kind, has_mark in _MARKS.items() if has_mark(answers)), None)
    if kind is None:
        return Finding(Readiness.OTHER, detail=_what_else(answers))
    models = _READERS.get(kind, _openai_models)(answers)
    readiness, detail = _readiness(kind, answers, models)
    return Finding(readiness, kind, _version(kind, answers), models, detail)


def _readiness(kind: ServerKind, answers: Answers, models: tuple[DetectedModel, ...]) -> tuple[Readiness, str]:
    health = answers.get(HEALTH)
    if kind is ServerKind.APPLE_FM and object_of(answers, HEALTH).get("model_available") is False:
        return Readiness.NOT_READY, "says that Apple's model is not available: is Apple Intelligence on?"
    if health is not None and health.status == 503:
        return Readiness.NOT_READY, "says that it is not ready (503): it is loading its model, or failed to"
    return (Readiness.READY, CAVEATS.get(kind, "")) if models else _why_none(answers.get(_LISTS.get(kind, MODELS)))


def _why_none(listing: Answer | None) -> tuple[Readiness, str]:
    """Return why a server has no models, by what it answered when it was asked for them."""
    if listing is None:
        return Readiness.NOT_READY, "did not list its models in time"
    if listing.status in _NO_KEY:
        return Readiness.LOCKED, "wants an API key: configure it with its api_key"
    if listing.status != 200:
        return Readiness.NOT_READY, f"answers {listing.status} when it is asked for its models"
    return Readiness.NOT_READY, "lists no models"


def _what_else(answers: Answers) -> str:
    statuses = {answer.status for answer in answers.values()}
    if statuses and statuses <= _NO_KEY:
        return "wants a login for everything, so nothing tells what it is"
    if MODELS in answers and answers[MODELS].status in _NO_KEY:
        return "wants a key for /v1/models: configure it with its api_key, to see what it is"
    server = next((answer.headers.get("server", "") for answer in answers.values()), "")
    named = f"{printable(server, limit=40)}: " if server else ""
    return f"{named}no model server known here"


# --- which program it is ----------------------------------------------------------------------------------------


def _is_litellm(answers: Answers) -> bool:
    return b"<title>LiteLLM" in body_of(answers, ROOT) and _is_openai(answers)


def _is_koboldcpp(answers: Answers) -> bool:
    return object_of(answers, KOBOLD_VERSION).get("result") == "KoboldCpp"


def _is_localai(answers: Answers) -> bool:
    system, version = object_of(answers, SYSTEM), object_of(answers, VERSION).get("version")
    if isinstance(system.get("backends"), list) and "loaded_models" in system:
        return True
    # Older ones have no /system; many a server has a version of that form, but not with OpenAI's API.
    return isinstance(version, str) and bool(_LOCALAI_VERSION.fullmatch(version)) and _is_openai(answers)


def _is_llama_cpp(answers: Answers) -> bool:
    if any(answers[ask].headers.get("server") == "llama.cpp" for ask in (HEALTH, MODELS, PROPS) if ask in answers):
        return True
    props = object_of(answers, PROPS)  # behind a proxy, which writes its own name over the header
    settings = props.get("default_generation_settings")
    return (isinstance(settings, dict) and "total_slots" in props) or "llamacpp" in _owners(answers)


def _is_ollama(answers: Answers) -> bool:
    version = object_of(answers, OLLAMA_VERSION).get("version")
    return isinstance(version, str) and body_of(answers, ROOT).strip() == b"Ollama is running"


def _is_lm_studio(answers: Answers) -> bool:
    entries = as_list(object_of(answers, LM_STUDIO_MODELS).get("data"))
    if any(isinstance(entry, dict) and "state" in entry and "type" in entry for entry in entries):
        return True
    # It answers 200 to whatever it does not have, and this in the body.
    said = object_of(answers, ROOT).get("error")
    return isinstance(said, str) and said.startswith("Unexpected endpoint or method. (GET /")


def _is_vllm(answers: Answers) -> bool:
    return isinstance(object_of(answers, VERSION).get("version"), str) and "vllm" in _owners(answers)


def _is_llama_cpp_python(answers: Answers) -> bool:
    return "llama.cpp Python API" in _api_title(answers)


def _is_jan(answers: Answers) -> bool:
    return _api_title(answers).startswith(("Jan API", "👋Jan API"))


def _is_apple_fm(answers: Answers) -> bool:
    health = object_of(answers, HEALTH)
    if isinstance(health.get("model_available"), bool) and health.get("platform") == "macOS":
        return True
    return {owner.casefold() for owner in _owners(answers)} == {"apple"}


def _is_openai(answers: Answers) -> bool:
    listing = object_of(answers, MODELS)
    entries = listing.get("data")
    if not isinstance(entries, list) or listing.get("error"):
        # One that wants a key for its list may describe its API without.
        return "/v1/chat/completions" in as_dict(object_of(answers, OPENAPI).get("paths"))
    return any(True for _ in named_entries(entries, "id")) or (not entries and listing.get("object") == "list")


def _owners(answers: Answers) -> set[str]:
    entries = named_entries(object_of(answers, MODELS).get("data"), "id")
    return {owner for _, entry in entries if isinstance(owner := entry.get("owned_by"), str)}


def _api_title(answers: Answers) -> str:
    title = as_dict(object_of(answers, OPENAPI).get("info")).get("title")
    return title if isinstance(title, str) else ""


_MARKS: Final[Mapping[ServerKind, Callable[[Answers], bool]]] = {
    # The first two imitate Ollama and llama.cpp, and the last is what all of them imitate.
    ServerKind.KOBOLDCPP: _is_koboldcpp,
    ServerKind.LOCALAI: _is_localai,
    ServerKind.LITELLM: _is_litellm,
    ServerKind.LLAMA_CPP: _is_llama_cpp,
    ServerKind.OLLAMA: _is_ollama,
    ServerKind.LM_STUDIO: _is_lm_studio,
    ServerKind.VLLM: _is_vllm,
    ServerKind.LLAMA_CPP_PYTHON: _is_llama_cpp_python,
    ServerKind.JAN: _is_jan,
    ServerKind.APPLE_FM: _is_apple_fm,
    ServerKind.OPENAI: _is_openai,
}


# --- what it has ------------------------------------------------------------------------------------------------


def _version(kind: ServerKind, answers: Answers) -> str | None:
    match kind:
        case ServerKind.OLLAMA:
            said = object_of(answers, OLLAMA_VERSION).get("version")
        case ServerKind.KOBOLDCPP:
            said = object_of(answers, KOBOLD_VERSION).get("version")
        case ServerKind.VLLM | ServerKind.LOCALAI:
            said = object_of(answers, VERSION).get("version")
        case ServerKind.LLAMA_CPP:
            said = object_of(answers, PROPS).get("build_info")
        case ServerKind.APPLE_FM:
            said = object_of(answers, HEALTH).get("version")
        case _:
            said = None
    return as_word(said)


def _openai_models(answers: Answers) -> tuple[DetectedModel, ...]:
    found: dict[str, DetectedModel] = {}
    for name, entry in named_entries(object_of(answers, MODELS).get("data"), "id"):
        meta = as_dict(entry.get("meta"))
        model = DetectedModel(
            name,
            size_bytes=as_count(meta.get("size")),
            quantization=as_word(meta.get("ftype")),
            context_tokens=context_of(entry),
            capabilities=as_words(entry.get("capabilities")),
        )
        for alias in (name, *as_words(entry.get("aliases"), MAX_MODEL_NAME)):
            found.setdefault(alias, replace(model, name=alias))
    return tuple(found.values())[:MAX_MODELS]


def _llama_cpp_models(answers: Answers) -> tuple[DetectedModel, ...]:
    # Its list has a second half in Ollama's form, which alone tells the capabilities.
    told = dict(named_entries(object_of(answers, MODELS).get("models"), "name"))
    props = object_of(answers, PROPS)
    slot = as_count(as_dict(props.get("default_generation_settings")).get("n_ctx")) or as_count(props.get("n_ctx"))
    return tuple(
        replace(
            model,
            context_tokens=model.context_tokens or slot or None,
            capabilities=model.capabilities or as_words(as_dict(told.get(model.name)).get("capabilities")),
        )
        for model in _openai_models(answers)
    )


def _ollama_models(answers: Answers) -> tuple[DetectedModel, ...]:
    found: dict[str, DetectedModel] = {}
    for name, entry in named_entries(object_of(answers, OLLAMA_TAGS).get("models"), "name"):
        shown = object_of(answers, _show(name))
        info = as_dict(shown.get("model_info"))
        context = as_count(info.get(f"{info.get('general.architecture')}.context_length"))
        found.setdefault(
            name,
            DetectedModel(
                name,
                size_bytes=as_count(entry.get("size")),
                quantization=as_word(as_dict(entry.get("details")).get("quantization_level")),
                context_tokens=context or None,
                capabilities=as_words(shown.get("capabilities")),
            ),
        )
    return tuple(found.values())


def _show(model: str) -> Ask:
    return Ask("/api/show", orjson.dumps({"model": model}))


def _lm_studio_models(answers: Answers) -> tuple[DetectedModel, ...]:
    kinds = {"llm": ("completion",), "vlm": ("completion", "vision"), "embeddings": ("embedding",)}
    found: dict[str, DetectedModel] = {}
    for name, entry in named_entries(object_of(answers, LM_STUDIO_MODELS).get("data"), "id"):
        # What it is loaded with; without that, what it could be loaded with.
        context = as_count(entry.get("loaded_context_length")) or as_count(entry.get("max_context_length"))
        extra = tuple(word for word in as_words(entry.get("capabilities")) if word != "completion")
        model = DetectedModel(
            name,
            quantization=as_word(entry.get("quantization")),
            context_tokens=context or None,
            capabilities=kinds.get(str(entry.get("type")), ()) + extra,
        )
        found.setdefault(name, model)
    return tuple(found.values()) or _openai_models(answers)


def _koboldcpp_models(answers: Answers) -> tuple[DetectedModel, ...]:
    context = as_count(object_of(answers, KOBOLD_CONTEXT).get("value")) or None
    models = _openai_models(answers)
    # Without a model loaded it lists one that is called "inactive".
    return tuple(
        replace(model, context_tokens=model.context_tokens or context)
        for model in models
        if model.name not in {"inactive", "koboldcpp/inactive"}
    )


_READERS: Final[Mapping[ServerKind, Callable[[Answers], tuple[DetectedModel, ...]]]] = {
    ServerKind.LLAMA_CPP: _llama_cpp_models,
    ServerKind.OLLAMA: _ollama_models,
    ServerKind.LM_STUDIO: _lm_studio_models,
    ServerKind.KOBOLDCPP: _koboldcpp_models,
}
"""Who tells more of its models than OpenAI's list has room for."""
