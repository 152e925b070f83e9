"""Backend `openai`: any server that speaks the OpenAI chat API (llama.cpp, vLLM, Ollama, LM Studio and more).

What is asked and answered is in `openai_wire`; here are the connections, the time limits and the retry. Nothing
a server answers raises anything but a `BackendError`. Proxies and `.netrc` of the environment are not used: a
prompt, or a key, goes to the configured server and nowhere else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import anyio
import httpx

from pylon.backends import openai_wire as wire
from pylon.backends.faults import NoAnswer, connection_faults
from pylon.backends.sse import BadStream, event_data, read_bounded
from pylon.jobs.ports import (
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

MODELS_FRESH_S: Final = 10.0
"""How long the list of models is believed before a generation asks again."""
USAGE_GRACE_S: Final = 5.0
"""How long a finished generation waits for the token counts that should follow."""
UNLOAD_S: Final = 15.0
"""How long llama.cpp's router may take to drop its models."""
_GONE_EVERY_S: Final = 0.2
_CLOSE_S: Final = 2.0
_LAST_BYTES_S: Final = 0.1
_KEEPALIVE_S: Final = 3.0  # llama.cpp drops an idle connection after 5
_MAX_MODELS_BYTES: Final = 4 << 20
_MAX_ERROR_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """How to reach one server. `url` may end with `/v1` or not. Raises `ValueError` with one sentence.

    `first_token_timeout_s` covers the server's own queue and the reading of the prompt, `stall_timeout_s` the
    time between two pieces of output; keep-alive lines count for neither. `models` are the names that are sold.
    """

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0
    check_timeout_s: float = 5.0
    max_output_bytes: int = 4 << 20
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            _ = httpx.URL(wire.normalise_url(self.url)).host  # decoding an internationalised name may fail
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"the backend's url cannot be used: {printable(error)}") from None
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("the backend's api_key holds characters that no HTTP header can carry")


class OpenAIBackend:
    """One OpenAI-compatible server."""

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        self._server = wire.Server(config.name, config.api_key)
        self._root = wire.normalise_url(config.url)
        self._state = BackendState(config.name, "openai", BackendHealth.UNKNOWN, keeps_memory=True)
        self._connections: _Connections | None = None
        self._listing = anyio.Lock()
        self._listed_at: float | None = None

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
        async with _connections(self._config) as connections:
            self._connections = connections
            try:
                yield
            finally:
                self._connections = None

    async def check(self) -> BackendState:
        """Ask for health and models; never raises, a fault becomes the state."""
        try:
            await self._list_models()
        except BackendError as error:
            self._note(error)
        return self._state

    async def unload(self) -> None:
        """Have llama.cpp's router drop what is sold, and wait until it is gone; any other server keeps its memory.

        Never raises.
        """
        with suppress(BackendError), self._faults("did not answer in time"), anyio.fail_after(UNLOAD_S):
            await self._list_models()
            for model in self._loaded_sold():
                await self._drop(model)
            while self._loaded_sold():
                await anyio.sleep(_GONE_EVERY_S)
                await self._list_models()

    def _loaded_sold(self) -> list[str]:
        return [each.name for each in self._state.models if each.loaded and each.name in self._config.models]

    async def _drop(self, model: str) -> None:
        status, body = await self._ask("POST", "/models/unload", {"model": model})
        if status != 200:
            raise wire.parse_error(status, body, self._server)

    def _note(self, error: BackendError) -> None:
        health = BackendHealth.LOADING if isinstance(error, _Loading) else BackendHealth.DOWN
        self._state = replace(self._state, health=health, detail=str(error))
        self._listed_at = None  # whoever answers next may be another server

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes. Closing the generator closes the connection, which stops the server."""
        body = wire.chat_body(request)
        started_at = anyio.current_time()
        try:
            await self._require_model(request.model)
            response = await self._post(request.model, body, self._config.first_token_timeout_s)
        except (NoAnswer, _Loading) as error:
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
        yield _finished(reason, usage, request, output_bytes)

    async def _next(self, events: AsyncGenerator[str, None], patience_s: float) -> wire.ChatChunk | None:
        """Return the next chunk, None at the end of the stream."""
        with self._faults("stopped sending", "broke off its answer"), anyio.fail_after(patience_s):
            data = await anext(events, None)
        return None if data is None or data.strip() == "[DONE]" else wire.parse_chunk(data, self._server)

    async def _let_end(self, events: AsyncGenerator[str, None]) -> None:
        """Read the end of the HTTP answer, which follows the last event at once, so that the connection is kept."""
        with suppress(BackendUnavailable), self._faults("went on"), anyio.move_on_after(_LAST_BYTES_S):
            await anext(events, None)

    async def _post(self, model: str, body: bytes, patience_s: float) -> httpx.Response:
        """Return the opened stream of a 200 answer.

        About one in a hundred requests over a connection that already carried a stream fails (measured with
        llama.cpp's server). As long as no answer has begun it is sent once more, over a fresh connection.
        """
        connections = self._open()
        with self._faults("did not start to answer"), anyio.fail_after(patience_s):
            try:
                response = await self._send(connections.kept, body)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                self._listed_at = None  # it was perhaps restarted, with another model
                await self._require_model(model)
                response = await self._send(connections.fresh, body)
            if response.status_code == 200:
                return response
            try:
                raise wire.parse_error(response.status_code, await _excerpt(response), self._server)
            finally:
                await response.aclose()

    async def _send(self, client: httpx.AsyncClient, body: bytes) -> httpx.Response:
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        request = client.build_request("POST", f"{self._root}/v1/chat/completions", content=body, headers=headers)
        return await client.send(request, stream=True)

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
        """Learn the models. Raises `BackendUnavailable`, `_Loading` when the server says that it is loading."""
        with self._faults("did not answer in time"), anyio.fail_after(self._config.check_timeout_s):
            # llama.cpp lists its model while still loading it; /health tells. Elsewhere it may be missing.
            status, body = await self._ask("GET", "/health")
            if status == 503:
                raise _Loading(str(wire.parse_error(status, body, self._server)))
            status, body = await self._ask("GET", "/v1/models")
            if status != 200:
                raise wire.parse_error(status, body, self._server)
            listed = wire.parse_models(body, self._server)
            models = listed.models
            if listed.llama_cpp and any(model.context_tokens is None for model in models):
                status, body = await self._ask("GET", "/props")
                context = wire.parse_slot_context(body, self._server) if status == 200 else None
                models = tuple(replace(model, context_tokens=model.context_tokens or context) for model in models)
        self._listed_at = anyio.current_time()
        self._state = replace(
            self._state, health=BackendHealth.READY, detail="", models=models, keeps_memory=not listed.router
        )

    async def _ask(self, method: str, path: str, content: object = None) -> tuple[int, bytes]:
        async with self._open().fresh.stream(method, self._root + path, json=content) as response:
            if response.status_code != 200:
                return response.status_code, await _excerpt(response)
            return 200, await read_bounded(response, _MAX_MODELS_BYTES)

    def _open(self) -> _Connections:
        if self._connections is None:
            raise BackendUnavailable(f"{self.name} is not running")
        return self._connections

    def _faults(self, late: str, broken: str = "cannot be reached") -> AbstractContextManager[None]:
        return connection_faults(self.name, self._root, late, broken)


class _Loading(BackendUnavailable):
    """The server is up, its model is not."""


@dataclass(frozen=True, slots=True)
class _Connections:
    kept: httpx.AsyncClient
    fresh: httpx.AsyncClient  # a new connection for every request


@asynccontextmanager
async def _connections(config: OpenAIConfig) -> AsyncIterator[_Connections]:
    # Reading the certificate store takes tens of ms, so the two clients share one and plain http has none.
    tls = ssl.create_default_context() if config.url.strip().startswith("https") else False

    def client(keepalive: int) -> httpx.AsyncClient:
        headers = {"Accept-Encoding": "identity"}
        if config.api_key:
            headers["Authorization"] = f"Bearer {config.api_key}"
        made = httpx.AsyncClient(
            headers=headers,
            verify=tls,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
            limits=httpx.Limits(max_keepalive_connections=keepalive, keepalive_expiry=_KEEPALIVE_S),
        )
        made.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
        return made

    async with client(16) as kept, client(0) as fresh:
        yield _Connections(kept, fresh)


async def _excerpt(response: httpx.Response) -> bytes:
    """Return the body of an error answer, nothing when it is too long or cannot be read."""
    try:
        return await read_bounded(response, _MAX_ERROR_BYTES)
    except (BadStream, httpx.HTTPError):
        return b""


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
