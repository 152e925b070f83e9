"""`pylon config`: what it shows, what it hides, what it changes."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest

from pylon.cli.app import run

TOKEN = "tok-very-secret"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PYLON_NSEC", "PYLON_MNEMONIC", "PYLON_WALLET_TOKEN", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    return tmp_path


def test_show_tells_each_value_and_where_it_came_from(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "pylon.toml"
    file.write_text(f'[wallet]\ntoken = "{TOKEN}"\n[payment]\nmode = "free"\n')
    file.chmod(0o600)
    monkeypatch.setenv("PYLON_RELAYS__PING_INTERVAL_S", "33")
    assert run(["config", "show"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert TOKEN not in text
    assert '"********"' in lines["wallet.token"]
    assert lines["wallet.token"].endswith(f"# {file}")
    assert lines["payment.mode"].split() == ["payment.mode", "=", '"free"', "#", str(file)]
    assert lines["relays.ping_interval_s"].endswith("= 33" + " " * 38 + "  # PYLON_RELAYS__PING_INTERVAL_S")
    assert lines["relays.pong_timeout_s"].endswith("# default")
    assert "(not set)" in lines["identity.nsec"]


def test_show_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "pylon.toml"
    file.write_text(f'name = "é"\n[wallet]\ntoken = "{TOKEN}"\n')
    file.chmod(0o600)
    assert run(["config", "show", "--json"]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text)
    assert shown["file"] == str(file)
    assert shown["settings"]["name"] == {"value": "é", "source": "file", "place": str(file)}
    assert shown["settings"]["wallet.token"]["value"] == "********"
    assert shown["settings"]["log.level"] == {"value": "info", "source": "default", "place": None}
    assert TOKEN not in text


def test_a_bad_key_is_one_line_and_exit_code_2(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "pylon.toml").write_text("[relays]\nconnect_timeout_s = 'abc'\n")
    assert run(["config", "show"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    expected = "relays.connect_timeout_s: 'abc' is not a number; allowed: 1 to 120\n"
    assert said.err == f"pylon: {home / 'pylon.toml'}: {expected}"


def test_path_tells_where_the_file_would_lie(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{home / 'pylon.toml'}\n"


def test_set_then_show(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "set", "payment.mode", "free"]) == 0
    assert capsys.readouterr().out == f'payment.mode = "free"  # {home / "pylon.toml"}\n'
    assert tomllib.loads((home / "pylon.toml").read_text())["payment"]["mode"] == "free"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["payment.mod", "free"], "did you mean payment.mode?"),
        (["payment.mode", "gratis"], "payment.mode: 'gratis' is unknown; allowed: prepay, postpay, free"),
        (["payment.mode"], "Missing argument 'VALUE'"),
    ],
)
def test_set_refuses_with_exit_code_2(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["config", "set", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (home / "pylon.toml").exists()


def test_a_secret_comes_from_stdin_and_never_from_an_argument(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "set", "wallet.token", TOKEN]) == 2
    assert TOKEN not in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    assert run(["config", "set", "wallet.token", "-"]) == 0
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    file = home / "pylon.toml"
    assert tomllib.loads(file.read_text())["wallet"]["token"] == TOKEN
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_file_can_be_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = home / "other.toml"
    assert run(["--config", str(other), "config", "set", "name", "n"]) == 0
    assert run(["config", "show", "--config", str(other), "--json"]) == 0
    assert '"value": "n"' in capsys.readouterr().out
    assert not (home / "pylon.toml").exists()
