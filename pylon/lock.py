"""One daemon per home: an flock on a file that holds the daemon's pid.

The kernel drops the lock with the process, however it ends, so there is no stale lock to judge. The file itself
stays: removing it would let two daemons lock two files of the same name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

# A command that only looks (`lock_holder`) takes the lock for microseconds; a start that meets it tries again.
_TRIES: Final = 10
_PAUSE_S: Final = 0.02


class AlreadyRunning(Exception):
    """Another daemon holds this home; `pid` is its process, 0 when it has not written it yet."""

    def __init__(self, pid: int, path: Path) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"pylon already runs in this home: {who} holds {path}")
        self.pid = pid


class LockFailed(Exception):
    """The lock file cannot be used; the message says why."""


@contextlib.contextmanager
def instance_lock(path: Path) -> Generator[None, None, None]:
    """Hold the lock of one home. Raises `AlreadyRunning` or `LockFailed`; may block for 0.2 s.

    The descriptor is not inherited by programs that we start: a child that outlives us must not keep the lock.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LockFailed(f"cannot open the lock file {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path)
        _write_pid(descriptor, path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def lock_holder(path: Path) -> int | None:
    """Return the pid of the daemon that holds the lock, 0 when it is not readable, None when nobody does.

    Raises `LockFailed`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockFailed(f"cannot read the lock file {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor)
    except OSError as error:
        raise LockFailed(f"cannot lock {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return None


def _lock(descriptor: int, path: Path) -> None:
    for remaining in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not remaining:
                raise AlreadyRunning(_read_pid(descriptor), path) from None
            time.sleep(_PAUSE_S)
        except OSError as error:
            raise LockFailed(f"cannot lock {path}: {error.strerror}") from error
        else:
            return


def _write_pid(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise LockFailed(f"cannot write the lock file {path}: {error.strerror}") from error


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
