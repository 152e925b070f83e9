"""The wallet file: whose secret it holds, who may read it, and which sources are stronger."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pylon.settings import LoadedSettings, OriginKind, SettingsError, load_settings
from pylon.settings.wallet_file import WalletSecret, read_wallet_secret, save_wallet_secret

SECRET = WalletSecret("phoenixd", "http://127.0.0.1:9740", "token", "stored-secret")
PHOENIXD = '[wallet]\nkind = "phoenixd"\nurl = "http://127.0.0.1:9740/"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    save_wallet_secret(home / "pylon.wallet.json", SECRET)
    return home


def load(home: Path, text: str, **environ: str) -> LoadedSettings:
    (home / "pylon.toml").write_text(text)
    (home / "pylon.toml").chmod(0o600)
    return load_settings(None, None, {"PYLON_HOME": str(home), **environ})


def token(loaded: LoadedSettings) -> str | None:
    secret = loaded.settings.wallet.token
    return None if secret is None else secret.get_secret_value()


def test_it_is_private_and_never_shown(home: Path) -> None:
    file = home / "pylon.wallet.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert read_wallet_secret(file) == SECRET
    assert "stored-secret" not in repr(SECRET)
    assert read_wallet_secret(home / "none.json") is None


def test_it_is_stronger_than_the_file_and_weaker_than_the_rest(home: Path, tmp_path: Path) -> None:
    loaded = load(home, f'{PHOENIXD}token = "from-file"\n')
    assert token(loaded) == "stored-secret"
    assert loaded.origin("wallet.token").kind is OriginKind.WALLET_FILE
    assert loaded.origin("wallet.token").place == str(home / "pylon.wallet.json")
    assert loaded.origin("wallet.kind").kind is OriginKind.FILE
    (tmp_path / "wallet_token").write_text("from-credential")
    assert token(load(home, PHOENIXD, CREDENTIALS_DIRECTORY=str(tmp_path))) == "from-credential"
    assert token(load(home, PHOENIXD, PYLON_WALLET_TOKEN="from-env")) == "from-env"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[wallet]\nkind = "fake"\nurl = "http://127.0.0.1:9740"\n',
        '[wallet]\nkind = "phoenixd"\nurl = "http://elsewhere.example:9740"\n',
    ],
)
def test_it_is_used_for_the_wallet_that_it_is_for_and_no_other(home: Path, text: str) -> None:
    assert token(load(home, text)) is None


def test_a_wallet_named_by_a_stronger_source_is_the_one_that_counts(home: Path) -> None:
    assert token(load(home, PHOENIXD, PYLON_WALLET__URL="http://elsewhere.example:9740")) is None


def test_what_others_can_read_is_refused(home: Path) -> None:
    (home / "pylon.wallet.json").chmod(0o640)
    with pytest.raises(SettingsError, match=r"others can read this secret; run: chmod 600"):
        load(home, PHOENIXD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({"version": 2}),
        json.dumps({"version": 1, "kind": 1, "url": "", "key": "", "value": ""}),
    ],
)
def test_what_is_no_wallet_file_says_what_to_do(home: Path, text: str) -> None:
    (home / "pylon.wallet.json").write_text(text)
    with pytest.raises(SettingsError, match="pylon wallet connect"):
        load(home, PHOENIXD)
