"""`pylon earnings`: times and zones, the split, CSV that no spreadsheet runs, and the chart."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.cli.app import run
from pylon.cli.bars import bar
from pylon.cli.earnings import csv_text, parse_since, show_chart
from pylon.cli.layout import Screen
from pylon.control.views import BooksLine, EarningsBy, EarningsRow, EarningsView

Captured = pytest.CaptureFixture[str]


def row(label: str, earned_msats: int) -> EarningsRow:
    return EarningsRow(
        label, 1, BooksLine(received_msats=earned_msats + 5, earned_msats=earned_msats, owed_msats=5)
    )


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_dates_are_local_or_utc(in_berlin: None) -> None:
    utc = int(datetime(2026, 11, 30, tzinfo=UTC).timestamp())
    assert parse_since("2026-11-30", 0, utc=True) == utc
    assert parse_since("2026-11-30", 0) == utc - 3600
    assert parse_since("2026-11-30T00:00+02:00", 0, utc=True) == utc - 7200


def test_a_time_has_two_ends(running: Path, capsys: Captured) -> None:
    assert run(["earnings", "--since", "2026-11-01", "--until", "2026-12-01", "--utc"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "2 settled payments since 2026-11-01 00:00:00 UTC, before 2026-12-01 00:00:00 UTC"
    assert run(["earnings", "--until", "2026-12-01", "--utc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["until"] == datetime(2026, 12, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--until", "soon"], "--until"),
        (["--since", "1d", "--until", "2d"], "--since is not before --until"),
        (["--csv", "--json"], "one is enough"),
        (["--by", "moon"], "moon"),
    ],
)
def test_wrong_usage_is_one_line(running: Path, capsys: Captured, arguments: list[str], said: str) -> None:
    assert run(["earnings", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_piped_there_is_no_chart_and_csv_is_csv(running: Path, capsys: Captured) -> None:
    assert run(["earnings", "--by", "customer"]) == 0
    assert "█" not in capsys.readouterr().out
    assert run(["earnings", "--by", "model", "--csv"]) == 0
    head, line, rest = capsys.readouterr().out.split("\r\n")
    given_back = "deposits_msats,refunded_msats,refund_fees_msats,written_off_msats"
    assert head == (
        f"model,payments,received_msats,earned_msats,in_work_msats,refund_due_msats,{given_back},earned_sats"
    )
    assert line.endswith(",2,21500,20000,1000,500,0,0,0,0,20.000") and not rest
    assert "\\u202e" in line, "nothing in it steers a terminal"
    assert run(["earnings", "--csv"]) == 0
    assert capsys.readouterr().out.split("\r\n")[1].startswith("total,2,21500,")


def test_in_a_terminal_there_is_a_chart(running: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["earnings", "--by", "day"]) == 0
    out = capsys.readouterr().out
    assert "Earned\n" in out and "█" in out


@given(st.text(max_size=30), st.integers(0, 10**15))
def test_no_label_is_a_formula_and_every_amount_is_exact(label: str, earned_msats: int) -> None:
    text = csv_text(EarningsView(EarningsBy.MODEL, 1, BooksLine(), None, (row(label, earned_msats),)))
    head, line = csv.reader(io.StringIO(text, newline=""))
    assert len(head) == len(line) == 11
    assert line[0].lstrip()[:1] not in set("=+-@\t\r") - {""}
    assert int(line[-1].replace(".", "")) == int(line[3]) == earned_msats


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@x", " =1"])
def test_a_formula_becomes_text(start: str) -> None:
    text = csv_text(EarningsView(EarningsBy.MODEL, 1, BooksLine(), None, (row(start, 1),)))
    assert text.splitlines()[1].startswith(f"'{start},")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_chart_keeps_to_the_width(columns: int) -> None:
    screen = Screen(colours=False)
    show_chart(
        [row("2026-11-30", 40_000), row("2026-12-01", 1), row("2026-12-02", 0)], screen, columns, blocks=True
    )
    head, full, least, none = screen.text().splitlines()
    assert head == "Earned"
    assert len(full) <= columns and full.endswith("█")
    assert least.endswith("▏")
    assert none.endswith("sats")


def test_there_is_no_chart_without_room_or_money() -> None:
    screen = Screen(colours=False)
    show_chart([row("2026-11-30", 40_000)], screen, 30, blocks=True)
    show_chart([row("2026-11-30", 0)], screen, 80, blocks=True)
    assert screen.text() == ""


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 100), st.booleans())
def test_a_bar_is_as_long_as_its_share(amount: int, more: int, width: int, blocks: bool) -> None:
    line = bar(amount, amount + more, width, blocks=blocks)
    assert len(line) <= width
    assert bool(line) == bool(amount and width)
    assert len(line) <= len(bar(amount + more, amount + more, width, blocks=blocks))
