"""How `pylon backends` shows what was found, what is configured and how a trial went."""

from __future__ import annotations

from collections.abc import Sequence

from pylon.backends.detect import Detected
from pylon.backends.gpus import Gpu
from pylon.backends.marks import TITLES
from pylon.backends.trial import Trial
from pylon.cli.configured import ConfiguredBackend, SoldModel
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, size
from pylon.text import printable

_STATES = {
    "ready": ("ready", Colour.GOOD),
    "not-ready": ("not ready", Colour.WARN),
    "locked": ("locked", Colour.WARN),
    "other": ("not that API", Colour.WARN),
    "not-running": ("not running", Colour.DIM),
}
_MODELS_SHOWN = 20
_OUTPUT_LIMIT = 100_000


def show_detected(found: Sequence[Detected], gpus: Sequence[Gpu], screen: Screen) -> None:
    """Put everything that was looked for on the screen."""
    screen.heading("Servers")
    screen.table([_head(("address", "state", "what answers", "models", "")), *map(_server_row, found)], indent="  ")
    for at in found:
        if at.finding.models:
            _show_models(at, screen)
    screen.heading("GPUs")
    if gpus:
        screen.table([_head(("name", "vendor", "memory", "free")), *map(_gpu_row, gpus)], indent="  ")
    else:
        screen.line("  none found", Colour.DIM)


def _server_row(at: Detected) -> list[Cell]:
    word, colour = _STATES[at.finding.readiness]
    models = len(at.finding.models)
    about = (
        at.finding.detail,
        at.place.name and f"configured as {at.place.name}",
        at.place.usual and not at.finding.kind and f"usually {at.place.usual}",
    )
    return [
        cell(at.place.url),
        cell(word, colour),
        cell(_what(at)),
        Cell(str(models) if models else "", right=True),
        cell("; ".join(part for part in about if part), limit=200),
    ]


def _what(at: Detected) -> str:
    kind, version = at.finding.kind, at.finding.version
    return f"{TITLES[kind]} {version or ''}".rstrip() if kind else ""


def _show_models(at: Detected, screen: Screen) -> None:
    models = at.finding.models
    screen.heading(f"Models of {printable(_what(at))} at {printable(at.place.url)}")
    rows = [
        [
            cell(model.name),
            Cell(size(model.size_bytes) if model.size_bytes else "", right=True),
            cell(model.quantization or ""),
            Cell(f"{model.context_tokens:,}" if model.context_tokens else "", right=True),
            cell(", ".join(model.capabilities)),
        ]
        for model in models[:_MODELS_SHOWN]
    ]
    screen.table([_head(("name", "size", "quantization", "context", "can")), *rows], indent="  ")
    if len(models) > _MODELS_SHOWN:
        screen.line(f"  and {len(models) - _MODELS_SHOWN} more (--json lists all)", Colour.DIM)


def _gpu_row(gpu: Gpu) -> list[Cell]:
    total, free = ("unknown" if count is None else size(count) for count in (gpu.total_bytes, gpu.free_bytes))
    return [cell(gpu.name), cell(gpu.vendor), Cell(total, right=True), Cell(free, right=True)]


def show_configured(backends: Sequence[ConfiguredBackend], screen: Screen) -> None:
    """Put the configured backends on the screen."""
    screen.table([_head(("name", "kind", "address", "state", "sold", "")), *map(_backend_row, backends)])
    speeds = [(backend, model, _speed(model)) for backend in backends for model in backend.sold]
    rows = [[cell(backend.name), cell(model.name), *about] for backend, model, about in speeds if about]
    if rows:
        screen.heading("Measured")
        screen.table([_head(("backend", "model", "speed", "first token", "")), *rows], indent="  ")


def _speed(model: SoldModel) -> list[Cell]:
    """Return the cells that say how fast a model is, none when it was never measured."""
    if model.measured is None:
        return [Cell("-"), Cell("-"), cell(f"measure again: {model.stale}", Colour.WARN)] if model.stale else []
    claim = model.measured
    return [
        Cell(f"{claim.tokens_per_s:g} tokens/s"),
        Cell(f"{claim.first_token_ms:,} ms"),
        Cell(moment(claim.at)),
    ]


def _backend_row(backend: ConfiguredBackend) -> list[Cell]:
    now = backend.now
    ready = now.state == "ready"
    missing = [model.backend_model for model in backend.sold if ready and not model.available]
    colour = Colour.NONE if now.state == "stopped" else Colour.GOOD if ready and not missing else Colour.BAD
    about = (now.detail, missing and f"does not list {', '.join(missing)}")
    return [
        cell(backend.name),
        cell(backend.kind),
        cell(backend.address, limit=120),
        cell(now.state, colour),
        cell(", ".join(model.name for model in backend.sold) or "nothing"),
        cell("; ".join(part for part in about if part), limit=200),
    ]


def show_trial(name: str, trial: Trial, screen: Screen) -> None:
    """Put an answer and its measures on the screen."""
    counted = "estimated: it does not count" if trial.estimated else "as it counts"
    screen.line(printable(trial.output.strip(), limit=_OUTPUT_LIMIT, keep_newlines=True))
    screen.line()
    screen.table(
        [
            [cell("backend"), cell(f"{name}, model {trial.model}", limit=300)],
            [cell("first token"), cell(f"{trial.first_token_s * 1000:.0f} ms")],
            [cell("whole answer"), cell(f"{trial.seconds:.2f} s, {trial.tokens_per_s:.1f} tokens/s")],
            [cell("tokens"), cell(f"{trial.prompt_tokens} in, {trial.output_tokens} out ({counted})")],
            [cell("ended by"), cell("the model" if trial.finish == "stop" else "--max-tokens")],
        ]
    )


_RIGHT = frozenset({"models", "size", "context", "memory", "free"})


def _head(titles: Sequence[str]) -> list[Cell]:
    return [Cell(title, Colour.DIM, title in _RIGHT) for title in titles]
