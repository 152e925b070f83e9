"""`pylon refunds`, with a daemon and from the database alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pylon.cli.app import run
from tests.support.control_views import JOBS, REFUND, REFUNDED
from tests.support.terminal import printed

Captured = pytest.CaptureFixture[str]


def test_list_says_for_what_each_waits(running: Path, capsys: Captured) -> None:
    assert run(["refunds", "list"]) == 0
    head, row, *rest = printed(capsys).splitlines()
    assert head.split() == ["job", "money", "due", "to", "because"]
    for part in (REFUND.job[:12], "refund_due", "1.500 sats", "alice@pay.example (request)", REFUND.waits):
        assert part in row
    assert "failed" in rest[-1] and "no route" in rest[-1] and REFUNDED.job[:12] not in "\n".join(rest)


def test_list_everything_as_json(running: Path, capsys: Captured) -> None:
    assert run(["refunds", "list", "--all", "--json"]) == 0
    due, refunded = json.loads(printed(capsys))
    assert (due["job"], due["due_msats"], refunded["money"]) == (REFUND.job, 1_500, "refunded")
    assert refunded["payments"][0]["payment_hash"] == "cd" * 32


def test_pay(running: Path, capsys: Captured) -> None:
    assert run(["refunds", "pay", JOBS[1].id, "--to", "alice@pay.example"]) == 0
    said = printed(capsys)
    assert said.startswith(f"{JOBS[1].id[:12]}: 1.500 sats paid back, and 0.002 sats for the route")
    assert run(["refunds", "pay", JOBS[1].id]) == 1
    assert printed(capsys) == f"{JOBS[1].id[:12]}: 1.500 sats not paid yet: the address is silent\n"
    assert run(["refunds", "pay", JOBS[1].id, "--to", "nobody"]) == 1
    assert "lightning address" in capsys.readouterr().err


def test_write_off(running: Path, capsys: Captured) -> None:
    assert run(["refunds", "write-off", JOBS[1].id, "--reason", "paid in person"]) == 0
    assert printed(capsys) == f"{JOBS[1].id[:12]}: written off\n"


@pytest.mark.parametrize(
    "words",
    [
        ["write-off", JOBS[1].id],
        ["write-off", JOBS[1].id, "--reason", "  "],
        ["write-off", JOBS[1].id, "--reason", "x" * 501],
        ["write-off", "nonsense", "--reason", "x"],
        ["pay", "nonsense"],
        ["pay", JOBS[1].id, "--to", "x" * 3_000],
    ],
)
def test_wrong_usage(words: list[str], running: Path, capsys: Captured) -> None:
    assert run(["refunds", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_daemon(stopped: Path, capsys: Captured) -> None:
    for words in (["pay", JOBS[0].id], ["write-off", JOBS[0].id, "--reason", "x"]):
        assert run(["refunds", *words]) == 3
        assert "only a running daemon" in capsys.readouterr().err
