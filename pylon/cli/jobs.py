"""`pylon jobs`: list, show and cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats
from pylon.cli.options import JsonOption
from pylon.cli.output import EXIT_USAGE, UserError, fail, say
from pylon.cli.views import NOT_RUNNING, control_client, open_views, require_free_home
from pylon.control.client import DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.control.views import MAX_JOBS, MIN_PREFIX, JobDetail, JobsQuery, JobView
from pylon.store.records import Money, Work
from pylon.text import printable

_GOOD = frozenset({Work.DELIVERED, Money.SETTLED})
_BAD = frozenset({Work.FAILED, Work.UNDELIVERABLE, Money.UNPAID, Money.REFUND_DUE})
_HEX = frozenset("0123456789abcdef")
_SHORT_ID = 12
_REQUEST_LIMIT = 2_000_000
_CANNOT_TELL = "pylon is not running, and only a running daemon counts what it refuses: pylon start"
_CANNOT_CANCEL = "pylon is not running, and only a running daemon can cancel a job: pylon start"

app = typer.Typer(rich_markup_mode=None, add_completion=False)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its first digits (six at least).")]


@app.callback()
def _jobs() -> None:
    """List, show and cancel jobs. Listing and showing work without a running daemon too."""


@app.command("list", epilog="Example: pylon jobs list --money refund_due")
def list_jobs(
    ctx: typer.Context,
    work: Annotated[Work | None, typer.Option("--work", help="Only jobs whose work is here.")] = None,
    money: Annotated[Money | None, typer.Option("--money", help="Only jobs whose money is here.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_JOBS, help="How many at most.")] = 50,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="Go on after the last job of an earlier list.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    context: CliContext = ctx.obj
    found = open_views(context.paths).jobs(JobsQuery(work, money, limit, after and checked_id(after)))
    if json:
        say(dump_json(list(found), indent=2))
        return
    if not found:
        say("no jobs")
        return
    screen = Screen()
    titles = ("id", "accepted", "model", "work", "money", "price", "runs", "reason")
    head = [Cell(title, Colour.DIM, title in ("price", "runs")) for title in titles]
    screen.table([head, *(_row(job) for job in found)])
    say(screen.text())


@app.command("show", epilog="Example: pylon jobs show 3f9a1c07")
def show_job(
    ctx: typer.Context,
    job_id: JobId,
    show_input: Annotated[
        bool, typer.Option("--show-input", help="Print the customer's request too, while it is kept.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show one job: its states, invoices, runs and what happened to it."""
    context: CliContext = ctx.obj
    detail = open_views(context.paths).job(checked_id(job_id), show_input=show_input)
    if json:
        say(dump_json(detail, indent=2))
        return
    screen = Screen()
    _show(detail, screen)
    if show_input:
        screen.heading("Request")
        kept = detail.request_json is not None
        text = printable(detail.request_json, limit=_REQUEST_LIMIT) if kept else "not kept any more"
        screen.line(f"  {text}")
    say(screen.text())


@app.command("cancel", epilog="Example: pylon jobs cancel 3f9a1c07")
def cancel_job(ctx: typer.Context, job_id: JobId, json: JsonOption = False) -> None:
    """Cancel a job that has not ended. What its customer has paid for it becomes a refund due."""
    context: CliContext = ctx.obj
    try:
        job = control_client(context.paths).cancel_job(checked_id(job_id))
    except DaemonNotRunning as error:
        require_free_home(context.paths)
        raise UserError(_CANNOT_CANCEL, NOT_RUNNING) from error
    if json:
        say(dump_json(job, indent=2))
    else:
        say(f"{printable(job.id[:_SHORT_ID])}: work {printable(job.work)}, money {printable(job.money)}")


@app.command("refused", epilog="Example: pylon jobs refused")
def refused_jobs(ctx: typer.Context, json: JsonOption = False) -> None:
    """Show the demand that was missed since the daemon started: refused or dropped requests, and why.

    They are counters, not jobs: what is refused is never stored.
    """
    context: CliContext = ctx.obj
    try:
        status = control_client(context.paths).status()
    except DaemonNotRunning as error:
        require_free_home(context.paths)
        raise UserError(_CANNOT_TELL, NOT_RUNNING) from error
    if json:
        say(dump_json({"refused": status.refused, "missed_models": status.missed_models}, indent=2))
        return
    screen = Screen()
    screen.line(f"{status.intake.accepted} accepted, {sum(status.refused.values())} refused or dropped")
    for title, counts in (
        ("By reason", status.refused),
        ("Models asked for and not offered", status.missed_models),
    ):
        if counts:
            screen.heading(title)
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            screen.table([[cell(count), cell(name, limit=64)] for name, count in ordered], indent="  ")
    say(screen.text())


def checked_id(job_id: str) -> str:
    """Return a job's id, or its beginning, as the daemon takes it. Raises `UserError`."""
    text = job_id.strip().lower()
    if not (MIN_PREFIX <= len(text) <= 64 and _HEX.issuperset(text)):
        fail(f"'{job_id}' is no job's id: {MIN_PREFIX} to 64 hex digits, as in pylon jobs list", EXIT_USAGE)
    return text


def _row(job: JobView) -> list[Cell]:
    return [
        cell(job.id[:_SHORT_ID]),
        cell(moment(job.accepted_at)),
        cell(job.model, limit=40),
        cell(job.work, _colour(job.work)),
        cell(job.money, _colour(job.money)),
        Cell(sats(job.price_msats), right=True),
        cell(job.attempts),
        cell(job.reason, limit=60),
    ]


def _show(detail: JobDetail, screen: Screen) -> None:
    job = detail.job
    facts: list[tuple[str, object]] = [
        ("id", job.id),
        ("customer", job.customer),
        ("kind", job.kind),
        ("model", job.model),
        ("price", sats(job.price_msats)),
        ("accepted", moment(job.accepted_at)),
        ("deadline", moment(job.deadline_at)),
        ("result", job.result_id or "none"),
    ]
    screen.table(
        [
            [cell("work"), cell(job.work, _colour(job.work))],
            [cell("money"), cell(job.money, _colour(job.money))],
            *([cell("reason"), cell(reason, limit=500)] for reason in [job.reason] if reason),
            *([cell(name), cell(str(value), limit=200)] for name, value in facts),
        ]
    )
    if detail.invoices:
        screen.heading("Invoices")
        screen.table(
            [
                [
                    cell(invoice.number),
                    cell(invoice.state),
                    Cell(sats(invoice.amount_msats), right=True),
                    cell(f"until {moment(invoice.expires_at)}"),
                    cell(invoice.payment_hash or ""),
                ]
                for invoice in detail.invoices
            ],
            indent="  ",
        )
    if detail.attempts:
        screen.heading("Runs")
        screen.table(
            [
                [cell(run.number), cell(moment(run.started_at)), cell(run.outcome or "running", limit=200)]
                for run in detail.attempts
            ],
            indent="  ",
        )
    screen.heading("What happened")
    screen.table([[cell(moment(line.at)), cell(line.text, limit=500)] for line in detail.journal], indent="  ")


def _colour(state: str) -> Colour:
    if state in _GOOD:
        return Colour.GOOD
    return Colour.BAD if state in _BAD else Colour.NONE
