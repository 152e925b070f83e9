"""`pylon pause`, `resume` and `drain`: what they ask a daemon for, what they say, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pylon.cli import owner as commands
from pylon.cli.app import run
from pylon.cli.layout import moment
from pylon.control.client import DaemonNotRunning
from pylon.control.owner_line import OwnerLine
from pylon.control.views import DaemonStatus
from pylon.lock import instance_lock
from pylon.paths import paths_under
from tests.support.control_views import NASTY, STATUS

Captured = pytest.CaptureFixture[str]
NOW = 1_700_000_000
PAUSED = OwnerLine("paused", "order", NOW, because="paused by your order", freed_at=NOW, freed_bytes=2_500_000)


class Daemon:
    """Answers in the place of the control client: each status is the next of `story`, the last one again."""

    def __init__(self, *story: OwnerLine) -> None:
        self.story = list(story) or [OwnerLine()]
        self.asked: list[tuple[Any, ...]] = []
        self.gone = False
        self.interrupts = False

    def status(self) -> DaemonStatus:
        if self.gone:
            raise DaemonNotRunning("pylon is not running")
        return replace(STATUS, owner=self._next())

    def pause(self, for_s: int | None = None, why: str = "", *, at_once: bool = False) -> OwnerLine:
        return self._told("pause", for_s, why, at_once)

    def resume(self, for_s: int | None = None, *, ignore_rules: bool = False) -> OwnerLine:
        return self._told("resume", for_s, ignore_rules)

    def drain(self, why: str = "", *, exits: bool = False) -> OwnerLine:
        return self._told("drain", why, exits)

    def _told(self, *asked: Any) -> OwnerLine:
        self.asked.append(asked)
        return self._next()

    def _next(self) -> OwnerLine:
        return self.story.pop(0) if len(self.story) > 1 else self.story[0]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Daemon]]:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))

    def make(*story: OwnerLine) -> Daemon:
        made = Daemon(*story)
        monkeypatch.setattr(commands, "control_client", lambda paths: made)
        monkeypatch.setattr(commands, "_LOOK_EVERY_S", 0.001)
        return made

    yield make


def said(capsys: Captured, arguments: Sequence[str], code: int = 0) -> str:
    assert run(arguments) == code
    told = capsys.readouterr()
    text = told.out + told.err
    assert all(char.isprintable() or char == "\n" for char in text)
    return text


# --- pause ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2_700), ("2h", 7_200), ("1d12h", 129_600), ("1w", 604_800)]
)
def test_a_time_is_read(text: str, seconds: int, daemon: Callable[..., Daemon], capsys: Captured) -> None:
    made = daemon(PAUSED)
    said(capsys, ["pause", "--for", text, "--why", " lunch ", "--now"])
    assert made.asked == [("pause", seconds, "lunch", True)]


@pytest.mark.parametrize("text", ["2", "0h", "h", "2 h", "-1h", "1y", "", "99999999w", NASTY, "9" * 5_000 + "s"])
def test_what_is_no_time_is_refused(text: str, daemon: Callable[..., Daemon], capsys: Captured) -> None:
    made = daemon()
    assert "is no time: write it like 45m, 2h or 1d12h" in said(capsys, ["pause", f"--for={text}"], code=2)
    assert made.asked == []


def test_a_pause_says_what_is_given_back(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    waits = replace(PAUSED, freed_at=None, freed_bytes=0)
    daemon(waits, waits, PAUSED)
    assert said(capsys, ["pause"]) == (
        "paused: no jobs are taken and none starts (pylon resume ends it)\n2.5 MB of memory are given back\n"
    )


def test_a_pause_says_what_is_left_and_what_it_outlasts(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    busy = replace(
        PAUSED,
        until=NOW + 7_200,
        running=1,
        waiting=3,
        waiting_paid=2,
        unpaid=1,
        first_deadline_at=NOW + 3_600,
        freed_at=None,
    )
    daemon(busy)
    text = said(capsys, ["pause", "--for", "2h"])
    assert text.splitlines() == [
        f"paused until {moment(NOW + 7_200)}: no jobs are taken and none starts (pylon resume ends it)",
        "jobs: 1 running, 3 waiting (2 paid), 1 unpaid",
        f"the pause outlasts the deadline of a paid job ({moment(NOW + 3_600)}): what was paid"
        " becomes a refund due",
        "pylon drain finishes what is there first",
        "the memory is given back when they have ended (pylon pause --now puts them back into the queue)",
    ]
    daemon(replace(busy, until=None))
    assert f"the first deadline of a paid job that waits is {moment(NOW + 3_600)}" in said(capsys, ["pause"])


def test_json_is_the_line(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    daemon(PAUSED)
    for command in ("pause", "resume"):
        assert json.loads(said(capsys, [command, "--json"]))["stance"] == "paused"


def test_a_reason_has_its_length(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    made = daemon()
    assert "--why takes at most 200 characters" in said(capsys, ["pause", "--why", "x" * 201], code=2)
    assert made.asked == []


# --- resume -----------------------------------------------------------------------------------------------------


def test_resume_says_what_holds_now(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    daemon(PAUSED, OwnerLine())
    assert said(capsys, ["resume"]) == "jobs are taken again\n"
    daemon(OwnerLine())
    assert said(capsys, ["resume"]) == "pylon was not paused: jobs are taken\n"
    daemon(PAUSED, replace(PAUSED, by="rules", because="paused: " + NASTY))
    text = said(capsys, ["resume"])
    assert text.startswith("your orders are ended, and a rule holds: paused: \\x1b[31mred")
    assert "pylon resume --ignore-rules" in text
    made = daemon(PAUSED, OwnerLine(rules_waived=True, waived_until=NOW))
    assert f"until {moment(NOW)}" in said(capsys, ["resume", "--ignore-rules", "--for", "2h"])
    assert made.asked == [("resume", 7_200, True)]
    daemon(PAUSED, OwnerLine(rules_waived=True))
    assert "until they all say yes" in said(capsys, ["resume", "--ignore-rules"])
    assert "--for goes with --ignore-rules" in said(capsys, ["resume", "--for", "2h"], code=2)


# --- drain ------------------------------------------------------------------------------------------------------

DRAINING = OwnerLine("draining", "order", NOW)


def test_a_drain_shows_each_change_and_its_end(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    two, one = replace(DRAINING, running=1, waiting=1, waiting_paid=1), replace(DRAINING, to_deliver=1)
    made = daemon(two, two, two, one, one, replace(PAUSED, unpaid=2))
    assert said(capsys, ["drain", "--why", "a new disk"]).splitlines() == [
        "jobs: 1 running, 1 waiting (1 paid)",
        "jobs: 1 to deliver",
        "drained: nothing is left, and pylon is paused (pylon resume takes jobs again)",
        "2 jobs are not paid yet: what is paid now waits until pylon resumes",
    ]
    assert made.asked == [("drain", "a new disk", False)]


def test_a_drain_that_was_ended_is_a_failure(daemon: Callable[..., Daemon], capsys: Captured) -> None:
    daemon(replace(DRAINING, running=1), OwnerLine())
    assert "the drain was ended: pylon takes jobs again" in said(capsys, ["drain"], code=1)
    daemon(replace(DRAINING, running=1), replace(PAUSED, running=1))
    assert "the drain was ended by a pause" in said(capsys, ["drain"], code=1)


@pytest.mark.parametrize(("exits", "kept", "code"), [(True, False, 0), (True, True, 1), (False, True, 1)])
def test_a_daemon_that_is_gone_was_drained_or_was_not(
    exits: bool, kept: bool, code: int, daemon: Callable[..., Daemon], capsys: Captured, tmp_path: Path
) -> None:
    made = daemon(replace(DRAINING, running=1))
    made.gone = True
    if kept:
        paths_under(tmp_path).orders_file.write_text("{}")
    text = said(capsys, ["drain", *(["--exit"] if exits else [])], code)
    assert ("drained, and pylon has stopped" in text) is (code == 0)
    assert ("it goes on with that when it is started" in text) is (code == 1)
    assert made.asked == [("drain", "", exits)]


def test_ctrl_c_ends_the_command_and_not_the_drain(
    daemon: Callable[..., Daemon], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon(replace(DRAINING, running=1))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pylon.cli.owner.time.sleep", interrupt)
    assert "the drain goes on: pylon status shows it, pylon resume ends it" in said(capsys, ["drain"], code=130)


# --- without a daemon -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "done"), [("pause", "paused"), ("resume", "resumed"), ("drain", "drained")])
def test_without_a_daemon_it_is_3_and_one_line(
    command: str, done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    assert said(capsys, [command], code=3) == (
        f"pylon: pylon is not running, and only a running daemon can be {done}: pylon start\n"
    )
    with instance_lock(paths_under(tmp_path).lock_file):
        assert "does not answer yet: try again" in said(capsys, [command], code=1)
