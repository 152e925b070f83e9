"""The passphrase of an encrypted identity, as far as settings give it; typing one is the command line's."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pylon.settings.model import IdentitySettings

MAX_PASSPHRASE_BYTES: Final = 4_096


class PassphraseError(ValueError):
    """A passphrase cannot be had; `str` is one line for the operator, without any of it."""

    exit_code = 2


def given_passphrase(identity: IdentitySettings) -> str | None:
    """Return the passphrase that variable, credential, file or settings give, or None. Raises `PassphraseError`."""
    if identity.passphrase is not None:
        return plain_passphrase(identity.passphrase.get_secret_value())
    if identity.passphrase_file is not None:
        return plain_passphrase(read_passphrase_file(identity.passphrase_file))
    return None


def plain_passphrase(text: str) -> str:
    """Return a passphrase without the blanks around it, which a variable or the end of a file may add."""
    return text.strip()


def read_passphrase_file(path: Path) -> str:
    """Return what a file holds, line end and all; others must not be able to read it. Raises `PassphraseError`."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            raw = file.read(MAX_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise PassphraseError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
        raise PassphraseError(f"{path}: others can read this passphrase; run: chmod 600 {path}")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise PassphraseError(f"{path}: the passphrase is not UTF-8") from None
    if len(raw) > MAX_PASSPHRASE_BYTES or not text.strip():
        raise PassphraseError(f"{path}: holds no passphrase: one line of at most {MAX_PASSPHRASE_BYTES} bytes")
    return text
