"""`pylon doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen
from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import EXIT_FAILED, say, say_json

if TYPE_CHECKING:
    from pylon.doctor.findings import Finding

_COLOURS: Final = {"ok": Colour.GOOD, "warn": Colour.WARN, "fail": Colour.BAD}


def command(
    ctx: typer.Context,
    config: ConfigOption = None,
    buy: Annotated[
        bool, typer.Option("--buy", help="Then buy one small job from yourself, over a relay on loopback.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Try everything that selling needs, and say what is wrong and how to fix it.

    Settings, identity, folders, disk, database, daemon, relays, clock, backends (a real token each), wallet. It
    changes nothing, runs with and without the daemon, and takes 15 seconds at most. Exit code 1 on any fail.

    With --buy a second daemon with a throw-away key sells the first model on offer, free, to a throw-away customer:
    a minute at most, and the time an embedded model takes to load.
    """
    import os
    import time

    from pylon.cli.loop import run_on_time
    from pylon.cli.passphrase import with_typed_passphrase
    from pylon.doctor.examine import examine, worst
    from pylon.doctor.findings import Level

    context: CliContext = ctx.obj
    file = config.expanduser() if config else None
    environ = with_typed_passphrase(os.environ, file, context.paths)

    async def run() -> tuple[Finding, ...]:
        found = await examine(context.paths, clock=time.time, config=file, environ=environ)
        if not buy:
            return found
        from pylon.demo.trial_purchase import buy_from_oneself

        return (*found, *await buy_from_oneself(context.paths, config=file))

    findings = run_on_time(run)
    level = worst(findings)
    if json:
        rows = [{"level": each.level, "check": each.check, "what": each.what, "fix": each.fix} for each in findings]
        say_json({"level": level, "findings": rows})
    else:
        screen = Screen()
        show(findings, screen)
        say(screen.text())
    return EXIT_FAILED if level is Level.FAIL else 0


def show(findings: Sequence[Finding], screen: Screen) -> None:
    """Put findings on the screen, the fix under what it fixes. Their texts are printable already."""
    width = max((len(each.check) for each in findings), default=0)
    for each in findings:
        mark = Cell(f"{each.level:<4}", _COLOURS[each.level])
        screen.table([[mark, Cell(f"{each.check:<{width}}"), Cell(each.what)]])
        if each.fix:
            screen.table([[Cell("    "), Cell(" " * width), Cell(f"-> {each.fix}", Colour.DIM)]])
    counts = {level: sum(each.level == level for each in findings) for level in _COLOURS}
    screen.line()
    screen.line(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
