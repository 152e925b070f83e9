"""Backend `embedded`: llama.cpp's own server as a supervised child process on loopback.

The child (`llama_child.py`) is started, watched, and started again with growing pauses when it ends or no longer
answers; jobs speak to it through the `openai` backend. It has a port of the kernel's choice and a random API key
that exists only in the two processes, and it dies with this process. When its memory is wanted back (`unload`) the
child is ended, which frees all of it; the next job starts it again.
"""

from __future__ import annotations

import importlib.util
import os
import random
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
import orjson

from pylon.backends import llama_child
from pylon.backends.child_log import bound_log
from pylon.backends.child_process import (
    ChildFault,
    default_threads,
    end_process,
    ending,
    open_child,
    signal_process,
)
from pylon.backends.memory import resident_bytes
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.jobs.ports import (
    BackendHealth,
    BackendState,
    BackendUnavailable,
    Chunk,
    GenerationRequest,
    ModelInfo,
)
from pylon.text import printable

ENGINE: Final = "xllamacpp"
_CHECK_EVERY_S: Final = 5.0
_CHECK_TIMEOUT_S: Final = 5.0
_HANGS_AFTER_S: Final = 60.0
_STABLE_AFTER_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_MAX_REPORT_BYTES: Final = 16 << 10
_PARKED: Final = "its memory is given back; the next job loads the model"


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """What to serve and how. `context_tokens` is for each of the `slots`; `gpu_layers` -1 means all that fit.

    llama.cpp's log goes to `log_path` (and `log_path` + `.1`), bounded, without prompts. `threads` None means
    `default_threads()`.
    """

    name: str
    gguf: Path
    model_name: str
    log_path: Path
    context_tokens: int = 4096
    slots: int = 2
    threads: int | None = None
    gpu_layers: int = -1
    start_timeout_s: float = 300.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.context_tokens < 1 or self.slots < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("the embedded backend needs context_tokens, slots and threads of at least 1")


class EmbeddedBackend:
    """One model served by a child process; `check` and `generate` say why when it is not up."""

    def __init__(self, config: EmbeddedConfig, *, rng: random.Random | None = None) -> None:
        self._config = config
        self._random = rng or random.Random()  # noqa: S311 - spreads restarts, keeps no secret
        self._server: OpenAIBackend | None = None
        self._state = BackendState(config.name, "embedded", BackendHealth.UNKNOWN, detail="not started")
        self._pid: int | None = None
        self._parked = False  # no child is wanted until the next generation
        self._waking = False  # one is started for a generation that waits for it
        self._supervised = False
        self._turn: anyio.CancelScope | None = None  # one child, from before its start to after its end
        self._news = anyio.Event()

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        return self._config.name

    @property
    def child_pid(self) -> int | None:
        """The process id of the child, None while there is none."""
        return self._pid

    def state(self) -> BackendState:
        """Return what is known without asking; `detail` says why it is down."""
        if self._server is None:
            return self._state
        memory_bytes = self._state.memory_bytes
        return replace(self._server.state(), kind="embedded", memory_bytes=memory_bytes, keeps_memory=False)

    async def check(self) -> BackendState:
        """Ask the child for its health and models; never raises."""
        if self._server:
            await self._server.check()
        await self._measure()
        return self.state()

    async def unload(self) -> None:
        """End the child and wait until it is gone; see `Backend`."""
        self._parked, self._waking = True, False
        turn = self._turn
        if turn is None:
            self._park()
        else:
            turn.cancel()
        self._tell()
        while turn is not None and turn is self._turn:
            await self._news.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the child alive; entering does not wait for the model."""
        self._supervised = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._supervise)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            self._supervised = self._waking = False
            self._tell()
            self._say(BackendHealth.DOWN, "stopped")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes, once the child is up that `unload` had ended.

        Raises `BackendUnavailable` at once while the child is not up for another reason.
        """
        await self._wake()
        if self._server is None:
            raise BackendUnavailable(f"{self.name} is not up: {self._state.detail}")
        async with aclosing(self._server.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _supervise(self) -> None:
        """Run one child after another until cancelled, pausing longer after each that did not last."""
        failures = 0
        while True:
            while self._parked:
                failures = 0
                await self._news.wait()
            with anyio.CancelScope() as turn:
                self._turn = turn
                try:
                    failures = await self._take_turn(failures)
                finally:
                    self._end_turn()

    def _end_turn(self) -> None:
        self._turn = None
        if self._parked:
            self._park()
        self._tell()

    async def _take_turn(self, failures: int) -> int:
        """Run one child to its end, pause, and return how many ended early in a row."""
        started_at = anyio.current_time()
        try:
            await self._run_child()
        except ChildFault as fault:
            self._say(BackendHealth.DOWN, str(fault))
            self._waking = False
            self._tell()
        if anyio.current_time() - started_at > _STABLE_AFTER_S:
            failures = 0
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 16))
        await anyio.sleep(pause_s * self._random.uniform(0.5, 1.0))
        return failures + 1

    def _park(self) -> None:
        """Say that a job would find the model here although nothing is loaded."""
        known = self._state.models or (ModelInfo(self._config.model_name, self._config.context_tokens),)
        models = tuple(replace(model, loaded=False) for model in known)
        self._state = replace(
            self._state, health=BackendHealth.READY, detail=_PARKED, models=models, memory_bytes=0
        )

    async def _wake(self) -> None:
        """Have the child started again that `unload` ended, and wait until it is up or has failed."""
        if self._parked and self._supervised:
            self._parked, self._waking = False, True
            self._say(BackendHealth.LOADING, f"loading {self._config.model_name}")
            self._tell()
        while self._waking:
            await self._news.wait()

    def _tell(self) -> None:
        """Wake who waits for the child to come or to go."""
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _measure(self) -> None:
        pid = self._pid
        taken = 0 if pid is None else await resident_bytes(pid)
        if pid == self._pid:
            self._state = replace(self._state, memory_bytes=taken)

    async def _run_child(self) -> None:
        """Run one child from start to end. Raises `ChildFault` when it ends; never returns otherwise."""
        await self._require_parts()
        self._say(BackendHealth.LOADING, f"loading {self._config.model_name}")
        api_key = secrets.token_urlsafe(32)
        process = await self._spawn()
        self._pid = process.pid
        try:
            url = await self._start_serving(process, api_key)
            server = OpenAIBackend(
                OpenAIConfig(
                    name=self.name,
                    url=url,
                    api_key=api_key,
                    first_token_timeout_s=self._config.first_token_timeout_s,
                    stall_timeout_s=self._config.stall_timeout_s,
                    check_timeout_s=_CHECK_TIMEOUT_S,
                )
            )
            async with server.running():
                await server.check()
                await self._measure()
                self._state = replace(self._state, models=server.state().models)
                self._server = server
                self._waking = False
                self._tell()
                code = await self._watch(process, server)
            raise ChildFault(f"the model server {ending(code)}; its log is {self._config.log_path}")
        finally:
            self._server = None
            with anyio.CancelScope(shield=True):
                await end_process(process)
            self._pid = None

    async def _require_parts(self) -> None:
        if importlib.util.find_spec(ENGINE) is None:
            raise ChildFault(f"{ENGINE} is not installed: pip install 'pylon-nostr[embedded]'")
        if not await anyio.Path(self._config.gguf).is_file():
            raise ChildFault(f"gguf not found: {self._config.gguf}")

    async def _spawn(self) -> anyio.abc.Process:
        return await open_child(
            sys.executable, llama_child.__file__, self._config.log_path, called="the model server"
        )

    async def _start_serving(self, process: anyio.abc.Process, api_key: str) -> str:
        """Give the child its settings and return its url once the model is loaded."""
        config = self._config
        settings = {
            "parent_pid": os.getpid(),
            "api_key": api_key,
            "gguf": str(config.gguf),
            "model_name": config.model_name,
            "slots": config.slots,
            "context_tokens": config.context_tokens,
            "threads": config.threads or default_threads(),
            "gpu_layers": config.gpu_layers,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with anyio.fail_after(config.start_timeout_s):
                await process.stdin.send(orjson.dumps(settings) + b"\n")
                report = await _read_line(process.stdout)
        except TimeoutError:
            raise ChildFault(f"the model was not loaded within {config.start_timeout_s:g} s") from None
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            code = await process.wait()
            raise ChildFault(
                f"the model server {ending(code)} while loading; its log is {config.log_path}"
            ) from None
        if "url" not in report:
            raise ChildFault(f"the model cannot be loaded: {printable(report.get('error'))}; see {config.log_path}")
        return str(report["url"])

    async def _watch(self, process: anyio.abc.Process, server: OpenAIBackend) -> int:
        """Return the exit code of the child, which is killed when it no longer answers."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._check_regularly, process, server)
            code = await process.wait()
            tasks.cancel_scope.cancel()
        return code

    async def _check_regularly(self, process: anyio.abc.Process, server: OpenAIBackend) -> None:
        answered_at = anyio.current_time()
        while anyio.current_time() - answered_at < _HANGS_AFTER_S:
            await anyio.sleep(_CHECK_EVERY_S)
            await anyio.to_thread.run_sync(bound_log, self._config.log_path)
            if (await server.check()).health is BackendHealth.READY:
                answered_at = anyio.current_time()
        signal_process(process, kill=True)

    def _say(self, health: BackendHealth, detail: str) -> None:
        self._state = replace(self._state, health=health, detail=detail)


async def _read_line(stream: anyio.abc.ByteReceiveStream) -> dict[str, object]:
    line = b""
    while b"\n" not in line:
        line += await stream.receive()
        if len(line) > _MAX_REPORT_BYTES:
            raise anyio.BrokenResourceError
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {}
