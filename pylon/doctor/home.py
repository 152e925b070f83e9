"""What lies in the home: settings' folder, identity, database, disk, lock and control socket. All of it blocks."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from pylon.control.client import ControlClient, ControlError, DaemonNotRunning
from pylon.control.views import DaemonStatus
from pylon.doctor.findings import Finding, fail, ok, warn
from pylon.lock import LockFailed, lock_holder
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.paths import Paths
from pylon.settings import Settings
from pylon.settings.identity_file import (
    IdentityError,
    IdentityLocked,
    IdentityMissing,
    load_identity,
    load_public_key,
)
from pylon.store.errors import StoreError
from pylon.store.integrity import find_damage
from pylon.text import printable

LEAST_FREE_BYTES: Final = 100_000_000
LITTLE_FREE_BYTES: Final = 1_000_000_000
CONTROL_LIMIT_S: Final = 5.0


def check_identity(settings: Settings, paths: Paths) -> tuple[SecretKey | None, list[Finding]]:
    """Return the key, if there is one that can be used, and what was found. A file's mode is checked on reading."""
    try:
        key = load_identity(settings, paths)
    except IdentityMissing:
        what = f"there is none at {printable(paths.identity_file, limit=500)}"
        return None, [fail("identity", what, "make one: pylon init")]
    except IdentityLocked as error:
        npub = encode_npub(load_public_key(settings, paths))
        what = f"{npub} is encrypted and there is no passphrase: relays are tried with a throw-away key"
        return None, [warn("identity", what, printable(error, limit=500))]
    except (IdentityError, ValueError) as error:
        return None, [
            fail("identity", printable(error, limit=500), "follow the sentence, then run the doctor again")
        ]
    return key, [ok("identity", encode_npub(key.public_hex))]


def check_folders(paths: Paths) -> list[Finding]:
    """Look whether others can enter the folders of settings, database and control socket."""
    folders = dict.fromkeys((paths.config_dir, paths.state_dir, paths.control_socket.parent))
    return [_check_folder(folder) for folder in folders]


def _check_folder(folder: Path) -> Finding:
    shown = printable(folder, limit=500)
    try:
        found = folder.stat()
    except FileNotFoundError:
        return warn("folders", f"{shown} does not exist yet", "pylon init and pylon start make it")
    except OSError as error:
        return fail(
            "folders", f"{shown} cannot be read: {error.strerror}", f"make it yours: chown -R $USER {shown}"
        )
    if found.st_uid != os.geteuid():
        return fail("folders", f"{shown} belongs to another user", "run pylon as its owner, or choose another home")
    if stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        return fail("folders", f"others can enter {shown} (mode {mode:04o})", f"chmod 700 {shown}")
    return ok("folders", f"{shown} is private")


def check_disk(paths: Paths) -> list[Finding]:
    """Look whether the disk of the database has room and takes a write."""
    folder = paths.state_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    shown = printable(folder, limit=500)
    try:
        free_bytes = shutil.disk_usage(folder).free
        if folder == paths.state_dir:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        return [fail("disk", f"{shown} takes no write: {error.strerror}", "free space there, or make it writable")]
    said = f"{free_bytes / 1e9:,.1f} GB free at {shown}"
    if free_bytes < LEAST_FREE_BYTES:
        return [fail("disk", said, "free space: without any, no job is accepted and no payment booked")]
    if free_bytes < LITTLE_FREE_BYTES:
        return [warn("disk", said, "free some space before it runs out")]
    return [ok("disk", said)]


def check_database(paths: Paths, limit_s: float) -> list[Finding]:
    """Have the database checked, read-only, and look whether we may write it."""
    path = paths.database
    if not path.exists():
        return [ok("database", "none yet; the first start makes it")]
    shown = printable(path, limit=500)
    findings = []
    for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        if file.exists() and not os.access(file, os.R_OK | os.W_OK):
            name = printable(file, limit=500)
            findings.append(fail("database", f"{name} cannot be written", f"make it yours: chown $USER {name}"))
    if findings:
        return findings
    try:
        damage = find_damage(path, limit_s)
    except TimeoutError:
        return [warn("database", f"{shown} is large: its check was not finished within {limit_s:g} s")]
    except StoreError as error:
        return [fail("database", printable(error, limit=500), "restore a backup, or move the file away")]
    if damage:
        return [fail("database", f"{shown} is damaged: {printable(damage)}", "stop pylon and restore a backup")]
    return [ok("database", f"{shown} is sound and writable")]


def check_daemon(paths: Paths) -> tuple[DaemonStatus | None, list[Finding]]:
    """Return the running daemon's status, if one answers, and what lock and control socket look like."""
    try:
        holder = lock_holder(paths.lock_file)
    except LockFailed as error:
        return None, [fail("daemon", printable(error, limit=500), "make the lock file yours, mode 0600")]
    socket_findings = _check_socket(paths.control_socket)
    try:
        status = ControlClient(paths.control_socket, timeout_s=CONTROL_LIMIT_S).status()
    except DaemonNotRunning:
        return None, [*socket_findings, _not_listening(paths, holder)]
    except ControlError as error:
        return None, [*socket_findings, fail("daemon", printable(error), "restart it: pylon stop, pylon start")]
    reasons = "; ".join(printable(reason) for reason in status.state_reasons)
    said = f"process {status.pid} runs and is {status.state}{f': {reasons}' if reasons else ''}"
    healthy = status.state in ("ready", "starting", "paused", "draining")
    return status, [
        *socket_findings,
        ok("daemon", said) if healthy else warn("daemon", said, "see the findings below and: pylon status"),
    ]


def _not_listening(paths: Paths, holder: int | None) -> Finding:
    if holder is not None:
        who = f"process {holder}" if holder else "a process"
        return warn("daemon", f"{who} holds the lock and does not answer", "wait; if it stays so, end that process")
    if paths.control_socket.exists():
        return ok("daemon", "not running; the socket that its last run left is replaced at the next start")
    return ok("daemon", "not running")


def _check_socket(path: Path) -> list[Finding]:
    shown = printable(path, limit=500)
    try:
        found = path.lstat()
    except OSError:
        return []  # there is none, or the folder's own finding says why it cannot be seen
    if not stat.S_ISSOCK(found.st_mode):
        return [fail("daemon", f"{shown} is in the way and no socket", f"move it: mv {shown} {shown}.old")]
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        what = f"{shown} is not ours alone (owner {found.st_uid}, mode {mode:04o})"
        return [fail("daemon", what, f"chmod 600 {shown}, as its owner")]
    return []
