"""Backends as jobs see them: what is asked, what comes back, and what an error says."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a backend is asked to generate. `model` is the backend's own name; None means its default."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class FinishReason(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output text, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last chunk. Token counts come from the backend unless `estimated`."""

    reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    estimated: bool = False


Chunk = Delta | Finished


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend really lists. `context_tokens` is what one request may use, None when unknown.

    `loaded` tells whether it is in memory, `size_bytes` and `quantization` which version of the model it is, where
    the backend says so.
    """

    name: str
    context_tokens: int | None = None
    loaded: bool | None = field(default=None, compare=False)
    size_bytes: int | None = field(default=None, compare=False)
    quantization: str | None = field(default=None, compare=False)


class BackendError(Exception):
    """A backend could not do the work; the message is one sentence fit for the operator."""

    retryable = False


class BackendUnavailable(BackendError):
    """Not reachable, still loading, or it broke off: another attempt may succeed."""

    retryable = True


class BackendBusy(BackendUnavailable):
    """It did nothing of the request and wants to be asked again after `retry_after_s` seconds."""

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class BackendRefused(BackendError):
    """The backend understood and refuses this request for good (prompt too long, bad parameter)."""


class ModelMissing(BackendError):
    """The backend does not have the model; it is never replaced by another."""


class BackendHealth(StrEnum):
    """What the last check said."""

    UNKNOWN = "unknown"
    READY = "ready"
    LOADING = "loading"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend's line in `pylon status`.

    `memory_bytes` is what the models for sale take of its machine's memory now, `gpu_bytes` what they take of a GPU
    of ours as far as no process of ours does; None where it does not tell. `keeps_memory`: `unload` does nothing.
    """

    name: str
    kind: str
    health: BackendHealth
    detail: str = ""
    models: tuple[ModelInfo, ...] = ()
    memory_bytes: int | None = field(default=None, compare=False)
    gpu_bytes: int | None = field(default=None, compare=False)
    keeps_memory: bool = False

    def lists(self, model: str) -> bool:
        """Tell whether the backend has a model of exactly this name."""
        return self.find(model) is not None

    def find(self, model: str) -> ModelInfo | None:
        """Return what the backend says of a model, None when it does not list it."""
        return next((each for each in self.models if each.name == model), None)


class Backend(Protocol):
    """An inference server. One instance serves many concurrent requests, bounded by the caller's slots."""

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the backend's resources (connections, child process) for the life of the daemon."""
        ...

    def state(self) -> BackendState:
        """Return what is known without asking."""
        ...

    async def check(self) -> BackendState:
        """Ask the server for its health and models; never raises, a fault becomes the state."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield `Delta`s and one `Finished`. Closing the generator stops the work on the server.

        Raises `BackendUnavailable`, `BackendRefused` or `ModelMissing`.
        """
        ...

    async def unload(self) -> None:
        """Give the models' memory back where the server can; the next `generate` loads again. Never raises.

        Returns when the memory is free, as far as the server tells. No `generate` may be under way. It may be
        called before `running`: then nothing is loaded until the first `generate`.
        """
        ...
