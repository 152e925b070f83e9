"""`pylon jobs` and `pylon earnings`, with a daemon and from the database alone."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import typer

from pylon.cli.app import run
from pylon.cli.earnings import parse_since
from pylon.control.views import EarningsBy, EarningsView, JobDetail, JobsQuery, JobView, JournalLine, NotFound
from pylon.lock import instance_lock
from pylon.paths import paths_under
from tests.support.control_views import JOBS, PLAINTEXT, STATUS
from tests.support.terminal import printed

Captured = pytest.CaptureFixture[str]


def test_refused(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "refused"]) == 0
    text = printed(capsys)
    assert "11 accepted, 4 refused or dropped" in text
    assert "3  bid-too-low" in text and "\\x1b[31mred" in text
    assert "2  gpt-4o" in text
    assert run(["jobs", "refused", "--json"]) == 0
    assert json.loads(printed(capsys))["missed_models"] == {"gpt-4o": 2}


def test_what_was_refused_is_known_to_a_running_daemon_alone(stopped: Path, capsys: Captured) -> None:
    assert run(["jobs", "refused"]) == 3
    assert "pylon start" in capsys.readouterr().err


def test_list(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "list"]) == 0
    head, *rows = printed(capsys).splitlines()
    assert head.split() == ["id", "accepted", "model", "work", "money", "price", "runs", "reason"]
    assert [row.split()[0] for row in rows] == [job.id[:12] for job in JOBS]
    assert "1.500 sats" in rows[0]
    assert "\\x1b[31mred" in rows[2]


def test_list_passes_what_was_asked(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "list", "--work", "running", "--money", "settled", "--limit", "2", "--json"]) == 0
    (job,) = json.loads(printed(capsys))
    assert job["id"] == JOBS[0].id
    assert run(["jobs", "list", "--work", "failed"]) == 0
    assert printed(capsys) == "no jobs\n"


def test_show(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "show", JOBS[2].id[:8].upper()]) == 0
    text = printed(capsys)
    for part in (JOBS[2].id, "npub1customer3", "3.500 sats", "paid", "accepted", "\\u202eevil", "finished"):
        assert part in text
    assert "secret prompt" not in text


def test_show_input_only_when_asked(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "show", JOBS[2].id, "--show-input"]) == 0
    assert PLAINTEXT in printed(capsys)
    assert run(["jobs", "show", JOBS[2].id, "--json"]) == 0
    assert json.loads(printed(capsys))["request_json"] is None
    assert run(["jobs", "show", JOBS[2].id, "--json", "--show-input"]) == 0
    assert json.loads(printed(capsys))["request_json"] == PLAINTEXT


@pytest.mark.parametrize(
    ("job_id", "code", "said"),
    [
        ("ffffffff", 1, "pylon: no job starts with ffffffff\n"),
        ("010101", 1, "pylon: 2 jobs start with 010101\n"),
        ("0101", 2, "is no job's id"),
        ("../status", 2, "is no job's id"),
        ("\x1b[31m", 2, "\\x1b[31m"),
    ],
)
def test_ids_that_name_no_job(job_id: str, code: int, said: str, running: Path, capsys: Captured) -> None:
    assert run(["jobs", "show", job_id]) == code
    assert said in capsys.readouterr().err


def test_cancel(running: Path, capsys: Captured) -> None:
    assert run(["jobs", "cancel", JOBS[0].id]) == 0
    assert printed(capsys) == f"{JOBS[0].id[:12]}: work cancelled, money refund_due\n"
    assert run(["jobs", "cancel", JOBS[1].id]) == 1
    assert capsys.readouterr().err == "pylon: the job has already ended\n"


def test_cancel_needs_a_daemon(stopped: Path, capsys: Captured) -> None:
    assert run(["jobs", "cancel", JOBS[0].id]) == 3
    assert "only a running daemon can cancel" in capsys.readouterr().err


def test_earnings(running: Path, capsys: Captured) -> None:
    assert run(["earnings"]) == 0
    lines = [" ".join(line.split()) for line in printed(capsys).splitlines()]
    assert lines == [
        "2 settled payments ever",
        "received 21.500 sats",
        "earned 20 sats",
        "owed 1.500 sats",
        "for work under way 1 sats",
        "refunds due 0.500 sats",
    ]
    assert run(["earnings", "--since", "2026-11-30", "--by", "day"]) == 0
    text = printed(capsys)
    assert text.startswith("2 settled payments since 2026-11-30 00:00:00\n")
    assert "\\u202eevil" in text
    assert run(["earnings", "--json", "--since", "7d"]) == 0
    assert json.loads(printed(capsys))["total"]["earned_msats"] == 20_000


def test_since() -> None:
    assert parse_since("24h", 1_000_000) == 1_000_000 - 86_400
    assert parse_since(" 2w ", 2_000_000) == 2_000_000 - 14 * 86_400
    assert parse_since("9999w", 1000) == 0
    assert parse_since("2026-11-30T18:00", 0) == int(datetime(2026, 11, 30, 18).timestamp())
    assert parse_since("2026-11-30T18:00+00:00", 0) == 1_796_061_600
    for wrong in ("", "soon", "7", "7m", "-7d", "2026-13-01", "9" * 30 + "d"):
        with pytest.raises(typer.BadParameter):
            parse_since(wrong, 0)


# --- without a daemon -------------------------------------------------------------------------------------------


class _OfflineViews:
    def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        return JOBS[: query.limit]

    def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        if not JOBS[0].id.startswith(id_or_prefix):
            raise NotFound(f"no job's id starts with {id_or_prefix}")
        return JobDetail(JOBS[0], (JournalLine(1, "from the database"),))

    def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        return EarningsView(EarningsBy(by), 5, STATUS.books, since, until=until)


@pytest.fixture
def database(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a database and no daemon; what reads the database is a stand-in."""
    path = paths_under(stopped).database
    path.touch()
    module = types.ModuleType("pylon.offline")

    def offline_views(asked: Path) -> _OfflineViews:
        assert asked == path
        return _OfflineViews()

    module.offline_views = offline_views  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pylon.offline", module)
    return path


def test_reading_works_without_a_daemon(database: Path, capsys: Captured) -> None:
    assert run(["jobs", "list", "--limit", "1"]) == 0
    assert JOBS[0].id[:12] in printed(capsys)
    assert run(["jobs", "show", JOBS[0].id[:6]]) == 0
    assert "from the database" in printed(capsys)
    assert run(["earnings"]) == 0
    assert printed(capsys).startswith("5 settled payments")
    assert run(["jobs", "show", "abcdef"]) == 1
    assert capsys.readouterr().err == "pylon: no job's id starts with abcdef\n"


def test_a_daemon_that_is_starting_is_not_read_around(database: Path, capsys: Captured) -> None:
    with instance_lock(paths_under(database.parent).lock_file):
        assert run(["jobs", "list"]) == 1
    assert "does not answer yet" in capsys.readouterr().err


def test_nothing_there_is_said(stopped: Path, capsys: Captured) -> None:
    assert run(["earnings"]) == 1
    assert "there is no database at" in capsys.readouterr().err
