"""`pylon reload`: what the daemon answers, in lines or as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pylon.cli.app import run
from pylon.cli.reload import _show
from pylon.control.codec import decode
from pylon.control.views import SettingsLine
from tests.support.control_views import RELOADED

Captured = pytest.CaptureFixture[str]


def test_every_change_is_a_line_fit_for_a_terminal(running: Path, capsys: Captured) -> None:
    assert run(["reload"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1:] == [
        "needs a restart: relays.urls: wss://relay.one -> wss://relay.two",
        "needs a restart: wallet.url: not set -> nothing",
    ]
    assert out.startswith("changed: announce.about: old words -> \\x1b[31mred")
    assert "\x1b" not in out


def test_as_json(running: Path, capsys: Captured) -> None:
    assert run(["reload", "--json"]) == 0
    assert decode(SettingsLine, json.loads(capsys.readouterr().out)) == RELOADED


def test_nothing_changed_is_said(capsys: Captured) -> None:
    _show(SettingsLine(1))
    assert capsys.readouterr().out == "nothing has changed\n"


def test_without_a_daemon_there_is_nothing_to_reload(stopped: Path, capsys: Captured) -> None:
    assert run(["reload"]) == 3
    assert capsys.readouterr().err == "pylon: pylon is not running: it reads its settings when it starts\n"
