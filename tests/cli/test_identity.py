"""`pylon identity`: there and back without a loss, asked once, and one sentence where nobody can be asked."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest

from pylon.cli.app import run
from pylon.nostr.identity import identity_from_mnemonic
from pylon.nostr.nip49 import encrypt_key
from pylon.paths import Paths, paths_under
from pylon.settings.identity_file import read_identity, read_stored, save_identity
from tests.support.terminal import at_terminal

Captured = pytest.CaptureFixture[str]
WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"
NPUB = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"
PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A home with a plain identity, and nobody at the keyboard."""
    for name in ("PYLON_NSEC", "PYLON_MNEMONIC", "PYLON_PASSPHRASE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    paths = paths_under(tmp_path / "home")
    save_identity(paths.identity_file, identity_from_mnemonic(WORDS))
    monkeypatch.setenv("PYLON_HOME", str(paths.state_dir))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("pylon.settings.identity_file.encrypt_key", partial(encrypt_key, log_n=10))
    return paths


@pytest.fixture
def encrypted(home: Paths, capsys: Captured) -> Paths:
    """The same home, encrypted."""
    save_identity(
        home.identity_file, identity_from_mnemonic(WORDS), passphrase=PASSPHRASE, replace=True, keep=False
    )
    return home


def one_line(capsys: Captured) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_there_and_back(home: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("PYLON_PASSPHRASE", PASSPHRASE)
    assert run(["identity", "encrypt"]) == 0
    said = capsys.readouterr().out
    assert "The plain file was replaced." in said
    assert read_stored(home.identity_file).encrypted
    assert [path.name for path in home.state_dir.iterdir()] == ["identity.json"], "the plain one is not left beside"
    assert run(["identity", "decrypt"]) == 0
    said += capsys.readouterr().out
    identity = read_identity(home.identity_file)
    assert (identity.secret.reveal_nsec(), identity.mnemonic) == (NSEC, WORDS)
    assert [path.name for path in home.state_dir.iterdir()] == ["identity.json"]
    for secret in (NSEC, WORDS, PASSPHRASE):
        assert secret not in said


def test_a_kept_copy_is_named_as_what_it_is(home: Paths, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE)
    file.chmod(0o600)
    assert run(["identity", "encrypt", "--keep-backup", "--passphrase-file", str(file)]) == 0
    out, err = capsys.readouterr()
    (kept,) = home.state_dir.glob("identity.json.*.bak")
    assert f"kept      {kept}\n" in out
    assert f"{kept} holds this key in plain: remove it" in err
    assert read_identity(kept).mnemonic == WORDS


def test_show_needs_no_passphrase(encrypted: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run(["identity", "show"]) == 0
    said = capsys.readouterr().out
    assert NPUB in said
    assert "encrypted (NIP-49, scrypt log_n 10), mode 0600" in said
    assert "kept with the key" in said
    assert run(["identity", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "npub": NPUB,
        "pubkey": identity_from_mnemonic(WORDS).secret.public_hex,
        "place": str(encrypted.identity_file),
        "encrypted": True,
        "log_n": 10,
        "has_words": True,
    }
    monkeypatch.setenv("PYLON_NSEC", "11" * 32)
    assert run(["identity", "show"]) == 0
    said = capsys.readouterr().out
    assert NPUB not in said
    assert "given by PYLON_NSEC, which is stronger than the identity file" in said


def test_show_of_a_plain_one(capsys: Captured) -> None:
    assert run(["identity", "show"]) == 0
    said = capsys.readouterr().out
    assert "secret    in plain, mode 0600" in said
    assert NSEC not in said


@pytest.mark.parametrize(
    "command",
    [
        ["start", "--free"],
        ["announce", "withdraw"],
        ["relays", "check"],
        ["request", "hello", "--identity"],
        ["identity", "decrypt"],
        ["init", "--show-mnemonic", "--no-detect"],
    ],
    ids=" ".join,
)
def test_without_terminal_and_passphrase_one_sentence_names_the_ways(
    encrypted: Paths, capsys: Captured, command: list[str]
) -> None:
    assert run(command) == 2
    said = one_line(capsys)
    for way in (
        "type it at a terminal",
        "identity.passphrase_file",
        "PYLON_PASSPHRASE",
        "credential named passphrase",
    ):
        assert way in said


def test_the_wrong_passphrase_is_one_sentence(
    encrypted: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_PASSPHRASE", "something else entirely")
    assert run(["identity", "decrypt"]) == 1
    said = one_line(capsys)
    assert "does not open: another passphrase, or it is damaged" in said
    assert "something else" not in said
    assert read_stored(encrypted.identity_file).encrypted


def test_what_makes_no_sense_is_refused(home: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run(["identity", "decrypt"]) == 2
    assert "is not encrypted" in one_line(capsys)
    assert run(["identity", "encrypt"]) == 2
    assert "no passphrase to encrypt with" in one_line(capsys)
    monkeypatch.setenv("PYLON_PASSPHRASE", "too short")
    assert run(["identity", "encrypt"]) == 2
    assert "at least 10 characters" in one_line(capsys)
    assert not read_stored(home.identity_file).encrypted
    monkeypatch.setenv("PYLON_PASSPHRASE", PASSPHRASE)
    assert run(["identity", "encrypt"]) == 0
    capsys.readouterr()
    assert run(["identity", "encrypt"]) == 2
    assert "is encrypted already" in one_line(capsys)


def test_the_words_are_shown_with_the_passphrase(
    encrypted: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_PASSPHRASE", PASSPHRASE)
    assert run(["init", "--show-mnemonic", "--no-detect"]) == 0
    assert f"words     {WORDS}" in capsys.readouterr().out


def test_a_backup_carries_it_as_it_is(
    encrypted: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Neither way needs the identity's own passphrase."""
    monkeypatch.setenv("PYLON_BACKUP_PASSPHRASE", "another battery horse")
    assert run(["backup", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert f"identity  {NPUB}" in said
    assert "The identity in it stays encrypted: keep its own passphrase too." in said
    monkeypatch.setenv("PYLON_HOME", str(tmp_path / "other"))
    assert run(["restore", str(tmp_path / "b")]) == 0
    assert "its own passphrase opens it, not that of the backup" in capsys.readouterr().out
    assert read_identity(tmp_path / "other" / "identity.json", PASSPHRASE).mnemonic == WORDS


def test_the_doctor_says_what_is_missing(encrypted: Paths, capsys: Captured) -> None:
    encrypted.config_file.write_text('[relays]\nurls = ["ws://127.0.0.1:1"]\n')
    assert run(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [each for each in findings if each["check"] == "identity"]
    assert found["level"] == "warn"
    assert NPUB in found["what"]
    assert "PYLON_PASSPHRASE" in found["fix"]


# --- at a terminal --------------------------------------------------------------------------------------------


def test_it_is_typed_unseen_twice_when_new_and_once_to_open(home: Paths) -> None:
    with at_terminal("identity", "encrypt") as terminal:
        terminal.until("New passphrase of the identity: ")
        terminal.type(PASSPHRASE)
        terminal.until("Once more: ")
        terminal.type(PASSPHRASE)
        assert terminal.ended() == 0
        assert PASSPHRASE.encode() not in terminal.seen
    assert read_identity(home.identity_file, PASSPHRASE).mnemonic == WORDS
    with at_terminal("identity", "decrypt") as terminal:
        terminal.until("Passphrase of the identity: ")
        terminal.type(PASSPHRASE)
        assert terminal.ended() == 0
        assert terminal.seen.count(b"Passphrase") == 1
        assert PASSPHRASE.encode() not in terminal.seen
    assert read_identity(home.identity_file).secret.reveal_nsec() == NSEC


def test_two_that_differ_change_nothing(home: Paths) -> None:
    with at_terminal("identity", "encrypt") as terminal:
        terminal.until("New passphrase of the identity: ")
        terminal.type(PASSPHRASE)
        terminal.until("Once more: ")
        terminal.type(PASSPHRASE + "x")
        assert terminal.ended() == 1
    assert not read_stored(home.identity_file).encrypted


@pytest.mark.parametrize("command", [("start", "--free"), ("doctor",)], ids=" ".join)
def test_start_and_doctor_ask_once(encrypted: Paths, command: tuple[str, ...]) -> None:
    """What they find afterwards (nothing is for sale) shows that the key was there."""
    encrypted.config_file.write_text('[relays]\nurls = ["ws://127.0.0.1:1"]\n')
    with at_terminal(*command) as terminal:
        terminal.until("Passphrase of the identity: ")
        terminal.type(PASSPHRASE)
        assert terminal.ended() in (1, 2)
    assert terminal.seen.count(b"Passphrase") == 1
    assert b"nothing is declared for sale" in terminal.seen
    assert b"no passphrase" not in terminal.seen
    assert PASSPHRASE.encode() not in terminal.seen
