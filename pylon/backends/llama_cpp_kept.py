"""What backend `llama_cpp` keeps of its models and of the processes that hold them. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from pylon.backends.gguf_shelf import ModelFile
from pylon.backends.llama_cpp_process import Loaded, ModelProcess


@dataclass(eq=False, slots=True)
class Child:
    """One process and what it is doing.

    `settled` is set once it is loaded or has failed, `gone` once it has ended.
    """

    process: ModelProcess
    busy: bool = True  # it is started for somebody
    leaving: bool = False
    idle_since: float = 0.0
    loaded: Loaded | None = None
    fault: str = ""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    settled: anyio.Event = field(default_factory=anyio.Event)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def free(self) -> bool:
        """Whether a job may have it now."""
        return self.loaded is not None and not (self.busy or self.leaving or self.process.gone)


@dataclass(eq=False, slots=True)
class Model:
    """One model that lies there, with its children. `fault` says why it cannot be had now."""

    file: ModelFile
    children: list[Child] = field(default_factory=list)
    fault: str = ""
    failures: int = 0

    @property
    def up(self) -> bool:
        """Whether it is in memory."""
        return any(child.loaded and not child.leaving for child in self.children)

    @property
    def offered(self) -> bool:
        """Whether a job may ask for it: it can be loaded, as far as is known."""
        return not self.file.fault and (not self.fault or self.up)
