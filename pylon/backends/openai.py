"""Backend `openai`: any server that speaks the OpenAI chat API (llama.cpp, vLLM, Ollama, LM Studio and more).

What is asked and answered is in `openai_wire`, the connections are in `openai_link`; here are the time limits, the
retry and the models. Nothing a server answers raises anything but a `BackendError`.

**Reasoning is not the answer.** What a server sends apart as reasoning counts as output, as the server counts it,
and is not delivered, unless nothing else comes before the answer ends: then it is what the tokens were spent on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import anyio
import httpx

from pylon.backends import openai_wire as wire
from pylon.backends.faults import NoAnswer
from pylon.backends.openai_link import Loading, OpenAIConfig, OpenAILink
from pylon.backends.sse import event_data
from pylon.backends.thoughts import Thoughts
from pylon.jobs.ports import (
    BackendBusy,
    BackendError,
    BackendHealth,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelMissing,
)
from pylon.text import printable

__all__ = ["OpenAIBackend", "OpenAIConfig"]

MODELS_FRESH_S: Final = 10.0
"""How long the list of models is believed before a generation asks again."""
MAX_QUIET_S: Final = 300.0
"""The longest that a server is left unasked because it wants so."""
USAGE_GRACE_S: Final = 5.0
"""How long a finished generation waits for the token counts that should follow."""
UNLOAD_S: Final = 15.0
"""How long llama.cpp's router may take to drop its models."""
_GONE_EVERY_S: Final = 0.2
_CLOSE_S: Final = 2.0
_LAST_BYTES_S: Final = 0.1


class OpenAIBackend:
    """One OpenAI-compatible server."""

    def __init__(self, config: OpenAIConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._link = OpenAILink(config, clock)
        self._state = BackendState(config.name, "openai", BackendHealth.UNKNOWN, keeps_memory=True)
        self._listing = anyio.Lock()
        self._listed_at: float | None = None
        self._quiet_until = 0.0

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        return self._config.name

    def state(self) -> BackendState:
        """Return what the last check or generation found; a server that is down keeps its last known models."""
        return self._state

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connections; the server need not be up."""
        async with self._link.open():
            yield

    async def check(self) -> BackendState:
        """Ask for health and models; never raises, a fault becomes the state. One that wants quiet is not asked."""
        if anyio.current_time() < self._quiet_until:
            return self._state
        try:
            await self._list_models()
        except BackendBusy as busy:
            self._rest(busy)
        except BackendError as error:
            self._note(error)
        return self._state

    async def unload(self) -> None:
        """Have llama.cpp's router drop what is sold, and wait until it is gone; any other server keeps its memory.

        Never raises.
        """
        with suppress(BackendError), self._link.faults("did not answer in time"), anyio.fail_after(UNLOAD_S):
            await self._list_models()
            for model in self._loaded_sold():
                await self._link.drop(model)
            while self._loaded_sold():
                await anyio.sleep(_GONE_EVERY_S)
                await self._list_models()

    def _loaded_sold(self) -> list[str]:
        return [each.name for each in self._state.models if each.loaded and each.name in self._config.models]

    def _rest(self, busy: BackendBusy) -> None:
        """Note that the server wants quiet: it is as well as before, and no check asks it until that is over."""
        self._quiet_until = anyio.current_time() + min(busy.retry_after_s, MAX_QUIET_S)
        self._state = replace(self._state, detail=str(busy))

    def _note(self, error: BackendError) -> None:
        health = BackendHealth.LOADING if isinstance(error, Loading) else BackendHealth.DOWN
        self._state = replace(self._state, health=health, detail=str(error))
        self._listed_at = None  # whoever answers next may be another server

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes. Closing the generator closes the connection, which stops the server."""
        body = wire.chat_body(request)
        started_at = anyio.current_time()
        try:
            await self._require_model(request.model)
            response = await self._post(request.model, body, self._config.first_token_timeout_s)
        except BackendBusy as busy:
            self._rest(busy)
            raise
        except (NoAnswer, Loading) as error:
            self._note(error)
            raise
        patience_s = self._config.first_token_timeout_s - (anyio.current_time() - started_at)
        try:
            async with aclosing(self._read(response, request, patience_s)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except BackendUnavailable:
            self._listed_at = None  # it may come back with another model
            raise
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await response.aclose()

    async def _read(
        self, response: httpx.Response, request: GenerationRequest, patience_s: float
    ) -> AsyncGenerator[Chunk, None]:
        reason: FinishReason | None = None
        usage: wire.Usage | None = None
        output_bytes = 0
        thoughts = Thoughts(self._config.max_output_bytes)
        async with aclosing(event_data(response)) as events:
            while True:
                # Only waiting uses up patience: a consumer that is slow to ask again does not.
                waits_since = anyio.current_time()
                try:
                    chunk = await self._next(events, patience_s)
                except BackendUnavailable:
                    if reason is None:
                        raise
                    break  # the output is whole; only its counts are missing
                if chunk is None:
                    break
                patience_s -= anyio.current_time() - waits_since
                usage = chunk.usage or usage
                if chunk.text or chunk.thinking:
                    patience_s = self._config.stall_timeout_s
                    thoughts.add(chunk.thinking)
                if chunk.finish and reason is None:
                    reason = chunk.finish
                    patience_s = min(USAGE_GRACE_S, self._config.stall_timeout_s)
                if chunk.text:
                    output_bytes += len(chunk.text.encode())
                    if output_bytes > self._config.max_output_bytes:
                        raise BackendUnavailable(
                            f"{self.name} sent more than {self._config.max_output_bytes} bytes of output"
                        )
                    yield Delta(chunk.text)
            await self._let_end(events)
        if reason is None:
            raise BackendUnavailable(f"{self.name} ended its answer before it was finished")
        if thoughts.text and not output_bytes:
            yield Delta(thoughts.text)
        yield _finished(reason, usage, request, output_bytes + thoughts.size_bytes)

    async def _next(self, events: AsyncGenerator[str, None], patience_s: float) -> wire.ChatChunk | None:
        """Return the next chunk, None at the end of the stream."""
        with self._link.faults("stopped sending", "broke off its answer"), anyio.fail_after(patience_s):
            data = await anext(events, None)
        return None if data is None or data.strip() == "[DONE]" else wire.parse_chunk(data, self._link.server)

    async def _let_end(self, events: AsyncGenerator[str, None]) -> None:
        """Read the end of the HTTP answer, which follows the last event at once, so that the connection is kept."""
        with suppress(BackendUnavailable), self._link.faults("went on"), anyio.move_on_after(_LAST_BYTES_S):
            await anext(events, None)

    async def _post(self, model: str, body: bytes, patience_s: float) -> httpx.Response:
        """Return the opened stream of a 200 answer.

        About one in a hundred requests over a connection that already carried a stream fails (measured with
        llama.cpp's server). As long as no answer has begun it is sent once more, over a fresh connection.
        """
        link = self._link
        with self._link.faults("did not start to answer"), anyio.fail_after(patience_s):
            try:
                response = await link.send(body)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                self._listed_at = None  # it was perhaps restarted, with another model
                await self._require_model(model)
                response = await link.send(body, fresh=True)
            if response.status_code == 200:
                return response
            try:
                raise await link.error_of(response)
            finally:
                await response.aclose()

    async def _require_model(self, model: str) -> None:
        """Raise `ModelMissing` unless the server lists `model`: llama.cpp's accepts any name and runs its own."""
        async with self._listing:
            fresh = self._listed_at is not None and anyio.current_time() - self._listed_at < MODELS_FRESH_S
            if not (fresh and self._lists(model)):
                await self._list_models()
        if not self._lists(model):
            raise ModelMissing(f"{self.name} does not list the model {printable(model)}")

    def _lists(self, model: str) -> bool:
        return any(model == listed.name for listed in self._state.models)

    async def _list_models(self) -> None:
        """Learn the models. Raises `BackendUnavailable`, `Loading` when the server says that it is loading."""
        with self._link.faults("did not answer in time"), anyio.fail_after(self._config.check_timeout_s):
            listed = await self._link.list_models()
        self._listed_at = anyio.current_time()
        self._state = replace(
            self._state,
            health=BackendHealth.READY,
            detail="",
            models=listed.models,
            keeps_memory=not listed.router,
        )


def _finished(
    reason: FinishReason, usage: wire.Usage | None, request: GenerationRequest, output_bytes: int
) -> Finished:
    if usage:
        return Finished(reason, usage.prompt_tokens, usage.output_tokens)
    prompt_bytes = sum(len(message.content.encode()) for message in request.messages)
    return Finished(
        reason,
        prompt_tokens=wire.estimate_tokens(prompt_bytes),
        output_tokens=min(wire.estimate_tokens(output_bytes), request.max_tokens),
        estimated=True,
    )
