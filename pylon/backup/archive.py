"""What a backup holds and how it lies in the sealed file: a compressed tar of a manifest and a home's files.

The manifest comes first. Only files of these names are ever written, each where the restoring side says.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Final, cast

from pylon.backup.sealed import SealBroken, SealedReader, SealedWriter
from pylon.paths import Paths

IDENTITY: Final = "identity.json"
SETTINGS: Final = "pylon.toml"
DATABASE: Final = "pylon.db"
WALLET: Final = "pylon.wallet.json"
LNURL: Final = "pylon.lnurl.db"
SNAPSHOTS: Final = (DATABASE, LNURL)
"""Those that a running daemon writes to: copied as they are at one moment."""

_MANIFEST: Final = "manifest.json"
_VERSION: Final = 1
_MOST_BYTES: Final = {DATABASE: 2**40, LNURL: 2**40}
_MOST_BYTES_ELSE: Final = 1_048_576


def places_of(paths: Paths) -> dict[str, Path]:
    """Return what a backup holds, by name: where each file lies in a home, and where it is put back."""
    # The books first: they are the largest, so what can fail fails before the small ones are touched.
    return {
        DATABASE: paths.database,
        LNURL: paths.lnurl_file,
        WALLET: paths.wallet_file,
        IDENTITY: paths.identity_file,
        SETTINGS: paths.config_file,
    }


class KeyPlace(StrEnum):
    """Where the secret key of the pylon is."""

    FILE = "file"  # in the identity file, which is in the backup
    SETTINGS = "settings"  # in the settings file, which is in the backup
    ELSEWHERE = "elsewhere"  # in the environment or a credential: not in the backup


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `taken_at` is unix seconds; the books are no older.

    `elsewhere` are the settings whose secrets came from the environment or a credential and are not in it.
    """

    taken_at: int
    npub: str
    key: KeyPlace
    pylon: str = ""
    elsewhere: tuple[str, ...] = ()


def write_archive(file: IO[bytes], passphrase: str, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write a sealed backup of the files by name. Raises `OSError`."""
    sealed = SealedWriter(file, passphrase)
    with tarfile.open(fileobj=cast("IO[bytes]", sealed), mode="w|gz", format=tarfile.PAX_FORMAT) as archive:
        told = json.dumps({"version": _VERSION, **asdict(manifest)}).encode()
        archive.addfile(_entry(_MANIFEST, len(told), manifest), io.BytesIO(told))
        for name, path in files.items():
            with path.open("rb") as content:
                archive.addfile(_entry(name, path.stat().st_size, manifest), content)
    sealed.finish()


def read_archive(file: IO[bytes], passphrase: str, places: Mapping[str, IO[bytes]]) -> tuple[Manifest, set[str]]:
    """Write the files of a backup to `places`, by name; return its manifest and which files it holds.

    Raises `SealBroken`; whatever was written by then is of no worth.
    """
    sealed = SealedReader(file, passphrase)
    found: set[str] = set()
    manifest: Manifest | None = None
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", sealed), mode="r|gz") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is None or entry.name in found:
                    raise SealBroken("holds what no backup of pylon holds")
                if manifest is None:
                    manifest = _read_manifest(entry, content)
                    continue
                if entry.name not in places or entry.size > _MOST_BYTES.get(entry.name, _MOST_BYTES_ELSE):
                    raise SealBroken("holds what no backup of pylon holds")
                found.add(entry.name)
                shutil.copyfileobj(content, places[entry.name], 1024 * 1024)
        sealed.finish()
    except (tarfile.TarError, EOFError) as error:
        raise SealBroken("is damaged: it opens, and what is in it makes no sense") from error
    if manifest is None:
        raise SealBroken("is empty")
    return manifest, found


def _entry(name: str, size_bytes: int, manifest: Manifest) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size_bytes, 0o600, manifest.taken_at
    return entry


def _read_manifest(entry: tarfile.TarInfo, content: IO[bytes]) -> Manifest:
    if entry.name != _MANIFEST or entry.size > _MOST_BYTES_ELSE:
        raise SealBroken("has no manifest")
    try:
        told = json.loads(content.read())
        if told["version"] != _VERSION:
            raise SealBroken("was written by another version of Pylon, which this one cannot read")
        return Manifest(
            taken_at=int(told["taken_at"]),
            npub=str(told["npub"]),
            key=KeyPlace(told["key"]),
            pylon=str(told["pylon"]),
            elsewhere=tuple(str(each) for each in told["elsewhere"]),
        )
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, SealBroken):
            raise
        raise SealBroken("has a manifest that makes no sense") from error
