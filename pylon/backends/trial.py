"""Asking backends outside the daemon: are they there, and how fast do they answer a real prompt?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import anyio

from pylon.errors import describe_error
from pylon.jobs.ports import (
    Backend,
    BackendError,
    BackendHealth,
    BackendState,
    BackendUnavailable,
    Delta,
    Finished,
    GenerationRequest,
    ModelMissing,
)

_LOOK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Trial:
    """One request, measured from when it was sent. Counts are the backend's own unless `estimated`."""

    model: str
    output: str
    finish: str
    prompt_tokens: int
    output_tokens: int
    estimated: bool
    first_token_s: float
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens for each second of the whole request, the reading of the prompt included."""
        return self.output_tokens / self.seconds if self.seconds > 0 else 0.0


async def check_backends(backends: Mapping[str, Backend]) -> dict[str, BackendState]:
    """Ask all of them at once for health and models; a fault becomes the state."""
    states: dict[str, BackendState] = {}

    async def check(name: str, backend: Backend) -> None:
        try:
            async with backend.running():
                states[name] = await backend.check()
        except Exception as error:  # noqa: BLE001 - a plug-in may break its word; the others' states must be told
            states[name] = BackendState(name, "", BackendHealth.DOWN, f"its check broke: {describe_error(error)}")

    async with anyio.create_task_group() as tasks:
        for name, backend in backends.items():
            tasks.start_soon(check, name, backend)
    return states


async def run_trial(backend: Backend, request: GenerationRequest, start_timeout_s: float = 0.0) -> Trial:
    """Run one request and measure it; an empty `request.model` means the first model that the backend lists.

    A backend that is loading is waited for, at most `start_timeout_s`. Raises `BackendError`.
    """
    outcome: Trial | BackendError
    async with backend.running():
        try:
            state = await until_up(backend, start_timeout_s)
            outcome = await _measure(backend, replace(request, model=request.model or first_model(state)))
        except BackendError as error:
            outcome = error  # raised outside: a backend's task group would wrap it
    if isinstance(outcome, BackendError):
        raise outcome
    return outcome


async def until_up(backend: Backend, start_timeout_s: float) -> BackendState:
    """Wait for a backend that is loading, at most `start_timeout_s`. Raises `BackendUnavailable`."""
    deadline = anyio.current_time() + start_timeout_s
    while True:
        state = await backend.check()
        if state.health is BackendHealth.READY:
            return state
        if state.health is BackendHealth.DOWN or anyio.current_time() >= deadline:
            raise BackendUnavailable(state.detail or f"{backend.name} is {state.health}")
        await anyio.sleep(_LOOK_EVERY_S)


def first_model(state: BackendState) -> str:
    """Return the first model that a backend lists. Raises `ModelMissing`."""
    if not state.models:
        raise ModelMissing(f"{state.name} lists no models")
    return state.models[0].name


async def _measure(backend: Backend, request: GenerationRequest) -> Trial:
    pieces: list[str] = []
    finished: Finished | None = None
    began_at = anyio.current_time()
    first_at: float | None = None
    async with aclosing(backend.generate(request)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Delta):
                first_at = anyio.current_time() if first_at is None else first_at
                pieces.append(chunk.text)
            else:
                finished = chunk
    ended_at = anyio.current_time()
    if finished is None or first_at is None:
        raise BackendUnavailable(f"{backend.name} finished without a word; more --max-tokens may help")
    return Trial(
        model=request.model,
        output="".join(pieces),
        finish=finished.reason,
        prompt_tokens=finished.prompt_tokens,
        output_tokens=finished.output_tokens,
        estimated=finished.estimated,
        first_token_s=first_at - began_at,
        seconds=ended_at - began_at,
    )
