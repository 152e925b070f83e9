"""The identity file under a passphrase: nothing of it readable, nothing of it lost, the public key at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pylon.nostr.identity import Identity, generate_identity, identity_from_mnemonic
from pylon.nostr.nip49 import encrypt_key
from pylon.paths import Paths, paths_under
from pylon.settings import load_settings
from pylon.settings.identity_file import (
    IdentityError,
    IdentityLocked,
    load_identity,
    load_public_key,
    plain_copies,
    read_identity,
    read_stored,
    save_identity,
)
from pylon.settings.passphrase import PassphraseError, given_passphrase

WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"
PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylon.settings.identity_file.encrypt_key", partial(encrypt_key, log_n=10))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return paths_under(tmp_path / "home")


@pytest.fixture
def file(paths: Paths) -> Path:
    """An encrypted identity file."""
    save_identity(paths.identity_file, identity_from_mnemonic(WORDS), passphrase=PASSPHRASE)
    return paths.identity_file


def test_key_and_words_come_back_and_neither_is_readable(file: Path) -> None:
    identity = read_identity(file, PASSPHRASE)
    assert identity.secret.reveal_nsec() == NSEC
    assert identity.mnemonic == WORDS
    text = file.read_text()
    for secret in (
        NSEC,
        identity.secret.reveal_hex(),
        PASSPHRASE,
        *(word for word in WORDS.split() if len(word) > 4),
    ):
        assert secret not in text
    assert sorted(json.loads(text)) == ["created_at", "ncryptsec", "npub", "sealed_mnemonic", "version"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_without_words_stays_without(paths: Paths) -> None:
    identity = Identity(generate_identity().secret)
    save_identity(paths.identity_file, identity, passphrase=PASSPHRASE)
    assert not read_stored(paths.identity_file).has_words
    assert read_identity(paths.identity_file, PASSPHRASE).mnemonic is None


def test_the_public_key_needs_no_derivation(
    file: Path, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(ncryptsec: str, passphrase: str) -> None:
        raise AssertionError("derived")

    monkeypatch.setattr("pylon.settings.identity_file.decrypt_key", never)
    stored = read_stored(file)
    assert stored.encrypted
    assert stored.has_words
    public_hex = identity_from_mnemonic(WORDS).secret.public_hex
    settings = load_settings(None, None, {"PYLON_HOME": str(tmp_path / "home")}).settings
    assert load_public_key(settings, paths) == stored.public_hex == public_hex
    with pytest.raises(AssertionError, match="derived"):
        stored.open(PASSPHRASE)


def test_the_wrong_passphrase_and_none_are_one_sentence_each(file: Path) -> None:
    with pytest.raises(IdentityError, match="another passphrase") as wrong:
        read_identity(file, "another passphrase here")
    with pytest.raises(IdentityLocked) as none:
        read_identity(file)
    assert "another passphrase here" not in str(wrong.value)
    for way in ("terminal", "identity.passphrase_file", "PYLON_PASSPHRASE", "credential named passphrase"):
        assert way in str(none.value)
    assert "\n" not in f"{wrong.value}{none.value}"


def changed(**values: object) -> Callable[[dict[str, object]], None]:
    return lambda body: body.update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(ncryptsec="ncryptsec1qqqq"), "not a valid ncryptsec"),
        (changed(ncryptsec=7), "not an identity file"),
        (changed(sealed_mnemonic=["x"]), "not an identity file"),
        (changed(sealed_mnemonic="AAAA"), "its words are damaged; the key is not"),
        (changed(npub="npub1x"), "npub"),
        (changed(npub="npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"), ""),
        (
            changed(npub="npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d"),
            "do not belong together",
        ),
        (changed(created_at="now"), "not an identity file"),
    ],
)
def test_a_damaged_one_is_one_sentence(file: Path, change: Callable[[dict[str, object]], None], said: str) -> None:
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    if not said:  # the very npub that it has
        assert read_identity(file, PASSPHRASE).secret.reveal_nsec() == NSEC
        return
    with pytest.raises(IdentityError, match=said) as caught:
        read_identity(file, PASSPHRASE)
    assert str(file) in str(caught.value)
    assert PASSPHRASE not in str(caught.value)


def test_a_crash_while_it_is_encrypted_leaves_the_plain_one(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_from_mnemonic(WORDS)
    save_identity(paths.identity_file, identity)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pylon.settings.files.os.fsync", disk_full)
    with pytest.raises(IdentityError, match="No space left"):
        save_identity(paths.identity_file, identity, passphrase=PASSPHRASE, replace=True, keep=False)
    assert read_identity(paths.identity_file).mnemonic == WORDS


def test_what_would_not_come_back_is_never_written(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_from_mnemonic(WORDS)
    save_identity(paths.identity_file, identity)
    other = generate_identity().secret
    monkeypatch.setattr("pylon.settings.identity_file.encrypt_key", lambda _, p: encrypt_key(other, p, log_n=10))
    with pytest.raises(IdentityError, match="do not belong together"):
        save_identity(paths.identity_file, identity, passphrase=PASSPHRASE, replace=True, keep=False)
    assert read_identity(paths.identity_file).mnemonic == WORDS


def test_plain_copies_of_the_same_key_are_found(paths: Paths) -> None:
    file, identity = paths.identity_file, identity_from_mnemonic(WORDS)
    save_identity(file, generate_identity())
    save_identity(file, identity, replace=True, now=0)  # keeps another key
    kept = save_identity(file, identity, passphrase=PASSPHRASE, replace=True, now=1).backup
    save_identity(file, identity, passphrase=PASSPHRASE, replace=True, now=2)  # keeps an encrypted one
    (file.parent / f"{file.name}.x.bak").write_text("no identity")
    assert plain_copies(file) == [kept]
    assert len(list(file.parent.glob("*.bak"))) == 4


# --- where the passphrase comes from --------------------------------------------------------------------------


def test_a_file_a_variable_and_a_credential_open_it(file: Path, paths: Paths, tmp_path: Path) -> None:
    spelled = tmp_path / "passphrase"
    spelled.write_text(f"{PASSPHRASE}\n")
    spelled.chmod(0o600)
    home = {"PYLON_HOME": str(paths.state_dir)}
    paths.config_file.write_text(f'[identity]\npassphrase_file = "{spelled}"\n')
    by_file = load_settings(None, None, home)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "passphrase").write_text(f"{PASSPHRASE}\n")
    paths.config_file.write_text("")
    by_credential = load_settings(None, None, {**home, "CREDENTIALS_DIRECTORY": str(tmp_path / "c")})
    by_variable = load_settings(None, None, {**home, "PYLON_PASSPHRASE": f" {PASSPHRASE} "})
    for loaded in (by_file, by_credential, by_variable):
        assert load_identity(loaded.settings, paths).reveal_nsec() == NSEC
        assert PASSPHRASE not in repr(loaded)
    assert by_credential.origin("identity.passphrase").place == str(tmp_path / "c" / "passphrase")


def test_a_variable_replaces_the_file_and_leaves_the_key_of_the_settings(paths: Paths, tmp_path: Path) -> None:
    paths.config_dir.mkdir(mode=0o700)
    paths.config_file.write_text(f'[identity]\nnsec = "{NSEC}"\npassphrase_file = "/nowhere/passphrase"\n')
    paths.config_file.chmod(0o600)
    environ = {"PYLON_HOME": str(paths.state_dir), "PYLON_PASSPHRASE": PASSPHRASE}
    identity = load_settings(None, None, environ).settings.identity
    assert identity.nsec is not None
    assert identity.nsec.get_secret_value() == NSEC
    assert identity.passphrase_file is None
    assert given_passphrase(identity) == PASSPHRASE


@pytest.mark.parametrize(
    ("body", "mode", "said"),
    [
        (b"correct horse battery", 0o640, "others can read this passphrase; run: chmod 600"),
        (b"correct horse battery", 0o604, "others can read this passphrase; run: chmod 600"),
        (b" \n", 0o600, "holds no passphrase"),
        (b"x" * 5000, 0o600, "holds no passphrase"),
        (b"\xff", 0o600, "not UTF-8"),
        (None, 0o600, "cannot be read: No such file"),
    ],
)
def test_a_bad_passphrase_file_is_one_sentence(
    file: Path, paths: Paths, tmp_path: Path, body: bytes | None, mode: int, said: str
) -> None:
    spelled = tmp_path / "passphrase"
    if body is not None:
        spelled.write_bytes(body)
        spelled.chmod(mode)
    environ = {"PYLON_HOME": str(paths.state_dir), "PYLON_IDENTITY__PASSPHRASE_FILE": str(spelled)}
    with pytest.raises(PassphraseError, match=said) as caught:
        load_identity(load_settings(None, None, environ).settings, paths)
    assert PASSPHRASE not in str(caught.value)
