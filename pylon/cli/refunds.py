"""`pylon refunds`: list, pay and write off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from pylon.cli.context import CliContext
from pylon.cli.jobs import checked_id
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats
from pylon.cli.options import JsonOption
from pylon.cli.output import EXIT_USAGE, UserError, fail, say
from pylon.cli.views import NOT_RUNNING, control_client, open_views, require_free_home
from pylon.control.client import ControlClient, DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.control.views import MAX_DESTINATION, MAX_REASON, RefundView
from pylon.text import printable

_SHORT_ID = 12
_PAY_S = 20.0
_CANNOT = "pylon is not running, and only a running daemon can pay refunds or write them off: pylon start"
_DUE, _REFUNDED = "refund_due", "refunded"

app = typer.Typer(rich_markup_mode=None, add_completion=False)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its first digits (six at least).")]


@app.callback()
def _refunds() -> None:
    """List refunds that are due, pay them or write them off. Listing works without a running daemon too."""


@app.command("list", epilog="Example: pylon refunds list --all")
def list_refunds(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also what was paid back or written off.")] = False,
    json: JsonOption = False,
) -> None:
    """List what is to be paid back, oldest first, and for what each waits."""
    context: CliContext = ctx.obj
    found = open_views(context.paths).refunds(ended=everything)
    if json:
        say(dump_json(list(found), indent=2))
        return
    if not found:
        say("no refunds" if everything else "no refunds are due")
        return
    screen = Screen()
    titles = ("job", "money", "due", "to", "because", "")
    head = [Cell(title, Colour.DIM, title == "due") for title in titles]
    screen.table([head, *(_row(each) for each in found)])
    payments = [(each, line) for each in found for line in each.payments]
    if payments:
        screen.heading("Payments")
        screen.table(
            [
                [
                    cell(each.job[:_SHORT_ID]),
                    cell(line.number),
                    cell(line.state),
                    Cell(sats(line.amount_msats), right=True),
                    cell(moment(line.created_at)),
                    cell(line.payment_hash or ""),
                    cell(line.reason, limit=200),
                ]
                for each, line in payments
            ],
            indent="  ",
        )
    say(screen.text())


@app.command("pay", epilog="Example: pylon refunds pay 3f9a1c07 --to alice@example.com")
def pay_refund(
    ctx: typer.Context,
    job_id: JobId,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="ADDRESS", help="A lightning address or BOLT11 invoice, instead of the customer's own."
        ),
    ] = "",
    json: JsonOption = False,
) -> int:
    """Pay a refund, whatever the caps say. It is tried until it is paid, or until somebody has to say something.

    Exit code: 0 when it is paid, 1 when it is not (yet), 3 when no daemon runs.
    """
    context: CliContext = ctx.obj
    if len(to.strip()) > MAX_DESTINATION:
        fail(f"--to has at most {MAX_DESTINATION} characters", EXIT_USAGE)
    job = checked_id(job_id)
    view = _ask(context, lambda client: client.pay_refund(job, to.strip()))
    if json:
        say(dump_json(view, indent=2))
    else:
        say(f"{printable(view.job[:_SHORT_ID])}: {_outcome(view)}")
    return 0 if view.money == _REFUNDED else 1


@app.command("write-off", epilog="Example: pylon refunds write-off 3f9a1c07 --reason 'paid in person'")
def write_off(
    ctx: typer.Context,
    job_id: JobId,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: it stays in the books.")],
    json: JsonOption = False,
) -> None:
    """Record that a refund will not be paid from here. Its customer is told that, and not why."""
    context: CliContext = ctx.obj
    text = reason.strip()
    if not 1 <= len(text) <= MAX_REASON:
        fail(f"--reason is a text of 1 to {MAX_REASON} characters", EXIT_USAGE)
    job = checked_id(job_id)
    view = _ask(context, lambda client: client.write_off(job, text))
    say(dump_json(view, indent=2) if json else f"{printable(view.job[:_SHORT_ID])}: written off")


def _ask(context: CliContext, question: Callable[[ControlClient], RefundView]) -> RefundView:
    try:
        return question(control_client(context.paths, timeout_s=_PAY_S))
    except DaemonNotRunning as error:
        require_free_home(context.paths)
        raise UserError(_CANNOT, NOT_RUNNING) from error


def _row(view: RefundView) -> list[Cell]:
    to = f"{view.destination} ({view.source})" if view.destination else ""
    return [
        cell(view.job[:_SHORT_ID]),
        cell(view.money, Colour.BAD if view.money == _DUE else Colour.NONE),
        Cell(sats(view.due_msats), right=True),
        cell(to, limit=60),
        cell(view.reason, limit=60),
        cell(view.waits, Colour.WARN, limit=200),
    ]


def _outcome(view: RefundView) -> str:
    if view.money == _REFUNDED and view.payments:
        paid = view.payments[-1]
        fee = f", and {sats(paid.fee_msats)} for the route" if paid.fee_msats else ""
        return f"{sats(paid.amount_msats)} paid back{fee}; payment hash {printable(paid.payment_hash or '')}"
    if view.money == _DUE:
        why = printable(view.waits, limit=300) or "the daemon is at it"
        return f"{sats(view.due_msats)} not paid yet: {why}"
    return f"{sats(view.due_msats)} on their way: see pylon refunds list"
