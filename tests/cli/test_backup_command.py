"""`pylon backup` and `pylon restore`: what comes back, what is refused, and what never changes."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from pylon.backup.sealed import SealedReader
from pylon.cli.app import run
from pylon.lock import instance_lock
from pylon.nostr.identity import generate_identity
from pylon.nostr.keys import SecretKey
from pylon.paths import Paths, paths_under
from pylon.settings.identity_file import read_identity, save_identity
from pylon.settings.wallet_file import WalletSecret, read_wallet_secret, save_wallet_secret
from pylon.store.records import RESTORED_MARK, Job
from pylon.store.reports import Reports
from pylon.store.writer import Store
from tests.support.house import rows

Captured = pytest.CaptureFixture[str]
PASSPHRASE = "correct horse battery"
SETTINGS = '[payment]\nmode = "free"\n# a comment of the operator\n'


def job(number: int) -> Job:
    return Job(f"{number:064x}", "ab" * 32, 5050, "b", "m", 2_000, 64, 1_000 + number, 2_000)


async def store_jobs(database: Path, *numbers: int) -> None:
    store = await Store.open(database)
    for number in numbers:
        await store.write(lambda tx, number=number: tx.insert_job(job(number), "{}"))  # type: ignore[misc]
    await store.aclose()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A home with an identity, settings and two jobs, and the passphrase in the environment."""
    paths = paths_under(tmp_path / "home")
    save_identity(paths.identity_file, generate_identity())
    paths.config_file.write_text(SETTINGS)
    anyio.run(store_jobs, paths.database, 1, 2)
    monkeypatch.setenv("PYLON_HOME", str(paths.state_dir))
    monkeypatch.setenv("PYLON_BACKUP_PASSPHRASE", PASSPHRASE)
    return paths


@pytest.fixture
def file(home: Paths, tmp_path: Path, capsys: Captured) -> Path:
    """A backup of that home."""
    path = tmp_path / "pylon.backup"
    assert run(["backup", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def other(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Another home, in which nothing is yet."""
    paths = paths_under(tmp_path / "other")
    monkeypatch.setenv("PYLON_HOME", str(paths.state_dir))
    return paths


def everything(paths: Paths) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in paths.state_dir.iterdir() if path.is_file()}
    found.pop(paths.lock_file.name, None)  # whoever checks whether a daemon runs may make it
    return found


def said(capsys: Captured) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    return err


# --- there and back -------------------------------------------------------------------------------------------


def test_a_backup_brings_everything_back(home: Paths, file: Path, other: Paths, capsys: Captured) -> None:
    assert run(["restore", str(file)]) == 0
    out = capsys.readouterr().out
    assert other.identity_file.read_bytes() == home.identity_file.read_bytes()
    assert other.config_file.read_text() == SETTINGS
    assert [each.id for each in Reports(other.database).jobs(work=None, money=None, limit=9, after=None)] == [
        job(2).id,
        job(1).id,
    ]
    for path in (other.identity_file, other.config_file, other.database):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert f"restored  {path}\n" in out
    assert "It asks the wallet about every invoice before it acts" in out
    assert "kept" not in out
    left = {path.name for path in other.state_dir.iterdir()}
    assert left == {"identity.json", "pylon.toml", "pylon.db", "pylon.lock"}


def test_what_a_wallet_keeps_here_comes_back_too(
    home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = WalletSecret("nwc", "", "uri", "nostr+walletconnect://…")
    save_wallet_secret(home.wallet_file, secret)
    with closing(sqlite3.connect(home.lnurl_file)) as db:
        db.execute("CREATE TABLE invoices (payment_hash TEXT)")
        db.execute("INSERT INTO invoices VALUES ('aa')")
        db.commit()
    path, other = tmp_path / "with-wallet", paths_under(tmp_path / "elsewhere")
    assert run(["backup", str(path)]) == 0
    monkeypatch.setenv("PYLON_HOME", str(other.state_dir))
    assert run(["restore", str(path)]) == 0
    assert read_wallet_secret(other.wallet_file) == secret
    assert rows(other.lnurl_file, "SELECT payment_hash FROM invoices") == [("aa",)]
    for restored in (other.wallet_file, other.lnurl_file):
        assert stat.S_IMODE(restored.stat().st_mode) == 0o600


def test_restored_books_are_marked_with_the_time_of_the_backup(home: Paths, file: Path, other: Paths) -> None:
    assert RESTORED_MARK not in Reports(home.database).marks()
    assert run(["restore", str(file)]) == 0
    taken_at = Reports(other.database).marks()[RESTORED_MARK]
    assert 0 <= file.stat().st_mtime - taken_at < 60
    again = file.with_name("again")  # a backup of books that were not compared yet is as old as those
    with closing(sqlite3.connect(other.database)) as db:
        db.execute("UPDATE marks SET value = 77 WHERE name = ?", (RESTORED_MARK,))
        db.commit()
    assert run(["backup", str(again)]) == 0
    assert run(["restore", str(again), "--force"]) == 0
    assert Reports(other.database).marks()[RESTORED_MARK] == 77


def test_what_is_written_is_private_and_sealed(home: Paths, file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    raw = file.read_bytes()
    nsec = read_identity(home.identity_file).secret.reveal_nsec()
    for plain in (nsec.encode(), b"SQLite format", b"comment of the operator", PASSPHRASE.encode()):
        assert plain not in raw
    assert sorted(path.name for path in file.parent.iterdir()) == ["home", "pylon.backup"]
    assert ".new" not in "".join(path.name for path in home.state_dir.iterdir())
    with file.open("rb") as opened:
        assert SealedReader(opened, PASSPHRASE).read(2) == b"\x1f\x8b"


def test_erased_text_does_not_come_along(home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a prompt that was erased " * 4_000
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("INSERT INTO requests VALUES (99, ?)", (secret,))
        db.commit()
        db.execute("DELETE FROM requests WHERE job = 99")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"a prompt that was erased" in home.database.read_bytes()
    assert run(["backup", str(tmp_path / "b")]) == 0
    other = paths_under(tmp_path / "other")
    monkeypatch.setenv("PYLON_HOME", str(other.state_dir))
    assert run(["restore", str(tmp_path / "b")]) == 0
    assert b"a prompt that was erased" not in other.database.read_bytes()


async def test_while_a_daemon_writes(home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is of one moment: the jobs of a group are all in it or none is."""
    store = await Store.open(home.database)
    stop, written = threading.Event(), 2

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            first = written + 1
            pair = [job(first), job(first + 1)]
            await store.write(lambda tx, pair=pair: [tx.insert_job(each, "{}" * 2_000) for each in pair])  # type: ignore[misc]
            written += 2

    with instance_lock(home.lock_file):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for number in range(3):
                code = await anyio.to_thread.run_sync(run, ["backup", str(tmp_path / f"b{number}")])
                assert code == 0
            stop.set()
    await store.aclose()
    other = paths_under(tmp_path / "other")
    monkeypatch.setenv("PYLON_HOME", str(other.state_dir))
    counts = []
    for number in range(3):
        command = ["restore", "--force", str(tmp_path / f"b{number}")]
        assert await anyio.to_thread.run_sync(run, command) == 0
        ((count,),) = rows(other.database, "SELECT count(*) FROM jobs")
        counts.append(count)
    assert counts == sorted(counts)
    assert all(count % 2 == 0 for count in counts)
    assert counts[-1] > 2


# --- secrets that live elsewhere ------------------------------------------------------------------------------


def test_a_key_that_comes_from_elsewhere_is_said(
    home: Paths, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SecretKey.generate()
    home.identity_file.unlink()
    monkeypatch.setenv("PYLON_NSEC", key.reveal_nsec())
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "s3cret-token")
    assert run(["backup", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "The secret key is NOT in the file" in out
    assert "gives them: wallet.token" in out
    other = paths_under(tmp_path / "other")
    monkeypatch.setenv("PYLON_HOME", str(other.state_dir))
    assert run(["restore", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "set PYLON_NSEC" in out
    assert "wallet.token" in out
    assert not other.identity_file.exists()


def test_a_key_of_the_settings_is_in_them(
    home: Paths, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.identity_file.unlink()
    home.config_file.write_text(f'{SETTINGS}[identity]\nnsec = "{SecretKey.generate().reveal_nsec()}"\n')
    home.config_file.chmod(0o600)
    assert run(["backup", str(tmp_path / "b")]) == 0
    assert "NOT" not in capsys.readouterr().out


def test_without_books_or_identity(home: Paths, tmp_path: Path, capsys: Captured) -> None:
    home.database.unlink()
    assert run(["backup", str(tmp_path / "b")]) == 0
    assert "There are no books yet" in capsys.readouterr().out
    home.identity_file.unlink()
    assert run(["backup", str(tmp_path / "c")]) == 1
    assert "no identity at" in said(capsys)
    assert not (tmp_path / "c").exists()


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_file_is_never_overwritten_unasked(file: Path, capsys: Captured) -> None:
    before = file.read_bytes()
    assert run(["backup", str(file)]) == 1
    assert "there is a file at" in said(capsys)
    assert file.read_bytes() == before
    assert run(["backup", str(file), "--force"]) == 0
    assert file.read_bytes() != before


@pytest.mark.parametrize("name", ["identity_file", "config_file", "database"])
def test_a_home_in_use_is_not_overwritten_unasked(file: Path, other: Paths, name: str, capsys: Captured) -> None:
    other.state_dir.mkdir(mode=0o700)
    getattr(other, name).write_text("mine")
    before = everything(other)
    assert run(["restore", str(file)]) == 1
    assert "this home is in use" in said(capsys)
    assert everything(other) == before


def test_force_keeps_what_was_there(home: Paths, file: Path, capsys: Captured) -> None:
    identity = home.identity_file.read_bytes()
    anyio.run(store_jobs, home.database, 3)
    home.config_file.write_text("# newer\n")
    assert run(["restore", str(file), "--force"]) == 0
    kept = {line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("kept")}
    (settings,) = (Path(each) for each in kept if ".toml." in each)
    (database,) = (Path(each) for each in kept if each.endswith(".bak") and ".db." in each)
    assert settings.read_text() == "# newer\n"
    assert home.identity_file.read_bytes() == identity
    assert rows(database, "SELECT count(*) FROM jobs") == [(3,)]
    assert rows(home.database, "SELECT count(*) FROM jobs") == [(2,)]


def test_the_log_of_a_broken_database_never_meets_the_restored_one(home: Paths, file: Path) -> None:
    home.database.write_bytes(b"no database any more" * 1_000)
    log = home.database.with_name("pylon.db-wal")
    log.write_bytes(b"a log of something else")
    assert run(["restore", str(file), "--force"]) == 0
    assert not log.exists()
    assert rows(home.database, "SELECT count(*) FROM jobs") == [(2,)]
    (kept,) = home.state_dir.glob("pylon.db.*.bak-wal")
    assert kept.read_bytes() == b"a log of something else"


def test_not_while_a_daemon_runs(home: Paths, file: Path, capsys: Captured) -> None:
    before = everything(home)
    with instance_lock(home.lock_file):
        assert run(["restore", str(file), "--force"]) == 1
    assert f"pylon already runs in this home: process {os.getpid()}" in said(capsys)
    assert everything(home) == before


@pytest.mark.parametrize("damage", ["passphrase", "cut", "changed", "other", "missing"])
def test_nothing_is_touched_when_the_backup_does_not_open(
    home: Paths, file: Path, damage: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = file.read_bytes()
    if damage == "passphrase":
        monkeypatch.setenv("PYLON_BACKUP_PASSPHRASE", "another passphrase")
    elif damage == "missing":
        file.unlink()
    else:
        changed = {
            "cut": raw[:-40],
            "changed": raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:],
            "other": b"%PDF-1.4",
        }[damage]
        file.write_bytes(changed)
    before = everything(home)
    assert run(["restore", str(file), "--force"]) == 1
    text = said(capsys)
    assert str(file) in text
    assert text.count("\n") == 1
    assert everything(home) == before


def test_nothing_is_touched_when_the_books_in_it_are_damaged(home: Paths, tmp_path: Path, capsys: Captured) -> None:
    from pylon.backup.archive import DATABASE, IDENTITY, KeyPlace, Manifest, write_archive
    from pylon.nostr.keys import encode_npub

    broken, file = tmp_path / "broken.db", tmp_path / "b"
    broken.write_bytes(b"no database" * 1_000)
    npub = encode_npub(read_identity(home.identity_file).secret.public_hex)
    with file.open("wb") as out:
        files = {IDENTITY: home.identity_file, DATABASE: broken}
        write_archive(out, PASSPHRASE, Manifest(1_000, npub, KeyPlace.FILE), files)
    before = everything(home)
    assert run(["restore", str(file), "--force"]) == 1
    assert "nothing was changed: the database" in said(capsys)
    assert everything(home) == before


# --- the passphrase -------------------------------------------------------------------------------------------


def test_passphrases(home: Paths, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    target, secret = str(tmp_path / "b"), tmp_path / "secret"
    monkeypatch.setenv("PYLON_BACKUP_PASSPHRASE", "short")
    assert run(["backup", target]) == 2
    assert "too short" in said(capsys)
    monkeypatch.delenv("PYLON_BACKUP_PASSPHRASE")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert run(["backup", target]) == 2
    assert "set PYLON_BACKUP_PASSPHRASE, or give --passphrase-file" in said(capsys)
    secret.write_text(f"{PASSPHRASE}\n")
    secret.chmod(0o644)
    assert run(["backup", target, "--passphrase-file", str(secret)]) == 2
    assert "chmod 600" in said(capsys)
    secret.chmod(0o600)
    assert run(["backup", target, "--passphrase-file", str(secret)]) == 0
    with Path(target).open("rb") as opened:
        assert SealedReader(opened, PASSPHRASE).read(2) == b"\x1f\x8b"


def test_a_typed_passphrase_is_asked_for_twice(
    home: Paths, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    typed = [PASSPHRASE, "correct horse batterx", PASSPHRASE, PASSPHRASE]
    monkeypatch.delenv("PYLON_BACKUP_PASSPHRASE")
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: typed.pop(0))
    assert run(["backup", str(tmp_path / "b")]) == 1
    assert "the two passphrases are not the same" in said(capsys)
    assert run(["backup", str(tmp_path / "b")]) == 0
    assert typed == []
