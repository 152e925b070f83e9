"""The NWC wallet from the settings: its connection is a secret, and its relays are the operator's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pylon import assembly
from pylon.nostr.keys import SecretKey
from pylon.relays.line import PoolLine
from pylon.settings import Settings, SettingsError, load_settings
from pylon.wallets.nwc import NwcWallet
from tests.support.events import CUSTOMER, PROVIDER
from tests.support.stand_ins import FakeClock

SECRET = CUSTOMER.reveal_hex()
URI = (
    f"nostr+walletconnect://{PROVIDER.public_hex}?relay=wss://relay.example/&relay=ws://127.0.0.1:7&secret={SECRET}"
)
KEY = SecretKey(b"\x05" * 32)


def settings(**wallet: Any) -> Settings:
    given = {"wallet": {"kind": "nwc", **wallet}, "relays": {"connect_timeout_s": 7, "backoff_max_s": 40}}
    return Settings.model_validate(given)


def test_the_wallet_of_the_settings() -> None:
    wallet = assembly.make_wallet(settings(uri=URI, timeout_s=3.5), FakeClock())
    assert isinstance(wallet, NwcWallet)
    assert (wallet.name, wallet._timeout_s, wallet.state().ready) == ("nwc", 3.5, False)
    line = wallet._link._line
    assert isinstance(line, PoolLine)
    assert line._config.urls == ("wss://relay.example/", "ws://127.0.0.1:7")
    assert (line._config.connect_timeout_s, line._config.backoff_max_s) == (7, 15)
    assert line._key.reveal_hex() == SECRET, "NIP-42 is answered with the connection's key, not with the node's"


def test_without_its_connection_it_says_where_that_comes_from() -> None:
    with pytest.raises(
        SettingsError, match="pylon wallet connect, PYLON_WALLET_URI, or a systemd credential wallet_uri"
    ):
        assembly.make_wallet(settings(), FakeClock())


def test_a_relay_that_is_none_is_refused() -> None:
    uri = URI.replace("relay.example/", "user@relay.example")
    with pytest.raises(SettingsError, match=r"wallet\.uri: a relay of the connection") as caught:
        assembly.make_wallet(settings(uri=uri), FakeClock())
    assert SECRET not in str(caught.value)


def test_a_bad_connection_is_one_sentence_without_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "pylon.toml"
    file.write_text(f'[wallet]\nkind = "nwc"\nuri = "{URI.replace("relay=", "relais=")}"\n')
    file.chmod(0o600)
    with pytest.raises(SettingsError, match=r"wallet\.uri: the connection URI names no relay") as caught:
        load_settings(file, {}, {})
    assert SECRET[:16] not in str(caught.value)


def test_the_log_hides_the_connection_and_its_secret() -> None:
    secrets = assembly.secrets_of(settings(uri=URI), KEY)
    assert {URI, SECRET, CUSTOMER.reveal_nsec(), KEY.reveal_nsec(), KEY.reveal_hex()} == set(secrets)


def test_no_repr_shows_it() -> None:
    given = settings(uri=URI)
    wallet = assembly.make_wallet(given, FakeClock())
    assert isinstance(wallet, NwcWallet)
    for part in (given, given.wallet, wallet, wallet._link, wallet._link._uri, wallet._link._line):
        assert SECRET not in repr(part)


def test_it_may_come_from_the_environment_or_a_credential(tmp_path: Path) -> None:
    (tmp_path / "wallet_uri").write_text(URI + "\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "PYLON_HOME": str(tmp_path)}
    loaded = load_settings(None, {}, environ)
    assert loaded.settings.wallet.uri is not None
    assert loaded.settings.wallet.uri.get_secret_value() == URI
    assert loaded.origin("wallet.uri").place == str(tmp_path / "wallet_uri")
    over = load_settings(None, {}, {**environ, "PYLON_WALLET_URI": URI.replace(":7&", ":8&")})
    assert over.settings.wallet.uri is not None
    assert ":8&" in over.settings.wallet.uri.get_secret_value()
    assert over.origin("wallet.uri").place == "PYLON_WALLET_URI"


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pylon.toml"
    file.write_text(f'[wallet]\nuri = "{URI}"\n')
    file.chmod(0o644)
    with pytest.raises(SettingsError, match=r"wallet\.uri: a secret in a file that others can read"):
        load_settings(file, {}, {})
