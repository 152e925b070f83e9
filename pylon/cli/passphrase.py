"""Passphrases, of a backup and of the identity: from a file, from the environment, or typed without being seen.

Never an argument, which others could see.
"""

from __future__ import annotations

import getpass
import os
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pylon.cli.output import EXIT_USAGE, fail

if TYPE_CHECKING:
    from pylon.paths import Paths
    from pylon.settings import Settings

VARIABLE: Final = "PYLON_BACKUP_PASSPHRASE"


def ask_passphrase(file: Path | None, *, new: bool) -> str:
    """Return the passphrase of a backup; typed twice, and of a decent length, when it is a `new` one.

    Raises `UserError` or `PassphraseError`.
    """
    from pylon.settings.passphrase import read_passphrase_file

    if file is not None:
        text = read_passphrase_file(file.expanduser())
    elif given := os.environ.get(VARIABLE, ""):
        text = given
    elif not sys.stdin.isatty():
        fail(f"no passphrase: set {VARIABLE}, or give --passphrase-file", EXIT_USAGE)
    else:
        text = _typed("Passphrase: ", new=new)
    # One passphrase may be typed as different code points on another keyboard.
    text = unicodedata.normalize("NFC", text.strip("\r\n"))
    if new:
        _check_length(text)
    return text


def new_identity_passphrase(settings: Settings, file: Path | None) -> str:
    """Return the passphrase that an identity is to get: of `file`, of the settings, or typed twice.

    Raises `UserError` or `PassphraseError`.
    """
    from pylon.settings.passphrase import given_passphrase, plain_passphrase, read_passphrase_file

    given = given_passphrase(settings.identity) if file is None else read_passphrase_file(file.expanduser())
    if given is None and not sys.stdin.isatty():
        ways = "type it at a terminal, name a file in --passphrase-file, or set PYLON_PASSPHRASE"
        fail(f"no passphrase to encrypt with: {ways}", EXIT_USAGE)
    text = plain_passphrase(_typed("New passphrase of the identity: ", new=True) if given is None else given)
    _check_length(text)
    return text


def identity_passphrase(settings: Settings, path: Path, file: Path | None = None) -> str:
    """Return the passphrase of the encrypted identity at `path`: of `file`, of the settings, or typed.

    Raises `IdentityLocked` when none gives it and there is no terminal, or `PassphraseError`.
    """
    from pylon.settings.identity_file import IdentityLocked
    from pylon.settings.passphrase import given_passphrase, plain_passphrase, read_passphrase_file

    given = given_passphrase(settings.identity) if file is None else read_passphrase_file(file.expanduser())
    if given is None:
        if not sys.stdin.isatty():
            raise IdentityLocked.at(path)
        given = _typed("Passphrase of the identity: ", new=False)
    return plain_passphrase(given)


def unlock(settings: Settings, paths: Paths) -> Settings:
    """Return the settings with the passphrase that opens the identity, where it is encrypted and has to be opened.

    It is asked for when nothing gives it and there is a terminal; once, since it is in the settings afterwards,
    where the log's redactor finds it too. Raises `IdentityError` or `PassphraseError`.
    """
    from pydantic import SecretStr

    from pylon.settings.identity_file import IdentityMissing, read_stored

    identity = settings.identity
    if identity.nsec is not None or identity.mnemonic is not None:
        return settings
    try:
        stored = read_stored(paths.identity_file)
    except IdentityMissing:
        return settings  # who needs one says so
    if not stored.encrypted:
        return settings
    text = identity_passphrase(settings, stored.path)
    opened = identity.model_copy(update={"passphrase": SecretStr(text)})
    return settings.model_copy(update={"identity": opened})


def with_typed_passphrase(environ: Mapping[str, str], config: Path | None, paths: Paths) -> Mapping[str, str]:
    """Return the environment with the passphrase that has to be typed, for who reads the settings from it later.

    What cannot be read or opened is left to that reader, who says so. Raises `UserError`.
    """
    from pylon.settings import SettingsError, load_settings
    from pylon.settings.identity_file import IdentityError
    from pylon.settings.passphrase import PassphraseError

    try:
        settings = load_settings(config, None, environ).settings
        passphrase = unlock(settings, paths).identity.passphrase
    except (SettingsError, IdentityError, PassphraseError):
        return environ
    return environ if passphrase is None else {**environ, "PYLON_PASSPHRASE": passphrase.get_secret_value()}


def _typed(prompt: str, *, new: bool) -> str:
    text = getpass.getpass(prompt)
    if new and getpass.getpass("Once more: ") != text:
        fail("the two passphrases are not the same")
    return text


def _check_length(text: str) -> None:
    from pylon.backup.sealed import MIN_PASSPHRASE

    if len(text) < MIN_PASSPHRASE:
        fail(f"the passphrase is too short: at least {MIN_PASSPHRASE} characters", EXIT_USAGE)
