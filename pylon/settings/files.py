"""Writing files whole or not at all: the settings and the identity survive a crash at any moment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Put `text` in place of what `path` holds, if anything. Raises `OSError`."""
    with _written_beside(path, text, mode) as new:
        new.replace(path)


def create_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Make `path` with `text`, never touching one that exists. Raises `FileExistsError` or another `OSError`."""
    with _written_beside(path, text, mode) as new:
        path.hardlink_to(new)  # fails when the name is taken; a rename would not


def back_up_file(path: Path, stamp: str) -> Path:
    """Keep what `path` holds now under a second name, and return that. Raises `OSError`."""
    for number in range(1, 100):
        name = f"{path.name}.{stamp}.bak" if number == 1 else f"{path.name}.{stamp}-{number}.bak"
        backup = path.with_name(name)
        try:
            backup.hardlink_to(path)
        except FileExistsError:
            continue
        backup.chmod(0o600)
        return backup
    raise FileExistsError(f"{path.parent} is full of backups of {path.name}")


@contextmanager
def _written_beside(path: Path, text: str, mode: int) -> Iterator[Path]:
    """Yield a file of the same folder that holds `text` on disk; what is left of it goes at the end.

    It has its mode from the first byte on: a secret is never readable for a moment.
    """
    with file_beside(path, mode=mode) as (new, file):
        file.write(text.encode())
        sync_and_close(file)
        yield new
    sync_folder(path.parent)


@contextmanager
def file_beside(path: Path, *, mode: int = 0o600) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new file in the folder of `path`, open for writing, and its name; what is left of it goes at the end.

    Raises `OSError`.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield new, file
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def sync_and_close(file: IO[bytes]) -> None:
    """Have what was written on the disk before anything is named after it. Raises `OSError`."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
