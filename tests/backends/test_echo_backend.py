"""Backend `echo`: words back, counted exactly."""

from __future__ import annotations

import time

import pytest

from pylon.backends.echo import EchoBackend, EchoConfig
from pylon.jobs.ports import (
    Backend,
    BackendHealth,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelMissing,
)

WORDS = GenerationRequest("echo", (Message("system", "be brief"), Message("user", "one two\nthree four")), 100)


async def collect(backend: Backend, request: GenerationRequest) -> list[Chunk]:
    async with backend.running():
        return [chunk async for chunk in backend.generate(request)]


async def test_the_last_user_message_comes_back_whole() -> None:
    chunks = await collect(EchoBackend(EchoConfig()), WORDS)
    assert chunks == [Delta("one two\nthree four"), Finished(FinishReason.STOP, 6, 4)]


async def test_max_tokens_cuts_words() -> None:
    request = GenerationRequest("echo", WORDS.messages, max_tokens=3)
    chunks = await collect(EchoBackend(EchoConfig()), request)
    assert chunks == [Delta("one two\nthree "), Finished(FinishReason.LENGTH, 6, 3)]


async def test_stop_cuts_before_the_first_stop_string() -> None:
    request = GenerationRequest("echo", WORDS.messages, max_tokens=3, stop=("four", "\n", ""))
    chunks = await collect(EchoBackend(EchoConfig()), request)
    assert chunks == [Delta("one two"), Finished(FinishReason.STOP, 6, 2)]


@pytest.mark.parametrize(("steps", "pieces"), [(1, 1), (2, 2), (3, 2), (4, 4), (9, 4)])
async def test_steps_bound_the_pieces(steps: int, pieces: int) -> None:
    *deltas, _ = await collect(EchoBackend(EchoConfig(steps=steps)), WORDS)
    assert len(deltas) == pieces
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "one two\nthree four"


async def test_delay_comes_before_each_piece() -> None:
    started_at = time.monotonic()
    await collect(EchoBackend(EchoConfig(steps=4, delay_s=0.02)), WORDS)
    assert time.monotonic() - started_at >= 0.08


async def test_nothing_to_say_is_an_empty_answer() -> None:
    request = GenerationRequest("echo", (Message("user", " \n"),), 5)
    assert await collect(EchoBackend(EchoConfig()), request) == [Finished(FinishReason.STOP, 0, 0)]


async def test_white_space_is_read_in_linear_time() -> None:
    request = GenerationRequest("echo", (Message("user", " " * 1_000_000),), 5)
    started_at = time.monotonic()
    await collect(EchoBackend(EchoConfig()), request)
    assert time.monotonic() - started_at < 2


async def test_only_its_own_models_are_served() -> None:
    backend = EchoBackend(EchoConfig(name="e", models=("a", "b"), context_tokens=9))
    state = await backend.check()
    assert (state, state.health) == (backend.state(), BackendHealth.READY)
    assert [(model.name, model.context_tokens) for model in state.models] == [("a", 9), ("b", 9)]
    with pytest.raises(ModelMissing, match="e does not list the model echo"):
        await collect(backend, WORDS)


@pytest.mark.parametrize("config", [{"steps": 0}, {"delay_s": -1.0}])
def test_absurd_settings_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="echo backend"):
        EchoConfig(**config)  # type: ignore[arg-type]
