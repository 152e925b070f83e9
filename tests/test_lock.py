"""One instance per home, with real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.lock import AlreadyRunning, LockFailed, instance_lock, lock_holder

HOLD = """
import sys
from pathlib import Path
from pylon.lock import instance_lock
with instance_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock and return once it does."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "pylon.lock"


def test_second_instance_is_told_who_holds_it(path: Path) -> None:
    with hold(path) as child:
        with pytest.raises(AlreadyRunning, match=f"process {child.pid} holds") as caught, instance_lock(path):
            pass
        assert caught.value.pid == child.pid
        assert "\n" not in str(caught.value)
        assert lock_holder(path) == child.pid
        child.communicate()
    assert lock_holder(path) is None


def test_kill_9_leaves_no_lock(path: Path) -> None:
    with hold(path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert path.read_text().strip() == str(child.pid)
        assert lock_holder(path) is None
        with instance_lock(path):
            assert path.read_text().strip() == str(os.getpid())


def test_a_child_that_outlives_the_daemon_does_not_keep_the_lock(path: Path) -> None:
    with instance_lock(path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        assert lock_holder(path) is None
    finally:
        child.kill()
        child.wait()


def test_looking_does_not_disturb_a_start(path: Path) -> None:
    with instance_lock(path):
        pass
    looking = os.open(path, os.O_RDONLY)
    import fcntl
    import threading

    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    with instance_lock(path):
        assert lock_holder(path) == os.getpid()
    timer.join()


def test_files_are_private(path: Path) -> None:
    with instance_lock(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nobody_holds_a_lock_that_was_never_taken(path: Path) -> None:
    assert lock_holder(path) is None


def test_garbage_for_a_pid_is_no_pid(path: Path) -> None:
    with instance_lock(path):
        path.write_text("rm -rf")
        assert lock_holder(path) == 0
        with pytest.raises(AlreadyRunning, match="another process"), instance_lock(path):
            pass


def test_unusable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LockFailed, match="cannot open"), instance_lock(tmp_path / "file" / "lock"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LockFailed), instance_lock(tmp_path / "link"):
        pass
    assert not (tmp_path / "elsewhere").exists()
