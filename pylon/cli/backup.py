"""`pylon backup` and `pylon restore`: one encrypted file with identity, settings and books."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import moment, size
from pylon.cli.options import ConfigOption
from pylon.cli.output import say
from pylon.cli.passphrase import VARIABLE, ask_passphrase
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.backup.archive import Manifest

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help=f"Read the passphrase from this file; else from {VARIABLE}, else it is asked for.",
    ),
]

_PATH_CHARS = 500


def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    passphrase_file: PassphraseFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write the identity, the settings and the books into one file, encrypted by a passphrase.

    It works while the daemon runs: the books are those of one moment. Keep the passphrase apart from the file;
    without it nobody can open it.
    """
    from pylon.backup.archive import DATABASE, KeyPlace
    from pylon.backup.take import refuse_existing, take_backup
    from pylon.settings import load_settings
    from pylon.settings.identity_file import read_stored

    context: CliContext = ctx.obj
    path = file.expanduser()
    if not force:
        refuse_existing(path)  # before anyone types a passphrase in vain
    loaded = load_settings(config.expanduser() if config else None, None, os.environ)
    passphrase = ask_passphrase(passphrase_file, new=True)
    taken = take_backup(path, passphrase, loaded, context.paths, replace=force, now=time.time())
    manifest = taken.manifest
    say(f"written   {printable(taken.path, limit=_PATH_CHARS)} ({size(taken.size_bytes)}, encrypted)")
    say(f"holds     {', '.join(taken.files) or 'no file'}, as of {moment(manifest.taken_at)}")
    say(f"identity  {manifest.npub}")
    if DATABASE not in taken.files:
        say("There are no books yet: this home has no database.")
    if manifest.key is KeyPlace.FILE and read_stored(context.paths.identity_file).encrypted:
        say("The identity in it stays encrypted: keep its own passphrase too.")
    if manifest.key is KeyPlace.ELSEWHERE:
        say("The secret key is NOT in the file: it comes from the environment or a credential. Keep your own copy.")
    _say_elsewhere(manifest)


def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to bring back.")],
    passphrase_file: PassphraseFile = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace identity, settings and books that are here; they are kept as .bak."),
    ] = False,
) -> None:
    """Bring a backup back into this home. No daemon may be running.

    Nothing is touched before the whole file is checked. The next start first asks the wallet about every invoice,
    and the relays for results that were published since, before it takes or runs anything.
    """
    from pylon.backup.archive import KeyPlace
    from pylon.backup.restore import refuse_to_overwrite, restore_backup
    from pylon.lock import AlreadyRunning, lock_holder
    from pylon.settings.identity_file import read_stored

    context: CliContext = ctx.obj
    paths = context.paths
    if (pid := lock_holder(paths.lock_file)) is not None:
        raise AlreadyRunning(pid, paths.lock_file)
    if not force:
        refuse_to_overwrite(paths)
    passphrase = ask_passphrase(passphrase_file, new=False)
    done = restore_backup(file.expanduser(), passphrase, paths, replace=force, now=time.time())
    manifest = done.manifest
    say(f"identity  {printable(manifest.npub)}")
    say(f"taken     {moment(manifest.taken_at)}, by Pylon {printable(manifest.pylon)}")
    for path in done.files:
        say(f"restored  {printable(path, limit=_PATH_CHARS)}")
    for path in done.kept:
        say(f"kept      {printable(path, limit=_PATH_CHARS)}")
    if manifest.key is KeyPlace.FILE and read_stored(paths.identity_file).encrypted:
        say("The identity is encrypted: its own passphrase opens it, not that of the backup.")
    if manifest.key is KeyPlace.ELSEWHERE:
        say("The secret key was not in the backup: set PYLON_NSEC, or its systemd credential, before you start.")
    _say_elsewhere(manifest)
    if paths.database in done.files:
        say("Next: pylon start. It asks the wallet about every invoice before it acts; pylon status tells how far.")


def _say_elsewhere(manifest: Manifest) -> None:
    names = [printable(name) for name in manifest.elsewhere if not name.startswith("identity.")]
    if names:
        say(f"Not in the file, because the environment or a credential gives them: {', '.join(names)}")
