"""Ollama's chat API as values: names, options, what the parts of an answer and its errors mean. No I/O.

What a server says is quoted printable and shortened. Nothing here raises but `BackendError`s and, for the
operator's own settings, `ValueError` with one sentence.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard
from urllib.parse import urlsplit

import orjson

from pylon.backends.openai_wire import MAX_QUANTIZATION, estimate_tokens, normalise_url
from pylon.jobs.ports import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelMissing,
)
from pylon.text import printable, utf8_bytes

if TYPE_CHECKING:
    from ollama import ChatResponse, ProcessResponse

MAX_MODELS: Final = 1000
MAX_MODEL_NAME: Final = 256
_MAX_COUNT: Final = 2**53
_DEFAULT_TAG: Final = ":latest"
_PASSING: Final = frozenset({408, 409, 421, 425, 429})  # statuses below 500 that another attempt may not meet


@dataclass(frozen=True, slots=True)
class ChatPart:
    """One line of an answer; `size_bytes` is its text's. `thinking` is progress, not output unless none comes."""

    text: str = ""
    size_bytes: int = 0
    thinking: str = ""
    done: bool = False
    reason: FinishReason = FinishReason.STOP
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def server_url(url: str) -> str:
    """Return the server's root: without `/v1` or `/api`, which people copy along. Raises `ValueError`."""
    if "@" in url:
        raise ValueError("the backend's url must not hold a user or a password")
    return normalise_url(url.strip().rstrip("/").removesuffix("/api"))


def is_here(url: str) -> bool:
    """Tell whether a server's root is on this machine, as far as its name tells."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def full_name(model: str) -> str:
    """Return a model's name with its tag: to Ollama `smollm2` is `smollm2:latest`, in any case of letters."""
    _, _, last = model.rpartition("/")
    return (model if ":" in last else model + _DEFAULT_TAG).casefold()


def spelled_as(declared: tuple[str, ...], listed: str) -> tuple[str, ...]:
    """Return the operator's names for a listed model, or its own name when it is not declared."""
    return tuple(name for name in declared if full_name(name) == full_name(listed)) or (listed,)


def options_of(request: GenerationRequest, context_tokens: int) -> dict[str, Any]:
    """Return Ollama's `options`; parameters that were not given are left out.

    Raises `BackendRefused` when JSON cannot carry the request (a lone surrogate, a number that is none).
    """
    options: dict[str, Any] = {"num_predict": request.max_tokens}
    if context_tokens:
        options["num_ctx"] = context_tokens
    for name in ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed"):
        value = getattr(request, name)
        if value is not None:
            options[name] = value
    if request.stop:
        options["stop"] = list(request.stop)
    try:
        orjson.dumps([request.model, options, messages_of(request)])
    except TypeError as error:  # orjson.JSONEncodeError is one
        raise BackendRefused("the request holds text or a number that JSON cannot carry") from error
    return options


def messages_of(request: GenerationRequest) -> list[dict[str, str]]:
    """Return the messages as the client takes them."""
    return [{"role": message.role, "content": message.content} for message in request.messages]


def read_part(part: ChatResponse, request: GenerationRequest, server: str) -> ChatPart:
    """Return what one line says. Raises `ModelMissing` when another model answers, `BackendUnavailable` when no
    model does, and `UnicodeError` for a lone surrogate.
    """
    if part.model and full_name(part.model) != full_name(request.model):
        raise ModelMissing(
            f"{server} answered with the model {printable(part.model)} instead of {printable(request.model)}"
        )
    reason = FinishReason.STOP
    if part.done:
        if part.done_reason in {"load", "unload"}:
            raise BackendUnavailable(f"{server} only did a {part.done_reason} of the model and generated nothing")
        reason = FinishReason.LENGTH if part.done_reason == "length" else FinishReason.STOP
    text = part.message.content or ""
    return ChatPart(
        text=text,
        size_bytes=len(text.encode()),
        thinking=part.message.thinking or "",
        done=bool(part.done),
        reason=reason,
        prompt_tokens=part.prompt_eval_count if is_count(part.prompt_eval_count) else None,
        output_tokens=part.eval_count if is_count(part.eval_count) else None,
    )


def finished(last: ChatPart, request: GenerationRequest, output_bytes: int) -> Finished:
    """Return the end of an answer. Ollama leaves out a count of zero: without output that is exact."""
    output = last.output_tokens if last.output_tokens is not None else None if output_bytes else 0
    if last.prompt_tokens is not None and output is not None:
        return Finished(last.reason, last.prompt_tokens, output)
    prompt_bytes = sum(utf8_bytes(message.content) for message in request.messages)
    return Finished(
        last.reason,
        prompt_tokens=estimate_tokens(prompt_bytes),
        output_tokens=min(estimate_tokens(output_bytes), request.max_tokens),
        estimated=True,
    )


def trained_context(model_info: Mapping[str, Any] | None) -> int | None:
    """Return the context that a model was made for, from `show`; its key begins with the architecture."""
    for key, value in (model_info or {}).items():
        if key.endswith(".context_length") and is_count(value) and value > 0:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory: its context, and what it takes, in all and of a GPU; None where that is not told."""

    context_tokens: int | None = None
    memory_bytes: int | None = None
    gpu_bytes: int | None = None


def loaded_models(listed: ProcessResponse) -> dict[str, Loaded]:
    """Return the loaded models by their full names."""
    return {
        full_name(each.model): Loaded(
            _count(each.context_length) or None, _count(each.size), _count(each.size_vram)
        )
        for each in listed.models
        if each.model
    }


def taken(loaded: Iterable[Loaded]) -> tuple[int | None, int | None]:
    """Return how much memory models take together, in all and of a GPU; None when one of them does not tell."""
    models = list(loaded)
    return _sum(model.memory_bytes for model in models), _sum(model.gpu_bytes for model in models)


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _count(value: int | None) -> int | None:
    number = None if value is None else int(value)  # pydantic's sizes are a type of their own
    return number if is_count(number) else None


def quantization_of(details: object) -> str | None:
    """Return how a listed model is quantized, None when it is not told."""
    told = getattr(details, "quantization_level", None)
    return told if isinstance(told, str) and 0 < len(told) <= MAX_QUANTIZATION else None


def usable_context(asked: int, trained: int | None, loaded: int | None) -> int | None:
    """Return what one request may use: what we ask for, else what is loaded, never more than the model has."""
    given = asked or loaded
    return min(given, trained) if given and trained else given or None


def error_of(status: int, said: object, server: str) -> BackendError:
    """Return the error that a status (below 0: a line of a stream) and the server's words stand for."""
    text = said if isinstance(said, str) else "" if said is None else str(said)
    words, quoted = text.lower(), printable(text.strip())
    if "exceed" in words and "context" in words:
        return BackendRefused(f"the prompt is too long for {server}; shorten it: {quoted}")
    if status in {404, -1} and "model" in words and "not found" in words:
        return ModelMissing(f"{server} does not have the model: {quoted}")
    if status in {401, 403}:
        return BackendUnavailable(f"{server} wants a login ({status}), and Pylon has none for it")
    if status < 0:
        return BackendUnavailable(f"{server} broke off: {quoted or 'it did not say why'}")
    sentence = f"{server} answered {status}: {quoted or 'nothing more'}"
    if 400 <= status < 500 and status not in _PASSING:
        return BackendRefused(sentence)
    return BackendUnavailable(sentence)


def progress_of(status: str | None, completed: int | None, total: int | None) -> str:
    """Return how far a download is, in a few words; empty when the server does not say."""
    if is_count(completed) and is_count(total) and total > 0 and completed <= total:
        return f"{100 * completed // total} %"
    return printable(status or "", limit=60)


def is_count(value: Any) -> TypeGuard[int]:
    """Tell whether a value is a number of tokens or bytes that can be true."""
    return type(value) is int and 0 <= value < _MAX_COUNT
