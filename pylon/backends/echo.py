"""Backend `echo`: gives the last user message back. For benchmarks and trials; nothing is computed.

A token is a word with the white space after it, so `max_tokens` and the counts are exact and easy to check.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from pylon.jobs.ports import (
    BackendHealth,
    BackendState,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    ModelMissing,
)
from pylon.text import printable

_WORD: Final = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class EchoConfig:
    """What the echo offers. The answer comes in `steps` pieces (fewer for fewer words), `delay_s` before each."""

    name: str = "echo"
    models: tuple[str, ...] = ("echo",)
    context_tokens: int | None = None
    steps: int = 1
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.delay_s < 0:
            raise ValueError("the echo backend needs steps of at least 1 and a delay_s of at least 0")


class EchoBackend:
    """An inference server without inference; always ready."""

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        models = tuple(ModelInfo(model, config.context_tokens) for model in config.models)
        self._state = BackendState(config.name, "echo", BackendHealth.READY, models=models, memory_bytes=0)

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        return self._config.name

    def state(self) -> BackendState:
        """Return the state, which never changes."""
        return self._state

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold nothing."""
        yield

    async def check(self) -> BackendState:
        """Return the state, which never changes."""
        return self._state

    async def unload(self) -> None:
        """Do nothing: it holds no model."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the words of the last user message, cut by `stop` and `max_tokens`; sampling has no say in it."""
        if request.model not in self._config.models:
            raise ModelMissing(f"{self.name} does not list the model {printable(request.model)}")
        prompt = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
        words: list[str] = _WORD.findall(_before_stop(prompt, request.stop) if request.stop else prompt)
        output = words[: request.max_tokens]
        for piece in _pieces(output, self._config.steps):
            if self._config.delay_s:
                await anyio.sleep(self._config.delay_s)
            yield Delta(piece)
        yield Finished(
            FinishReason.LENGTH if len(words) > len(output) else FinishReason.STOP,
            prompt_tokens=sum(len(_WORD.findall(message.content)) for message in request.messages),
            output_tokens=len(output),
        )


def _before_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return the text up to the first of the stop strings."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text


def _pieces(words: list[str], steps: int) -> list[str]:
    """Return the words joined into at most `steps` pieces of about the same number of words."""
    size = -(-len(words) // steps) or 1
    return ["".join(words[start : start + size]) for start in range(0, len(words), size)]
