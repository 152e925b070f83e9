"""`pylon earnings`: settled payments, and nothing but settled payments."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats
from pylon.cli.output import say
from pylon.cli.views import open_views
from pylon.control.codec import dump_json
from pylon.control.views import BooksLine, EarningsBy, EarningsView

_UNITS_S: Final = {"h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"([0-9]{1,6})([hdw])")


def command(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only payments since then: 2026-11-30, 24h, 7d or 4w."),
    ] = None,
    by: Annotated[EarningsBy, typer.Option("--by", help="Split them into rows.")] = EarningsBy.TOTAL,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, amounts in msats.")] = False,
) -> None:
    """Show settled payments: what was received, what of it is earned, and what is owed.

    Earned is money whose work was delivered. Owed is money for work still under way, and money to refund.
    Works without a running daemon too.
    """
    context: CliContext = ctx.obj
    view = open_views(context.paths).earnings(None if since is None else parse_since(since, time.time()), by)
    if json:
        say(dump_json(view, indent=2))
        return
    screen = Screen()
    show(view, screen)
    say(screen.text())


def parse_since(text: str, now: float) -> int:
    """Return unix seconds for a local date (and time) or a time ago. Raises `typer.BadParameter`."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return max(0, int(now) - int(ago[1]) * _UNITS_S[ago[2]])
        return max(0, int(datetime.fromisoformat(text.strip()).timestamp()))
    except (ValueError, OverflowError, OSError):
        allowed = "a date (2026-11-30, 2026-11-30T18:00) or a time ago (24h, 7d, 4w)"
        raise typer.BadParameter(f"not {allowed}", param_hint="--since") from None


def show(view: EarningsView, screen: Screen) -> None:
    """Put earnings on the screen."""
    start = "ever" if view.since is None else f"since {moment(view.since)}"
    screen.line(f"{view.payments} settled payments {start}")
    screen.table(
        [
            [cell("received"), _amount(view.total.received_msats)],
            [cell("earned"), _amount(view.total.earned_msats, Colour.GOOD)],
            [cell("owed"), _amount(view.total.owed_msats)],
            [cell("  for work under way"), _amount(view.total.in_work_msats)],
            [cell("  refunds due"), _amount(view.total.refund_due_msats)],
            *([cell(name), _amount(amount)] for name, amount in _given_back(view.total) if amount),
        ],
        indent="  ",
    )
    if view.rows:
        screen.heading(f"By {view.by}")
        titles = (str(view.by), "payments", "received", "earned", "for work under way", "refunds due")
        head = [Cell(title, Colour.DIM, at > 0) for at, title in enumerate(titles)]
        rows = [[cell(row.label), cell(row.payments), *_amounts(row.books)] for row in view.rows]
        screen.table([head, *rows], indent="  ")


def _given_back(books: BooksLine) -> tuple[tuple[str, int], ...]:
    return (
        ("refunded", books.refunded_msats),
        ("  for their routes", books.refund_fees_msats),
        ("written off", books.written_off_msats),
    )


def _amounts(books: BooksLine) -> list[Cell]:
    parts = (books.received_msats, books.earned_msats, books.in_work_msats, books.refund_due_msats)
    return [_amount(part) for part in parts]


def _amount(amount_msats: int, colour: Colour = Colour.NONE) -> Cell:
    return Cell(sats(amount_msats), colour, right=True)
