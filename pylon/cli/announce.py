"""`pylon announce`: what customers are told of this provider, and whether the relays have it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell, moment
from pylon.cli.models import model_table
from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import EXIT_FAILED, fail, say
from pylon.cli.views import control_client, require_free_home
from pylon.control.client import DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.announcing import Desk
    from pylon.control.views import AnnouncementView
    from pylon.customer.visit import Reading
    from pylon.nostr.event import Event
    from pylon.nostr.nip89 import Announcement
    from pylon.paths import Paths

_NAMES = {31990: "announcement", 0: "profile", 10002: "relay list"}  # by kind

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def _announce() -> None:
    """Show, publish or withdraw the announcement (NIP-89) by which customers find this provider."""


@app.command("show", epilog="Example: pylon announce show")
def show_announcement(ctx: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> int:
    """Show what is announced, or would be, and what each relay has of it.

    Exit code: 0 when a relay answered, 1 when none did.
    """
    import anyio

    context: CliContext = ctx.obj
    live = _ask_daemon(context.paths)
    desk = _desk(context.paths, config, _relays_in_use(context.paths) if live else None)
    reading = anyio.run(desk.look)
    state = live.state if live else _state_without_daemon(context.paths, enabled=desk.config.enabled)
    announcement, event = _announced(live, desk)
    if json:
        say(dump_json(_as_json(state, announcement, event, reading, running=live is not None), indent=2))
    else:
        screen = Screen()
        show(state, announcement, event, reading, screen, running=live is not None)
        say(screen.text())
    return 0 if any(relay.complete for relay in reading.relays) else EXIT_FAILED


@app.command("publish", epilog="Example: pylon announce publish")
def publish(ctx: typer.Context, config: ConfigOption = None) -> int:
    """Announce now. A running daemon does it itself, and goes on keeping it true.

    Without one everything that is for sale is announced as paused, until pylon start.
    """
    import anyio

    context: CliContext = ctx.obj
    try:
        view = control_client(context.paths).publish_announcement()
    except DaemonNotRunning:
        require_free_home(context.paths)
        event = anyio.run(_desk(context.paths, config).publish)
        say(f"announced as {event.id}, marked as paused: no daemon runs (start it: pylon start)")
        return 0
    return _confirmed(view, "announced")


@app.command("withdraw", epilog="Example: pylon announce withdraw")
def withdraw(ctx: typer.Context, config: ConfigOption = None) -> int:
    """Ask the relays to delete the announcement (NIP-09); nothing is announced until pylon announce publish.

    The profile and the relay list of the key stay. Without a daemon it works too.
    """
    import anyio

    context: CliContext = ctx.obj
    try:
        view = control_client(context.paths).withdraw_announcement()
    except DaemonNotRunning:
        require_free_home(context.paths)
        event = anyio.run(_desk(context.paths, config, sells=False).withdraw)
        say(f"withdrawn by {event.id}; announce again with: pylon announce publish")
        return 0
    return _confirmed(view, "withdrawn")


def _confirmed(view: AnnouncementView, what: str) -> int:
    if view.confirmed_by is None:
        fail(f"{what}, but no relay has confirmed it yet: see pylon announce show")
    say(f"{what}; confirmed by {printable(view.confirmed_by)}")
    return 0


def _ask_daemon(paths: Paths) -> AnnouncementView | None:
    try:
        return control_client(paths).announcement()
    except DaemonNotRunning:
        return None


def _relays_in_use(paths: Paths) -> list[str]:
    """Return the relays of the running daemon, which its flags may have set."""
    return [relay.url for relay in control_client(paths).status().relays]


def _desk(paths: Paths, config: Path | None, relays: list[str] | None = None, *, sells: bool = True) -> Desk:
    from pylon import assembly
    from pylon.announcing import Desk
    from pylon.benches import claims, holding
    from pylon.cli.configured import known_benches
    from pylon.cli.passphrase import unlock
    from pylon.settings import SettingsError, load_settings
    from pylon.settings.identity_file import load_identity

    loaded = load_settings(config.expanduser() if config else None, {"relays.urls": relays}, os.environ)
    settings = loaded.settings
    if sells and not settings.models:
        raise SettingsError("models", "nothing is declared for sale, so there is nothing to announce: pylon init")
    key = load_identity(unlock(settings, paths), paths)
    announce, pool = assembly.make_announce_config(settings), assembly.make_pool_config(settings)
    measured = claims(holding(known_benches(paths), settings)[0], settings)
    return Desk(announce, assembly.make_offers(settings), pool, key, paths, measured=measured)


def _state_without_daemon(paths: Paths, *, enabled: bool) -> str:
    from pylon.jobs.announcer import WITHDRAWN_MARK, AnnounceState
    from pylon.store.reports import Reports

    if not enabled:
        return AnnounceState.OFF
    withdrawn = paths.database.exists() and Reports(paths.database).marks().get(WITHDRAWN_MARK)
    return AnnounceState.WITHDRAWN if withdrawn else AnnounceState.WAITING


def _announced(live: AnnouncementView | None, desk: Desk) -> tuple[Announcement, Event | None]:
    """Return what the daemon has announced, with its event; or what would be announced."""
    import orjson

    from pylon.nostr.event import parse_event
    from pylon.nostr.nip89 import ANNOUNCEMENT_KIND, parse_announcement

    events: list[Event] = [parse_event(orjson.loads(text)) for text in (live.events if live else ())]
    for event in events:
        if event.kind == ANNOUNCEMENT_KIND:
            return parse_announcement(event), event
    return desk.announcement(), None


# --- showing ----------------------------------------------------------------------------------------------------


def show(
    state: str, announcement: Announcement, event: Event | None, reading: Reading, screen: Screen, *, running: bool
) -> None:
    """Put an announcement on the screen, and what each relay has of it."""
    word = state if running or state != "waiting" else "as the relays have it; no daemon keeps it true"
    rows = [
        (cell("announcement"), cell(word, Colour.GOOD if state == "announced" else Colour.WARN)),
        (
            cell("daemon"),
            cell("running" if running else "not running; this is what pylon announce publish would say"),
        ),
        (cell("name"), cell(announcement.name)),
        (cell("about"), cell(announcement.about, limit=300)),
        (cell("kinds"), cell(", ".join(map(str, announcement.kinds)))),
        (cell("topics"), cell(", ".join(announcement.topics))),
        (cell("paused"), cell("yes", Colour.WARN) if announcement.paused else cell("no")),
    ]
    if event is not None:
        rows.append((cell("event"), cell(f"{event.id} of {moment(event.created_at)}", limit=120)))
    screen.table(rows)
    screen.heading("Models")
    model_table(announcement.models, screen)
    screen.heading("Relays")
    head = [Cell(title, Colour.DIM) for title in ("url", *_NAMES.values())]
    screen.table([head, *_relay_rows(reading)], indent="  ")


def _relay_rows(reading: Reading) -> list[list[Cell]]:
    from pylon.announcing import standing

    newest = {kind: standing(reading, kind) for kind in _NAMES}
    rows = []
    for relay in reading.relays:
        row = [cell(relay.url)]
        if relay.complete:
            row += [_version(_on_relay(reading, relay.url, kind), newest[kind]) for kind in _NAMES]
        else:
            row.append(cell(relay.detail, Colour.BAD, limit=120))
        rows.append(row)
    return rows


def _version(here: Event | None, newest: Event | None) -> Cell:
    if here is None:
        return cell("none", Colour.WARN)
    text = f"{here.id[:12]} of {moment(here.created_at)}"
    return cell(text, Colour.GOOD) if here == newest else cell(f"{text}, not the newest", Colour.WARN)


def _on_relay(reading: Reading, url: str, kind: int) -> Event | None:
    from pylon.nostr.nip89 import newest

    here = [each.event for each in reading.found if url in each.relays and each.event.kind == kind]
    return next(iter(newest(here)), None)


def _as_json(
    state: str, announcement: Announcement, event: Event | None, reading: Reading, *, running: bool
) -> dict[str, object]:
    return {
        "state": state,
        "running": running,
        "announcement": announcement,
        "event": event,
        "relays": [
            {
                "url": relay.url,
                "complete": relay.complete,
                "detail": relay.detail,
                "has": {name: _brief(_on_relay(reading, relay.url, kind)) for kind, name in _NAMES.items()},
            }
            for relay in reading.relays
        ],
    }


def _brief(event: Event | None) -> dict[str, object] | None:
    return None if event is None else {"id": event.id, "created_at": event.created_at}
