"""`pylon init`: an identity, a settings file, and a proposal of what this machine could sell."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylon.cli.output import EXIT_USAGE, fail, say, warn
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.cli.proposals import FoundServer
    from pylon.nostr.identity import Identity
    from pylon.paths import Paths
    from pylon.settings.identity_file import StoredIdentity

_SECRET_VARIABLES = ("PYLON_NSEC", "PYLON_MNEMONIC")


def command(
    source: Annotated[str | None, typer.Argument(hidden=True, metavar="[-]")] = None,
    import_: Annotated[
        bool,
        typer.Option(
            "--import",
            help="Bring an nsec, a hex key or NIP-06 words along: from PYLON_NSEC or PYLON_MNEMONIC when set, "
            'from stdin with "-", else from a hidden prompt. Never as an argument, which others could see.',
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the identity that is there; a backup is kept beside it.")
    ] = False,
    home: Annotated[
        Path | None, typer.Option("--home", metavar="FOLDER", help="Where all files lie, as PYLON_HOME does.")
    ] = None,
    show_mnemonic: Annotated[
        bool, typer.Option("--show-mnemonic", help="Print the words of the identity, to write them down.")
    ] = False,
    sell: Annotated[
        list[str] | None,
        typer.Option("--sell", metavar="MODEL", help="Sell this model of a server found here; an identity stays."),
    ] = None,
    detect: Annotated[bool, typer.Option(help="Look for inference servers on this machine.")] = True,
) -> None:
    """Make an identity and a settings file, and propose what could be sold here."""
    from pylon.paths import HOME_VARIABLE, resolve_paths
    from pylon.settings.identity_file import IdentityExists, read_stored

    if source not in (None, "-"):
        fail('a key is never an argument, others could see it: use "pylon init --import" and type it', EXIT_USAGE)
    if sell and not detect:
        fail("--sell needs to look for servers: leave --no-detect away", EXIT_USAGE)
    environ = {**os.environ, HOME_VARIABLE: str(home)} if home else os.environ
    paths = resolve_paths(environ)
    importing = import_ or source == "-"
    exists = paths.identity_file.exists()
    kept = exists and not (force or importing) and bool(sell or show_mnemonic)
    if exists and not (kept or force):
        raise IdentityExists.at(paths.identity_file)  # before anyone types twelve words in vain
    found = _find_servers() if detect and (sell or not kept) else []
    _check_sold(sell or [], found)
    if not kept:
        _make_identity(paths, environ, importing=importing, stdin=source == "-", force=force)
    stored = read_stored(paths.identity_file)
    words = _words(stored, paths, environ) if show_mnemonic else None
    written = _write_settings(paths, environ, found, sell or [])
    _report(paths, stored, environ, words)
    _report_proposals(found, sell or [], written=written)


def _make_identity(paths: Paths, environ: Mapping[str, str], *, importing: bool, stdin: bool, force: bool) -> None:
    from pylon.nostr.identity import generate_identity
    from pylon.settings.identity_file import save_identity

    identity = _imported(environ, stdin=stdin) if importing else generate_identity()
    saved = save_identity(paths.identity_file, identity, replace=force)
    if saved.backup is not None:
        say(f"The identity before it is kept in {printable(saved.backup, limit=500)}")


def _imported(environ: Mapping[str, str], *, stdin: bool) -> Identity:
    from pylon.nostr.identity import parse_identity
    from pylon.nostr.keys import BadKey

    given = [name for name in _SECRET_VARIABLES if environ.get(name, "").strip()]
    if stdin or (not given and not sys.stdin.isatty()):
        text, place = sys.stdin.read(4_096), "stdin"
    elif len(given) > 1:
        fail(f"{' and '.join(given)} are both set: unset one", EXIT_USAGE)
    elif given:
        text, place = environ[given[0]], given[0]
    else:
        # Not typer.prompt: it writes the prompt before the echo is off, and what is typed in between is seen.
        text, place = getpass.getpass("nsec, hex key or words: "), "what was typed"
    try:
        return parse_identity(text)
    except BadKey as error:
        fail(f"{place}: {error}", EXIT_USAGE)


def _words(stored: StoredIdentity, paths: Paths, environ: Mapping[str, str]) -> str | None:
    if not stored.encrypted:
        return stored.open().mnemonic
    from pylon.cli.passphrase import identity_passphrase
    from pylon.settings import load_settings

    return stored.open(identity_passphrase(load_settings(None, None, environ).settings, stored.path)).mnemonic


def _find_servers() -> list[FoundServer]:
    import anyio

    from pylon.cli.proposals import find_servers

    return anyio.run(find_servers)


def _check_sold(sell: list[str], found: list[FoundServer]) -> None:
    known = {offer.name for server in found for offer in server.offers}
    missing = [name for name in sell if name not in known]
    if missing:
        names = ", ".join(sorted(known)) or "none, no server answered"
        fail(f"--sell {missing[0]}: no server found here has that model; found: {names}", EXIT_USAGE)


def _write_settings(paths: Paths, environ: Mapping[str, str], found: list[FoundServer], sell: list[str]) -> bool:
    """Write the settings file where there is none, or what is to be sold into the one there is; tell whether."""
    from pylon.cli.proposals import backend_name, proposal_toml
    from pylon.settings.edit import add_tables

    exists = paths.config_file.exists()
    if exists and not sell:
        return False
    blocks = []
    left = dict.fromkeys(sell)
    backends = _backends(paths, environ) if exists else None
    for server in found:
        mine = [offer.name for offer in server.offers if offer.name in left]  # a model of two servers: the first
        if mine or not exists:
            blocks.append(proposal_toml(server, mine, backends))
            if backends is not None:
                backends[backend_name(server, backends)] = server.url
        left = {name: None for name in left if name not in mine}
    add_tables(paths.config_file, "\n".join(blocks), environ)
    return True


def _backends(paths: Paths, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the backends of the settings by name, with the URL of those that have one."""
    from pylon.settings import OpenAIBackendSettings, load_settings

    backends = load_settings(paths.config_file, None, environ).settings.backends
    return {item.name: item.url if isinstance(item, OpenAIBackendSettings) else "" for item in backends}


def _report(paths: Paths, stored: StoredIdentity, environ: Mapping[str, str], words: str | None) -> None:
    from pylon.nostr.keys import encode_npub

    say(f"npub      {encode_npub(stored.public_hex)}")
    say(f"identity  {printable(paths.identity_file, limit=500)}")
    say(f"settings  {printable(paths.config_file, limit=500)}")
    say(f"database  {printable(paths.database, limit=500)}")
    if not stored.has_words:
        say("The key was imported without words: keep your own copy of it.")
    elif words is not None:
        say(f"words     {words}")
        say("Write these words down and keep them apart from this machine: they are the identity.")
    else:
        say('Write the words of this identity down: "pylon init --show-mnemonic" prints them.')
    for name in _SECRET_VARIABLES:
        if environ.get(name, "").strip():
            warn(f"{name} is set: it is used in place of the identity file")


def _report_proposals(found: list[FoundServer], sell: list[str], *, written: bool) -> None:
    from pylon.cli.proposals import describe

    for server in found:
        say(f"Found {describe(server)}")
    if sell:
        say(f"For sale now: {', '.join(printable(name) for name in sell)}. Set your price in the settings file.")
    elif found and written:
        say("They stand in the settings file as comments: uncomment what you want to sell, and set your price.")
    elif found:
        say("The settings file was there already and is unchanged; pylon init --sell MODEL adds one.")
    say("Next: pylon start")
