"""Where Pylon's files lie. Light on purpose: `pylon status` imports this and must answer at once.

Everything lies under `PYLON_HOME` when it is set, else in the user's config and state folders as platformdirs
names them. Lock and control socket lie in the state folder, not in the runtime folder: that one is missing or
another one in sessions without a login (cron, ssh, units), and whoever asks must find the daemon that runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOME_VARIABLE: Final = "PYLON_HOME"

_MAX_SOCKET_BYTES: Final = 103
"""`sun_path` holds 104 bytes on macOS and the BSDs (108 on Linux), the closing NUL among them."""


class FolderError(OSError):
    """A folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one home. Nothing here need exist yet."""

    config_dir: Path
    state_dir: Path
    control_socket: Path

    @property
    def config_file(self) -> Path:
        """The settings."""
        return self.config_dir / "pylon.toml"

    @property
    def identity_file(self) -> Path:
        """The secret key, made by `pylon init`."""
        return self.config_dir / "identity.json"

    @property
    def wallet_file(self) -> Path:
        """The wallet's secret, written by `pylon wallet connect`."""
        return self.config_dir / "pylon.wallet.json"

    @property
    def database(self) -> Path:
        """Jobs and money."""
        return self.state_dir / "pylon.db"

    @property
    def lnurl_file(self) -> Path:
        """What the lnurl wallet must remember: its invoices and how their payment is learnt of."""
        return self.state_dir / "pylon.lnurl.db"

    @property
    def benches_file(self) -> Path:
        """What `pylon backends bench` measured."""
        return self.state_dir / "pylon.benches.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one daemon of this home."""
        return self.state_dir / "pylon.lock"

    @property
    def orders_file(self) -> Path:
        """What the owner ordered: a pause or a drain that outlives the daemon."""
        return self.state_dir / "pylon.orders.json"

    @property
    def log_file(self) -> Path:
        """Where a daemon without a terminal may log."""
        return self.state_dir / "pylon.log"


def resolve_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """Return the paths for `PYLON_HOME` of `environ` (default: the process's environment)."""
    home = (os.environ if environ is None else environ).get(HOME_VARIABLE, "").strip()
    if home:
        folder = Path(os.path.abspath(Path(home).expanduser()))  # noqa: PTH100 (resolve() would follow links)
        return paths_under(folder)
    import platformdirs

    state = platformdirs.user_state_path("pylon", appauthor=False)
    return Paths(platformdirs.user_config_path("pylon", appauthor=False), state, _socket_path(state))


def paths_under(home: Path) -> Paths:
    """Return the paths of a home folder, as `PYLON_HOME` would give them. `home` is absolute."""
    return Paths(home, home, _socket_path(home))


def private_folder(folder: Path) -> Path:
    """Make sure that `folder` exists, is ours and that nobody else can enter it; return it.

    A missing folder is made 0700. An existing one is tightened only when nothing but Pylon's files lie in it,
    so that a mistaken `PYLON_HOME=/etc` does no harm. Raises `FolderError`.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise FolderError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"{folder} is not a folder")
    if found.st_uid != os.geteuid():
        raise FolderError(f"{folder} belongs to another user; choose another {HOME_VARIABLE}")
    if found.st_mode & 0o077:
        if not all(_is_ours(entry) for entry in folder.iterdir()):
            raise FolderError(
                f"others can enter {folder}; run: chmod 700 {folder}, or choose another {HOME_VARIABLE}"
            )
        folder.chmod(0o700)
    return folder


def _is_ours(entry: Path) -> bool:
    return entry.name.lstrip(".").startswith(("pylon.", "identity.json", "control.sock"))


def _socket_path(state_dir: Path) -> Path:
    """Return `control.sock` in the state folder or, where that is too long for a socket, in a short folder.

    The short one is `pylon-<uid>-<hash of the state folder>` in the temporary folder: the same for every
    process of this user, private to them (`private_folder` checks the owner before anything is bound).
    """
    direct = state_dir / "control.sock"
    if _fits(direct):
        return direct
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
    name = f"pylon-{os.getuid()}-{digest}"
    short = Path(tempfile.gettempdir()) / name / "control.sock"
    return short if _fits(short) else Path("/tmp") / name / "control.sock"  # noqa: S108 (private_folder checks it)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _MAX_SOCKET_BYTES
