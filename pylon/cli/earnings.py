"""`pylon earnings`: settled payments, and nothing but settled payments."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from pylon.cli.bars import bar
from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats
from pylon.cli.output import EXIT_USAGE, fail, say
from pylon.cli.views import open_views
from pylon.control.codec import dump_json
from pylon.control.views import BooksLine, EarningsBy, EarningsRow, EarningsView
from pylon.text import printable

_UNITS_S: Final = {"h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"([0-9]{1,6})([hdw])")
_COLUMNS: Final = (
    ("received", "received_msats"),
    ("earned", "earned_msats"),
    ("for work under way", "in_work_msats"),
    ("refunds due", "refund_due_msats"),
)
"""What a row tells of the books: its title on the screen, and its name in CSV."""

_RARER: Final = (
    ("deposits", "deposits_msats"),
    ("refunded", "refunded_msats"),
    ("refund fees", "refund_fees_msats"),
    ("written off", "written_off_msats"),
)
"""The same, on the screen only where there is any."""

_FORMULA: Final = frozenset("=+-@\t\r")
_LEAST_BAR: Final = 10
_MOST_BAR: Final = 60


def command(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only payments since then: 2026-11-30, 24h, 7d or 4w."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="Only payments before then, written likewise.")
    ] = None,
    by: Annotated[EarningsBy, typer.Option("--by", help="Split them into rows.")] = EarningsBy.TOTAL,
    utc: Annotated[bool, typer.Option("--utc", help="Dates and days are UTC, not this machine's.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, amounts in msats, earned in sats too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, amounts in msats.")] = False,
) -> None:
    """Show settled payments: what was received, what of it is earned, and what is owed.

    Earned is money whose work was delivered. Owed is money for work still under way, and money to refund.
    Works without a running daemon too. In a terminal the rows of --by come with a chart of what was earned.
    """
    if as_csv and json:
        fail("--csv and --json are given both: one is enough", EXIT_USAGE)
    now = time.time()
    start = None if since is None else parse_since(since, now, utc=utc)
    end = None if until is None else parse_since(until, now, utc=utc, option="--until")
    if start is not None and end is not None and start >= end:
        fail("--since is not before --until: nothing lies between them", EXIT_USAGE)
    context: CliContext = ctx.obj
    view = open_views(context.paths).earnings(start, by, until=end, local=not utc)
    if json:
        say(dump_json(view, indent=2))
        return
    if as_csv:
        sys.stdout.write(csv_text(view))
        return
    screen = Screen()
    show(view, screen, utc=utc)
    if view.rows and sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        show_chart(view.rows, screen, columns, blocks="utf" in (sys.stdout.encoding or "").lower())
    say(screen.text())


def parse_since(text: str, now: float, *, utc: bool = False, option: str = "--since") -> int:
    """Return unix seconds for a date (and time; local, or UTC) or a time ago. Raises `typer.BadParameter`."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return max(0, int(now) - int(ago[1]) * _UNITS_S[ago[2]])
        date = datetime.fromisoformat(text.strip())
        return max(0, int((date.replace(tzinfo=UTC) if utc and date.tzinfo is None else date).timestamp()))
    except (ValueError, OverflowError, OSError):
        allowed = "a date (2026-11-30, 2026-11-30T18:00) or a time ago (24h, 7d, 4w)"
        raise typer.BadParameter(f"not {allowed}", param_hint=option) from None


def csv_text(view: EarningsView) -> str:
    """Return the rows as CSV (RFC 4180), or the total as one row; no cell is taken for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    columns = (*_COLUMNS, *_RARER)
    writer.writerow([str(view.by), "payments", *(name for _, name in columns), "earned_sats"])
    rows = view.rows if view.by is not EarningsBy.TOTAL else (EarningsRow("total", view.payments, view.total),)
    for row in rows:
        amounts = [getattr(row.books, name) for _, name in columns]
        whole, rest = divmod(row.books.earned_msats, 1000)
        writer.writerow([_harmless(row.label), row.payments, *amounts, f"{whole}.{rest:03d}"])
    return out.getvalue()


def _harmless(label: str) -> str:
    """Return a label that a spreadsheet takes for text: a name may be a stranger's choice."""
    text = printable(label)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


def show_chart(rows: Sequence[EarningsRow], screen: Screen, columns: int, *, blocks: bool) -> None:
    """Put a bar for what each row earned on the screen, if `columns` leave room for one."""
    most = max(row.books.earned_msats for row in rows)
    texts = [(printable(row.label, limit=20), sats(row.books.earned_msats)) for row in rows]
    width = min(
        _MOST_BAR, columns - 7 - max(len(label) for label, _ in texts) - max(len(amount) for _, amount in texts)
    )
    if not most or width < _LEAST_BAR:
        return
    screen.heading("Earned")
    bars = [bar(row.books.earned_msats, most, width, blocks=blocks) for row in rows]
    cells = zip(texts, bars, strict=True)
    screen.table(
        [[Cell(label), Cell(amount, right=True), Cell(line)] for (label, amount), line in cells], indent="  "
    )


def show(view: EarningsView, screen: Screen, *, utc: bool = False) -> None:
    """Put earnings on the screen."""
    start = "ever" if view.since is None else f"since {moment(view.since, utc=utc)}"
    end = "" if view.until is None else f", before {moment(view.until, utc=utc)}"
    screen.line(f"{view.payments} settled payments {start}{end}")
    screen.table(
        [
            [cell("received"), _amount(view.total.received_msats)],
            [cell("earned"), _amount(view.total.earned_msats, Colour.GOOD)],
            [cell("owed"), _amount(view.total.owed_msats)],
            [cell("  for work under way"), _amount(view.total.in_work_msats)],
            [cell("  refunds due"), _amount(view.total.refund_due_msats)],
            *([cell(title), _amount(getattr(view.total, name))] for title, name in _shown(_RARER, view.total)),
        ],
        indent="  ",
    )
    if view.rows:
        screen.heading(f"By {view.by}")
        columns = (*_COLUMNS, *_shown(_RARER, view.total))
        titles = (str(view.by), "payments", *(title for title, _ in columns))
        head = [Cell(title, Colour.DIM, at > 0) for at, title in enumerate(titles)]
        rows = [
            [cell(row.label), cell(row.payments), *(_amount(getattr(row.books, name)) for _, name in columns)]
            for row in view.rows
        ]
        screen.table([head, *rows], indent="  ")


def _shown(columns: Sequence[tuple[str, str]], total: BooksLine) -> list[tuple[str, str]]:
    """Return the columns in which there is anything."""
    return [(title, name) for title, name in columns if getattr(total, name)]


def _amount(amount_msats: int, colour: Colour = Colour.NONE) -> Cell:
    return Cell(sats(amount_msats), colour, right=True)
