"""The identity file: private from its first byte, never overwritten, and never quoted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pylon.nostr.identity import generate_identity, identity_from_mnemonic, parse_identity
from pylon.paths import FolderError, paths_under, private_folder, resolve_paths
from pylon.settings import load_settings
from pylon.settings.identity_file import (
    IdentityError,
    IdentityExists,
    IdentityMissing,
    load_identity,
    read_identity,
    save_identity,
)

WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "identity.json"


def test_it_is_private_and_comes_back_whole(file: Path) -> None:
    old = os.umask(0)
    try:
        save_identity(file, identity_from_mnemonic(WORDS))
    finally:
        os.umask(old)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    identity = read_identity(file)
    assert identity.secret.reveal_nsec() == NSEC
    assert identity.mnemonic == WORDS
    assert [path.name for path in file.parent.iterdir()] == ["identity.json"]


def test_it_is_never_overwritten_unless_told_and_then_kept(file: Path) -> None:
    save_identity(file, identity_from_mnemonic(WORDS))
    before = file.read_text()
    with pytest.raises(IdentityExists, match="--force"):
        save_identity(file, generate_identity())
    assert file.read_text() == before
    first = save_identity(file, generate_identity(), replace=True, now=0)
    second = save_identity(file, generate_identity(), replace=True, now=0)
    assert first.backup is not None
    assert second.backup is not None
    assert first.backup.name == "identity.json.19700101T000000Z.bak"
    assert first.backup != second.backup
    assert first.backup.read_text() == before
    assert first.backup.stat().st_mode & 0o777 == 0o600
    assert read_identity(file).secret.reveal_nsec() != NSEC


def test_a_crash_while_writing_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_identity(file, identity_from_mnemonic(WORDS))

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pylon.settings.files.os.fsync", disk_full)
    with pytest.raises(IdentityError, match="cannot be written: No space left on device"):
        save_identity(file, generate_identity(), replace=True)
    assert read_identity(file).secret.reveal_nsec() == NSEC
    assert not [path for path in file.parent.iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_one_that_others_can_read_is_refused_with_the_fix(file: Path, mode: int) -> None:
    save_identity(file, generate_identity())
    file.chmod(mode)
    with pytest.raises(IdentityError, match=f"run: chmod 600 {file}"):
        read_identity(file)


def test_none_at_all_names_the_way_out(file: Path) -> None:
    with pytest.raises(IdentityMissing, match="pylon init"):
        read_identity(file)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 60_000,
        json.dumps({"version": 2}).encode(),
        json.dumps({"version": 1, "nsec": NSEC}).encode(),
        json.dumps({"version": 1, "nsec": NSEC[:-1] + "q", "npub": "x"}).encode(),
        json.dumps({"version": 1, "nsec": 7, "npub": "x"}).encode(),
        json.dumps({"version": 1, "nsec": NSEC, "npub": "x", "mnemonic": [NSEC]}).encode(),
        json.dumps({"version": 1, "nsec": NSEC, "npub": "npub1x"}).encode(),
    ],
)
def test_a_damaged_one_is_one_sentence_without_the_secret(file: Path, body: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(body)
    file.chmod(0o600)
    with pytest.raises(IdentityError) as caught:
        read_identity(file)
    assert str(file) in str(caught.value)
    assert "nsec1" not in str(caught.value)


def test_the_settings_come_before_the_file(tmp_path: Path) -> None:
    paths = paths_under(tmp_path)
    save_identity(paths.identity_file, parse_identity("11" * 32))
    env = {"PYLON_HOME": str(tmp_path)}
    by_file = load_identity(load_settings(None, None, env).settings, paths)
    by_key = load_identity(load_settings(None, None, {**env, "PYLON_NSEC": NSEC}).settings, paths)
    by_words = load_identity(load_settings(None, None, {**env, "PYLON_MNEMONIC": WORDS}).settings, paths)
    assert by_file.reveal_hex() == "11" * 32
    assert by_key.reveal_nsec() == by_words.reveal_nsec() == NSEC


# --- folders and paths ----------------------------------------------------------------------------------------


def test_a_folder_of_ours_is_tightened_and_another_s_is_refused(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    ours.chmod(0o755)
    (ours / "pylon.toml").touch()
    assert private_folder(ours).stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "letters.txt").touch()
    with pytest.raises(FolderError, match=f"run: chmod 700 {shared}"):
        private_folder(shared)
    assert shared.stat().st_mode & 0o777 == 0o755
    with pytest.raises(FolderError, match="cannot make the folder"):
        private_folder(ours / "pylon.toml" / "x")
    with pytest.raises(FolderError):
        private_folder(ours / "pylon.toml")


def test_a_home_holds_everything(tmp_path: Path) -> None:
    paths = resolve_paths({"PYLON_HOME": str(tmp_path / "h")})
    assert paths == paths_under(tmp_path / "h")
    for file in (paths.config_file, paths.identity_file, paths.database, paths.lock_file, paths.log_file):
        assert file.parent == tmp_path / "h"
    assert resolve_paths({"PYLON_HOME": "~/h"}).config_dir == Path.home() / "h"
    assert resolve_paths({"PYLON_HOME": "rel"}).config_dir == Path.cwd() / "rel"


def test_without_a_home_the_user_s_folders_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    paths = resolve_paths({})
    assert paths.config_file == tmp_path / "c" / "pylon" / "pylon.toml"
    assert paths.database == tmp_path / "s" / "pylon" / "pylon.db"
    assert paths.control_socket == tmp_path / "s" / "pylon" / "control.sock"


def test_a_long_home_gets_a_short_socket_of_its_own() -> None:
    long = [paths_under(Path("/srv") / ("x" * 120) / name).control_socket for name in "abb"]
    assert long[0] != long[1] == long[2]
    assert all(len(os.fsencode(path)) <= 103 for path in long)
    assert all(str(os.getuid()) in path.parent.name for path in long)
    fitting = Path("/") / ("y" * (103 - len("//control.sock")))
    assert paths_under(fitting).control_socket == fitting / "control.sock"
    assert paths_under(fitting.with_name(fitting.name + "y")).control_socket.parent != fitting
