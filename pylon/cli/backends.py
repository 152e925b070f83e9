"""`pylon backends`: what model servers run here, which are configured, whether one works, and how fast they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Screen
from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import EXIT_USAGE, fail, say, warn

if TYPE_CHECKING:
    from pylon.backends.detect import Detected, Place
    from pylon.backends.gpus import Gpu
    from pylon.settings import BackendSettings, Settings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def _backends() -> None:
    """Find, list, try and measure model servers."""


@app.command("detect", epilog="Example: pylon backends detect --json")
def detect_servers(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Look for model servers where they usually listen and where the settings say, and for GPUs.

    Takes 2 s at most. A server is told by what it answers, not by its port. Nothing is configured by looking:
    see pylon init.
    """
    import anyio

    from pylon.assembly.places import configured_places
    from pylon.backends.detect import places_to_ask
    from pylon.cli.backend_tables import show_detected
    from pylon.control.codec import dump_json

    found, gpus = anyio.run(_look, places_to_ask(os.environ, configured_places(_settings(config))))
    if json:
        say(dump_json({"servers": [_server_json(at) for at in found], "gpus": list(gpus)}, indent=2))
        return
    screen = Screen()
    show_detected(found, gpus, screen)
    say(screen.text())


async def _look(places: Sequence[Place]) -> tuple[Sequence[Detected], Sequence[Gpu]]:
    import anyio

    from pylon.backends.detect import detect
    from pylon.backends.gpus import find_gpus

    gpus: list[Gpu] = []

    async def look_for_gpus() -> None:
        gpus.extend(await find_gpus())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_for_gpus)
        found = await detect(places)
    return found, gpus


def _server_json(at: Detected) -> dict[str, object]:
    return {
        "url": at.place.url,
        "usual": at.place.usual,
        "configured_as": at.place.name,
        "state": at.finding.readiness,
        "kind": at.finding.kind,
        "version": at.finding.version,
        "detail": at.finding.detail,
        "models": at.finding.models,
    }


@app.command("list", epilog="Example: pylon backends list --json")
def list_backends(ctx: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the configured backends: kind, address, what is sold on each, and how each answers now."""
    from pylon.cli.backend_tables import show_configured
    from pylon.cli.configured import configured_backends
    from pylon.control.codec import dump_json

    context: CliContext = ctx.obj
    backends = configured_backends(_settings(config), context.paths)
    if json:
        say(dump_json(backends, indent=2))
        return
    if not backends:
        say("no backends are configured: pylon backends detect shows what runs here, pylon init proposes it")
        return
    screen = Screen()
    show_configured(backends, screen)
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
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send a real prompt to a configured backend and measure the answer. Needs no running daemon.

    Exit code: 0 when it answered, 1 when it did not.
    """
    from dataclasses import asdict

    import anyio

    from pylon.backends.trial import run_trial
    from pylon.cli.backend_tables import show_trial
    from pylon.cli.configured import backend_for_trial, model_at_backend
    from pylon.control.codec import dump_json
    from pylon.jobs.ports import GenerationRequest, Message

    context: CliContext = ctx.obj
    settings = _settings(config)
    chosen = _configured(settings, name)
    backend, start_timeout_s, note = backend_for_trial(settings, context.paths, chosen)
    if note:
        warn(note)
    asked = GenerationRequest(model_at_backend(settings, name, model), (Message("user", prompt),), max_tokens)
    trial = anyio.run(run_trial, backend, asked, start_timeout_s)
    if json:
        measured = {"backend": name, **asdict(trial), "tokens_per_s": trial.tokens_per_s}
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in measured.items()}
        say(dump_json(rounded, indent=2))
        return
    screen = Screen()
    show_trial(name, trial, screen)
    say(screen.text())


@app.command("bench", epilog="Example: pylon backends bench local --concurrency 1 2 4")
def bench(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="The backend, as the settings name it; all if not given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="One model alone; without this, all that are sold there.")
    ] = None,
    concurrency: Annotated[
        list[str] | None,
        typer.Option("--concurrency", metavar="N...", help="How many jobs at once, one level each: 1 2 4."),
    ] = None,
    limit: Annotated[
        float, typer.Option("--limit", min=1, metavar="SECONDS", help="The longest that a level may take.")
    ] = 60.0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Measure how fast the sold models are.

    Tokens per second and the time to the first token, with one job alone and with several at once. What it finds is
    kept: the router begins with it, customers are told a time by it before any job was run, and
    the announcement claims it, with its date. Run it when the machine has nothing else to do, and again when a
    model or its settings change. Exit code: 0 when all was measured, 1 when something was not.
    """
    from pylon.cli.bench import measure, read_words, targets

    settings = _settings(config)
    name, levels = read_words(words or [], concurrency or [], [each.name for each in settings.backends])
    chosen = settings.backends if name is None else (_configured(settings, name),)
    context: CliContext = ctx.obj
    return measure(settings, context.paths, targets(settings, chosen, model), levels, limit, json=json)


def _configured(settings: Settings, name: str) -> BackendSettings:
    chosen = next((each for each in settings.backends if each.name == name), None)
    if chosen is None:
        known = ", ".join(each.name for each in settings.backends) or "none, there is no [[backends]]"
        fail(f"no backend is called '{name}'; configured: {known}", EXIT_USAGE)
    return chosen


def _settings(config: Path | None) -> Settings:
    from pylon.settings import load_settings

    return load_settings(config.expanduser() if config else None, None, os.environ).settings
