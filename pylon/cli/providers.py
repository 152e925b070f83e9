"""`pylon providers`: who sells what, as the relays know it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylon.cli.layout import Colour, Screen, duration
from pylon.cli.models import model_table
from pylon.cli.options import ConfigOption
from pylon.cli.output import EXIT_FAILED, fail, say, warn
from pylon.control.codec import dump_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.customer.visit import Reading
    from pylon.nostr.nip89 import Announcement
    from pylon.settings import Settings

_MOST = 500  # what is asked of one relay


@dataclass(frozen=True, slots=True)
class ProviderLine:
    """One provider as found: the newest announcement of an author and `d`, and the relays that have it."""

    npub: str
    pubkey: str
    event_id: str
    created_at: int
    relays: tuple[str, ...]
    announcement: Announcement


def command(
    kind: Annotated[
        int, typer.Option("--kind", min=5000, max=5999, help="The job kind; 5050 is text generation.")
    ] = 5050,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Only those that sell a model of this name."),
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option("--relay", metavar="URL", help="Ask this relay instead of the settings'; may be repeated."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.5, max=120, metavar="SECONDS", help="How long relays may take.")
    ] = 8.0,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, prices in msats.")] = False,
) -> int:
    """List the providers that relays know, newest announcement first.

    An announcement is what a provider says of itself: its signature is checked, its promises are not. Works without
    a daemon, an identity or a settings file. Exit code: 0 when a relay answered, 1 when none did.
    """
    import anyio

    from pylon.settings import load_settings

    overrides: dict[str, object] = {"relays.urls": relay or None}
    settings = load_settings(config.expanduser() if config else None, overrides, os.environ).settings
    reading = anyio.run(_read, settings, kind, timeout)
    providers = find(reading, kind, model)
    answered = any(each.complete for each in reading.relays)
    if json:
        say(dump_json({"relays": reading.relays, "providers": providers}, indent=2))
        return 0 if answered else EXIT_FAILED
    for each in reading.relays:
        if not each.complete:
            warn(f"{each.url}: {each.detail}")
    if not answered:
        fail("no relay has answered, so nothing can be said of the providers")
    screen = Screen()
    show(providers, screen, time.time(), len(reading.relays))
    say(screen.text())
    return 0


def find(reading: Reading, kind: int, model: str | None = None) -> list[ProviderLine]:
    """Return the providers of a job kind among what was read, those that sell `model` alone when it is given."""
    from pylon.nostr.keys import encode_npub
    from pylon.nostr.nip89 import BadAnnouncement, newest, parse_announcement

    relays = {each.event.id: each.relays for each in reading.found}
    lines = []
    for event in newest(reading.events):
        try:
            announcement = parse_announcement(event)
        except BadAnnouncement:
            continue
        if kind in announcement.kinds and (model is None or model in announcement.model_names):
            npub = encode_npub(event.pubkey)
            lines.append(
                ProviderLine(npub, event.pubkey, event.id, event.created_at, relays[event.id], announcement)
            )
    return sorted(lines, key=lambda line: (-line.created_at, line.event_id))


def show(providers: list[ProviderLine], screen: Screen, now: float, relays: int) -> None:
    """Put providers on the screen."""
    if not providers:
        screen.line("no provider found")
    for line in providers:
        told = line.announcement
        screen.heading(printable(told.name or "(without a name)", limit=80))
        age = duration(int(now) - line.created_at)
        screen.line(f"  {line.npub}")
        screen.line(f"  announced {age} ago, found on {len(line.relays)} of {relays} relays", Colour.DIM)
        if told.paused:
            screen.line("  paused: it takes no jobs now", Colour.WARN)
        if told.about:
            screen.line(f"  {printable(told.about, limit=300)}")
        if told.models:
            model_table(told.models, screen)
        elif told.model_names:
            names = ", ".join(printable(name, limit=60) for name in sorted(told.model_names)[:40])
            screen.line(f"  models: {names} (no prices given)")
        else:
            screen.line("  no models given", Colour.DIM)


async def _read(settings: Settings, kind: int, timeout_s: float) -> Any:
    import random

    from pylon import assembly
    from pylon.customer.visit import visiting
    from pylon.nostr.keys import SecretKey
    from pylon.nostr.nip89 import ANNOUNCEMENT_KIND

    # A key of its own: whoever only looks around need not say who they are, not even where AUTH is demanded.
    key = SecretKey.generate()
    config, rng = assembly.make_pool_config(settings), random.Random()  # noqa: S311 - jitter, not secrets
    async with visiting(config, key=key, clock=time.time, rng=rng) as visit:
        asked = {"kinds": [ANNOUNCEMENT_KIND], "#k": [str(kind)], "limit": _MOST}
        return await visit.read([asked], timeout_s)
