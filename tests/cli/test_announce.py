"""`pylon announce` against a fake daemon, and without one; the whole of it is in tests/e2e/test_announcing.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pylon.cli.announce import show
from pylon.cli.app import run
from pylon.cli.layout import Screen
from pylon.customer.visit import Found, Reading, RelayReading
from pylon.lock import instance_lock
from pylon.nostr.nip89 import Announcement, announcement_draft
from pylon.paths import paths_under
from tests.support.events import NOW, PROVIDER
from tests.support.fake_daemon import fake_daemon, run_pylon

NOBODY = "ws://127.0.0.1:9"
VERBS = ("show", "publish", "withdraw")
SELLS = """
[[backends]]
name = "b"
kind = "echo"
[[models]]
name = "m"
backend = "b"
base_msats = 1500
context_tokens = 4096
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that sells one model, with relays where nobody is."""
    monkeypatch.setenv("PYLON_NSEC", PROVIDER.reveal_nsec())
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    paths_under(folder).config_file.write_text(f'[relays]\nurls = ["{NOBODY}"]\n{SELLS}')
    return folder


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr, done.stderr
    return done.stderr


def test_a_running_daemon_publishes_itself(home: Path) -> None:
    with fake_daemon(home):
        done = run_pylon("announce", "publish", home=home)
        assert (done.returncode, done.stdout) == (0, "announced; confirmed by wss://relay.one\n")


def test_what_no_relay_confirms_is_not_called_done(home: Path) -> None:
    with fake_daemon(home):
        done = run_pylon("announce", "withdraw", home=home)
        assert done.returncode == 1
        assert "withdrawn, but no relay has confirmed it yet" in one_line(done)


def test_on_the_screen_it_tells_which_relay_has_which_version() -> None:
    nasty = "Shop \x1b[31mred\x1b[0m \u202eevil"
    announcement = Announcement("pylon", (5050,), name=nasty, about="Answers.")
    old, new = (announcement_draft(announcement).sign(PROVIDER, NOW + at) for at in (0, 1))
    reading = Reading(
        (Found(old, ("ws://one", "ws://two")), Found(new, ("ws://one",))),
        (RelayReading("ws://one", True), RelayReading("ws://two", True), RelayReading("ws://three", False, "away")),
    )
    screen = Screen(colours=False)
    show("announced", announcement, new, reading, screen, running=True)
    lines = screen.text().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "announcement  announced"
    assert "Shop \\x1b[31mred" in screen.text()
    one, two, three = lines[-3:]
    assert new.id[:12] in one and "not the newest" not in one
    assert old.id[:12] in two and "not the newest" in two
    assert three.split() == ["ws://three", "away"]


def test_without_a_daemon_it_shows_what_would_be_announced_and_that_no_relay_answers(home: Path) -> None:
    done = run_pylon("announce", "show", home=home)
    assert done.returncode == 1
    assert "no daemon keeps it true" in done.stdout
    assert "1.500 sats" in done.stdout and "4,096" in done.stdout
    assert NOBODY in done.stdout and "refused" in done.stdout.lower()
    told = json.loads(run_pylon("announce", "show", "--json", home=home).stdout)
    assert (told["running"], told["event"]) == (False, None)
    assert told["announcement"]["models"][0]["price"]["base_msats"] == 1500
    assert told["relays"][0]["complete"] is False


@pytest.mark.parametrize("verb", ["publish", "withdraw"])
def test_where_no_relay_is_it_says_so(
    home: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pylon.announcing.PUBLISH_S", 0.3)
    monkeypatch.setenv("PYLON_HOME", str(home))
    assert run(["announce", verb]) == 1
    err = capsys.readouterr().err
    assert err.startswith("pylon: no relay confirmed") and err.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_without_an_identity_it_says_how_to_make_one(
    home: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYLON_NSEC")
    assert "pylon init" in one_line(run_pylon("announce", verb, home=home))


@pytest.mark.parametrize("verb", ["show", "publish"])
def test_with_nothing_for_sale_there_is_nothing_to_announce(home: Path, verb: str) -> None:
    paths_under(home).config_file.write_text("")
    done = run_pylon("announce", verb, home=home)
    assert done.returncode == 2
    assert "nothing to announce" in one_line(done)


@pytest.mark.parametrize("verb", ["publish", "withdraw"])
def test_while_a_daemon_starts_nothing_is_published_beside_it(home: Path, verb: str) -> None:
    with instance_lock(paths_under(home).lock_file):
        done = run_pylon("announce", verb, home=home)
    assert done.returncode == 1
    assert "try again" in one_line(done)


def test_without_a_daemon_too_a_measure_is_announced_while_it_holds(home: Path) -> None:
    assert run_pylon("backends", "bench", "--concurrency", "1", home=home).returncode == 0
    (model,) = json.loads(run_pylon("announce", "show", "--json", home=home).stdout)["announcement"]["models"]
    assert model["measured"]["tokens_per_s"] > 0
    assert "measured by itself" in run_pylon("announce", "show", home=home).stdout
    settings = paths_under(home).config_file
    settings.write_text(settings.read_text().replace('kind = "echo"', 'kind = "echo"\nslots = 7'))
    (model,) = json.loads(run_pylon("announce", "show", "--json", home=home).stdout)["announcement"]["models"]
    assert model["measured"] is None
