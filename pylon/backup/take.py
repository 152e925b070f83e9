"""Taking a backup of a home, while its daemon runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pylon import __version__
from pylon.backup.archive import IDENTITY, SETTINGS, SNAPSHOTS, KeyPlace, Manifest, places_of, write_archive
from pylon.nostr.keys import encode_npub
from pylon.paths import Paths
from pylon.settings import LoadedSettings
from pylon.settings.errors import find_field, is_secret
from pylon.settings.files import file_beside, sync_and_close, sync_folder
from pylon.settings.identity_file import load_public_key, read_stored
from pylon.settings.load import OriginKind
from pylon.store.snapshot import take_snapshot

_OUTSIDE = frozenset({OriginKind.ENVIRONMENT, OriginKind.CREDENTIAL})


class BackupError(Exception):
    """A backup cannot be taken or restored; the message is one sentence for the operator."""


class BackupExists(BackupError):
    """There is a file already, and it was not to be replaced."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What was written, and where."""

    manifest: Manifest
    files: tuple[str, ...]
    path: Path
    size_bytes: int


def take_backup(
    path: Path, passphrase: str, loaded: LoadedSettings, paths: Paths, *, replace: bool, now: float
) -> Taken:
    """Write a backup to `path`, 0600, whole or not at all. Blocks; `now` is unix seconds.

    Raises `BackupError`, `IdentityError` or `StoreUnavailable`.
    """
    if not replace:
        refuse_existing(path)
    manifest = _describe(loaded, paths, int(now))
    try:
        with file_beside(path) as (new, file), _files(loaded, paths) as files:
            write_archive(file, passphrase, manifest, files)
            sync_and_close(file)
            size_bytes = new.stat().st_size
            if replace:
                new.replace(path)
            else:
                path.hardlink_to(new)  # fails when the name was taken meanwhile; a rename would not
        sync_folder(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise BackupError(f"{error.filename or path}: cannot be written: {error.strerror}") from error
    return Taken(manifest, tuple(files), path, size_bytes)


def refuse_existing(path: Path) -> None:
    """Raise `BackupExists` when there is a file already."""
    if path.exists():
        raise _exists(path)


def _exists(path: Path) -> BackupExists:
    return BackupExists(f"there is a file at {path} already; --force replaces it")


def _describe(loaded: LoadedSettings, paths: Paths, now: int) -> Manifest:
    public_hex = load_public_key(loaded.settings, paths)
    given = loaded.settings.identity
    key = KeyPlace.FILE
    for name, value in (("identity.nsec", given.nsec), ("identity.mnemonic", given.mnemonic)):
        if value is not None:
            key = KeyPlace.SETTINGS if loaded.origin(name).kind is OriginKind.FILE else KeyPlace.ELSEWHERE
            break
    return Manifest(
        taken_at=now,
        npub=encode_npub(public_hex),
        key=key,
        pylon=__version__,
        elsewhere=tuple(sorted(_secrets_elsewhere(loaded))),
    )


def _secrets_elsewhere(loaded: LoadedSettings) -> Iterator[str]:
    for name, origin in loaded.origins.items():
        parts = tuple(int(part) if part.isdigit() else part for part in name.split("."))
        if origin.kind in _OUTSIDE and is_secret(find_field(parts, loaded.settings.backends)):
            yield name


@contextmanager
def _files(loaded: LoadedSettings, paths: Paths) -> Iterator[dict[str, Path]]:
    """Yield what goes into the backup: a sound identity file, secrets, settings, snapshots of the books."""
    places = places_of(paths)
    there = {name: path for name, path in places.items() if name != SETTINGS and path.exists()}
    files = {name: path for name, path in there.items() if name not in SNAPSHOTS}
    if IDENTITY in files:
        read_stored(files[IDENTITY])
    if loaded.config_file is not None:
        files[SETTINGS] = loaded.config_file
    with ExitStack() as held:
        for name in SNAPSHOTS:
            if name in there:
                copy, file = held.enter_context(file_beside(there[name]))
                file.close()
                take_snapshot(there[name], copy)
                files[name] = copy
        yield files
