"""`pylon reconcile`: our books beside the wallet's."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.earnings import parse_since
from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats
from pylon.cli.options import ConfigOption
from pylon.cli.output import EXIT_FAILED, fail, say, say_json

if TYPE_CHECKING:
    from pylon.jobs.reconcile import Difference, Reconciliation

EXIT_UNASKED: Final = 4
"""The wallet could not be asked: nothing is known about the books."""

_HASH_CHARS: Final = 16


def command(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only payments since then: 2026-11-30, 24h, 7d or 4w."),
    ] = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, amounts in msats.")] = False,
) -> int:
    """Compare our books with the wallet's own list, and show each difference, why it is one and what to do.

    It changes nothing, and works beside a running daemon and without one.
    Exit code: 0 when they agree, 1 when they do not, 4 when the wallet cannot be asked.
    """
    from pylon import assembly
    from pylon.jobs.ports import WalletError
    from pylon.settings import load_settings

    context: CliContext = ctx.obj
    start = 0 if since is None else parse_since(since, time.time())
    settings = load_settings(config.expanduser() if config else None, None, os.environ).settings
    wallet = assembly.make_wallet(settings, time.time)
    if wallet is None:
        fail("no wallet is connected, so there is nothing to compare with: [wallet] in the settings", EXIT_UNASKED)
    database = context.paths.database
    if not database.exists():
        fail(f"there are no books yet: no database at {database}")

    async def run() -> Reconciliation:
        from pylon.reconciling import reconcile_with
        from pylon.store.reports import Reports

        async with wallet.running():
            grace_s = settings.payment.invoice_grace_s + int(settings.payment.lookup_max_s)
            return await reconcile_with(wallet, Reports(database), since=start, grace_s=grace_s, clock=time.time)

    import anyio

    try:
        found = anyio.run(run)
    except WalletError as error:
        fail(f"the wallet cannot be asked: {error}", EXIT_UNASKED)
    if json:
        say_json(_as_json(found, start))
    else:
        screen = Screen()
        show(found, start, wallet.name, screen)
        say(screen.text())
    return EXIT_FAILED if found.differences else 0


def show(found: Reconciliation, since: int, wallet: str, screen: Screen) -> None:
    """Put the outcome on the screen."""
    start = f"since {moment(since)}" if since else "since ever"
    screen.line(
        f"{found.settlements} settled payments and {found.refunds} refunds {start}, beside the {wallet} wallet"
    )
    rows = [
        ("received", found.received_msats),
        ("refunded", -found.refunded_msats),
        ("fees", -found.fees_msats),
        ("our books", found.books_msats),
    ]
    if found.change_msats is not None:
        rows.append(("the wallet's list", found.change_msats))
    if found.opening_msats is not None and found.balance_msats is not None:
        rows += [("balance before", found.opening_msats), ("balance now", found.balance_msats)]
    screen.table([[cell(name), Cell(sats(amount), right=True)] for name, amount in rows], indent="  ")
    if found.change_msats is None:
        screen.line(
            "This wallet has no list: only our own invoices were asked about, what else it did is not seen."
        )
    if not found.differences:
        screen.line("The books and the wallet agree.", Colour.GOOD)
        return
    screen.heading(f"Differences ({len(found.differences)})")
    for each in found.differences:
        _show(each, screen)


def _show(each: Difference, screen: Screen) -> None:
    what = f"job {each.job_id[:12]}" if each.job_id else "no job"
    about = f"{what}, payment {each.payment_hash[:_HASH_CHARS]}" if each.payment_hash else "the balance"
    amounts = f"ours {sats(each.ours_msats)}, the wallet's {sats(each.wallet_msats)}"
    screen.table([[cell(moment(each.at)), cell(each.kind, Colour.BAD), cell(about), cell(amounts)]], indent="  ")
    screen.line(f"      {each.reason}")
    screen.line(f"      -> {each.advice}", Colour.DIM)


def _as_json(found: Reconciliation, since: int) -> dict[str, object]:
    return {
        "since": since or None,
        "agree": not found.differences,
        "settlements": found.settlements,
        "refunds": found.refunds,
        "received_msats": found.received_msats,
        "refunded_msats": found.refunded_msats,
        "fees_msats": found.fees_msats,
        "books_msats": found.books_msats,
        "wallet_change_msats": found.change_msats,
        "balance_msats": found.balance_msats,
        "opening_msats": found.opening_msats,
        "differences": [
            {
                "kind": each.kind,
                "payment_hash": each.payment_hash or None,
                "job": each.job_id,
                "at": each.at,
                "ours_msats": each.ours_msats,
                "wallet_msats": each.wallet_msats,
                "reason": each.reason,
                "advice": each.advice,
            }
            for each in found.differences
        ],
    }
