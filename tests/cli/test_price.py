"""`pylon price` says what intake asks for."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pylon.cli.app import run
from pylon.jobs.pricing import MESSAGE_TOKENS, TEMPLATE_TOKENS

Captured = pytest.CaptureFixture[str]
SELLS = """
[[backends]]
name = "b"
kind = "echo"
[[models]]
name = "m"
aliases = ["em"]
backend = "b"
kinds = [5050, 5001, 5002]
base_msats = 1500
input_msats_per_1k = 500
output_msats_per_1k = 2000
max_output_tokens = 800
default_output_tokens = 100
context_tokens = 4096
[models.prices.5001]
base_msats = 3000
min_msats = 7000
"""
HELLO_TOKENS = TEMPLATE_TOKENS + MESSAGE_TOKENS + len("hello")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    (tmp_path / "pylon.toml").write_text(SELLS)
    return tmp_path


def told(capsys: Captured, *arguments: str) -> dict[str, Any]:
    assert run(["price", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: Captured, *arguments: str) -> tuple[int, str]:
    code = run(["price", *arguments])
    out = capsys.readouterr()
    assert (out.out, out.err.count("\n")) == ("", 1)
    return code, out.err


def test_every_line_of_the_sum_is_shown(home: Path, capsys: Captured) -> None:
    assert run(["price", "em", "--prompt", "hello", "--max-tokens", "400"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "m, kind 5050 (text generation)",
        "base 1.5 sats",
        f"input at most {HELLO_TOKENS} tokens at 500 msats per 1k 0.0545 sats",
        "output at most 400 tokens at 2,000 msats per 1k 0.8 sats",
        "up to the minimum 0 sats",
        "rounding to whole sats 0.6455 sats",
        "total 3 sats",
        "A bid must be at least 3000 msats (3 sats); without one it is taken.",
    ]


def test_a_kind_with_a_price_of_its_own(home: Path, capsys: Captured) -> None:
    found = told(capsys, "m", "--kind", "5001", "--prompt", "hello")
    assert (found["kind"], found["amount_msats"], found["output_tokens"]) == (5001, 7000, 100)
    assert found["input_tokens"] > HELLO_TOKENS, "what the kind writes around the text is priced too"
    assert sum(line["amount_microsats"] for line in found["lines"]) == 7_000_000
    assert found["lines"][3]["amount_microsats"] > 0


def test_the_least_price_of_all_jobs_counts_unless_they_are_free(
    home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLON_PAYMENT__MIN_PRICE_MSATS", "9001")
    assert told(capsys, "m")["amount_msats"] == 10_000
    assert told(capsys, "m", "--kind", "5001")["amount_msats"] == 10_000
    monkeypatch.setenv("PYLON_PAYMENT__MODE", "postpay")
    assert run(["price", "m"]) == 0
    assert "never more than this" in capsys.readouterr().out
    monkeypatch.setenv("PYLON_PAYMENT__MODE", "free")
    assert told(capsys, "m")["amount_msats"] == 0
    assert run(["price", "m"]) == 0
    assert "nobody pays" in capsys.readouterr().out


def test_the_prompt_comes_from_a_file_or_from_stdin(
    home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "prompt.txt"
    file.write_text("hello\n")
    assert told(capsys, "m", "--prompt-file", str(file))["input_tokens"] == HELLO_TOKENS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    assert told(capsys, "m", "--prompt-file", "-")["input_tokens"] == HELLO_TOKENS


def test_a_parameter_that_a_kind_needs_is_given(home: Path, capsys: Captured) -> None:
    assert told(capsys, "m", "--kind", "5002", "--param", "language=es")["kind"] == 5002
    assert refused(capsys, "m", "--kind", "5002") == (
        1,
        "pylon: this would be refused: no language: name it in a param tag, such as es\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["x"], 2, "'x' is not sold; sold are: m"),
        (["m", "--kind", "5100"], 2, "m is not sold for 5100; it is for: 5050, 5001, 5002"),
        (["m", "--prompt", "a", "--prompt-file", "b"], 2, "one is enough"),
        (["m", "--prompt-file", "/nothing/here"], 2, "cannot be read"),
        (["m", "--max-tokens", "801"], 1, "would be refused: max_tokens is 801: at most 800"),
        (["m", "--prompt", "a" * 4096], 1, "would be refused: the prompt may take 4200 tokens"),
    ],
)
def test_what_is_refused_is_said_in_one_line(
    home: Path, capsys: Captured, arguments: list[str], code: int, said: str
) -> None:
    got, line = refused(capsys, *arguments)
    assert got == code
    assert said in line
