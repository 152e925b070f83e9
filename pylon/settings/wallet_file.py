"""The wallet file: the secret of the wallet that `pylon wallet connect` was given, readable by its owner alone.

It tells which wallet the secret is for, and is used for no other: a password never goes to another server because
the settings were changed. JSON, because nobody is meant to edit it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pylon.paths import FolderError, private_folder
from pylon.settings.errors import SettingsError
from pylon.settings.files import replace_file

_VERSION: Final = 1
_MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class WalletSecret:
    """A secret, the key of `[wallet]` that it sets, and the wallet that it is for; `url` may be empty."""

    kind: str
    url: str
    key: str
    value: str = field(repr=False)

    def is_for(self, wallet: Mapping[str, object]) -> bool:
        """Tell whether a `[wallet]` table, as the other sources give it, means this wallet."""
        url = wallet.get("url")
        return wallet.get("kind") == self.kind and (
            not self.url or (isinstance(url, str) and url.rstrip("/") == self.url)
        )


def read_wallet_secret(path: Path) -> WalletSecret | None:
    """Return what the wallet file holds, None where there is none. Raises `SettingsError`."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError("", f"cannot be read: {error.strerror}", place=str(path)) from None
    if mode & 0o077:
        raise SettingsError("", f"others can read this secret; run: chmod 600 {path}", place=str(path))
    try:
        data = json.loads(raw)
        found = [data[name] for name in ("kind", "url", "key", "value")]
        if data["version"] != _VERSION or not all(isinstance(each, str) for each in found):
            raise TypeError
    except (ValueError, RecursionError, LookupError, TypeError):
        fault = "not a wallet file of this version; remove it, then: pylon wallet connect"
        raise SettingsError("", fault, place=str(path)) from None
    return WalletSecret(*found)


def save_wallet_secret(path: Path, secret: WalletSecret) -> None:
    """Write the wallet file, 0600 in a 0700 folder, in place of one that stands there. Raises `SettingsError`."""
    body = {"version": _VERSION, "kind": secret.kind, "url": secret.url, "key": secret.key, "value": secret.value}
    try:
        private_folder(path.parent)
        replace_file(path, json.dumps(body, indent=2) + "\n")
    except FolderError as error:
        raise SettingsError("", str(error)) from None
    except OSError as error:
        raise SettingsError("", f"cannot be written: {error.strerror}", place=str(path)) from None
