"""`pylon wallet`: the wallet of the settings, used by hand; no running daemon is needed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, duration, moment, sats
from pylon.cli.options import ConfigOption
from pylon.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say, say_json, warn
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.jobs.ports import Payment, Transaction, Wallet
    from pylon.nostr.bolt11 import InvoiceFacts
    from pylon.settings import Settings

EXIT_IN_DOUBT: Final = 4  # what was waited for has not come in time: a payment may have been made, or not

_LEAST_FEE_MSATS: Final = 10_000
_EXPIRY_S: Final = 3_600

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, amounts in msats.")]


@app.callback()
def _wallet() -> None:
    """Connect a wallet, see what is in it, and move money by hand."""


@app.command("status", epilog="Example: pylon wallet status --json")
def show_status(config: ConfigOption = None, json: Json = False) -> None:
    """Ask the wallet whether it is ready, what it can do, and for its balance.

    Exit code: 0 it is ready, 1 it is not.
    """
    from pylon.cli.wallet_use import with_wallet
    from pylon.jobs.ports import WalletAbility, WalletError, WalletState

    settings = _settings(config)

    async def ask(wallet: Wallet) -> tuple[WalletState, int | None]:
        state = await wallet.check()
        if not state.ready or WalletAbility.BALANCE not in state.abilities:
            return state, None
        try:
            return state, await wallet.balance_msats()
        except WalletError:
            return wallet.state(), None

    state, balance_msats = with_wallet(_connected(settings), ask)
    wanted = settings.wallet.network.value
    if json:
        shown = {
            "kind": state.kind,
            "ready": state.ready,
            "detail": printable(state.detail),
            "network": state.network,
        }
        shown |= {"wanted_network": wanted, "abilities": sorted(state.abilities), "balance_msats": balance_msats}
        say_json(shown)
    else:
        ready = (
            cell("ready", Colour.GOOD) if state.ready else cell(f"not ready: {state.detail}", Colour.BAD, limit=400)
        )
        rows = [[cell("wallet"), cell(state.kind)], [cell("state"), ready]]
        rows += [[cell("network"), cell(state.network or "not known")]]
        rows += [[cell("can"), cell(", ".join(sorted(state.abilities)).replace("_", " ") or "nothing special")]]
        if balance_msats is not None:
            rows.append([cell("balance"), cell(sats(balance_msats))])
        screen = Screen()
        screen.table(rows)
        say(screen.text())
    if state.network and state.network != wanted:
        warn(f"its invoices are refused: it is on {state.network}, and wallet.network is {wanted}")
    if not state.ready:
        raise typer.Exit(EXIT_FAILED)


@app.command("balance", epilog="Example: pylon wallet balance --json")
def show_balance(config: ConfigOption = None, json: Json = False) -> None:
    """Show what can be spent."""
    from pylon.cli.wallet_use import with_wallet

    balance_msats = with_wallet(_connected(_settings(config)), lambda wallet: wallet.balance_msats())
    if json:
        say_json({"balance_msats": balance_msats})
    else:
        say(f"{sats(balance_msats)} ({balance_msats} msats)")


@app.command("invoice", epilog='Example: pylon wallet invoice 100 --description "top up" --wait')
def make_invoice(
    amount: Annotated[int, typer.Argument(metavar="AMOUNT", min=1, help="How much, in sats.")],
    msats: Annotated[bool, typer.Option("--msats", help="The amount is in msats.")] = False,
    description: Annotated[
        str, typer.Option("--description", metavar="TEXT", help="What the payer reads; an id of ours follows it.")
    ] = "pylon",
    expiry: Annotated[
        int, typer.Option("--expiry", min=30, max=604_800, metavar="SECONDS", help="How long it can be paid.")
    ] = _EXPIRY_S,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is paid or has expired.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make an invoice and print it. Its amount, network and expiry are checked before it is shown.

    The invoice goes to stdout and all else to stderr.

    Exit code: 0 made (with --wait: paid), 1 not made, 4 not paid in time.
    """
    from pylon.cli import wallet_use
    from pylon.jobs.ports import Invoice
    from pylon.nostr.bolt11 import MAX_AMOUNT_MSATS

    settings = _settings(config)
    amount_msats = amount if msats else amount * 1000
    if amount_msats > MAX_AMOUNT_MSATS:
        fail(f"{amount} is more than all the money there is", EXIT_USAGE)
    asked = wallet_use.Asked(amount_msats, expiry, settings.wallet.network.value, description)

    async def work(wallet: Wallet) -> Invoice | None:
        await wallet.check()
        made = await wallet_use.make_invoice(wallet, asked)
        say(made.bolt11)
        sys.stdout.flush()
        warn(f"{sats(amount_msats)}, can be paid until {moment(made.expires_at)}")
        if not wait:
            return made
        deadline_at = made.expires_at + settings.payment.invoice_grace_s
        return await wallet_use.wait_until_paid(wallet, made, deadline_at)

    paid = wallet_use.with_wallet(_connected(settings), work)
    if not wait:
        return
    if paid is None:
        fail("the invoice has expired unpaid", EXIT_IN_DOUBT)
    at = int(time.time()) if paid.settled_at is None else paid.settled_at
    warn(f"paid: {sats(paid.received_msats)} at {moment(at)}")


@app.command("pay", epilog="Example: pylon wallet pay lnbc210n1… --max-fee-sats 5")
def pay_invoice(
    bolt11: Annotated[str, typer.Argument(metavar="BOLT11", help="The invoice.")],
    max_fee_sats: Annotated[
        int | None,
        typer.Option("--max-fee-sats", min=0, metavar="SATS", help="The most that the way may cost; 1 %, or 10."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    patience: Annotated[
        float,
        typer.Option(
            "--timeout", min=0, max=86_400, metavar="SECONDS", help="How long an unclear end is asked after."
        ),
    ] = 60.0,
    config: ConfigOption = None,
) -> None:
    """Pay an invoice, after showing what it asks and a yes. Repeated, the command never pays twice.

    Exit code: 0 paid (now or before), 1 certainly not paid, 2 wrong usage or settings, 4 not known in time: the
    payment may have been made or still be made; repeat the command, which asks first.
    """
    from pylon.cli import wallet_use
    from pylon.jobs.ports import PaymentState, WalletAmbiguous
    from pylon.nostr.bolt11 import BadInvoice, read_invoice

    bolt11 = bolt11.strip().removeprefix("lightning:")
    try:
        facts = read_invoice(bolt11)
    except BadInvoice as error:
        fail(f"nothing is paid: {error}", EXIT_USAGE)
    settings = _settings(config)
    if facts.amount_msats is None:
        fail("nothing is paid: the invoice names no amount; ask the payee for one that does", EXIT_USAGE)
    if facts.network != settings.wallet.network.value:
        wanted = settings.wallet.network.value
        fail(f"nothing is paid: the invoice is for {facts.network}, and wallet.network is {wanted}", EXIT_USAGE)
    amount_msats = facts.amount_msats
    fee_msats = max(_LEAST_FEE_MSATS, amount_msats // 100) if max_fee_sats is None else max_fee_sats * 1000

    async def before(wallet: Wallet) -> Payment | None:
        known = await wallet_use.known_payment(wallet, facts)
        if known is not None and known.state is PaymentState.PENDING:
            warn("the wallet is paying this invoice already; waiting for the end of it")
            return await wallet_use.await_payment(wallet, facts, patience_s=patience, doubt="it is not finished")
        return known

    async def pay(wallet: Wallet) -> Payment:
        return await wallet_use.pay_once(wallet, bolt11, facts, max_fee_msats=fee_msats, patience_s=patience)

    try:
        known = wallet_use.with_wallet(_connected(settings), before)
        if known is not None:
            _report_paid("was paid before", known)
            return
        _confirm(facts, amount_msats, fee_msats, yes=yes)
        _report_paid("paid", wallet_use.with_wallet(_connected(settings), pay))
    except WalletAmbiguous as error:
        again = "the payment may have been made or still be made: repeat this command, which asks first"
        fail(f"{error}; {again}", EXIT_IN_DOUBT)


@app.command("history", epilog="Example: pylon wallet history --since 7d --json")
def show_history(
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="From then on: 2026-11-30, 24h, 7d or 4w.")
    ] = "30d",
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest so many.")] = 20,
    config: ConfigOption = None,
    json: Json = False,
) -> None:
    """List what the wallet received and sent, newest last. Amounts are without fees."""
    from dataclasses import asdict

    from pylon.cli.earnings import parse_since
    from pylon.cli.wallet_use import with_wallet

    start = parse_since(since, time.time())
    listed = with_wallet(_connected(_settings(config)), lambda wallet: wallet.transactions(start))
    shown = listed[-limit:]
    if json:
        say_json([asdict(each) for each in shown])
        return
    if not shown:
        say(f"nothing since {moment(start)}")
        return
    head = [
        Cell(title, Colour.DIM, title in ("amount", "fee")) for title in ("when", "", "amount", "fee", "state", "")
    ]
    screen = Screen()
    screen.table([head, *map(_row, shown)])
    if len(listed) > len(shown):
        screen.line(f"{len(listed) - len(shown)} older ones are not shown: --limit", Colour.DIM)
    say(screen.text())


@app.command("connect", epilog="Example: pylon wallet connect phoenixd --url http://127.0.0.1:9740")
def connect_wallet(
    ctx: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="The kind of wallet, as in wallet.kind. Without one a nostr+walletconnect:// URI is asked for.",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Where the wallet answers.")] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="The network of its invoices, if not bitcoin.")
    ] = None,
    test: Annotated[bool, typer.Option(help="Ask the wallet, and have it make an invoice over 1 sat.")] = True,
    config: ConfigOption = None,
) -> None:
    """Connect a wallet: ask for its secret, try it, and store both.

    The secret is read without echo, or from stdin where that is a pipe. It comes to lie in a file of its own that
    only you can read; the settings file gets the rest. Nothing is stored unless the wallet passed its test.
    """
    from pylon.cli.wallet_connect import connect

    context: CliContext = ctx.obj
    connect(context.paths, config.expanduser() if config else None, what, url, network, test=test)


def _row(line: Transaction) -> list[Cell]:
    incoming = line.direction == "incoming"
    arrow = Cell("in", Colour.GOOD) if incoming else Cell("out", Colour.WARN)
    fee = Cell(sats(line.fee_msats) if line.fee_msats else "", right=True)
    amount = Cell(sats(line.amount_msats), right=True)
    return [cell(moment(line.created_at)), arrow, amount, fee, cell(line.state), cell(line.description, limit=60)]


def _confirm(facts: InvoiceFacts, amount_msats: int, fee_msats: int, *, yes: bool) -> None:
    left_s = int(facts.expires_at - time.time())
    if left_s <= 0:
        fail(f"nothing is paid: the invoice expired {duration(-left_s)} ago")
    rows = [
        ("amount", sats(amount_msats)),
        ("fee", f"up to {sats(fee_msats)}, where the wallet takes a limit"),
        ("payee", facts.payee),
    ]
    rows += [("network", facts.network), ("expires", f"in {duration(left_s)}")]
    rows += [("for", facts.description)] if facts.description else []
    for name, value in rows:
        warn(f"{name:<9}{printable(value)}")
    if yes:
        return
    if not sys.stdin.isatty():
        fail("nothing is paid: without a terminal to say yes on, --yes is needed", EXIT_USAGE)
    if not typer.confirm("Pay?", err=True):
        fail("nothing is paid")


def _report_paid(how: str, payment: Payment) -> None:
    say(f"{how}: {sats(payment.amount_msats)}, fee {sats(payment.fee_msats)}, payment hash {payment.payment_hash}")


def _connected(settings: Settings) -> Wallet:
    """Return the wallet of the settings, not running yet. Raises `UserError`."""
    from pylon.assembly import make_wallet

    try:
        wallet = make_wallet(settings, time.time)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    if wallet is None:
        fail("no wallet is connected: pylon wallet connect", EXIT_USAGE)
    return wallet


def _settings(config: Path | None) -> Settings:
    from pylon.settings import load_settings

    return load_settings(config.expanduser() if config else None, None, os.environ).settings
