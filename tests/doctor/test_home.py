"""What the doctor finds in a home: permissions, disk, database, lock and socket."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pylon.doctor import home
from pylon.doctor.findings import Finding, Level
from pylon.lock import instance_lock
from pylon.nostr.identity import Identity
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.paths import Paths, paths_under
from pylon.settings import Settings
from pylon.settings.identity_file import save_identity
from pylon.store import integrity
from pylon.store.errors import StoreTooNew
from pylon.store.integrity import find_damage
from pylon.store.writer import Store
from tests.support.fake_daemon import fake_daemon

KEY = SecretKey(b"\x05" * 32)


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    made = paths_under(tmp_path / "home")
    made.state_dir.mkdir(mode=0o700)
    yield made
    if made.control_socket.parent != made.state_dir:
        shutil.rmtree(made.control_socket.parent, ignore_errors=True)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.what + finding.fix).isprintable()
    assert finding.level is Level.OK or finding.fix
    return finding


# --- identity and folders -----------------------------------------------------------------------------------------


def test_the_identity_is_there_and_private(paths: Paths) -> None:
    save_identity(paths.identity_file, Identity(KEY, None))
    key, findings = home.check_identity(Settings(), paths)
    assert key is not None
    assert key.public_hex == KEY.public_hex
    assert only(findings) == Finding(Level.OK, "identity", encode_npub(KEY.public_hex))


def test_no_identity(paths: Paths) -> None:
    key, findings = home.check_identity(Settings(), paths)
    assert key is None
    assert only(findings).fix == "make one: pylon init"


def test_an_identity_that_others_can_read(paths: Paths) -> None:
    save_identity(paths.identity_file, Identity(KEY, None))
    paths.identity_file.chmod(0o640)
    key, findings = home.check_identity(Settings(), paths)
    assert key is None
    assert "others can read this secret key; run: chmod 600" in only(findings).what
    assert KEY.reveal_nsec() not in only(findings).what


@pytest.mark.parametrize(("mode", "level"), [(0o700, Level.OK), (0o750, Level.FAIL), (0o705, Level.FAIL)])
def test_folders_are_private(paths: Paths, mode: int, level: Level) -> None:
    paths.state_dir.chmod(mode)
    finding = home.check_folders(paths)[0]
    assert finding.level is level
    if level is Level.FAIL:
        assert f"mode {mode:04o}" in finding.what
        assert finding.fix == f"chmod 700 {paths.state_dir}"


def test_a_folder_of_somebody_else(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert "belongs to another user" in home.check_folders(paths)[0].what


def test_no_folder_yet_is_no_failure(tmp_path: Path) -> None:
    findings = home.check_folders(paths_under(tmp_path / "none"))
    assert {finding.level for finding in findings} == {Level.WARN}


# --- disk and database --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "level"), [(10**7, Level.FAIL), (5 * 10**8, Level.WARN), (10**10, Level.OK)])
def test_room_on_the_disk(paths: Paths, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    finding = only(home.check_disk(paths))
    assert finding.level is level
    assert f"{free / 1e9:.1f} GB free" in finding.what


def test_a_disk_that_takes_no_write(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    finding = only(home.check_disk(paths))
    assert finding.level is Level.FAIL
    assert "No space left on device" in finding.what
    assert list(paths.state_dir.iterdir()) == []


def test_the_disk_of_a_home_that_is_not_there_yet(tmp_path: Path) -> None:
    finding = only(home.check_disk(paths_under(tmp_path / "a" / "b")))
    assert finding.what.endswith(f" at {tmp_path}")


async def make_database(path: Path) -> None:
    store = await Store.open(path)
    await store.aclose()


async def test_a_sound_database(paths: Paths) -> None:
    assert only(home.check_database(paths, 5)).what == "none yet; the first start makes it"
    await make_database(paths.database)
    before = paths.database.read_bytes()
    finding = only(home.check_database(paths, 5))
    assert finding.level is Level.OK
    assert finding.what.endswith("is sound and writable")
    assert paths.database.read_bytes() == before


async def test_a_damaged_database(paths: Paths) -> None:
    await make_database(paths.database)
    raw = bytearray(paths.database.read_bytes())
    raw[4096:8192] = os.urandom(4096)  # the second page: a table or an index
    paths.database.write_bytes(raw)
    finding = only(home.check_database(paths, 5))
    assert finding.level is Level.FAIL
    assert "backup" in finding.fix


def test_a_file_that_is_no_database(paths: Paths) -> None:
    paths.database.write_bytes(b"\x1b[31mnonsense" * 1000)
    finding = only(home.check_database(paths, 5))
    assert finding.level is Level.FAIL
    assert "file is not a database" in finding.what


async def test_a_database_of_a_newer_pylon(paths: Paths) -> None:
    await make_database(paths.database)
    with sqlite3.connect(paths.database) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StoreTooNew, match="upgrade"):
        find_damage(paths.database, 5)
    assert only(home.check_database(paths, 5)).level is Level.FAIL


async def test_a_check_that_takes_too_long_is_no_failure(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_database(paths.database)
    monkeypatch.setattr(integrity, "_STEPS", 1)
    findings = home.check_database(paths, 0)
    assert [finding.level for finding in findings] == [Level.WARN]


async def test_a_database_that_we_may_not_write(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_database(paths.database)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    findings = home.check_database(paths, 5)
    assert findings[0].what == f"{paths.database} cannot be written"
    assert findings[0].fix == f"make it yours: chown $USER {paths.database}"


# --- the daemon ---------------------------------------------------------------------------------------------------


def test_no_daemon(paths: Paths) -> None:
    status, findings = home.check_daemon(paths)
    assert status is None
    assert only(findings) == Finding(Level.OK, "daemon", "not running")


def test_a_daemon_that_answers(paths: Paths) -> None:
    with fake_daemon(paths.state_dir):
        status, findings = home.check_daemon(paths)
    assert status is not None
    assert only(findings) == Finding(Level.OK, "daemon", "process 4242 runs and is ready")


def test_a_daemon_that_is_not_well(paths: Paths) -> None:
    with fake_daemon(paths.state_dir, state="degraded"):
        _, findings = home.check_daemon(paths)
    assert only(findings).level is Level.WARN
    assert "is degraded" in only(findings).what


def test_a_lock_that_is_held_by_somebody_who_does_not_answer(paths: Paths) -> None:
    with instance_lock(paths.lock_file):
        status, findings = home.check_daemon(paths)
    assert status is None
    assert only(findings).what == f"process {os.getpid()} holds the lock and does not answer"


@pytest.mark.parametrize(("mode", "level"), [(0o600, Level.OK), (0o666, Level.FAIL)])
def test_a_socket_that_a_crash_left(paths: Paths, mode: int, level: Level) -> None:
    paths.control_socket.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(paths.control_socket))
    paths.control_socket.chmod(mode)
    status, findings = home.check_daemon(paths)
    assert status is None
    assert findings[0].level is level
    assert findings[-1].what == "not running; the socket that its last run left is replaced at the next start"
    paths.control_socket.unlink()


def test_something_else_where_the_socket_should_be(paths: Paths) -> None:
    paths.control_socket.parent.mkdir(exist_ok=True)
    paths.control_socket.write_text("")
    _, findings = home.check_daemon(paths)
    assert findings[0].level is Level.FAIL
    assert "is in the way and no socket" in findings[0].what
