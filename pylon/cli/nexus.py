"""`pylon nexus`: what the market's own relay says of the market."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from pylon.cli.layout import Cell, Colour, Screen, cell, moment
from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import say, say_json

if TYPE_CHECKING:
    from pylon.nexus import NexusStats

app = typer.Typer(help="Ask Nexus about the market.", no_args_is_help=True)

_FIRST: Final = ("pylons", "events", "jobs", "rlm", "nexus", "compute")
_RECENT_SHOWN: Final = 5


@app.callback()
def _nexus() -> None:
    """Ask Nexus about the market."""


@app.command(epilog="Example: pylon nexus stats --json")
def stats(
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show the statistics of the Nexus of the settings (nexus.url): pylons, events, jobs."""
    from pylon.cli.loop import run_on_time
    from pylon.nexus import fetch_stats
    from pylon.settings import load_settings

    nexus = load_settings(config.expanduser() if config else None).settings.nexus

    async def run() -> NexusStats:
        return await fetch_stats(nexus.url, timeout_s=nexus.timeout_s)

    found = run_on_time(run)
    if json:
        say_json(
            {"url": found.url, "fields": found.fields, "by_kind": found.by_kind, "lists": found.lists},
        )
        return
    screen = Screen()
    show(found, screen)
    say(screen.text())


def show(found: NexusStats, screen: Screen) -> None:
    """Put statistics on the screen, grouped by the first word of their names."""
    screen.line(found.url, Colour.BOLD)
    groups: dict[str, list[list[Cell]]] = {}
    for name, value in found.fields.items():
        groups.setdefault(_group(name), []).append([cell(name), _value(name, value)])
    for name, counts in found.by_kind.items():
        rows = [[cell(f"{name} {kind}"), cell(count)] for kind, count in sorted(counts.items())]
        groups.setdefault(_group(name), []).extend(rows)
    if not groups and not found.lists:
        screen.line("  it answered, and told nothing", Colour.DIM)
    order = {name: at for at, name in enumerate(_FIRST)}
    for group in sorted(groups, key=lambda name: order.get(name, len(order))):
        screen.heading(cell(group).text)
        screen.table(groups[group], indent="  ")
    for name, entries in found.lists.items():
        screen.heading(f"{cell(name).text} ({len(entries)})")
        screen.table([[cell(each, limit=160)] for each in entries[:_RECENT_SHOWN]], indent="  ")


def _group(name: str) -> str:
    return name.partition(".")[0].partition("_")[0]


def _value(name: str, value: str | int | float | bool) -> Cell:
    if name.endswith(("timestamp", "_at")) and type(value) is int and 10**9 < value < 10**10:
        return Cell(moment(value), right=True)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", right=True)
    if isinstance(value, int):
        return Cell(f"{value:,}", right=True)
    return Cell(cell(value).text, right=True)
