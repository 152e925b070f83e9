"""What the global options of `pylon` mean to every command."""

from __future__ import annotations

from dataclasses import dataclass

from pylon.paths import Paths, resolve_paths


@dataclass(frozen=True, slots=True)
class CliContext:
    """The global options, as `ctx.obj`. `--home` is in the environment by then, for everything that reads it."""

    debug: bool = False

    @property
    def paths(self) -> Paths:
        """Where this home's files lie."""
        return resolve_paths()
