"""`pylon status`: one look tells what is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, duration, moment, sats, size
from pylon.cli.output import say
from pylon.cli.views import NOT_RUNNING, control_client, require_free_home
from pylon.control.client import DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.control.owner_line import OwnerLine
from pylon.control.views import BackendLine, DaemonState, DaemonStatus, RelayLine
from pylon.text import printable

_STATE_COLOURS = {DaemonState.READY: Colour.GOOD, DaemonState.DEGRADED: Colour.BAD}
_GOOD_WORDS = frozenset({"connected", "ready"})


def command(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    seconds: Annotated[str, typer.Argument(metavar="[SECONDS]", help="How often, with --watch.")] = "1",
) -> int:
    """Show what is going on: relays, backends, wallet, queue, jobs and money.

    With --watch it goes on when the daemon goes away and comes back, and ends with exit code 0.
    Exit code: 0 when it runs and is ready, 1 when it runs and is not (starting, degraded, paused, draining,
    stopping), 3 when it does not run.
    """
    context: CliContext = ctx.obj
    client = control_client(context.paths, timeout_s=5)
    if watch:
        from pylon.cli.watch import parse_interval, watch_status

        return watch_status(client.status, parse_interval(seconds), json=json)
    if seconds != "1":
        raise typer.BadParameter(f"{printable(seconds)}: seconds go with --watch", param_hint="SECONDS")
    try:
        status = client.status()
    except DaemonNotRunning:
        require_free_home(context.paths)
        say(dump_json({"state": "not-running"}) if json else "pylon is not running (start it: pylon start)")
        return NOT_RUNNING
    if json:
        say(dump_json(status, indent=2))
    else:
        screen = Screen()
        show(status, screen)
        say(screen.text())
    return 0 if status.state is DaemonState.READY else 1


def show(status: DaemonStatus, screen: Screen) -> None:
    """Put a daemon's state on the screen."""
    _show_head(status, screen)
    _show_rules(status.owner, screen)
    _show_relays(status, screen)
    _show_backends(status, screen)
    _show_models(status, screen)
    _show_queue(status, screen)
    _show_money(status, screen)
    _show_counts(status, screen)


def _show_head(status: DaemonStatus, screen: Screen) -> None:
    state = cell(status.state, _STATE_COLOURS.get(status.state, Colour.WARN))
    rows = [
        (cell("pylon"), cell(status.version)),
        (cell("state"), state),
        *((cell("because"), cell(reason, Colour.WARN, limit=300)) for reason in status.state_reasons),
        (cell("identity"), cell(status.npub)),
        (cell("uptime"), cell(f"{duration(status.uptime_s)} (process {status.pid})")),
        (cell("payment"), cell(status.payment_mode)),
    ]
    wallet = status.wallet
    if wallet is None:
        rows.append((cell("wallet"), cell("none")))
    else:
        told = ", ".join(part for part in (wallet.network, wallet.detail) if part)
        word, colour = ("ready", Colour.GOOD) if wallet.ready else ("not ready", Colour.BAD)
        rows.append(
            (cell("wallet"), cell(f"{wallet.kind}: {word}{f' ({told})' if told else ''}", colour, limit=300))
        )
    paused = status.intake.paused
    taken = f"{status.intake.accepted} accepted"
    if status.owner.stance != "open":
        rows.append((cell("owner"), cell(_owner_text(status.owner), Colour.WARN, limit=300)))
        rows.append((cell("intake"), cell(f"{taken}, now closed")))
    else:
        rows.append((cell("intake"), cell(f"paused: {paused}", Colour.BAD, limit=300) if paused else cell(taken)))
    store = status.store
    fine = f"{size(store.database_bytes)}, {status.outbox_pending} to publish, {status.dead_letters} undeliverable"
    rows.append(
        (cell("store"), cell(fine) if store.healthy else cell(f"failed: {store.detail}", Colour.BAD, limit=300))
    )
    rows += _settings_rows(status)
    screen.table(rows)


def _owner_text(owner: OwnerLine) -> str:
    """Say since when the owner has the machine, what is left to be done, and whether the memory is free."""
    paid = f" ({owner.waiting_paid} paid)" if owner.waiting_paid else ""
    if owner.first_deadline_at is not None:
        paid = f" ({owner.waiting_paid} paid, first deadline {moment(owner.first_deadline_at)})"
    counts = (
        (owner.running, f"{owner.running} running"),
        (owner.waiting, f"{owner.waiting} waiting{paid}"),
        (owner.to_deliver, f"{owner.to_deliver} to deliver"),
        (owner.unpaid, f"{owner.unpaid} unpaid"),
    )
    parts = [
        "" if owner.since is None else f"since {moment(owner.since)}",
        *(text for count, text in counts if count),
    ]
    if owner.freed_at is not None:
        parts.append(f"{size(owner.freed_bytes)} of memory given back")
    return "; ".join(part for part in parts if part)


def _show_rules(owner: OwnerLine, screen: Screen) -> None:
    """Show the rules of `[owner]`, where there are any."""
    if not owner.rules:
        return
    until = "" if owner.waived_until is None else f" until {moment(owner.waived_until)}"
    screen.heading(f"Rules of the owner{f' (ignored{until})' if owner.rules_waived else ''}")
    rows = []
    for rule in owner.rules:
        word = {True: "yes", False: "no", None: "not known"}[rule.allows]
        changes = "" if rule.until is None else f"until {moment(rule.until)}"
        colour = Colour.WARN if rule.pauses else Colour.GOOD
        rows.append([cell(rule.rule), cell(word, colour), cell(changes), cell(rule.why, limit=160)])
    _table(screen, ("rule", "work", "", ""), rows)


def _settings_rows(status: DaemonStatus) -> list[tuple[Cell, Cell]]:
    """Return what the operator must know of the settings: nothing, while what is in the files is in force."""
    line = status.settings
    if line is None:
        return []
    rows = []
    if line.error:
        wrong = f"as they were, what was read is wrong: {line.error}"
        rows.append((cell("settings"), cell(wrong, Colour.BAD, limit=400)))
    if line.restart:
        waits = f"a restart is needed for {', '.join(each.key for each in line.restart)}"
        rows.append((cell("settings"), cell(waits, Colour.WARN, limit=300)))
    return rows


def _show_relays(status: DaemonStatus, screen: Screen) -> None:
    connected = sum(relay.status == "connected" for relay in status.relays)
    screen.heading(f"Relays ({connected} of {len(status.relays)} connected)")
    titles = ("url", "state", "in", "out", "ok", "refused", "dropped", "reconnects", "ping", "")
    _table(screen, titles, [_relay_row(relay) for relay in status.relays])


def _relay_row(relay: RelayLine) -> list[Cell]:
    state = f"{relay.status}, auth" if relay.authenticated else relay.status
    ping = "" if relay.latency_ms is None else f"{relay.latency_ms:.0f} ms"
    counts = (relay.received, relay.sent, relay.accepted, relay.refused, relay.dropped, relay.reconnects)
    return [
        cell(relay.url),
        cell(state, _health_colour(relay.status)),
        *(cell(count) for count in counts),
        cell(ping),
        cell(relay.detail, limit=120),
    ]


def _show_backends(status: DaemonStatus, screen: Screen) -> None:
    screen.heading("Backends")
    _table(
        screen,
        ("name", "kind", "state", "busy", "memory", "models", ""),
        [_backend_row(item, paused=status.owner.stance == "paused") for item in status.backends],
    )


def _backend_row(backend: BackendLine, *, paused: bool) -> list[Cell]:
    kept = "keeps its memory: it cannot be told to give it back" if paused and backend.keeps_memory else ""
    return [
        cell(backend.name),
        cell(backend.kind),
        cell(backend.health, _health_colour(backend.health)),
        cell(f"{backend.busy}/{backend.slots}"),
        Cell("-" if backend.memory_bytes is None else size(backend.memory_bytes), right=True),
        cell(", ".join(backend.models)),
        cell("; ".join(part for part in (backend.detail, kept) if part), limit=120),
    ]


def _show_models(status: DaemonStatus, screen: Screen) -> None:
    screen.heading("Models on offer")
    titles = ("name", "backend", "now", "base", "per 1k input", "per 1k output", "also known as")
    rows = []
    for model in status.models:
        now = cell("yes", Colour.GOOD) if model.available else cell("no", Colour.BAD)
        prices = (model.base_msats, model.per_1k_input_msats, model.per_1k_output_msats)
        names = cell(", ".join(model.aliases))
        rows.append([cell(model.name), cell(model.backend), now, *(_amount(price) for price in prices), names])
    _table(screen, titles, rows)


def _show_queue(status: DaemonStatus, screen: Screen) -> None:
    screen.heading("Queue")
    rows = [
        [cell(line.backend), cell(line.model), *map(cell, (line.queued, line.running, line.slots, line.reserved))]
        for line in status.queue
    ]
    _table(screen, ("backend", "model", "waiting", "running", "slots", "reserved"), rows)


def _show_money(status: DaemonStatus, screen: Screen) -> None:
    books = status.books
    owed = Colour.WARN if books.refund_due_msats else Colour.NONE
    screen.heading("Money")
    given_back = (
        ("refunded", books.refunded_msats, Colour.NONE),
        ("  for their routes", books.refund_fees_msats, Colour.NONE),
        ("written off", books.written_off_msats, Colour.NONE),
    )
    rows = (
        ("received", books.received_msats, Colour.NONE),
        ("earned", books.earned_msats, Colour.GOOD if books.earned_msats else Colour.NONE),
        ("owed", books.owed_msats, Colour.NONE),
        ("  for work under way", books.in_work_msats, Colour.NONE),
        ("  refunds due", books.refund_due_msats, owed),
        ("  deposits", books.deposits_msats, Colour.NONE),
        *(row for row in given_back if row[1]),
    )
    screen.table([[cell(name), _amount(amount, colour)] for name, amount, colour in rows], indent="  ")


def _show_counts(status: DaemonStatus, screen: Screen) -> None:
    for title, counts in (("Jobs (work/money)", status.jobs_by_state), ("Refused, by reason", status.refused)):
        screen.heading(title)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        _table(screen, (), [[cell(count), cell(name)] for name, count in ordered])


def _table(screen: Screen, titles: tuple[str, ...], rows: list[list[Cell]]) -> None:
    if not rows:
        screen.line("  none", Colour.DIM)
        return
    # A title stands like its column's values do.
    head = [Cell(title, Colour.DIM, rows[0][at].right) for at, title in enumerate(titles)]
    screen.table([head, *rows] if head else rows, indent="  ")


def _amount(amount_msats: int, colour: Colour = Colour.NONE) -> Cell:
    return Cell(sats(amount_msats), colour, right=True)


def _health_colour(word: str) -> Colour:
    return Colour.GOOD if word in _GOOD_WORDS else Colour.BAD
