"""Backend `llama_cpp`: GGUF files on this machine, through the library `llama-cpp-python`, in child processes.

A model is loaded when the first job asks for it and unloaded when it had nothing to do for a while, or when other
models need its place (`max_loaded`). One child holds one model and runs one job at a time, because two calls into
one `Llama` end the process: with more than one slot a model has as many children, which share its file's pages in
memory but not on a GPU. So whatever native code does (SIGSEGV, the kernel's OOM killer) costs one attempt, and
giving memory back is ending a process. A model whose child ended by itself is started again with growing pauses,
and is not on offer until it is loaded.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread

from pylon.backends.child_log import bound_log
from pylon.backends.child_process import ChildFault, default_threads
from pylon.backends.gguf_shelf import ModelFile, Shelf
from pylon.backends.llama_cpp_kept import Child, Model
from pylon.backends.llama_cpp_process import INSTALL, ModelProcess, ModelProcessConfig, library_fault
from pylon.backends.memory import resident_bytes
from pylon.jobs.ports import (
    BackendHealth,
    BackendState,
    BackendUnavailable,
    Chunk,
    GenerationRequest,
    ModelInfo,
    ModelMissing,
)
from pylon.text import printable

LIBRARY: Final = "llama_cpp"
_STABLE_AFTER_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class LlamaCppConfig:
    """What to serve and how. Raises `ValueError` with one sentence.

    `path` is a GGUF file or a folder of them, `models` the names that are sold. `python` runs the children, None
    for our own. `context_tokens` is for one job. `gpu_layers` -1 means all, where the library can use a GPU.
    `max_loaded` counts models, 0 for any number; `idle_unload_s` 0 keeps them. `first_token_timeout_s` counts from
    when the model is loaded, which `start_timeout_s` bounds. llama.cpp's log goes to `log_path` (and `log_path` +
    `.1`), bounded.
    """

    name: str
    path: Path
    log_path: Path
    models: tuple[str, ...] = ()
    python: Path | None = None
    slots: int = 1
    context_tokens: int = 4096
    threads: int | None = None
    gpu_layers: int = -1
    flash_attention: bool = False
    max_loaded: int = 1
    idle_unload_s: float = 300.0
    start_timeout_s: float = 300.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.context_tokens < 1 or self.slots < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("the llama_cpp backend needs context_tokens, slots and threads of at least 1")


class LlamaCppBackend:
    """The models of one folder. `state` and `generate` say why when there are none."""

    def __init__(self, config: LlamaCppConfig, *, rng: random.Random | None = None) -> None:
        self._config = config
        self._random = rng or random.Random()  # noqa: S311 - spreads restarts, keeps no secret
        self._shelf = Shelf(config.path)
        self._models: dict[str, Model] = {}
        self._fault = ""
        self._has_library = False
        self._tasks: anyio.abc.TaskGroup | None = None
        self._changed = anyio.Event()
        self._state = BackendState(config.name, "llama_cpp", BackendHealth.UNKNOWN, detail="not started")

    @property
    def name(self) -> str:
        """The operator's name for it in the settings."""
        return self._config.name

    @property
    def child_pids(self) -> dict[str, tuple[int, ...]]:
        """The process ids of the children of each model that has some."""
        found = {
            name: tuple(child.process.pid for child in model.children if child.process.pid)
            for name, model in self._models.items()
        }
        return {name: pids for name, pids in found.items() if pids}

    def state(self) -> BackendState:
        """Return what is known without asking; `detail` says what is wrong."""
        return self._state

    async def check(self) -> BackendState:
        """Look at the files again; never raises, a fault becomes the state. Nothing is loaded for it."""
        await anyio.to_thread.run_sync(bound_log, self._config.log_path)
        try:
            found = await anyio.to_thread.run_sync(self._shelf.look)
            self._fault = await self._lacks_library()
        except OSError as error:
            self._fault, found = f"{self._config.path} cannot be read: {error.strerror}", ()
        if not self._fault and not found:
            self._fault = f"there is no GGUF file in {self._config.path}"
        for name in [name for name, model in self._models.items() if model.file not in found]:
            self._let_go(self._models.pop(name))  # it went, or it is another one now
        self._models = {file.name: self._models.get(file.name) or Model(file) for file in found}
        await self._measure()
        self._tell()
        return self._state

    async def _measure(self) -> None:
        """Note what the children take. Pages of a file that two of them share count for both."""
        taken = [await resident_bytes(pid) for pids in self.child_pids.values() for pid in pids]
        self._state = replace(self._state, memory_bytes=sum(each for each in taken if each is not None))

    async def _lacks_library(self) -> str:
        if self._config.python is None:
            found = importlib.util.find_spec(LIBRARY) is not None
            return "" if found else f"llama-cpp-python is not installed: {INSTALL}"
        if not self._has_library:
            fault = await library_fault(self._config.python, LIBRARY)
            self._has_library = not fault
            return fault
        return ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be able to start children; entering starts none, leaving ends all."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self.check()
                tasks.start_soon(self._unload_idle)
                try:
                    yield
                finally:
                    self._tasks = None
                    tasks.cancel_scope.cancel()
        finally:
            self._state = replace(self._state, health=BackendHealth.DOWN, detail="stopped")

    async def unload(self) -> None:
        """End the children that have nothing to do, and wait until they are gone; the next job loads again.

        One that runs a job ends after it. Never raises.
        """
        children = [child for model in self._models.values() for child in model.children]
        for model in self._models.values():
            model.fault = ""  # nothing is to come back by itself
            self._let_go(model)
        for child in children:
            if not child.busy:
                await child.gone.wait()
        await self._measure()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the output as it comes, once the model is loaded. Closing the generator stops the work."""
        if self._tasks is None:
            raise BackendUnavailable(f"{self.name} is not running")
        model = self._models.get(request.model)
        if self._fault:
            raise BackendUnavailable(f"{self.name} is down: {self._fault}")
        if model is None:
            raise ModelMissing(f"{self.name} has no model {printable(request.model)} in {self._config.path}")
        child = await self._lease(model, self._config.first_token_timeout_s)
        try:
            async with aclosing(child.process.generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
            model.failures = 0
        finally:
            self._give_back(child)

    # --- children ---------------------------------------------------------------------------------------------

    async def _lease(self, model: Model, patience_s: float) -> Child:
        """Return a child with the model loaded that is ours until `_give_back`. Raises `BackendUnavailable`."""
        with anyio.move_on_after(patience_s) as waiting:
            while True:
                if child := next((each for each in model.children if each.free), None):
                    child.busy = True
                    return child
                # One that ended once is waited for; who has no end of patience is about to bring it back.
                beyond_hope = model.fault and model.failures > 1 and patience_s < inf
                if model.file.fault or beyond_hope:
                    raise BackendUnavailable(f"{self.name}: {model.file.fault or model.fault}")
                reviving = model.fault and patience_s < inf
                if not reviving and len(model.children) < self._config.slots and self._has_room(model):
                    break
                await self._changed.wait()
        if waiting.cancelled_caught:
            raise BackendUnavailable(
                f"{self.name} had no room for {printable(model.file.name)} within {patience_s:g} s"
            )
        return await self._load(model)

    async def _load(self, model: Model) -> Child:
        if self._tasks is None or self._models.get(model.file.name) is not model:
            raise BackendUnavailable(f"{self.name}: the file of {printable(model.file.name)} has just changed")
        child = Child(ModelProcess(self._process_config(model.file)))
        model.children.append(child)
        self._tasks.start_soon(self._keep, model, child)
        try:
            await child.settled.wait()
        except BaseException:
            self._give_back(child)  # it goes on loading, for whoever is next
            raise
        if child.fault:
            raise BackendUnavailable(f"{self.name}: {child.fault}")
        return child

    def _give_back(self, child: Child) -> None:
        child.busy = False
        child.idle_since = anyio.current_time()
        if child.leaving:
            child.scope.cancel()
        self._tell()

    def _has_room(self, model: Model) -> bool:
        """Tell whether the model may be loaded; if not, the one that is idle for longest makes room."""
        loaded = [each for each in self._models.values() if each.children]
        if model.children or not self._config.max_loaded or len(loaded) < self._config.max_loaded:
            return True
        idle = [each for each in loaded if all(child.free for child in each.children)]
        if idle and not any(child.leaving for each in loaded for child in each.children):
            self._let_go(min(idle, key=lambda each: max(child.idle_since for child in each.children)))
        return False

    def _let_go(self, model: Model) -> None:
        for child in model.children:
            self._dismiss(child)

    def _dismiss(self, child: Child) -> None:
        """Have a child end, now or after its job."""
        child.leaving = True
        if not child.busy:
            child.scope.cancel()

    async def _keep(self, model: Model, child: Child) -> None:
        """Have one child from its start to its end."""
        fault = ""
        began_at = anyio.current_time()
        try:
            with child.scope:
                child.loaded = await child.process.start()
                model.fault = ""
                child.idle_since = anyio.current_time()
                child.settled.set()
                self._tell()
                fault = f"the process of {printable(model.file.name)} {await child.process.wait()}"
        except ChildFault as error:
            fault = str(error)
        finally:
            child.loaded = None
            with anyio.CancelScope(shield=True):
                await child.process.end()
            model.children.remove(child)
            child.fault = fault or "it was unloaded"
            child.gone.set()
            child.settled.set()
            if fault and not child.leaving:
                self._mourn(model, fault, lasted_s=anyio.current_time() - began_at)
            self._tell()

    def _mourn(self, model: Model, fault: str, lasted_s: float) -> None:
        """Note that a child ended that nobody had told to, and have the model come back if it has no other."""
        model.failures = 1 if lasted_s > _STABLE_AFTER_S else model.failures + 1
        if self._tasks is not None and not model.fault and not model.up:
            model.fault = fault
            self._tasks.start_soon(self._revive, model)

    async def _revive(self, model: Model) -> None:
        """Load a model again, after a pause that grows, until it is loaded or gone."""
        while model.fault and self._models.get(model.file.name) is model:
            await anyio.sleep(restart_pause_s(model.failures) * self._random.uniform(0.5, 1.0))
            try:
                self._give_back(await self._lease(model, inf))
            except BackendUnavailable as error:
                model.fault = str(error).removeprefix(f"{self.name}: ")
                self._tell()

    async def _unload_idle(self) -> None:
        """End the children that have had nothing to do for long enough, until cancelled."""
        while True:
            limit_s = self._config.idle_unload_s or inf
            free = [child for model in self._models.values() for child in model.children if child.free]
            with anyio.CancelScope(deadline=min((child.idle_since + limit_s for child in free), default=inf)):
                await self._changed.wait()
            for child in free:
                if child.free and child.idle_since + limit_s <= anyio.current_time():
                    self._dismiss(child)

    def _process_config(self, file: ModelFile) -> ModelProcessConfig:
        config = self._config
        return ModelProcessConfig(
            owner=self.name,
            model=file.name,
            gguf=file.path,
            python=config.python or Path(sys.executable),
            log_path=config.log_path,
            context_tokens=_context(config, file),
            threads=config.threads or default_threads(),
            gpu_layers=config.gpu_layers,
            flash_attention=config.flash_attention,
            start_timeout_s=config.start_timeout_s,
            first_token_timeout_s=config.first_token_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
        )

    # --- what is said of it -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Say how things are, and wake whoever waits for them to change."""
        offered = [model for model in self._models.values() if model.offered]
        sold = [model for model in offered if not self._config.models or model.file.name in self._config.models]
        health = BackendHealth.READY if sold and not self._fault else BackendHealth.DOWN
        self._state = replace(
            self._state,
            health=health,
            detail=self._fault or self._complaint(),
            models=()
            if self._fault
            else tuple(
                ModelInfo(model.file.name, _context(self._config, model.file), model.up) for model in offered
            ),
        )
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _complaint(self) -> str:
        """Return what is wrong with the models that are sold, or with any when none is named."""
        wanted = self._config.models or tuple(self._models)
        faults = []
        for name in dict.fromkeys(wanted):
            model = self._models.get(name)
            if model is None:
                faults.append(f"{self._config.path} has no {printable(name)}.gguf")
            elif not model.offered:
                faults.append(model.file.fault or model.fault)
        more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
        return f"{faults[0]}{more}" if faults else self._no_gpu()

    def _no_gpu(self) -> str:
        loaded = (child.loaded for model in self._models.values() for child in model.children)
        if self._config.gpu_layers > 0 and any(each is not None and not each.offloads for each in loaded):
            return "gpu_layers is set, and this llama-cpp-python was built without a GPU"
        return ""


def restart_pause_s(failures: int) -> float:
    """Return how long a model rests that has ended early so many times in a row."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(max(failures - 1, 0), 16))


def _context(config: LlamaCppConfig, file: ModelFile) -> int:
    return min(config.context_tokens, file.context_tokens or config.context_tokens)
