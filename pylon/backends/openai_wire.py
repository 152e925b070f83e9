"""The OpenAI chat API as values: what we send, and what any server may answer. No I/O.

Every `parse_` function takes what a server sent and raises only `BackendError`s. What a server says is quoted
by `Server.quote`: printable, shortened, and without our API key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import orjson

from pylon.jobs.ports import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    ModelMissing,
)
from pylon.text import printable

MAX_MODELS: Final = 1000
MAX_MODEL_NAME: Final = 256
MAX_QUANTIZATION: Final = 64
_MAX_COUNT: Final = 2**53
_BYTES_PER_TOKEN: Final = 4
_MIN_SECRET: Final = 8  # shorter ones are the dummies ("none", "x") that keyless servers want

_OVERLONG: Final = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_NO_MODEL: Final = frozenset({"model_not_found", "model_not_found_error"})
_NOT_THERE: Final = re.compile(
    r"^model .{1,300} not found$|invalid model name", re.IGNORECASE
)  # llama.cpp, LiteLLM
_NOT_LOADED: Final = "model is not loaded"  # llama.cpp's router, when it may not load by itself
_PASSING: Final = frozenset({408, 409, 421, 425, 429})  # statuses below 500 that another attempt may not meet


@dataclass(frozen=True, slots=True)
class Server:
    """Whose words these are: its name for our sentences, and the key that it must not make us repeat."""

    name: str
    api_key: str | None = field(default=None, repr=False)

    def quote(self, said: str | bytes, limit: int = 200) -> str:
        """Return what the server said, fit for a log line."""
        text = said if isinstance(said, str) else said.decode("utf-8", "replace")
        if self.api_key and len(self.api_key) >= _MIN_SECRET:
            text = text.replace(self.api_key, "[api_key]")
        return printable(text, limit=limit)


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's own token counts."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """One event of a stream. `thinking` is reasoning: progress, but not output as long as any output comes."""

    text: str = ""
    thinking: str = ""
    finish: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ModelList:
    """What `/v1/models` lists: ids and aliases. `llama_cpp` tells that the server is llama.cpp's.

    `router` tells that it loads models as they are asked for, and drops them when it is told to.
    """

    models: tuple[ModelInfo, ...]
    llama_cpp: bool = False
    router: bool = False


def normalise_url(url: str) -> str:
    """Return the server's root, without `/v1`. Raises `ValueError` with one sentence when it is no such URL."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("the backend's url cannot be read; write it like http://127.0.0.1:8080/v1") from None
    if parts.scheme not in {"http", "https"} or not host or " " in parts.netloc:
        raise ValueError("the backend's url must start with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the backend's url must not hold a password; set api_key instead")
    if parts.query or parts.fragment:
        raise ValueError("the backend's url must end with its path, without ? or #")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def api_bases(url: str) -> tuple[str, ...]:
    """Return where the API may lie, the likeliest first: a URL that ends with `/v1` says it, any other may either
    lack that or lead to an API without it. Raises `ValueError` as `normalise_url` does.
    """
    root = normalise_url(url)
    told = urlsplit(url.strip()).path.rstrip("/").endswith("/v1")
    return (f"{root}/v1",) if told else (f"{root}/v1", root)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return after how many seconds a server wants to be asked again, None when it does not say.

    The header holds seconds or an HTTP date, which is taken by the server's own clock (`Date`) where it tells it,
    else by `now` in unix seconds. `headers` must not mind the case of letters.
    """
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.replace(".", "", 1).isdigit():
        return float(said) if math.isfinite(float(said)) else None
    at = _unix_time(said)
    if at is None:
        return None
    sent_at = _unix_time(headers.get("date", ""))
    return max(0.0, at - (now if sent_at is None else sent_at))


def _unix_time(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def chat_body(request: GenerationRequest) -> bytes:
    """Return the JSON body of `/v1/chat/completions`; parameters that were not given are left out.

    Raises `BackendRefused` when the text is not valid Unicode (a lone surrogate).
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.stop:
        body["stop"] = request.stop
    try:
        return orjson.dumps(body)
    except TypeError as error:  # orjson.JSONEncodeError is one
        raise BackendRefused("the request holds text or a number that JSON cannot carry") from error


def parse_chunk(data: str, server: Server) -> ChatChunk:
    """Return what one event says. Raises the error that it carries, or `BackendUnavailable` when it is nonsense."""
    value = _object(data, server)
    if value.get("error"):
        raise error_of(_status_in(value["error"]), value, server.quote(data), server)
    usage = _parse_usage(value.get("usage"))
    choices = value.get("choices", [])
    if not isinstance(choices, list):
        raise _nonsense(server, data)
    if not choices:
        return ChatChunk(usage=usage)
    choice = choices[0]
    delta = choice.get("delta") or {} if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        raise _nonsense(server, data)
    text = delta.get("content") or ""
    thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if not isinstance(text, str):
        raise _nonsense(server, data)
    return ChatChunk(
        text=text,
        thinking=thinking if isinstance(thinking, str) else "",
        finish=_parse_finish(choice.get("finish_reason"), server),
        usage=usage,
    )


def _parse_finish(value: object, server: Server) -> FinishReason | None:
    match value:
        case None | "":
            return None
        case "length" | "max_tokens" | "model_length":
            return FinishReason.LENGTH
        case "content_filter":
            raise BackendRefused(f"{server.name} withheld the answer by its content filter")
        case "abort" | "error":
            raise BackendUnavailable(f"{server.name} broke off the generation")
        case _:
            return FinishReason.STOP


def _parse_usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, output = value.get("prompt_tokens"), value.get("completion_tokens")
    if not is_count(prompt) or not is_count(output):
        return None
    return Usage(prompt_tokens=prompt, output_tokens=output)


def parse_models(body: bytes, server: Server) -> ModelList:
    """Return the models of a `/v1/models` answer, at most `MAX_MODELS`, each name once."""
    value = _object(body, server)
    entries = value.get("data")
    if not isinstance(entries, list):
        raise _nonsense(server, body)
    found: dict[str, ModelInfo] = {}
    llama_cpp = router = False
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        llama_cpp = llama_cpp or entry.get("owned_by") == "llamacpp"
        loaded = _is_loaded(entry)
        router = router or loaded is not None
        aliases = entry.get("aliases")
        names = [entry.get("id"), *(aliases if isinstance(aliases, list) else [])]
        for name in names:
            if len(found) >= MAX_MODELS:
                break
            if isinstance(name, str) and 0 < len(name) <= MAX_MODEL_NAME:
                found.setdefault(name, _model(name, entry, loaded))
    return ModelList(tuple(found.values()), llama_cpp, router)


def _is_loaded(entry: dict[str, Any]) -> bool | None:
    """Tell whether a model is in the memory of llama.cpp's router; None where the entry is of another server."""
    status = entry.get("status")
    word = status.get("value") if isinstance(status, dict) else None
    if entry.get("owned_by") != "llamacpp" or not isinstance(word, str):
        return None
    return word not in {"unloaded", "failed"}


def _model(name: str, entry: dict[str, Any], loaded: bool | None) -> ModelInfo:
    """Return a model as its entry describes it; llama.cpp tells its size in bytes and its quantization."""
    told = entry.get("meta")
    meta = told if isinstance(told, dict) else {}
    size, kind = meta.get("size"), meta.get("ftype")
    return ModelInfo(
        name,
        context_of(entry),
        loaded,
        size_bytes=size if is_count(size) else None,
        quantization=kind if isinstance(kind, str) and 0 < len(kind) <= MAX_QUANTIZATION else None,
    )


def context_of(entry: dict[str, Any]) -> int | None:
    """Return the context that an entry of `/v1/models` tells, in tokens, None when it tells none."""
    # llama.cpp says what a slot really has, vLLM and OpenRouter their limit per request.
    meta = entry.get("meta")
    given = (
        meta.get("n_ctx") if isinstance(meta, dict) else None,
        entry.get("max_model_len"),
        entry.get("context_length"),
    )
    return next((tokens for tokens in given if is_count(tokens) and tokens > 0), None)


def parse_slot_context(body: bytes, server: Server) -> int | None:
    """Return the context of one slot from llama.cpp's `/props`, None when it does not say."""
    value = _object(body, server)
    settings = value.get("default_generation_settings")
    tokens = settings.get("n_ctx") if isinstance(settings, dict) else None
    tokens = value.get("n_ctx") if tokens is None else tokens
    return tokens if is_count(tokens) and tokens > 0 else None


def parse_error(status: int, body: bytes, server: Server) -> BackendError:
    """Return the error that an HTTP answer other than 200 stands for."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    return error_of(status, value, server.quote(body), server)


def error_of(status: int, value: object, raw: str, server: Server) -> BackendError:
    """Return the error that a status and a parsed body stand for; `raw` is quoted where no message is found."""
    if status in {401, 403}:  # nothing is quoted: such an answer may hold part of the key
        return BackendUnavailable(
            f"{server.name} does not accept our API key ({status}); check the backend's api_key"
        )
    detail = value.get("error", value) if isinstance(value, dict) else value
    fields = detail if isinstance(detail, dict) else {"message": detail}
    words = {word for word in (fields.get("type"), fields.get("code")) if isinstance(word, str)}
    message = fields.get("message")
    said = server.quote(message) if isinstance(message, str) and message else raw
    if words & _OVERLONG:
        return BackendRefused(_overlong(fields, said, server))
    if (
        words & _NO_MODEL
        or (status == 404 and "model" in said.lower())
        or (status == 400 and _NOT_THERE.search(said))
    ):
        return ModelMissing(f"{server.name} does not have the model: {said}")
    sentence = f"{server.name} answered {status}: {said or 'nothing more'}"
    if said == _NOT_LOADED:
        return BackendUnavailable(f"{sentence}; load it there, or let the router do so (models_autoload)")
    if 400 <= status < 500 and status not in _PASSING:
        return BackendRefused(sentence)
    return BackendUnavailable(sentence)


def _overlong(fields: dict[str, Any], said: str, server: Server) -> str:
    prompt, context = fields.get("n_prompt_tokens"), fields.get("n_ctx")
    if is_count(prompt) and is_count(context):
        return f"the prompt has {prompt} tokens and {server.name} takes {context} per request; shorten the prompt"
    return f"the prompt is too long for {server.name}; shorten it: {said}"


def estimate_tokens(text_bytes: int) -> int:
    """Return a guess of the tokens in so many bytes of UTF-8, for servers that do not count."""
    return -(-text_bytes // _BYTES_PER_TOKEN)


def _object(data: str | bytes, server: Server) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:  # lone surrogates and deep nesting included
        raise _nonsense(server, data) from None
    if not isinstance(value, dict):
        raise _nonsense(server, data)
    return value


def _nonsense(server: Server, data: str | bytes) -> BackendUnavailable:
    return BackendUnavailable(
        f"{server.name} answered something that is not the OpenAI API: {server.quote(data, limit=100)}"
    )


def _status_in(error: object) -> int:
    """Return the HTTP status that an error inside a stream names, 500 when it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def is_count(value: Any) -> TypeGuard[int]:
    """Tell whether a parsed JSON value is a number of things."""
    return type(value) is int and 0 <= value < _MAX_COUNT
