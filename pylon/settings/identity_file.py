"""The identity file: the secret key of this pylon, readable by its owner alone.

It holds the nsec beside the words, so that the daemon starts without deriving anything. JSON, because nobody is
meant to edit it.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pylon.nostr.identity import Identity, identity_from_mnemonic
from pylon.nostr.keys import BadKey, SecretKey, encode_npub, parse_secret_key
from pylon.paths import FolderError, Paths, private_folder
from pylon.settings.files import back_up_file, create_file, replace_file

if TYPE_CHECKING:
    from pylon.settings.model import Settings

_VERSION: Final = 1
_MAX_BYTES: Final = 65_536


class IdentityError(ValueError):
    """The identity cannot be read or written; `str` is one line for the operator, without any secret."""


class IdentityMissing(IdentityError):
    """There is no identity yet."""


class IdentityExists(IdentityError):
    """There is an identity, and it was not to be replaced."""

    @classmethod
    def at(cls, path: Path) -> IdentityExists:
        """Return the error for the file at `path`."""
        return cls(f"there is an identity at {path} already; --force replaces it and keeps a backup")


@dataclass(frozen=True, slots=True)
class Saved:
    """Where an identity was written, and where the one before it was kept."""

    path: Path
    backup: Path | None = None


def load_identity(settings: Settings, paths: Paths) -> SecretKey:
    """Return the secret key: of the settings (flag, environment, credential or TOML), else of the identity file.

    Raises `IdentityError`.
    """
    given = settings.identity
    if given.nsec is not None:
        return parse_secret_key(given.nsec.get_secret_value())
    if given.mnemonic is not None:
        return identity_from_mnemonic(given.mnemonic.get_secret_value()).secret
    return read_identity(paths.identity_file).secret


def read_identity(path: Path) -> Identity:
    """Return what an identity file holds. Raises `IdentityError`."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            raw = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise IdentityMissing(f"no identity at {path}; make one with: pylon init") from None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise IdentityError(f"{path}: others can read this secret key; run: chmod 600 {path}")
    try:
        data = json.loads(raw)
        if data["version"] != _VERSION:
            raise IdentityError(f"{path}: written by another version of Pylon, which this one cannot read")
        mnemonic = data.get("mnemonic")
        if not isinstance(mnemonic, str | None):
            raise TypeError
        secret = parse_secret_key(data["nsec"])
        if data["npub"] != encode_npub(secret.public_hex):
            raise IdentityError(f"{path}: nsec and npub do not belong together")
    except BadKey as error:
        raise IdentityError(f"{path}: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        raise IdentityError(
            f"{path}: not an identity file; restore it, or start anew: pylon init --force"
        ) from None
    return Identity(secret, mnemonic)


def save_identity(path: Path, identity: Identity, *, replace: bool = False, now: float | None = None) -> Saved:
    """Write an identity file, 0600 in a 0700 folder. Raises `IdentityExists` or another `IdentityError`.

    With `replace` the file that stands there is kept beside it, under a name with the time. `now` is unix
    seconds, for that name and the file's own `created_at`.
    """
    now = time.time() if now is None else now
    body = {
        "version": _VERSION,
        "npub": encode_npub(identity.secret.public_hex),
        "nsec": identity.secret.reveal_nsec(),
        "mnemonic": identity.mnemonic,
        "created_at": int(now),
    }
    text = json.dumps(body, indent=2) + "\n"
    try:
        private_folder(path.parent)
        if not (replace and path.exists()):
            create_file(path, text)
            return Saved(path)
        backup = back_up_file(path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)))
        replace_file(path, text)
        return Saved(path, backup)
    except FileExistsError:
        raise IdentityExists.at(path) from None
    except FolderError as error:
        raise IdentityError(str(error)) from None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be written: {error.strerror}") from None
