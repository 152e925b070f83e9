"""What a server is asked and what it answered, read without trust: anything may stand anywhere in it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pylon.backends.openai_wire import MAX_MODEL_NAME, MAX_MODELS, is_count

_MAX_WORD: Final = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to a server: a GET, or a POST of a JSON `body`."""

    path: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Header names are in lower case; the body is empty when it could not be read."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


Answers = Mapping[Ask, Answer]

ROOT: Final = Ask("/")
HEALTH: Final = Ask("/health")
MODELS: Final = Ask("/v1/models")
PROPS: Final = Ask("/props")
VERSION: Final = Ask("/version")
OPENAPI: Final = Ask("/openapi.json")
SYSTEM: Final = Ask("/system")
OLLAMA_VERSION: Final = Ask("/api/version")
OLLAMA_TAGS: Final = Ask("/api/tags")
LM_STUDIO_MODELS: Final = Ask("/api/v0/models")
KOBOLD_VERSION: Final = Ask("/api/extra/version")
KOBOLD_CONTEXT: Final = Ask("/api/extra/true_max_context_length")

FIRST_ASKS: Final = (
    *(ROOT, MODELS, PROPS, VERSION, OPENAPI, SYSTEM),
    *(OLLAMA_VERSION, OLLAMA_TAGS, LM_STUDIO_MODELS, KOBOLD_VERSION),
)
"""What every place is asked; which of them answers, and how, is the mark. Not /health: at LiteLLM it costs."""


def body_of(answers: Answers, ask: Ask) -> bytes:
    """Return the body of a 200 answer, empty when there is none."""
    answer = answers.get(ask)
    return answer.body if answer is not None and answer.status == 200 else b""


def object_of(answers: Answers, ask: Ask) -> dict[str, Any]:
    """Return the JSON object of a 200 answer, empty when it is anything else."""
    try:
        return as_dict(orjson.loads(body_of(answers, ask)))
    except orjson.JSONDecodeError:
        return {}


def as_dict(value: object) -> dict[str, Any]:
    """Return a JSON object, empty when it is anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a JSON list, empty when it is anything else."""
    return value if isinstance(value, list) else []


def named_entries(value: object, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a list that have a usable name under `key`, at most `MAX_MODELS` of them."""
    for entry in as_list(value)[:MAX_MODELS]:
        name = as_dict(entry).get(key)
        if isinstance(name, str) and 0 < len(name) <= MAX_MODEL_NAME:
            yield name, entry


def as_count(value: object) -> int | None:
    """Return a number of things, None when it is anything else."""
    return value if is_count(value) else None


def as_word(value: object) -> str | None:
    """Return a short text that is not empty, None when it is anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_WORD else None


def as_words(value: object, limit: int = _MAX_WORD) -> tuple[str, ...]:
    """Return the short texts of a list, at most sixteen."""
    return tuple(word for word in as_list(value)[:16] if isinstance(word, str) and 0 < len(word) <= limit)
