"""`pylon relays`: which relays there are, whether each really serves us, one more, one less."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, cell
from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say, say_json
from pylon.cli.views import control_client
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.control.views import RelayLine
    from pylon.nostr.keys import SecretKey
    from pylon.relays.check import RelayCheck
    from pylon.settings import LoadedSettings

app = typer.Typer(help="List, check, add and remove relays.", no_args_is_help=True)

_KEY: Final = "relays.urls"
_SKEW_WORTH_A_COLOUR_S: Final = 30

_UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="The relay, such as wss://relay.example.")]


@app.command("list", epilog="Example: pylon relays list --json")
def list_relays(ctx: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the configured relays and, when the daemon runs, how it stands with each."""
    context: CliContext = ctx.obj
    configured = _load(config).settings.relays.urls
    live = _live(context)
    urls = [*configured, *(url for url in live or {} if url not in configured)]
    if json:
        from dataclasses import asdict

        rows = [
            {
                "url": url,
                "configured": url in configured,
                "live": asdict(live[url]) if live and url in live else None,
            }
            for url in urls
        ]
        say_json({"running": live is not None, "relays": rows})
        return
    screen = Screen()
    screen.table([_list_row(url, live, configured=url in configured) for url in urls])
    screen.line()
    screen.line("pylon is not running" if live is None else "pylon is running", Colour.DIM)
    say(screen.text())


@app.command(epilog="Example: pylon relays check wss://relay.example --timeout 5")
def check(
    ctx: typer.Context,
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Relays to check; without any, the configured ones."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=120, help="How long each relay may take.")
    ] = 10.0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Use each relay once: connect, AUTH when demanded, publish an ephemeral event and read it back.

    Also shows the relay's own limits (NIP-11) and how far its clock is from ours. Exit code 1 when a step fails.
    """
    import random
    import time

    from pylon.assembly import make_pool_config
    from pylon.cli.loop import run_on_time
    from pylon.relays.check import check_relays

    context: CliContext = ctx.obj
    loaded = _load(config)
    key, known = _key(loaded, context)

    async def run() -> tuple[RelayCheck, ...]:
        return await check_relays(
            urls or loaded.settings.relays.urls,
            make_pool_config(loaded.settings),
            key=key,
            clock=time.time,
            rng=random.Random(),  # noqa: S311 - jitter, not secrets
            limit_s=timeout_s,
        )

    checks = run_on_time(run)
    if json:
        say_json([_check_json(each) for each in checks])
    else:
        screen = Screen()
        show_checks(checks, screen)
        if not known:
            screen.line()
            screen.line("There is no identity yet: a throwaway key was used (make one: pylon init).", Colour.WARN)
        say(screen.text())
    return 0 if all(each.ok for each in checks) else EXIT_FAILED


@app.command(epilog="Example: pylon relays add wss://relay.example")
def add(ctx: typer.Context, url: _UrlArgument, config: ConfigOption = None) -> None:
    """Add a relay to the settings file; its comments stay. The daemon uses it from its next start on."""
    wanted = _canonical(url)

    def change(urls: list[str]) -> list[str]:
        if wanted in urls:
            fail(f"{printable(wanted)} is configured already", EXIT_USAGE)
        return [*urls, wanted]

    _change(ctx.obj, config, change, f"added {printable(wanted)}")


@app.command(epilog="Example: pylon relays remove wss://relay.example")
def remove(ctx: typer.Context, url: _UrlArgument, config: ConfigOption = None) -> None:
    """Remove a relay from the settings file; its comments stay. The daemon uses it until its next start."""
    gone = _canonical(url)

    def change(urls: list[str]) -> list[str]:
        if gone not in urls:
            fail(f"{printable(gone)} is not configured (see: pylon relays list)", EXIT_USAGE)
        if len(urls) == 1:
            fail(
                f"{printable(gone)} is the only relay, and without one no job arrives: add another first",
                EXIT_USAGE,
            )
        return [each for each in urls if each != gone]

    _change(ctx.obj, config, change, f"removed {printable(gone)}")


def show_checks(checks: Sequence[RelayCheck], screen: Screen) -> None:
    """Put the outcomes on the screen: a line for each relay, then what failed and what the relays limit."""
    titles = ("relay", "result", "connect", "round trip", "auth", "clock", "nip-11")
    head = [Cell(title, Colour.DIM, 2 <= at <= 3) for at, title in enumerate(titles)]
    screen.table([head, *(_check_row(each) for each in checks)])
    failed = [(each.url, fault) for each in checks for fault in each.faults]
    if failed:
        screen.heading("What failed")
        screen.table(
            [[cell(url), cell(fault.step, Colour.BAD), cell(fault.sentence, limit=400)] for url, fault in failed],
            indent="  ",
        )
    limits = [(each.url, line) for each in checks if (line := limits_line(each))]
    if limits:
        screen.heading("What the relays say of themselves")
        screen.table([[cell(url), cell(line, limit=400)] for url, line in limits], indent="  ")


def limits_line(check: RelayCheck) -> str:
    """Return a relay's software and limits in one line, "" when it has no NIP-11 document."""
    document = check.document
    if document is None:
        return ""
    said = (
        " ".join(part for part in (document.software or document.name, document.version) if part),
        document.max_message_bytes and f"messages up to {document.max_message_bytes:,} bytes",
        document.max_subscriptions and f"{document.max_subscriptions:,} subscriptions",
        document.max_limit and f"{document.max_limit:,} events a query",
        "auth required" if document.auth_required else "",
        "payment required" if document.payment_required else "",
        "restricted writes" if document.restricted_writes else "",
    )
    return ", ".join(part for part in said if part) or "nothing of interest"


def _list_row(url: str, live: dict[str, RelayLine] | None, *, configured: bool) -> list[Cell]:
    if live is None:
        return [cell(url)]
    line = live.get(url)
    if line is None:
        return [cell(url), cell("not in use: restart pylon", Colour.WARN)]
    state = f"{line.status}, auth" if line.authenticated else line.status
    detail = line.detail if configured else f"not in the settings any more; {line.detail}".rstrip("; ")
    return [
        cell(url),
        cell(state, Colour.GOOD if line.status == "connected" else Colour.BAD),
        cell("" if line.latency_ms is None else f"{line.latency_ms:.0f} ms"),
        cell(detail, limit=200),
    ]


def _check_row(check: RelayCheck) -> list[Cell]:
    auth = "confirmed" if check.authenticated else "" if check.connect_ms is None else "not demanded"
    late = check.skew_s is not None and abs(check.skew_s) > _SKEW_WORTH_A_COLOUR_S
    return [
        cell(check.url),
        cell("ok", Colour.GOOD) if check.ok else cell("failed", Colour.BAD),
        Cell(_ms(check.connect_ms), right=True),
        Cell(_ms(check.round_trip_ms), right=True),
        cell(auth),
        cell("" if check.skew_s is None else f"{check.skew_s:+d} s", Colour.WARN if late else Colour.NONE),
        cell("yes" if check.document is not None else check.document_note),
    ]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} ms"


def _check_json(check: RelayCheck) -> dict[str, Any]:
    from dataclasses import asdict

    return {"url": check.url, "ok": check.ok, **asdict(check)}


def _load(config: Path | None) -> LoadedSettings:
    from pylon.settings import load_settings

    return load_settings(config.expanduser() if config else None)


def _key(loaded: LoadedSettings, context: CliContext) -> tuple[SecretKey, bool]:
    """Return the pylon's key, or a throwaway one where there is none yet, and which of the two it is."""
    from pylon.cli.passphrase import unlock
    from pylon.nostr.keys import SecretKey
    from pylon.settings.identity_file import IdentityMissing, load_identity

    try:
        return load_identity(unlock(loaded.settings, context.paths), context.paths), True
    except IdentityMissing:
        return SecretKey.generate(), False


def _live(context: CliContext) -> dict[str, RelayLine] | None:
    """Return what the daemon says of each relay, None when none runs."""
    from pylon.control.client import DaemonNotRunning

    try:
        status = control_client(context.paths, timeout_s=5).status()
    except DaemonNotRunning:
        return None
    return {line.url: line for line in status.relays}


def _canonical(url: str) -> str:
    from pylon.net.urls import DialRefused, parse_target

    try:
        return parse_target(url, frozenset({"ws", "wss"})).url
    except DialRefused as refused:
        fail(f"not a relay: {refused}", EXIT_USAGE)


def _change(context: CliContext, config: Path | None, change: Callable[[list[str]], list[str]], done: str) -> None:
    from json import dumps

    from pylon.settings import OriginKind
    from pylon.settings.edit import set_value

    loaded = _load(config)
    origin = loaded.origin(_KEY)
    if origin.kind not in (OriginKind.DEFAULT, OriginKind.FILE):
        fail(f"{origin} sets {_KEY} and is stronger than the settings file: change it there", EXIT_USAGE)
    urls = change(list(loaded.settings.relays.urls))
    file = config.expanduser() if config else context.paths.config_file
    set_value(file, _KEY, dumps(urls), os.environ)
    say(f"{done}; {len(urls)} relays in {printable(file, limit=500)}")
    if _live(context) is not None:
        say("pylon is running with the old ones: restart it (pylon stop, pylon start)")
    else:
        say("it holds from the next start of pylon on")
