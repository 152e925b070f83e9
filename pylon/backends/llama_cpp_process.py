"""One child process with one model for backend `llama_cpp`: its start, its jobs one after another, and its end.

The other end of the pipes is `llama_cpp_child`. A job that is closed early is broken off in the child, which is
waited for; a child that does not follow is killed, for then nobody knows what it is doing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import orjson

from pylon.backends import llama_cpp_child
from pylon.backends.child_process import (
    ChildFault,
    child_environment,
    end_process,
    ending,
    open_child,
    signal_process,
)
from pylon.jobs.ports import (
    BackendRefused,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
)
from pylon.text import printable

PROGRAM: Final = Path(llama_cpp_child.__file__)
INSTALL: Final = "pip install 'pylon-nostr[llama-cpp]'"
_BEGINS_S: Final = 15.0  # it is idle when a job is sent: silence means that it hangs
_STOPS_S: Final = 10.0
_ENDS_S: Final = 3.0
_LOOKS_S: Final = 15.0
_MAX_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelProcessConfig:
    """What one child is to load, and how long things may take."""

    owner: str
    model: str
    gguf: Path
    python: Path
    log_path: Path
    context_tokens: int
    threads: int
    gpu_layers: int
    flash_attention: bool
    start_timeout_s: float
    first_token_timeout_s: float
    stall_timeout_s: float
    program: Path = PROGRAM


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a child says once its model is in memory."""

    version: str
    context_tokens: int
    offloads: bool


class ModelProcess:
    """A child process. `generate` is for one caller at a time."""

    def __init__(self, config: ModelProcessConfig) -> None:
        self._config = config
        self._process: anyio.abc.Process | None = None
        self._unread = bytearray()
        self._jobs = 0
        self._gone = False

    @property
    def gone(self) -> bool:
        """Whether it has closed its pipes or was killed: it has no more to say, and may not have ended yet."""
        return self._gone

    @property
    def pid(self) -> int | None:
        """Its process id, None before it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> Loaded:
        """Start the child and wait until the model is loaded. Raises `ChildFault`; `end` is to be called anyway."""
        config = self._config
        self._process = await self._spawn()
        settings = {
            "parent_pid": os.getpid(),
            "gguf": str(config.gguf),
            "context_tokens": config.context_tokens,
            "threads": config.threads,
            "gpu_layers": config.gpu_layers,
            "flash_attention": config.flash_attention,
        }
        try:
            with anyio.fail_after(config.start_timeout_s):
                await self._send(settings)
                report = await self._receive()
        except TimeoutError:
            raise ChildFault(
                f"{self._shown} was not loaded within {config.start_timeout_s:g} s; the log is {config.log_path}"
            ) from None
        except _Gone:
            raise ChildFault(
                f"the process for {self._shown} {await self._ending()} while loading; its log is {config.log_path}"
            ) from None
        loaded = report.get("loaded")
        if report.get("missing"):
            raise ChildFault(f"llama-cpp-python is not whole for {config.python}: {printable(report.get('error'))}")
        if not isinstance(loaded, dict):
            said = printable(report.get("error"))
            raise ChildFault(f"{self._shown} cannot be loaded: {said}; the log is {config.log_path}")
        return Loaded(str(loaded["version"]), int(loaded["context_tokens"]), bool(loaded["offloads"]))

    async def wait(self) -> str:
        """Return how it ended, once it has."""
        assert self._process is not None
        return ending(await self._process.wait())

    async def end(self) -> None:
        """End it and wait until it is gone."""
        if self._process is not None:
            await end_process(self._process)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes. Raises `BackendUnavailable` and `BackendRefused`."""
        self._jobs += 1
        job, over = self._jobs, False
        body = asdict(request)
        del body["model"]
        try:
            await self._send({"op": "generate", "id": job, **body})
            await self._event(job, _BEGINS_S, "did not begin")
            patience_s, late = self._config.first_token_timeout_s, "did not start to answer"
            while True:
                event = await self._event(job, patience_s, late)
                patience_s, late = self._config.stall_timeout_s, "stopped sending"
                if isinstance(text := event.get("text"), str):
                    if text:
                        yield Delta(text)
                    continue
                over = True
                yield self._finished(event)
                return
        except _Gone:
            over = True
            where = f"{self._shown} on {self._config.owner}"
            ended = f"its process {await self._ending()}; its log is {self._config.log_path}"
            raise BackendUnavailable(f"{where}: {ended}") from None
        finally:
            if not over:
                await self._stop(job)

    def _finished(self, event: dict[str, Any]) -> Finished:
        where = f"{self._shown} on {self._config.owner}"
        if "done" in event:
            return Finished(FinishReason(event["done"]), int(event["prompt_tokens"]), int(event["output_tokens"]))
        if "refused" in event:
            raise BackendRefused(f"{where} refuses the request: {printable(event['refused'])}")
        raise BackendUnavailable(
            f"{where} failed: {printable(event.get('fault'))}; the log is {self._config.log_path}"
        )

    async def _event(self, job: int, patience_s: float, late: str) -> dict[str, Any]:
        """Return the next thing that is said of a job. Raises `_Gone`."""
        try:
            with anyio.fail_after(patience_s):
                while True:
                    event = await self._receive()
                    if event.get("id") == job:
                        return event
        except TimeoutError:
            raise BackendUnavailable(
                f"{self._shown} on {self._config.owner} {late} within {patience_s:g} s"
            ) from None

    async def _stop(self, job: int) -> None:
        """Have the child break off a job, and wait until it has; it is killed when it does not."""
        assert self._process is not None
        with anyio.CancelScope(shield=True), suppress(_Gone):
            with anyio.move_on_after(_STOPS_S):
                await self._send({"op": "cancel", "id": job})
                while True:
                    event = await self._receive()
                    if event.get("id") == job and not {"begun", "text"} & event.keys():
                        return
            self._is_gone()
            signal_process(self._process, kill=True)
            await self._process.wait()

    async def _spawn(self) -> anyio.abc.Process:
        config = self._config
        return await open_child(str(config.python), str(config.program), config.log_path, called=str(config.python))

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(orjson.dumps(message) + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            raise self._is_gone() from None

    async def _receive(self) -> dict[str, Any]:
        """Return the next line that the child wrote; what a cancelled call has read is kept. Raises `_Gone`."""
        assert self._process is not None
        assert self._process.stdout is not None
        while (end := self._unread.find(b"\n")) < 0:
            try:
                self._unread += await self._process.stdout.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise self._is_gone() from None
            if len(self._unread) > _MAX_LINE_BYTES:
                signal_process(self._process, kill=True)
                raise self._is_gone()
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            value = None
        return value if isinstance(value, dict) else {}

    def _is_gone(self) -> _Gone:
        self._gone = True
        return _Gone()

    async def _ending(self) -> str:
        """Return how it ended; it has closed its pipes, so it is about to."""
        said = "does not answer"
        with anyio.move_on_after(_ENDS_S):
            said = await self.wait()
        return said

    @property
    def _shown(self) -> str:
        return printable(self._config.model)


async def library_fault(python: Path, library: str) -> str:
    """Return why a Python cannot run a child, empty when it has the library; it is found, not imported."""
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({library!r}) is None)"
    try:
        with anyio.fail_after(_LOOKS_S):
            done = await anyio.run_process(
                [str(python), "-P", "-c", look], check=False, env=child_environment(), stdin=subprocess.DEVNULL
            )
    except OSError as error:
        return f"{python} cannot be started: {error.strerror}"
    except TimeoutError:
        return f"{python} did not tell within {_LOOKS_S:g} s whether it has llama-cpp-python"
    return f"llama-cpp-python is not installed for {python}" if done.returncode else ""


class _Gone(Exception):
    """The child has closed its pipes, which it does when it ends."""
