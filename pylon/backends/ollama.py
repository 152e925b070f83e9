"""Backend `ollama`: an Ollama server through its own API and its own Python client.

What is asked and answered is in `ollama_wire`, how the client is kept on its way in `ollama_client`; here are the
time limits, the models and their download. Nothing a server answers raises anything but a `BackendError`.

**No prompt is cut.** By itself Ollama drops the beginning of a chat that is longer than the context that the model
is loaded with (`num_ctx`, often 4,096 whatever the model could do), says nothing, and answers. Each request
therefore carries `truncate: false` and `shift: false`: what does not fit is refused, and an answer that fills the
context ends as `length`. Old servers do not know these two; what guards there is the context that
`state` reports and intake keeps to: `context_tokens` of the settings, sent as `num_ctx` with every request; without
it what the server says of the loaded model, and nothing as long as none is loaded. What the model was made for
only ever lowers it: Ollama does not load that much by itself.

**Thinking is not the answer**, as with the `openai` backend: it is delivered only where nothing else comes.

**No model is fetched because a customer asks.** Only `check` finds that a model which the operator sells is absent,
and only with `pull` set is it fetched, in the background of `running`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import anyio
import httpx

from pylon.backends import ollama_wire as wire
from pylon.backends.faults import NoAnswer, connection_faults
from pylon.backends.ollama_client import AsyncClient, ResponseError, make_client
from pylon.backends.thoughts import Thoughts
from pylon.backends.trust import CaFault, context_for
from pylon.jobs.ports import (
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    GenerationRequest,
    ModelInfo,
    ModelMissing,
)
from pylon.text import printable

PULL_SILENCE_S: Final = 600.0
"""How long a download may say nothing: checking what was fetched takes minutes on a slow disk."""
PULL_AGAIN_S: Final = 60.0
"""The pause after a download that failed."""
UNLOAD_S: Final = 15.0
"""How long dropping the models may take; a large one's memory is not free at once."""
_GONE_EVERY_S: Final = 0.2
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class OllamaConfig:
    """How to reach one server and what is sold of it. Raises `ValueError` with one sentence.

    `models` are the names that the operator sells; with `pull` those that are absent are fetched. `keep_alive_s` is
    how long a model stays loaded after a request: None for the server's own rule, -1 for ever. `context_tokens` is
    what one request may use, 0 for the server's own. `first_token_timeout_s` covers the server's queue, the loading
    of the model and the reading of the prompt, `stall_timeout_s` the time between two pieces of output. With
    `ca_file` (PEM) an https server must show a certificate of an authority in that file.
    """

    name: str
    url: str
    models: tuple[str, ...] = ()
    pull: bool = False
    keep_alive_s: int | None = None
    context_tokens: int = 0
    ca_file: Path | None = None
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0
    check_timeout_s: float = 5.0
    max_output_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        try:
            _ = httpx.URL(wire.server_url(self.url)).host  # decoding an internationalised name may fail
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"the backend's url cannot be used: {printable(error)}") from None


class OllamaBackend:
    """One Ollama server."""

    def __init__(self, config: OllamaConfig) -> None:
        self._config = config
        self._root = wire.server_url(config.url)
        self._is_here = wire.is_here(self._root)
        self._state = BackendState(config.name, "ollama", BackendHealth.UNKNOWN)
        self._client: AsyncClient | None = None
        self._closed_for = "is not running"
        self._absent: tuple[str, ...] = ()
        self._trained: dict[str, tuple[str | None, int | None]] = {}
        self._absence_seen = anyio.Event()
        self._pull_note: tuple[BackendHealth, str] | None = None

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        return self._config.name

    def state(self) -> BackendState:
        """Return what the last check or generation found; a server that is down keeps its last known models."""
        return self._state

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the client, and fetch what is absent where the operator wants that; the server need not be up."""
        try:
            tls = context_for(self._root, self._config.ca_file)
        except CaFault as fault:
            self._closed_for = f"cannot be asked: {fault}"
            yield
            return
        async with (
            make_client(self._root, self._config.connect_timeout_s, tls) as client,
            anyio.create_task_group() as tasks,
        ):
            self._client = client
            if self._config.pull:
                tasks.start_soon(self._fetch_absent)
            try:
                yield
            finally:
                self._client = None
                tasks.cancel_scope.cancel()

    # --- health and models ------------------------------------------------------------------------------------

    async def check(self) -> BackendState:
        """Ask for the models; never raises, a fault becomes the state."""
        try:
            with self._faults("did not answer in time"), anyio.fail_after(self._config.check_timeout_s):
                models = await self._list_models()
        except BackendError as error:
            self._say(BackendHealth.DOWN, str(error))
            return self._state
        self._hold(models)
        if self._absent and self._config.pull:
            self._absence_seen.set()
        self._judge()
        return self._state

    def _hold(self, models: Iterable[ModelInfo]) -> None:
        """Take these for what is there; what else is sold is absent."""
        self._state = replace(self._state, models=tuple(models))
        names = {wire.full_name(model.name) for model in self._state.models}
        self._absent = tuple(name for name in self._config.models if wire.full_name(name) not in names)

    def _judge(self) -> None:
        """Say how the backend is, by what is absent: without any model that is sold it is not ready."""
        some_sold = len(self._absent) < len(self._config.models) or not self._config.models
        if not self._absent:
            self._say(BackendHealth.READY, "")
        elif self._config.pull:
            health, detail = self._pull_note or (BackendHealth.LOADING, f"pulling {printable(self._absent[0])}")
            self._say(BackendHealth.READY if some_sold else health, detail)
        else:
            absent = printable(self._absent[0])
            detail = f"does not have {absent}: run `ollama pull {absent}` there, or set pull = true"
            self._say(BackendHealth.READY if some_sold else BackendHealth.DOWN, detail)

    def _say(self, health: BackendHealth, detail: str) -> None:
        self._state = replace(self._state, health=health, detail=detail)

    async def _list_models(self) -> tuple[ModelInfo, ...]:
        """Return what is there, what is sold of it under the operator's names and with its context."""
        client = self._open()
        listed = (await client.list()).models[: wire.MAX_MODELS]
        asked = self._config.context_tokens
        loaded = await self._loaded(client)
        sold = {wire.full_name(model) for model in self._config.models}
        found: dict[str, ModelInfo] = {}
        for each in listed:
            if not each.model or len(each.model) > wire.MAX_MODEL_NAME:
                continue
            name = wire.full_name(each.model)
            trained = await self._trained_context(client, each.model, each.digest) if name in sold else None
            there = None if loaded is None else loaded.get(name)
            context = wire.usable_context(asked, trained, None if there is None else there.context_tokens)
            for spelled in wire.spelled_as(self._config.models, each.model):
                found[spelled] = ModelInfo(
                    spelled,
                    context,
                    None if loaded is None else name in loaded,
                    size_bytes=int(each.size) if isinstance(each.size, int) else None,
                    quantization=wire.quantization_of(each.details),
                )
        return tuple(found.values())

    async def _loaded(self, client: AsyncClient) -> dict[str, wire.Loaded] | None:
        """Return the models in memory by full name, None when it does not tell; note what those for sale take."""
        try:
            loaded = wire.loaded_models(await client.ps())
        except ResponseError:
            return None
        sold = {wire.full_name(model) for model in self._config.models}
        memory, gpu = wire.taken(model for name, model in loaded.items() if name in sold)
        self._state = replace(self._state, memory_bytes=memory, gpu_bytes=gpu if self._is_here else None)
        return loaded

    async def _loaded_sold(self, client: AsyncClient) -> list[str]:
        """Return what is sold and in memory."""
        loaded = await self._loaded(client) or {}
        return [model for model in self._config.models if wire.full_name(model) in loaded]

    # --- giving memory back -----------------------------------------------------------------------------------

    async def unload(self) -> None:
        """Have the models that are sold dropped, and wait until they are gone; never raises.

        Ollama answers before the memory is free, and keeps a model that somebody else's request still uses.
        """
        with suppress(BackendError), self._faults("did not answer in time"), anyio.fail_after(UNLOAD_S):
            client = self._open()
            for model in await self._loaded_sold(client):
                await client.generate(model, keep_alive=0)
            while await self._loaded_sold(client):  # noqa: ASYNC110 - the server announces nothing
                await anyio.sleep(_GONE_EVERY_S)
        if self._client is not None:
            await self.check()

    async def _trained_context(self, client: AsyncClient, name: str, digest: str | None) -> int | None:
        """Return what a model was made for; asked once for each digest."""
        known = self._trained.get(name)
        if known is None or known[0] != digest:
            try:
                known = (digest, wire.trained_context((await client.show(name)).modelinfo))
            except ResponseError:
                return None  # it was perhaps removed since it was listed
            self._trained[name] = known
        return known[1]

    # --- fetching models --------------------------------------------------------------------------------------

    async def _fetch_absent(self) -> None:
        """Fetch what checks find absent, one after another, until cancelled."""
        while True:
            await self._absence_seen.wait()
            failed = False
            for model in self._absent:
                failed = not await self._pull(model) or failed
            self._absence_seen = anyio.Event()
            if failed:
                await anyio.sleep(PULL_AGAIN_S)
            else:
                self._pull_note = None
                await self.check()

    async def _pull(self, model: str) -> bool:
        """Fetch a model, saying how far it is; return whether it is there now."""
        shown = printable(model)
        try:
            with self._faults("fell silent", "broke off"):
                parts = cast("AsyncGenerator[Any, None]", await self._open().pull(model, stream=True))
                async with _closing(parts):
                    while True:
                        with anyio.fail_after(PULL_SILENCE_S):
                            part = await anext(parts, None)
                        if part is None:
                            raise BackendUnavailable(f"{self.name} ended the download before it was finished")
                        if part.status == "success":
                            return True
                        progress = wire.progress_of(part.status, part.completed, part.total)
                        self._note_pull(BackendHealth.LOADING, f"pulling {shown}: {progress}")
        except BackendError as error:
            self._note_pull(BackendHealth.DOWN, f"pulling {shown} failed: {error}")
            return False

    def _note_pull(self, health: BackendHealth, detail: str) -> None:
        self._pull_note = (health, detail)
        self._judge()

    # --- generation -------------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes. Closing the generator closes the connection, which frees the runner."""
        options = wire.options_of(request, self._config.context_tokens)
        begun = False
        try:
            parts = await self._start(request, options)
            async with aclosing(self._read(parts, request)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
        except NoAnswer as error:
            if not begun:
                self._say(BackendHealth.DOWN, str(error))
            raise
        except ModelMissing:
            self._forget(request.model)
            raise

    async def _start(self, request: GenerationRequest, options: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Return the stream of an answer; nothing is sent before it is read."""
        try:
            parts = await self._open().chat(
                request.model,
                wire.messages_of(request),
                stream=True,
                options=options,
                keep_alive=self._config.keep_alive_s,
            )
        except ValueError:  # pydantic's, which repeats the prompt
            raise BackendRefused(f"the request is none that {self.name} takes") from None
        return cast("AsyncGenerator[Any, None]", parts)

    async def _read(
        self, parts: AsyncGenerator[Any, None], request: GenerationRequest
    ) -> AsyncGenerator[Chunk, None]:
        late, patience_s = "did not start to answer", self._config.first_token_timeout_s
        output_bytes = 0
        thoughts = Thoughts(self._config.max_output_bytes)
        async with _closing(parts):
            while True:
                # Only waiting uses up patience: a consumer that is slow to ask again does not.
                waits_since = anyio.current_time()
                with self._faults(late, "broke off its answer"), anyio.fail_after(patience_s):
                    answer = await anext(parts, None)
                    if answer is None:
                        raise BackendUnavailable(f"{self.name} ended its answer before it was finished")
                    part = wire.read_part(answer, request, self.name)
                    thoughts.add(part.thinking)
                patience_s -= anyio.current_time() - waits_since
                if part.text or part.thinking:
                    late, patience_s = "stopped sending", self._config.stall_timeout_s
                if part.text:
                    output_bytes += part.size_bytes
                    if output_bytes > self._config.max_output_bytes:
                        raise BackendUnavailable(
                            f"{self.name} sent more than {self._config.max_output_bytes} bytes of output"
                        )
                    yield Delta(part.text)
                if part.done:
                    if thoughts.text and not output_bytes:
                        yield Delta(thoughts.text)
                    yield wire.finished(part, request, output_bytes + thoughts.size_bytes)
                    return

    def _forget(self, model: str) -> None:
        """Take a model that vanished from the list, so that it is not sold until a check finds it again."""
        self._hold(each for each in self._state.models if wire.full_name(each.name) != wire.full_name(model))
        self._judge()

    def _open(self) -> AsyncClient:
        if self._client is None:
            raise BackendUnavailable(f"{self.name} {self._closed_for}")
        return self._client

    @contextmanager
    def _faults(self, late: str, broken: str = "cannot be reached") -> Iterator[None]:
        """Turn every way in which a connection, an answer or the client can fail into a `BackendError`."""
        try:
            with connection_faults(self.name, self._root, late, broken):
                try:
                    yield
                except (httpx.ConnectError, ConnectionError) as error:
                    where = f"{self.name} at {self._root} cannot be reached; is Ollama running there?"
                    raise NoAnswer(where) from error
        except ResponseError as error:
            raise wire.error_of(error.status_code, error.error, self.name) from error
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            # The client takes any JSON for what it expects, and pydantic repeats what it does not like.
            raise BackendUnavailable(f"{self.name} answered something that is not Ollama's API") from None


@asynccontextmanager
async def _closing(parts: AsyncGenerator[Any, None]) -> AsyncIterator[None]:
    """Close a stream at the end, also when we are cancelled: only that frees the server."""
    try:
        yield
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await parts.aclose()
