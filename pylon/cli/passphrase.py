"""The passphrase of a backup: from a file, from the environment, or typed without being seen. Never an argument."""

from __future__ import annotations

import getpass
import os
import stat
import sys
import unicodedata
from pathlib import Path
from typing import Final

from pylon.cli.output import EXIT_USAGE, fail

VARIABLE: Final = "PYLON_BACKUP_PASSPHRASE"

_MAX_BYTES: Final = 4_096


def ask_passphrase(file: Path | None, *, new: bool) -> str:
    """Return the passphrase; typed twice, and of a decent length, when it is a `new` one. Raises `UserError`."""
    if file is not None:
        text = _from_file(file.expanduser())
    elif given := os.environ.get(VARIABLE, ""):
        text = given
    elif not sys.stdin.isatty():
        fail(f"no passphrase: set {VARIABLE}, or give --passphrase-file", EXIT_USAGE)
    else:
        text = _typed(new=new)
    # One passphrase may be typed as different code points on another keyboard.
    text = unicodedata.normalize("NFC", text.strip("\r\n"))
    if new:
        from pylon.backup.sealed import MIN_PASSPHRASE

        if len(text) < MIN_PASSPHRASE:
            fail(f"the passphrase is too short: at least {MIN_PASSPHRASE} characters", EXIT_USAGE)
    return text


def _typed(*, new: bool) -> str:
    text = getpass.getpass("Passphrase: ")
    if new and getpass.getpass("Once more: ") != text:
        fail("the two passphrases are not the same")
    return text


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}", EXIT_USAGE)
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
        fail(f"{path}: others can read this passphrase; run: chmod 600 {path}", EXIT_USAGE)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        fail(f"{path}: the passphrase is not UTF-8", EXIT_USAGE)
    if len(raw) > _MAX_BYTES or not text.strip("\r\n"):
        fail(f"{path}: holds no passphrase: one line of at most {_MAX_BYTES} bytes", EXIT_USAGE)
    return text
