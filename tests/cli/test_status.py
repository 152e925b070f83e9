"""`pylon status` against a fake daemon, and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pylon.cli.app import run
from pylon.cli.layout import Screen, moment
from pylon.cli.status import show
from pylon.control.codec import decode
from pylon.control.owner_line import OwnerLine, RuleLine
from pylon.control.views import DaemonState, DaemonStatus, IntakeLine, SettingsLine, StoreLine, WalletLine
from pylon.lock import instance_lock
from pylon.paths import paths_under
from tests.support.control_views import NASTY, RELOADED, STATUS
from tests.support.fake_daemon import fake_daemon


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with fake_daemon(home):
        yield home


def shown(status: DaemonStatus) -> str:
    screen = Screen(colours=False)
    show(status, screen)
    return screen.text()


def test_one_look(running: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYLON_HOME", str(running))
    assert run(["status"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip("\n") == shown(STATUS)
    for part in (
        "state     ready",
        "identity  npub1example",
        "uptime    1d 2h (process 4242)",
        "wallet    fake: ready (regtest)",
        "intake    11 accepted",
        "store     1.2 MB, 2 to publish, 1 undeliverable",
        "Relays (1 of 2 connected)",
        "42 ms",
        "1 sats",
        "received              21.500 sats",
        "  for work under way       1 sats",
        "  refunds due          0.500 sats",
        "7  delivered/settled",
        "3  bid-too-low",
    ):
        assert part in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_json_is_everything(
    running: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(running))
    assert run(["status", "--json"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert decode(DaemonStatus, json.loads(text)) == STATUS


@pytest.mark.parametrize("state", [each for each in DaemonState if each is not DaemonState.READY])
def test_running_and_not_ready_is_1(
    state: DaemonState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    with fake_daemon(tmp_path, state=state):
        assert run(["status"]) == 1
    assert f"state     {state}" in capsys.readouterr().out


def test_not_running_is_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    assert run(["status"]) == 3
    assert capsys.readouterr().out.startswith("pylon is not running")
    assert run(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"state": "not-running"}


def test_locked_and_mute_is_not_called_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    with instance_lock(paths_under(tmp_path).lock_file):
        assert run(["status"]) == 1
    assert "is starting or stopping and does not answer yet" in capsys.readouterr().err


def test_what_is_wrong_is_said_where_it_belongs() -> None:
    text = shown(
        replace(
            STATUS,
            state=DaemonState.DEGRADED,
            state_reasons=("no relay is connected", NASTY),
            wallet=WalletLine("fake", False, "refused " + NASTY),
            intake=IntakeLine(3, "the store failed"),
            store=StoreLine(False, "disk full"),
            relays=(),
            queue=(),
        )
    )
    for part in (
        "because   no relay is connected",
        "because   \\x1b[31mred\\x1b[0m \\u202eevil \\ud800 \\x9b31m",
        "wallet    fake: not ready (refused \\x1b",
        "intake    paused: the store failed",
        "store     failed: disk full",
        "Relays (0 of 0 connected)\n  none",
    ):
        assert part in text
    assert "wallet    none" in shown(replace(STATUS, wallet=None))


def test_a_pause_says_why_what_is_left_and_which_memory_is_free() -> None:
    rules = (
        RuleLine("hours", True, "outside the hours of [owner]", False, 1_700_003_600),
        RuleLine("ac_only", False, "this machine runs on mains power", True),
        RuleLine("idle_only", True, "it cannot be told: " + NASTY),
    )
    owner = OwnerLine(
        stance="paused",
        by="rules",
        since=1_700_000_000,
        running=1,
        waiting=2,
        waiting_paid=1,
        first_deadline_at=1_700_003_600,
        freed_at=1_700_000_060,
        freed_bytes=168_600_000,
        rules=rules,
        rules_waived=True,
    )
    backends = (
        replace(STATUS.backends[0], memory_bytes=0),
        replace(STATUS.backends[0], name="other", detail="slow", keeps_memory=True),
    )
    status = replace(STATUS, state=DaemonState.PAUSED, state_reasons=(NASTY,), owner=owner, backends=backends)
    lines = shown(status).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    for part in (
        "state paused",
        f"owner since {moment(1_700_000_000)}; 1 running; 2 waiting (1 paid, first deadline"
        f" {moment(1_700_003_600)}); 168.6 MB of memory given back",
        "intake 11 accepted, now closed",
        "Rules of the owner (ignored)",
        f"hours no until {moment(1_700_003_600)} outside the hours of [owner]",
        "ac_only yes this machine runs on mains power",
        "idle_only not known it cannot be told: \\x1b[31mred",
        "slow; keeps its memory: it cannot be told to give it back",
    ):
        assert part in text, part
    assert "keeps its memory" not in shown(replace(status, owner=OwnerLine()))
    assert "Rules" not in shown(STATUS)


def test_columns_line_up_whatever_is_in_them() -> None:
    relays = (replace(STATUS.relays[0], url="wss://リレー.example"), STATUS.relays[0])
    lines = shown(replace(STATUS, relays=relays)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Relays"))
    wide, narrow = lines[at + 2], lines[at + 3]
    assert narrow.index("connected") == wide.index("connected") + len("リレー")


def test_settings_that_are_not_in_force_are_told() -> None:
    assert "settings" not in shown(replace(STATUS, settings=SettingsLine(1)))
    assert "settings  a restart is needed for relays.urls, wallet.url" in shown(replace(STATUS, settings=RELOADED))
    wrong = shown(replace(STATUS, settings=replace(RELOADED, error=f"pylon.toml: {NASTY}")))
    assert "settings  as they were, what was read is wrong: pylon.toml: \\x1b[31mred" in wrong
    assert "a restart is needed for relays.urls" in wrong, "what waited before still waits"
