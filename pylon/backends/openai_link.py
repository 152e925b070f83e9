"""The way to an OpenAI-compatible server: its connections, where its API lies, and what its errors are.

Proxies and `.netrc` of the environment are not used: a prompt, or a key, goes to the configured server and nowhere
else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Final

import httpx

from pylon.backends import openai_wire as wire
from pylon.backends.faults import connection_faults
from pylon.backends.sse import BadStream, read_bounded
from pylon.backends.trust import CaFault, context_for
from pylon.jobs.ports import BackendBusy, BackendError, BackendUnavailable, ModelInfo
from pylon.text import printable

_KEEPALIVE_S: Final = 3.0  # llama.cpp drops an idle connection after 5
_MAX_MODELS_BYTES: Final = 4 << 20
_MAX_ERROR_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """How to reach one server. Raises `ValueError` with one sentence.

    `url` may end with `/v1`; without it the API is looked for both there and at the URL itself. With `ca_file`
    (PEM) an https server must show a certificate of an authority in that file.

    `first_token_timeout_s` covers the server's own queue and the reading of the prompt, `stall_timeout_s` the
    time between two pieces of output; keep-alive lines count for neither. `models` are the names that are sold.
    """

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
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


class Loading(BackendUnavailable):
    """The server is up, its model is not."""


class _Locked(BackendUnavailable):
    """The server wants a key that it was not given."""


class OpenAILink:
    """The connections to one server; nothing goes out outside `open`. What fails is raised as `httpx` does, or as a
    `BackendError`; `faults` turns the former into the latter.
    """

    def __init__(self, config: OpenAIConfig, clock: Callable[[], float]) -> None:
        self.server = wire.Server(config.name, config.api_key)
        self._config = config
        self._clock = clock
        self._root = wire.normalise_url(config.url)
        self._bases = wire.api_bases(config.url)  # the one that answered last comes first
        self._contexts: dict[str, int] = {}
        self._connections: _Connections | None = None
        self._closed_for = "is not running"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold the connections; the server need not be up, and without usable authorities there are none."""
        try:
            tls = context_for(self._root, self._config.ca_file)
        except CaFault as fault:
            self._closed_for = f"cannot be asked: {fault}"
            yield
            return
        async with _connections(self._config, tls) as connections:
            self._connections = connections
            try:
                yield
            finally:
                self._connections = None

    def faults(self, late: str, broken: str = "cannot be reached") -> AbstractContextManager[None]:
        """Turn what `httpx` raises, and a time limit of ours, into `BackendUnavailable`."""
        return connection_faults(self.server.name, self._root, late, broken)

    async def send(self, body: bytes, *, fresh: bool = False) -> httpx.Response:
        """Return the opened answer to a chat, over a kept connection or a `fresh` one."""
        connections = self._open()
        client = connections.fresh if fresh else connections.kept
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        request = client.build_request("POST", f"{self._bases[0]}/chat/completions", content=body, headers=headers)
        return await client.send(request, stream=True)

    async def list_models(self) -> wire.ModelList:
        """Return the models, from where the API is found. Raises what the likeliest place answered; `Loading` when
        the server says that it is loading.
        """
        first: BackendError | None = None
        for base in self._bases:
            try:
                listed = wire.parse_models(await self._ask("GET", f"{base}/models"), self.server)
            except (BackendBusy, Loading, _Locked):
                raise
            except BackendError as error:
                first = first or error
                continue
            self._bases = (base, *(each for each in self._bases if each != base))
            return replace(listed, models=await self._ask_llama_cpp(listed.models)) if listed.llama_cpp else listed
        assert first is not None
        raise first

    async def _ask_llama_cpp(self, models: tuple[ModelInfo, ...]) -> tuple[ModelInfo, ...]:
        """Return the models with their contexts, which llama.cpp lists while it is still loading: /health tells.

        Nobody else is asked for /health: LiteLLM's runs a request on every model.
        """
        try:
            await self._ask("GET", f"{self._root}/health")
        except Loading:
            raise
        except BackendError:
            pass  # not there, or behind a proxy that does not let it through
        context = None
        if any(model.context_tokens is None for model in models):
            with suppress(BackendError):
                context = wire.parse_slot_context(await self._ask("GET", f"{self._root}/props"), self.server)
        # A router tells the context of a model only while it is loaded: it is remembered.
        self._contexts |= {model.name: model.context_tokens for model in models if model.context_tokens is not None}
        return tuple(
            replace(model, context_tokens=model.context_tokens or self._contexts.get(model.name) or context)
            for model in models
        )

    async def drop(self, model: str) -> None:
        """Have llama.cpp's router unload a model. Raises the error that it answers."""
        await self._ask("POST", f"{self._root}/models/unload", {"model": model})

    async def _ask(self, method: str, url: str, content: object = None) -> bytes:
        """Return the body of a 200 answer. Raises `BackendUnavailable` for any other: it is not about a request."""
        async with self._open().fresh.stream(method, url, json=content) as response:
            if response.status_code == 200:
                return await read_bounded(response, _MAX_MODELS_BYTES)
            error = await self.error_of(response)
        if response.status_code in {401, 403}:
            raise _Locked(str(error))
        if response.status_code == 503 and not isinstance(error, BackendBusy):
            raise Loading(str(error))
        raise error if isinstance(error, BackendBusy) else BackendUnavailable(str(error))

    async def error_of(self, response: httpx.Response) -> BackendError:
        """Return what an answer other than 200 stands for: `BackendBusy` where it says when to come again."""
        error = wire.parse_error(response.status_code, await _excerpt(response), self.server)
        wait_s = wire.retry_after_s(response.headers, self._clock())
        if wait_s is None or response.status_code not in {429, 503}:
            return error
        return BackendBusy(f"{error}; it wants to be asked again in {wait_s:.0f} s", wait_s)

    def _open(self) -> _Connections:
        if self._connections is None:
            raise BackendUnavailable(f"{self.server.name} {self._closed_for}")
        return self._connections


@dataclass(frozen=True, slots=True)
class _Connections:
    kept: httpx.AsyncClient
    fresh: httpx.AsyncClient  # a new connection for every request


@asynccontextmanager
async def _connections(config: OpenAIConfig, tls: ssl.SSLContext | bool) -> AsyncIterator[_Connections]:
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
