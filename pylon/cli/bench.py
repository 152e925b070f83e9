"""`pylon backends bench`: which models are measured, what is kept of it, and what the screen shows."""

from __future__ import annotations

import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pylon import __version__
from pylon.cli.layout import Cell, Colour, Screen, cell, size
from pylon.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say, warn
from pylon.control.codec import dump_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.backends.bench import Level, ModelBench
    from pylon.benches import Bench
    from pylon.jobs.ports import BackendError
    from pylon.paths import Paths
    from pylon.settings import BackendSettings, Settings

Target = tuple["BackendSettings", tuple[str, ...]]
"""A backend and the models to measure, by their names there; none for the first that it lists."""

_MOST_AT_ONCE: Final = 64
_CPU_NAME: Final = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


def read_words(
    words: Sequence[str], concurrency: Sequence[str], backends: Sequence[str]
) -> tuple[str | None, tuple[int, ...]]:
    """Return the backend that is named, if any, and the levels in rising order.

    In `--concurrency 1 2 4` the numbers after the first one arrive among the words. Raises `UserError`.
    """
    names = [word for word in words if word in backends or not (concurrency and word.isdigit())]
    numbers = [word for word in words if word not in names]
    if len(names) > 1:
        fail(f"one backend at a time, or none for all of them: {' '.join(map(printable, names))}", EXIT_USAGE)
    given = [part for text in (*concurrency, *numbers) for part in re.split(r"[,\s]+", text) if part]
    for part in given:
        if not (part.isascii() and part.isdigit() and 1 <= int(part) <= _MOST_AT_ONCE):
            fail(f"--concurrency: '{part}' is no number from 1 to {_MOST_AT_ONCE}", EXIT_USAGE)
    levels = tuple(sorted({int(part) for part in given})) or (1, 2, 4)
    return (names[0] if names else None), levels


def targets(settings: Settings, chosen: Sequence[BackendSettings], model: str | None) -> list[Target]:
    """Return what is measured. Raises `UserError` when that is nothing."""
    from pylon.cli.configured import model_at_backend

    found: list[Target] = []
    for backend in chosen:
        sold = [(each, there) for each in settings.models for name, there in each.routes if name == backend.name]
        if model is None:
            found.append((backend, tuple(dict.fromkeys(there for _, there in sold))))
        elif len(chosen) == 1 or any(model in (each.name, *each.aliases) for each, _ in sold):
            found.append((backend, (model_at_backend(settings, backend.name, model),)))
    if not found:
        fail(f"no backend sells '{model}'" if chosen else "no backend is configured: see pylon init", EXIT_USAGE)
    return found


def measure(
    settings: Settings,
    paths: Paths,
    wanted: Sequence[Target],
    levels: tuple[int, ...],
    limit_s: float,
    *,
    json: bool,
) -> int:
    """Measure one backend after another, keep what was found and show it; returns the exit code."""
    from pylon.benches import keep_benches, read_benches
    from pylon.paths import private_folder

    read_benches(paths.benches_file)  # one that cannot be added to is told before anything takes its time
    if _runs(paths):
        warn("pylon runs: its jobs and this share the machine, and both are slower for it")
    private_folder(paths.state_dir)
    machine = describe_machine()
    benches: list[Bench] = []
    faults: list[tuple[str, str, str]] = []
    for backend, models in wanted:
        made, failed = _measure_backend(settings, paths, (backend, models), levels, limit_s, machine)
        keep_benches(paths.benches_file, made)  # at once: what is interrupted later has not been in vain
        benches += made
        faults += failed
    if json:
        failed_json = [{"backend": name, "model": model, "error": error} for name, model, error in faults]
        say(dump_json({"benches": benches, "failed": failed_json}, indent=2))
    elif benches:
        screen = Screen()
        slots = {each.name: each.slots for each in settings.backends}
        for bench in benches:
            show(bench, slots[bench.backend], screen)
        screen.line()
        screen.line(f"Kept in {printable(paths.benches_file, limit=500)}")
        say(screen.text())
    for name, model, error in faults:
        warn(f"{name}{f', {model}' if model else ''}: {error}")
    return EXIT_FAILED if faults else 0


def _measure_backend(
    settings: Settings, paths: Paths, target: Target, levels: tuple[int, ...], limit_s: float, machine: str
) -> tuple[list[Bench], list[tuple[str, str, str]]]:
    from functools import partial

    import anyio

    from pylon.backends.bench import BenchPlan, ModelBench, bench_models
    from pylon.cli.configured import backend_for_trial
    from pylon.jobs.ports import BackendError

    chosen, models = target
    backend, start_timeout_s, note = backend_for_trial(settings, paths, chosen)
    if note:
        warn(note)
    measuring = partial(
        bench_models,
        backend,
        models,
        BenchPlan(levels, limit_s=limit_s),
        run=secrets.token_hex(4),
        start_timeout_s=start_timeout_s,
        told=partial(_tell, chosen.name),
    )
    try:
        outcomes: dict[str, ModelBench | BackendError] = anyio.run(measuring)
    except BackendError as error:
        return [], [(chosen.name, "", str(error))]
    software = anyio.run(_software, settings, chosen)
    made = [
        _bench(chosen, name, outcome, software, machine)
        for name, outcome in outcomes.items()
        if isinstance(outcome, ModelBench)
    ]
    return made, [
        (chosen.name, name, str(outcome)) for name, outcome in outcomes.items() if isinstance(outcome, BackendError)
    ]


def _bench(settings: BackendSettings, model: str, measured: ModelBench, software: str, machine: str) -> Bench:
    from pylon.benches import Bench, conditions_of

    return Bench(
        at=int(time.time()),
        pylon=__version__,
        software=software,
        machine=machine,
        backend=settings.name,
        kind=settings.kind,
        model=model,
        size_bytes=measured.model.size_bytes,
        quantization=measured.model.quantization,
        settings=conditions_of(settings),
        levels=measured.levels,
    )


def _tell(backend: str, model: str, level: Level) -> None:
    """Say on stderr how far it is: a bench takes a while."""
    if sys.stderr.isatty():
        warn(f"{backend}, {model}: {level.concurrency} at once, {level.tokens_per_s:.1f} tokens/s")


def _runs(paths: Paths) -> bool:
    from pylon.lock import LockFailed, lock_holder

    try:
        return lock_holder(paths.lock_file) is not None
    except LockFailed:
        return False


async def _software(settings: Settings, backend: BackendSettings) -> str:
    """Return what serves a backend, as far as it says so itself."""
    from pylon.assembly.places import configured_places
    from pylon.backends.detect import detect
    from pylon.backends.marks import TITLES

    if backend.software:
        return backend.software
    places = [each for each in configured_places(settings) if each.name == backend.name]
    found = (await detect(places))[0].finding if places else None
    return f"{TITLES[found.kind]} {found.version or ''}".rstrip() if found is not None and found.kind else ""


def describe_machine() -> str:
    """Return processor, cores, memory and GPUs in one line, for whoever compares benches."""
    import anyio

    from pylon.backends.gpus import find_gpus

    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    named = _CPU_NAME.search(told)
    parts = [named[1].strip() if named else platform.processor() or platform.machine()]
    parts.append(f"{os.cpu_count() or 1} cores")
    with suppress(ValueError, OSError, AttributeError):  # not every system tells
        parts.append(size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    parts += [gpu.name for gpu in anyio.run(find_gpus)]
    return printable(", ".join(parts), limit=500)


# --- on the screen ----------------------------------------------------------------------------------------------


def show(bench: Bench, slots: int, screen: Screen) -> None:
    """Put what was measured of one model on the screen."""
    about = (bench.size_bytes and size(bench.size_bytes), bench.quantization, bench.software)
    screen.heading(
        printable(f"{bench.backend} ({bench.kind}), {bench.model}", limit=300)
        + "".join(f", {printable(part)}" for part in about if part)
    )
    titles = ("at once", "jobs", "tokens/s", "of each", "first token")
    rows = [[Cell(title, Colour.DIM, right=True) for title in titles]]
    for level in bench.levels:
        each = "-" if not level.token_s else f"{1 / level.token_s:.1f}"
        speed, first = f"{level.tokens_per_s:.1f}", f"{1000 * level.first_token_s:.0f} ms"
        counted = "estimated: not all were counted" if level.estimated else ""
        shown = [Cell(text, right=True) for text in (speed, each, first)]
        rows.append([cell(level.concurrency), cell(level.jobs), *shown, Cell(counted)])
    screen.table(rows, indent="  ")
    if bench.levels[-1].concurrency > slots:
        screen.line(f"  Pylon runs {slots} at once here (slots); the rest would wait in its queue.", Colour.DIM)
