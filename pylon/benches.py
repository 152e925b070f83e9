"""What `pylon backends bench` measured: kept in one file, and how much of it still holds.

A bench is about a model on a backend as both were then. Where the backend's settings, or the size or quantization
that it tells of the model, are others now, the bench is stale: it is ignored, and whoever shows it says why. The
file is written by the command alone; a running daemon looks whether it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog
from pydantic import JsonValue, SecretStr, TypeAdapter, ValidationError

from pylon.backends.bench import Level
from pylon.jobs.lanes import Speed
from pylon.jobs.ports import BackendState, ModelInfo
from pylon.nostr.nip89 import MAX_TOKENS_PER_S, Measured
from pylon.settings import BackendSettings, Settings
from pylon.settings.files import replace_file
from pylon.text import printable

log = structlog.get_logger("pylon.benches")

LOOK_EVERY_S: Final = 2.0
_MAX_FILE_BYTES: Final = 4 << 20
_VERSION: Final = 1

Place = tuple[str, str]
"""A backend's name and the model's name there."""


class BadBenches(ValueError):
    """The file cannot be read or written; the message says why and what to do."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Bench:
    """One model on one backend, as it was measured at `at` (unix seconds).

    `pylon`, `software` (what serves the model, as far as it is known) and `machine` tell with what; `settings` are
    the backend's that may matter to its speed, `size_bytes` and `quantization` what it said of the model. `levels`
    rise in their concurrency.
    """

    at: int
    pylon: str
    software: str
    machine: str
    backend: str
    kind: str
    model: str
    size_bytes: int | None
    quantization: str | None
    settings: dict[str, JsonValue]
    levels: tuple[Level, ...]

    @property
    def place(self) -> Place:
        """What was measured."""
        return self.backend, self.model

    @property
    def speed(self) -> Speed:
        """How fast one job is when it is alone, or among the fewest that were tried."""
        return Speed(self.levels[0].first_token_s, self.levels[0].token_s)

    @property
    def claim(self) -> Measured:
        """What customers are told."""
        first = self.levels[0]
        return Measured(_rounded(first.tokens_per_s), round(1000 * first.first_token_s), self.at)


@dataclass(frozen=True, slots=True)
class _File:
    version: int
    benches: tuple[Bench, ...]


_READER: Final = TypeAdapter(_File)


def read_benches(path: Path) -> dict[Place, Bench]:
    """Return what was measured here; nothing where no file is. Raises `BadBenches`."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadBenches(f"{path} cannot be read: {error.strerror}") from None
    try:
        held = _READER.validate_json(raw)
    except ValidationError:
        raise BadBenches(f"{path} is not what pylon backends bench writes: remove it and measure again") from None
    if held.version != _VERSION:
        raise BadBenches(f"{path} was written by another version of Pylon: remove it and measure again")
    return {each.place: each for each in held.benches if each.levels}


def keep_benches(path: Path, new: Iterable[Bench]) -> None:
    """Put benches in the place of those of the same models and backends. Raises `BadBenches`."""
    benches = read_benches(path) | {each.place: each for each in new}
    text = _READER.dump_json(_File(_VERSION, tuple(benches.values())), indent=1).decode()
    try:
        replace_file(path, f"{text}\n")
    except OSError as error:
        raise BadBenches(f"{path} cannot be written: {error.strerror}") from None


def conditions_of(settings: BackendSettings) -> dict[str, Any]:
    """Return what of a backend's settings may matter to its speed: no name, no duration, no secret."""
    told = settings.harmless().model_dump(mode="json", exclude={"name"}, fallback=str)
    secrets = {key for key, value in settings if isinstance(value, SecretStr)}
    return {key: value for key, value in told.items() if key not in secrets and not key.endswith("_s")}


def why_stale(bench: Bench, settings: BackendSettings, model: ModelInfo | None) -> str:
    """Return why a bench says nothing of the present, empty when it does. `model` is what the backend says now."""
    now = conditions_of(settings)
    then = bench.settings
    changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if changed:
        return f"{', '.join(changed)} of {bench.backend} changed since"
    if model is not None:
        for name, before, there in (
            ("size", bench.size_bytes, model.size_bytes),
            ("quantization", bench.quantization, model.quantization),
        ):
            if before is not None and there is not None and before != there:
                return f"the model's {name} at {bench.backend} changed since"
    return ""


def holding(
    benches: Mapping[Place, Bench], settings: Settings, states: Mapping[str, BackendState] | None = None
) -> tuple[dict[Place, Bench], dict[Place, str]]:
    """Return the benches of what is sold that hold now, and why others do not.

    Without `states` nothing is known of the models as they are now, and only the settings are compared.
    """
    backends = {each.name: each for each in settings.backends}
    fresh: dict[Place, Bench] = {}
    stale: dict[Place, str] = {}
    for place in dict.fromkeys(route for model in settings.models for route in model.routes):
        bench = benches.get(place)
        if bench is None:
            continue
        state = (states or {}).get(bench.backend)
        why = why_stale(bench, backends[bench.backend], None if state is None else state.find(bench.model))
        if why:
            stale[place] = why
        else:
            fresh[place] = bench
    return fresh, stale


def claims(benches: Mapping[Place, Bench], settings: Settings) -> dict[str, Measured]:
    """Return what is claimed of each sold model, by its name: the slowest of its backends that were measured."""
    told = {
        model.name: [benches[route].claim for route in model.routes if route in benches]
        for model in settings.models
    }
    return {name: min(each, key=lambda claim: claim.tokens_per_s) for name, each in told.items() if each}


class BenchWatch:
    """The benches that hold, kept up to date beside a running daemon."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        states: Callable[[], Mapping[str, BackendState]],
        expect: Callable[[Mapping[Place, Speed]], None],
    ) -> None:
        self._path = path
        self._settings = settings
        self._states = states
        self._expect = expect
        self._seen: tuple[int, int] | None = None
        self._benches: dict[Place, Bench] = {}
        self._stale: dict[Place, str] = {}
        self.claims: Mapping[str, Measured] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Take what is new in the file, or what the backends say of their models now."""
        await anyio.to_thread.run_sync(self._read)
        fresh, stale = holding(self._benches, self._settings, self._states())
        for (backend, model), why in stale.items():
            if self._stale.get((backend, model)) != why:
                log.warning(
                    "a bench is ignored, measure again: pylon backends bench", backend=backend, model=model, why=why
                )
        self._stale = stale
        self.claims = claims(fresh, self._settings)
        self._expect({place: bench.speed for place, bench in fresh.items()})

    def _read(self) -> None:
        """Read the file when it has changed; a bad one is as good as none."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._benches = read_benches(self._path)
        except BadBenches as bad:
            self._benches = {}
            log.warning("the benches are ignored", why=printable(bad, limit=500))


def _rounded(tokens_per_s: float) -> float:
    """Return a speed with about two digits: more would claim what no bench can tell."""
    if tokens_per_s >= 10:
        return min(MAX_TOKENS_PER_S, round(tokens_per_s))
    return max(0.1, round(tokens_per_s, 1))
