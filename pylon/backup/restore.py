"""Bringing a backup back into a home: everything is checked beside its place before anything takes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pylon.backup.archive import DATABASE, IDENTITY, SETTINGS, KeyPlace, Manifest, places_of, read_archive
from pylon.backup.sealed import SealBroken
from pylon.backup.take import BackupError
from pylon.lock import instance_lock
from pylon.nostr.keys import encode_npub
from pylon.paths import FolderError, Paths, private_folder
from pylon.settings import SettingsError
from pylon.settings.files import back_up_file, file_beside, sync_and_close, sync_folder
from pylon.settings.identity_file import IdentityError, read_stored
from pylon.settings.load import merge_settings, parse_document, read_settings_file
from pylon.store.errors import StoreError
from pylon.store.snapshot import prepare_restored


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back, and where the files before it were kept."""

    manifest: Manifest
    files: tuple[Path, ...]
    kept: tuple[Path, ...]


def refuse_to_overwrite(paths: Paths) -> None:
    """Raise `BackupError` when a home has an identity, books or settings already."""
    there = [str(path) for path in places_of(paths).values() if path.exists()]
    if there:
        raise BackupError(
            f"this home is in use: {', '.join(there)}; --force replaces them and keeps what was there"
        )


def restore_backup(path: Path, passphrase: str, paths: Paths, *, replace: bool, now: float) -> Restored:
    """Bring a backup back into a home in which no daemon runs. Blocks; `now` is unix seconds, for names.

    Nothing of the home changes before all of the backup is read, checked and on the disk. The books are marked, so
    that the next start asks the wallet about every invoice before it acts.
    Raises `BackupError`, `AlreadyRunning` or `LockFailed`.
    """
    try:
        for folder in dict.fromkeys((paths.state_dir, paths.config_dir)):
            private_folder(folder)
        with instance_lock(paths.lock_file), ExitStack() as held:
            if not replace:
                refuse_to_overwrite(paths)
            places = places_of(paths)
            new = {name: held.enter_context(file_beside(place)) for name, place in places.items()}
            manifest, found = _read(path, passphrase, {name: file for name, (_, file) in new.items()})
            for name in found:
                sync_and_close(new[name][1])
            _check(manifest, {name: new[name][0] for name in found})
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            kept: list[Path] = []
            for name in (name for name in places if name in found):
                kept += _put(new[name][0], places[name], stamp)
            return Restored(manifest, tuple(places[name] for name in places if name in found), tuple(kept))
    except FolderError as error:
        raise BackupError(str(error)) from error
    except OSError as error:
        raise BackupError(f"{error.filename or path}: {error.strerror}") from error


def _read(path: Path, passphrase: str, files: dict[str, IO[bytes]]) -> tuple[Manifest, set[str]]:
    with path.open("rb") as file:
        try:
            return read_archive(file, passphrase, files)
        except SealBroken as error:
            raise BackupError(f"{path} {error}") from error


def _check(manifest: Manifest, files: dict[str, Path]) -> None:
    """Raise `BackupError` unless every file is sound."""
    try:
        if IDENTITY in files:
            identity = read_stored(files[IDENTITY])
            if manifest.key is KeyPlace.FILE and encode_npub(identity.public_hex) != manifest.npub:
                raise BackupError("the identity in the backup is not the one that it names")
        elif manifest.key is KeyPlace.FILE:
            raise BackupError("the backup lacks the identity that it names")
        if SETTINGS in files:
            text = read_settings_file(files[SETTINGS])
            merge_settings(files[SETTINGS], parse_document(text, files[SETTINGS]), {}, {})
        if DATABASE in files:
            prepare_restored(files[DATABASE], manifest.taken_at)
    except (IdentityError, SettingsError, StoreError) as error:
        raise BackupError(f"what is in the backup cannot be used, and nothing was changed: {error}") from error


def _put(new: Path, place: Path, stamp: str) -> Iterator[Path]:
    """Let a file take its place; yield where the one before it is kept."""
    kept = place.with_name(f"{place.name}.{stamp}.bak")
    if place.exists():
        kept = back_up_file(place, stamp)
        yield kept
    yield from _set_logs_aside(place, kept)
    new.replace(place)
    sync_folder(place.parent)


def _set_logs_aside(place: Path, kept: Path) -> Iterator[Path]:
    """Keep what SQLite has beside a database beside the old one: to the new one it would be poison."""
    place.with_name(place.name + "-shm").unlink(missing_ok=True)  # an index into the log, made anew when missing
    for ending in ("-wal", "-journal"):
        log = place.with_name(place.name + ending)
        if log.exists():
            beside = kept.with_name(kept.name + ending)
            log.replace(beside)
            yield beside
