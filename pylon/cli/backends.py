"""`pylon backends`: what model servers run here, which are configured, and whether one of them really works."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, size
from pylon.cli.output import EXIT_USAGE, fail, say, warn
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.backends.detect import Detected, Place
    from pylon.backends.gpus import Gpu
    from pylon.backends.trial import Trial
    from pylon.paths import Paths
    from pylon.settings import Settings

_STATES = {
    "ready": ("ready", Colour.GOOD),
    "not-ready": ("not ready", Colour.WARN),
    "locked": ("locked", Colour.WARN),
    "other": ("not that API", Colour.WARN),
    "not-running": ("not running", Colour.DIM),
}
_MODELS_SHOWN = 20
_OUTPUT_LIMIT = 100_000

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings to read, instead of the home's.")
]


@app.callback()
def _backends() -> None:
    """Find, list and try model servers."""


@app.command("detect", epilog="Example: pylon backends detect --json")
def detect_servers(config: Config = None, json: Json = False) -> None:
    """Look for model servers where they usually listen and where the settings say, and for GPUs. Takes 2 s at most.

    A server is told by what it answers, not by its port. Nothing is configured by looking: see pylon init.
    """
    import anyio

    from pylon.backends.detect import detect, places_to_ask
    from pylon.backends.gpus import find_gpus

    places = places_to_ask(os.environ, _configured_places(_settings(config)))

    async def look() -> tuple[Sequence[Detected], Sequence[Gpu]]:
        gpus: list[Gpu] = []

        async def look_for_gpus() -> None:
            gpus.extend(await find_gpus())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look_for_gpus)
            found = await detect(places)
        return found, gpus

    found, gpus = anyio.run(look)
    if json:
        _say_json({"servers": [_server_json(each) for each in found], "gpus": list(gpus)})
        return
    screen = Screen()
    _show_servers(found, screen)
    _show_models(found, screen)
    _show_gpus(gpus, screen)
    say(screen.text())


@app.command("list", epilog="Example: pylon backends list --json")
def list_backends(ctx: typer.Context, config: Config = None, json: Json = False) -> None:
    """List the configured backends: kind, address, what is sold on each, and what each answers now."""
    context: CliContext = ctx.obj
    settings = _settings(config)
    rows = _configured(settings, context.paths)
    if json:
        _say_json(rows)
        return
    if not rows:
        say("no backends are configured: pylon backends detect shows what runs here, pylon init proposes it")
        return
    screen = Screen()
    titles = ("name", "kind", "address", "state", "sold", "")
    screen.table([_head(titles), *(_backend_row(row) for row in rows)])
    say(screen.text())


@app.command("test", epilog='Example: pylon backends test local --prompt "Name three colours."')
def try_backend(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The backend, as the settings name it.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A model on it; without this, the first that is sold or listed.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="What to ask.")] = "Write two sentences about the sea.",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 128,
    config: Config = None,
    json: Json = False,
) -> None:
    """Send a real prompt to a configured backend and measure the answer. Needs no running daemon.

    Exit code: 0 when it answered, 1 when it did not.
    """
    import anyio

    from pylon.assembly import make_backends
    from pylon.backends.trial import run_trial
    from pylon.jobs.ports import GenerationRequest, Message
    from pylon.settings import EmbeddedBackendSettings

    context: CliContext = ctx.obj
    settings = _settings(config)
    chosen = next((each for each in settings.backends if each.name == name), None)
    if chosen is None:
        known = ", ".join(each.name for each in settings.backends) or "none"
        fail(f"no backend is called '{name}'; configured: {known}", EXIT_USAGE)
    start_timeout_s = 0.0
    if isinstance(chosen, EmbeddedBackendSettings):
        start_timeout_s = chosen.start_timeout_s
        if _running_states(context.paths):
            warn("pylon runs with this model already: for the test it is loaded a second time")
    backend = make_backends(settings, _trial_paths(context.paths))[name]
    request = GenerationRequest(_model_at_backend(settings, name, model), (Message("user", prompt),), max_tokens)

    async def run() -> Trial:
        return await run_trial(backend, request, start_timeout_s=start_timeout_s)

    trial = anyio.run(run)
    if json:
        _say_json({"backend": name, **_fields(trial), "tokens_per_s": round(trial.tokens_per_s, 3)})
    else:
        _show_trial(name, trial)


# --- what is asked ----------------------------------------------------------------------------------------------


def _settings(config: Path | None) -> Settings:
    from pylon.settings import load_settings

    return load_settings(config.expanduser() if config else None, None, os.environ).settings


def _configured_places(settings: Settings) -> list[Place]:
    from pylon.backends.detect import Place
    from pylon.backends.openai_wire import normalise_url

    places = []
    for each in settings.backends:
        url, key = getattr(each, "url", None), getattr(each, "api_key", None)
        if url:
            places.append(Place(normalise_url(url), "", each.name, key.get_secret_value() if key else None))
    return places


def _configured(settings: Settings, paths: Paths) -> list[dict[str, Any]]:
    """Return what is configured, each with its present state."""
    import anyio

    from pylon.assembly import make_backends
    from pylon.backends.trial import check_backends
    from pylon.settings import EmbeddedBackendSettings

    embedded = {each.name for each in settings.backends if isinstance(each, EmbeddedBackendSettings)}
    made = make_backends(settings, paths)
    states = anyio.run(check_backends, {name: made[name] for name in made if name not in embedded})
    running = _running_states(paths) if embedded else {}
    rows = []
    for each in settings.backends:
        # An embedded server is the daemon's own child: only the daemon can ask it.
        if each.name in embedded:
            state, detail, listed = running.get(each.name) or _resting(each)
        else:
            now = states[each.name]
            state, detail, listed = now.health.value, now.detail, tuple(model.name for model in now.models)
        sold = [model for model in settings.models if model.backend == each.name]
        ready = state == "ready"
        rows.append(
            {
                "name": each.name,
                "kind": each.kind,
                "address": str(getattr(each, "url", None) or getattr(each, "gguf", "")),
                "slots": each.slots,
                "state": state,
                "detail": detail,
                "listed": listed,
                "sold": [
                    {
                        "name": model.name,
                        "backend_model": model.name_at_backend,
                        "available": ready and model.name_at_backend in listed,
                    }
                    for model in sold
                ],
            }
        )
    return rows


def _running_states(paths: Paths) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return what a running daemon says of its backends: state, detail, models; empty when none answers."""
    from pylon.cli.views import control_client
    from pylon.control.client import ControlError

    try:
        lines = control_client(paths, timeout_s=5).status().backends
    except ControlError:
        return {}
    return {line.name: (line.health, line.detail, line.models) for line in lines}


def _resting(backend: Any) -> tuple[str, str, tuple[str, ...]]:
    """Return what can be said of an embedded backend while no daemon runs it."""
    if not Path(backend.gguf).is_file():
        return "down", f"gguf not found: {backend.gguf}", ()
    return "stopped", "pylon start runs it, pylon backends test tries it", ()


def _model_at_backend(settings: Settings, backend: str, model: str | None) -> str:
    """Return the backend's own name of a model that is sold there or named so; empty for its first."""
    sold = [each for each in settings.models if each.backend == backend]
    if model is None:
        return sold[0].name_at_backend if sold else ""
    named = (each.name_at_backend for each in sold if model in (each.name, *each.aliases))
    return next(named, model)


def _trial_paths(paths: Paths) -> Paths:
    """Return paths of its own for a trial, whose child must not write into the log of the daemon's."""
    from dataclasses import replace

    return replace(paths, state_dir=paths.state_dir / "pylon.trial")


# --- what is shown ----------------------------------------------------------------------------------------------


def _show_servers(found: Sequence[Detected], screen: Screen) -> None:
    screen.heading("Servers")
    screen.table([_head(("address", "state", "what answers", "models", "")), *map(_server_row, found)], indent="  ")


def _server_row(at: Detected) -> list[Cell]:
    word, colour = _STATES[at.finding.readiness]
    models = len(at.finding.models)
    usual = at.place.usual and f"usually {at.place.usual}"
    about = [
        at.finding.detail,
        at.place.name and f"configured as {at.place.name}",
        "" if at.finding.kind else usual,
    ]
    return [
        cell(at.place.url),
        cell(word, colour),
        cell(_what(at)),
        Cell(str(models) if models else "", right=True),
        cell("; ".join(part for part in about if part), limit=200),
    ]


def _what(at: Detected) -> str:
    from pylon.backends.marks import TITLES

    kind, version = at.finding.kind, at.finding.version
    return f"{TITLES[kind]} {version or ''}".rstrip() if kind else ""


def _show_models(found: Sequence[Detected], screen: Screen) -> None:
    for at in found:
        if not at.finding.models:
            continue
        screen.heading(f"Models of {printable(_what(at))} at {printable(at.place.url)}")
        rows = [
            [
                cell(model.name),
                Cell(size(model.size_bytes) if model.size_bytes else "", right=True),
                cell(model.quantization or ""),
                Cell(f"{model.context_tokens:,}" if model.context_tokens else "", right=True),
                cell(", ".join(model.capabilities)),
            ]
            for model in at.finding.models[:_MODELS_SHOWN]
        ]
        head = _head(("name", "size", "quantization", "context", "can"), right=("size", "context"))
        screen.table([head, *rows], indent="  ")
        if len(at.finding.models) > _MODELS_SHOWN:
            screen.line(f"  and {len(at.finding.models) - _MODELS_SHOWN} more (--json lists all)", Colour.DIM)


def _show_gpus(gpus: Sequence[Gpu], screen: Screen) -> None:
    screen.heading("GPUs")
    if not gpus:
        screen.line("  none found", Colour.DIM)
        return
    rows = [
        [
            cell(gpu.name),
            cell(gpu.vendor),
            Cell("unknown" if gpu.total_bytes is None else size(gpu.total_bytes), right=True),
            Cell("unknown" if gpu.free_bytes is None else size(gpu.free_bytes), right=True),
        ]
        for gpu in gpus
    ]
    screen.table([_head(("name", "vendor", "memory", "free"), right=("memory", "free")), *rows], indent="  ")


def _backend_row(row: dict[str, Any]) -> list[Cell]:
    ready = row["state"] == "ready"
    missing = [model["backend_model"] for model in row["sold"] if ready and not model["available"]]
    about = [row["detail"], f"does not list {', '.join(missing)}" if missing else ""]
    return [
        cell(row["name"]),
        cell(row["kind"]),
        cell(row["address"], limit=120),
        cell(row["state"], Colour.GOOD if ready and not missing else Colour.BAD),
        cell(", ".join(model["name"] for model in row["sold"]) or "nothing"),
        cell("; ".join(part for part in about if part), limit=200),
    ]


def _show_trial(name: str, trial: Trial) -> None:
    counted = "estimated, it does not count" if trial.estimated else "counted by it"
    screen = Screen()
    screen.line(printable(trial.output.strip(), limit=_OUTPUT_LIMIT, keep_newlines=True))
    screen.line()
    screen.table(
        [
            [cell("backend"), cell(f"{name}, model {trial.model}", limit=200)],
            [cell("first token"), cell(f"{trial.first_token_s * 1000:.0f} ms")],
            [cell("whole answer"), cell(f"{trial.seconds:.2f} s, {trial.tokens_per_s:.1f} tokens/s")],
            [cell("tokens"), cell(f"{trial.prompt_tokens} in, {trial.output_tokens} out ({counted})")],
            [cell("ended by"), cell("itself" if trial.finish == "stop" else "--max-tokens")],
        ]
    )
    say(screen.text())


def _head(titles: Sequence[str], *, right: Sequence[str] = ("models",)) -> list[Cell]:
    return [Cell(title, Colour.DIM, title in right) for title in titles]


def _server_json(at: Detected) -> dict[str, object]:
    finding = at.finding
    return {
        "url": at.place.url,
        "usual": at.place.usual,
        "configured_as": at.place.name,
        "state": finding.readiness,
        "kind": finding.kind,
        "version": finding.version,
        "detail": finding.detail,
        "models": finding.models,
    }


def _fields(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


def _say_json(value: object) -> None:
    from pylon.control.codec import dump_json

    say(dump_json(value, indent=2))
