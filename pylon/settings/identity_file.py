"""The identity file: the secret key of this pylon, readable by its owner alone.

It holds the nsec beside the words, so that the daemon starts without deriving anything; or, encrypted, the key as
NIP-49 under a passphrase and the words, which NIP-49 cannot carry, sealed to that key (NIP-44). The public key
stands in plain: only who needs the secret one waits for scrypt. JSON, because nobody is meant to edit it.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pylon.nostr.encryption import BadCiphertext, Conversation, Encryption
from pylon.nostr.identity import Identity, identity_from_mnemonic
from pylon.nostr.keys import BadKey, SecretKey, encode_npub, parse_public_key, parse_secret_key
from pylon.nostr.nip49 import BadNcryptsec, WrongPassphrase, cost_of, decrypt_key, encrypt_key
from pylon.paths import FolderError, Paths, private_folder
from pylon.settings.files import back_up_file, create_file, replace_file
from pylon.settings.passphrase import given_passphrase

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


class IdentityLocked(IdentityError):
    """The identity is encrypted, and there is no passphrase to open it."""

    exit_code = 2

    @classmethod
    def at(cls, path: Path) -> IdentityLocked:
        """Return the error for the file at `path`, with the three ways to open it."""
        return cls(
            f"{path}: encrypted, and there is no passphrase: type it at a terminal, name a file in "
            "identity.passphrase_file, or set PYLON_PASSPHRASE (a systemd credential named passphrase does too)"
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """Where an identity was written, and where the one before it was kept."""

    path: Path
    backup: Path | None = None


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """What an identity file says before anything is decrypted. `created_at` is unix seconds."""

    path: Path
    public_hex: str
    created_at: int
    plain: Identity | None = field(default=None, repr=False)
    ncryptsec: str | None = field(default=None, repr=False)
    sealed_mnemonic: str | None = field(default=None, repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether a passphrase is needed."""
        return self.plain is None

    @property
    def has_words(self) -> bool:
        """Whether it keeps the words that the key was made from."""
        return (self.sealed_mnemonic if self.plain is None else self.plain.mnemonic) is not None

    def open(self, passphrase: str | None = None) -> Identity:
        """Return the identity; an encrypted one takes half a second. Raises `IdentityError`."""
        if self.plain is not None:
            return self.plain
        if passphrase is None or self.ncryptsec is None:
            raise IdentityLocked.at(self.path)
        try:
            secret = decrypt_key(self.ncryptsec, passphrase)
            if secret.public_hex != self.public_hex:
                raise IdentityError(f"{self.path}: ncryptsec and npub do not belong together")
            sealed = self.sealed_mnemonic
            words = None if sealed is None else Conversation(secret, secret.public_hex).decrypt(sealed)
        except WrongPassphrase:
            raise IdentityError(f"{self.path}: does not open: another passphrase, or it is damaged") from None
        except (BadNcryptsec, BadKey) as error:
            raise IdentityError(f"{self.path}: {error}") from None
        except BadCiphertext:
            raise IdentityError(f"{self.path}: its words are damaged; the key is not") from None
        return Identity(secret, words)


def load_identity(settings: Settings, paths: Paths) -> SecretKey:
    """Return the secret key: of the settings (flag, environment, credential or TOML), else of the identity file.

    Blocks for half a second when the file is encrypted. Raises `IdentityError` or `PassphraseError`.
    """
    given = settings.identity
    if given.nsec is not None:
        return parse_secret_key(given.nsec.get_secret_value())
    if given.mnemonic is not None:
        return identity_from_mnemonic(given.mnemonic.get_secret_value()).secret
    stored = read_stored(paths.identity_file)
    return stored.open(given_passphrase(given) if stored.encrypted else None).secret


def load_public_key(settings: Settings, paths: Paths) -> str:
    """Return the public key (hex) of the same identity, without opening a file that is encrypted.

    Raises `IdentityError`.
    """
    given = settings.identity
    if given.nsec is not None or given.mnemonic is not None:
        return load_identity(settings, paths).public_hex
    return read_stored(paths.identity_file).public_hex


def read_identity(path: Path, passphrase: str | None = None) -> Identity:
    """Return what an identity file holds. Raises `IdentityError`, also for an encrypted one without passphrase."""
    return read_stored(path).open(passphrase)


def read_stored(path: Path) -> StoredIdentity:
    """Return what an identity file says, decrypting nothing. Raises `IdentityError`."""
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
        return _parse(path, json.loads(raw))
    except (BadKey, BadNcryptsec) as error:
        raise IdentityError(f"{path}: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        raise IdentityError(
            f"{path}: not an identity file; restore it, or start anew: pylon init --force"
        ) from None


def _parse(path: Path, data: Any) -> StoredIdentity:
    if data["version"] != _VERSION:
        raise IdentityError(f"{path}: written by another version of Pylon, which this one cannot read")
    created_at = data.get("created_at", 0)
    if type(created_at) is not int:
        raise TypeError
    if "ncryptsec" in data:
        sealed = data.get("sealed_mnemonic")
        if not isinstance(sealed, str | None):
            raise TypeError
        cost_of(data["ncryptsec"])
        public_hex = parse_public_key(data["npub"])
        return StoredIdentity(path, public_hex, created_at, ncryptsec=data["ncryptsec"], sealed_mnemonic=sealed)
    mnemonic = data.get("mnemonic")
    if not isinstance(mnemonic, str | None):
        raise TypeError
    secret = parse_secret_key(data["nsec"])
    if data["npub"] != encode_npub(secret.public_hex):
        raise IdentityError(f"{path}: nsec and npub do not belong together")
    return StoredIdentity(path, secret.public_hex, created_at, plain=Identity(secret, mnemonic))


def save_identity(
    path: Path,
    identity: Identity,
    *,
    passphrase: str | None = None,
    replace: bool = False,
    keep: bool = True,
    now: float | None = None,
) -> Saved:
    """Write an identity file, 0600 in a 0700 folder. Raises `IdentityExists` or another `IdentityError`.

    With a `passphrase` it is encrypted, and opened once before it takes its place. With `replace` the file that
    stands there is kept beside it, under a name with the time, unless `keep` is false. `now` is unix seconds, for
    that name and the file's own `created_at`.
    """
    now = time.time() if now is None else now
    npub = encode_npub(identity.secret.public_hex)
    body: dict[str, object] = {"version": _VERSION, "npub": npub}
    if passphrase is None:
        body |= {"nsec": identity.secret.reveal_nsec(), "mnemonic": identity.mnemonic}
    else:
        body |= _encrypted(path, identity, passphrase)
    text = json.dumps({**body, "created_at": int(now)}, indent=2) + "\n"
    try:
        private_folder(path.parent)
        if not (replace and path.exists()):
            create_file(path, text)
            return Saved(path)
        backup = back_up_file(path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))) if keep else None
        replace_file(path, text)
        return Saved(path, backup)
    except FileExistsError:
        raise IdentityExists.at(path) from None
    except FolderError as error:
        raise IdentityError(str(error)) from None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be written: {error.strerror}") from None


def plain_copies(path: Path) -> list[Path]:
    """Return the kept files beside an identity file that hold the same key in plain. Raises `IdentityError`."""
    public_hex = read_stored(path).public_hex
    found = []
    for copy in sorted(path.parent.glob(f"{path.name}.*.bak")):
        try:
            stored = read_stored(copy)
        except IdentityError:
            continue
        if not stored.encrypted and stored.public_hex == public_hex:
            found.append(copy)
    return found


def _encrypted(path: Path, identity: Identity, passphrase: str) -> dict[str, object]:
    """Return the encrypted form of an identity, proven to open. Raises `IdentityError`."""
    secret = identity.secret
    try:
        ncryptsec = encrypt_key(secret, passphrase)
        words = identity.mnemonic
        channel = Conversation(secret, secret.public_hex)
        sealed = None if words is None else channel.encrypt(words, Encryption.NIP44)
    except (WrongPassphrase, BadCiphertext) as error:
        raise IdentityError(f"{path}: cannot be encrypted: {error}") from None
    made = StoredIdentity(path, secret.public_hex, 0, ncryptsec=ncryptsec, sealed_mnemonic=sealed)
    if made.open(passphrase).mnemonic != words:
        raise IdentityError(f"{path}: what was encrypted does not come back; nothing was changed")
    return {"ncryptsec": ncryptsec, "sealed_mnemonic": sealed}
