"""`pylon wallet connect`: tried first, stored apart, shown nowhere; with a token and with a wallet connection."""

from __future__ import annotations

import io
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from pylon.cli.app import run
from tests.support.nwc_service import NwcService, nwc_service
from tests.support.relay import relay_process
from tests.support.terminal import at_a_terminal
from tests.support.wallet import WalletProcess

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("home")


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def connect(process: WalletProcess, *more: str) -> int:
    return run(["wallet", "connect", "fake", "--url", process.url, *more])


def test_connect_tests_and_then_stores_the_secret_apart(
    home: Path, process: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, f"{process.owner_token}\n")
    assert connect(process, "--network", "regtest") == 0
    said = capsys.readouterr()
    assert "tested: an invoice over 1 sat was made" in said.out
    assert process.owner_token not in said.out + said.err
    settings = (home / "pylon.toml").read_text()
    assert tomllib.loads(settings)["wallet"] == {"kind": "fake", "url": process.url, "network": "regtest"}
    assert process.owner_token not in settings
    assert stat.S_IMODE((home / "pylon.wallet.json").stat().st_mode) == 0o600
    assert run(["wallet", "status"]) == 0
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    assert process.owner_token not in shown and "pylon.wallet.json" in shown


def test_nothing_is_stored_unless_the_test_passed(
    home: Path, process: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, "wrong-token\n")
    assert connect(process, "--network", "regtest") == 1
    said = capsys.readouterr().err
    assert "nothing is stored, the wallet is not ready" in said and "wrong-token" not in said
    type_in(monkeypatch, process.owner_token)
    assert connect(process) == 2
    assert "the wallet is on regtest; add --network regtest" in capsys.readouterr().err
    assert list(home.iterdir()) == []
    type_in(monkeypatch, "wrong-token\n")
    assert connect(process, "--no-test") == 0
    assert {each.name for each in home.iterdir()} == {"pylon.toml", "pylon.wallet.json"}


def test_where_the_settings_cannot_be_written_the_wallet_before_stays_whole(
    home: Path, process: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, process.owner_token)
    assert connect(process, "--network", "regtest") == 0
    before = {each.name: each.read_text() for each in home.iterdir()}

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pylon.cli.wallet_connect.set_values", full)
    type_in(monkeypatch, "another-token")
    assert connect(process, "--no-test") == 1
    assert {each.name: each.read_text() for each in home.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strike", "--url", "http://127.0.0.1:1"], "'strike' is no wallet that can be connected; allowed: "),
        (["fake"], "--url is missing"),
        (["fake", "--url", "http://127.0.0.1:1", "--network", "moon"], "wallet.network: 'moon' is unknown"),
        (["fake", "--url", "gopher://x"], "does not start with http"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], said: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, "token\n")
    assert run(["wallet", "connect", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_an_empty_secret_is_none(process: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    type_in(monkeypatch, "\n")
    assert connect(process) == 2
    assert "no secret was given" in capsys.readouterr().err


def test_what_would_not_hold_is_not_stored(
    home: Path, process: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, process.owner_token)
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "other")
    assert connect(process) == 2
    assert "PYLON_WALLET_TOKEN sets wallet.token and is stronger" in capsys.readouterr().err
    assert list(home.iterdir()) == []


@pytest.fixture(scope="module")
def service() -> Iterator[NwcService]:
    """A wallet that speaks Nostr Wallet Connect, in a thread of its own."""
    with (
        relay_process() as relay,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(nwc_service(relay.url)) as running,
    ):
        yield running


@pytest.mark.parametrize("as_argument", [False, True])
def test_a_wallet_connection_is_a_secret_too(
    as_argument: bool, service: NwcService, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, f"{service.uri}\n")
    given = [service.uri] if as_argument else []
    assert run(["wallet", "connect", *given, "--network", "regtest"]) == 0
    said = capsys.readouterr()
    assert ("stays in the shell's history" in said.err) == as_argument
    settings = (home / "pylon.toml").read_text()
    assert tomllib.loads(settings)["wallet"] == {"kind": "nwc", "network": "regtest"}
    assert run(["wallet", "status"]) == 0
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr()
    assert "nwc" in shown.out and "pylon.wallet.json" in shown.out
    secret = service.uri.partition("secret=")[2].partition("&")[0]
    assert secret and secret not in said.out + said.err + settings + shown.out + shown.err


def test_what_is_no_connection_is_not_repeated(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    type_in(monkeypatch, "nostr+walletconnect://nonsense?secret=hidden\n")
    assert run(["wallet", "connect"]) == 2
    said = capsys.readouterr().err
    assert "wallet.uri" in said and "hidden" not in said
    assert list(home.iterdir()) == []


def test_connect_asks_for_the_secret_without_echo(home: Path, process: WalletProcess) -> None:
    words = ["wallet", "connect", "fake", "--url", process.url, "--network", "regtest"]
    ended, shown = at_a_terminal(words, home, "Its token: ", process.owner_token)
    assert ended == 0, shown
    assert process.owner_token not in shown
