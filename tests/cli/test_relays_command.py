"""`pylon relays`: the list with and without a daemon, a check against a real relay, changes of the file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.cli.app import run
from pylon.cli.layout import Screen
from pylon.cli.relays import show_checks
from pylon.nostr.nip11 import RelayDocument
from pylon.relays.check import Fault, RelayCheck, Step
from tests.support.control_views import NASTY
from tests.support.fake_daemon import fake_daemon
from tests.support.relay import relay_process

TWO = '[relays]\n# ours\nurls = [\n    "wss://relay.one",  # the first\n    "wss://other.example",\n]\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PYLON_NSEC", "PYLON_MNEMONIC", "PYLON_WALLET_TOKEN", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    (tmp_path / "pylon.toml").write_text(TWO)
    return tmp_path


@pytest.fixture(scope="module")
def relay() -> Iterator[str]:
    with relay_process("both") as process:
        yield process.url


def urls_in(home: Path) -> list[str]:
    return list(tomllib.loads((home / "pylon.toml").read_text())["relays"]["urls"])


# --- list ---------------------------------------------------------------------------------------------------------


def test_list_without_a_daemon_shows_the_configured_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["relays", "list"]) == 0
    assert capsys.readouterr().out == "wss://relay.one\nwss://other.example\n\npylon is not running\n"
    assert run(["relays", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["running"] is False
    assert shown["relays"][0] == {"url": "wss://relay.one", "configured": True, "live": None}


def test_list_with_a_daemon_shows_how_it_stands_with_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_daemon(home):
        assert run(["relays", "list"]) == 0
        text = capsys.readouterr().out
        assert run(["relays", "list", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
    assert [line.split()[:3] for line in text.splitlines()[:2]] == [
        ["wss://relay.one", "connected,", "auth"],
        ["wss://other.example", "not", "in"],
    ]
    assert "not in use: restart pylon" in text
    assert "not in the settings any more; refused \\x1b[31mred" in text
    assert text.endswith("\npylon is running\n")
    assert "\x1b" not in text
    assert [(each["url"], each["configured"]) for each in shown["relays"]] == [
        ("wss://relay.one", True),
        ("wss://other.example", True),
        ("wss://relay.two", False),
    ]
    assert shown["relays"][0]["live"]["status"] == "connected"
    assert shown["relays"][1]["live"] is None


# --- check --------------------------------------------------------------------------------------------------------


def test_check_uses_the_configured_relays_and_says_what_worked(
    home: Path, relay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "pylon.toml").write_text(f'[relays]\nurls = ["{relay}"]\n')
    assert run(["relays", "check"]) == 0
    text = capsys.readouterr().out
    row = text.splitlines()[1]
    assert row.startswith(f"{relay}  ok ")
    assert " confirmed " in row
    assert "a throwaway key was used" in text
    assert not (home / "identity.json").exists()


def test_check_fails_with_1_and_says_at_which_step(relay: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["relays", "check", relay, "ws://127.0.0.1:1", "--timeout", "5"]) == 1
    assert "ws://127.0.0.1:1  connect  no connection: Connection refused" in capsys.readouterr().out
    assert run(["relays", "check", "--json", relay, "ws://127.0.0.1:1"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert good["ok"] is True
    assert good["authenticated"] is True
    assert good["round_trip_ms"] > 0
    assert bad["faults"] == [{"step": "connect", "sentence": "no connection: Connection refused"}]


def test_what_relays_say_is_made_printable() -> None:
    screen = Screen(colours=False)
    document = RelayDocument(software=NASTY, max_message_bytes=131_072, auth_required=True, payment_required=True)
    late = RelayCheck("wss://a", connect_ms=12.25, round_trip_ms=1034.5, document=document, skew_s=-90)
    show_checks([late, RelayCheck("wss://b", (Fault(Step.READ, "never came " + NASTY),))], screen)
    text = screen.text()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "1,034.5 ms" in text
    assert "-90 s" in text
    assert "messages up to 131,072 bytes, auth required, payment required" in text


# --- add and remove -----------------------------------------------------------------------------------------------


def test_add_and_remove_keep_the_comments(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["relays", "add", "wss://THIRD.example/"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("added wss://third.example; 3 relays in ")
    assert "it holds from the next start" in said
    assert urls_in(home) == ["wss://relay.one", "wss://other.example", "wss://third.example"]
    assert run(["relays", "remove", "wss://other.example"]) == 0
    assert capsys.readouterr().out.startswith("removed wss://other.example; 2 relays in ")
    assert urls_in(home) == ["wss://relay.one", "wss://third.example"]
    text = (home / "pylon.toml").read_text()
    assert "# ours\n" in text
    assert '"wss://relay.one",  # the first\n' in text


def test_a_running_daemon_is_to_be_restarted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_daemon(home):
        assert run(["relays", "add", "wss://third.example"]) == 0
    assert "restart it (pylon stop, pylon start)" in capsys.readouterr().out


def test_add_works_where_there_is_no_file_yet(home: Path) -> None:
    (home / "pylon.toml").unlink()
    assert run(["relays", "add", "wss://third.example"]) == 0
    assert urls_in(home)[-1] == "wss://third.example"
    assert len(urls_in(home)) == 4


def test_another_file_can_be_named_before_the_command(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(TWO)
    assert run(["--config", str(other), "relays", "remove", "wss://relay.one"]) == 0
    assert tomllib.loads(other.read_text())["relays"]["urls"] == ["wss://other.example"]
    assert (home / "pylon.toml").read_text() == TWO


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "wss://relay.one:443/"], "wss://relay.one is configured already"),
        (
            ["add", "https://relay.example"],
            "not a relay: https://relay.example does not start with ws:// or wss://",
        ),
        (["add", "wss://\x1b[31m"], "not a relay: "),
        (["remove", "wss://none.example"], "wss://none.example is not configured (see: pylon relays list)"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_2(
    home: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["relays", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pylon: {said}")
    assert err.rstrip("\n").isprintable()
    assert (home / "pylon.toml").read_text() == TWO


def test_the_last_relay_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "pylon.toml").write_text('[relays]\nurls = ["wss://relay.one"]\n')
    assert run(["relays", "remove", "wss://relay.one"]) == 2
    assert "is the only relay" in capsys.readouterr().err


def test_what_is_set_elsewhere_is_not_changed_in_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_RELAYS__URLS", "wss://env.example")
    assert run(["relays", "add", "wss://third.example"]) == 2
    assert "PYLON_RELAYS__URLS sets relays.urls and is stronger" in capsys.readouterr().err
    assert (home / "pylon.toml").read_text() == TWO
