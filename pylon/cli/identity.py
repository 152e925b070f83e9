"""`pylon identity`: who this pylon is, and its secret key under a passphrase (NIP-49) or in plain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.output import EXIT_USAGE, fail, say, say_json, warn
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.settings import LoadedSettings
    from pylon.settings.identity_file import Saved

app = typer.Typer(help="Show, encrypt or decrypt the identity.", no_args_is_help=True)

_PATH_CHARS: Final = 500
_ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings to read, instead of the home's.")
]
_KeepOption = Annotated[
    bool, typer.Option("--keep-backup", help="Keep the file as it was before beside it, as .bak.")
]
_FileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the passphrase from this file; else from identity.passphrase_file or PYLON_PASSPHRASE, "
        "else it is asked for.",
    ),
]


@app.command(epilog="Example: pylon identity show --json")
def show(
    ctx: typer.Context,
    config: _ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the public key, and how the secret one is kept. It needs no passphrase and shows no secret."""
    from pylon.nostr.keys import encode_npub
    from pylon.nostr.nip49 import cost_of
    from pylon.settings.identity_file import load_public_key, read_stored

    context: CliContext = ctx.obj
    loaded = _load(config)
    public_hex = load_public_key(loaded.settings, context.paths)
    place = _elsewhere(loaded)
    stored = None if place else read_stored(context.paths.identity_file)
    log_n = cost_of(stored.ncryptsec) if stored is not None and stored.ncryptsec is not None else None
    if json:
        say_json(
            {
                "npub": encode_npub(public_hex),
                "pubkey": public_hex,
                "place": place or str(context.paths.identity_file),
                "encrypted": None if stored is None else stored.encrypted,
                "log_n": log_n,
                "has_words": None if stored is None else stored.has_words,
            }
        )
        return
    say(f"npub      {encode_npub(public_hex)}")
    say(f"hex       {public_hex}")
    if stored is None:
        say(f"secret    given by {printable(place, limit=_PATH_CHARS)}, which is stronger than the identity file")
        return
    say(f"identity  {printable(stored.path, limit=_PATH_CHARS)}")
    say(f"secret    {'in plain' if log_n is None else f'encrypted (NIP-49, scrypt log_n {log_n})'}, mode 0600")
    say(f"words     {'kept with the key' if stored.has_words else 'none: the key was imported without'}")


@app.command(epilog="Example: pylon identity encrypt --passphrase-file /etc/pylon/passphrase")
def encrypt(
    ctx: typer.Context, passphrase_file: _FileOption = None, keep: _KeepOption = False, config: _ConfigOption = None
) -> None:
    """Put the secret key and its words under a passphrase (NIP-49).

    The plain file is replaced, not kept: a copy of it would make the passphrase worthless. Without the passphrase
    nobody can open the identity, so write the words down before (pylon init --show-mnemonic).
    """
    from pylon.cli.passphrase import new_identity_passphrase
    from pylon.settings.identity_file import plain_copies, read_stored, save_identity

    context: CliContext = ctx.obj
    path = context.paths.identity_file
    loaded = _load(config)
    stored = read_stored(path)
    if stored.encrypted:
        fail(
            f"{path} is encrypted already; for another passphrase: pylon identity decrypt, then encrypt", EXIT_USAGE
        )
    passphrase = new_identity_passphrase(loaded.settings, passphrase_file)
    _report(
        save_identity(path, stored.open(), passphrase=passphrase, replace=True, keep=keep),
        "encrypted",
        keep=keep,
    )
    for copy in plain_copies(path):
        warn(f"{copy} holds this key in plain: remove it")
    if not keep:
        say("The plain file was replaced. Copies that others made of it (snapshots, backups of the disk) are not.")
    say("pylon start asks for the passphrase now; without a terminal it needs identity.passphrase_file,")
    say("PYLON_PASSPHRASE or a systemd credential named passphrase.")
    _warn_elsewhere(loaded)


@app.command(epilog="Example: pylon identity decrypt")
def decrypt(
    ctx: typer.Context, passphrase_file: _FileOption = None, keep: _KeepOption = False, config: _ConfigOption = None
) -> None:
    """Put the secret key and its words back in plain, readable by their owner alone."""
    from pylon.cli.passphrase import identity_passphrase
    from pylon.settings.identity_file import read_stored, save_identity

    context: CliContext = ctx.obj
    path = context.paths.identity_file
    loaded = _load(config)
    stored = read_stored(path)
    if not stored.encrypted:
        fail(f"{path} is not encrypted", EXIT_USAGE)
    identity = stored.open(identity_passphrase(loaded.settings, path, passphrase_file))
    _report(save_identity(path, identity, replace=True, keep=keep), "decrypted", keep=keep)
    say("The secret key lies in plain now, in a file that its owner alone can read.")
    _warn_elsewhere(loaded)


def _load(config: Path | None) -> LoadedSettings:
    from pylon.settings import load_settings

    return load_settings(config.expanduser() if config else None, None, os.environ)


def _report(saved: Saved, done: str, *, keep: bool) -> None:
    say(f"{done} {printable(saved.path, limit=_PATH_CHARS)}")
    if keep:
        say(f"kept      {printable(saved.backup, limit=_PATH_CHARS)}")


def _elsewhere(loaded: LoadedSettings) -> str:
    """Return what gives the key instead of the identity file, "" when nothing does."""
    identity = loaded.settings.identity
    if identity.nsec is None and identity.mnemonic is None:
        return ""
    return str(loaded.origin("identity.mnemonic" if identity.nsec is None else "identity.nsec"))


def _warn_elsewhere(loaded: LoadedSettings) -> None:
    if place := _elsewhere(loaded):
        warn(f"the secret key given by {place} is used in place of the identity file")
