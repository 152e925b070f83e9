"""What the demo writes: lines under labels, colours for terminals only, an answer that grows at word boundaries."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.demo.story import Answer, Paint, Story


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def grown(*texts: str, width: int = 34) -> str:
    """Return what is written when a text grows like this; 20 columns of text after the indent."""
    out = io.StringIO()
    answer = Answer(out.write, width)
    for text in texts:
        answer.grow(text)
    answer.close()
    return out.getvalue().replace(" " * 14, ">")


def test_a_line_stands_under_its_label() -> None:
    out = io.StringIO()
    Story(out).tell("relay", "one", "two", paint=Paint.GOOD)
    assert out.getvalue() == "  relay       one\n              two\n"


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    Story(out).say("hi", Paint.GOOD)
    assert out.getvalue() == "\x1b[32mhi\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Story(out).say("hi", Paint.GOOD)
    assert out.getvalue() == "hi\n"


def test_a_step_tells_its_begin_and_its_end() -> None:
    out = io.StringIO()
    with Story(out).step("wallet", "starting") as step:
        step.tick("still starting")
        step.done("there it is")
    first, last = out.getvalue().splitlines()
    assert first == "  wallet      starting …"
    assert last.startswith("  wallet      there it is (0.")


def test_a_step_changes_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Story(out).step("wallet", "starting") as step:
        step.tick("loading")
        step.done("done")
    assert "\n" not in out.getvalue()[:-1], "one line in the end"
    assert "loading … 0." in out.getvalue()


def test_a_step_that_fails_leaves_its_last_line() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Story(out).step("wallet", "starting"):
        raise ValueError("broken")
    assert out.getvalue() == "  wallet      starting …\n"


@pytest.mark.parametrize(
    ("texts", "written"),
    [
        (("Hello",), ">Hello\n"),
        (("Hel", "Hello wor", "Hello world."), ">Hello world.\n"),
        (("one two three four five six",), ">one two three four\n>five six\n"),
        (("a\nb\n\nc",), ">a\n>b\n>\n>c\n"),
        (("x" * 30,), ">" + "x" * 30 + "\n"),
        (("wrong", "right"), ">wrong\n>right\n"),
        (("\x1b[2J\u202e",), ">\\x1b[2J\\u202e\n"),
        (("",), ""),
    ],
)
def test_an_answer_wraps_at_words(texts: tuple[str, ...], written: str) -> None:
    assert grown(*texts) == written


@given(st.text(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_however_an_answer_comes_it_looks_the_same(text: str, cuts: list[int]) -> None:
    assert grown(*(text[:cut] for cut in sorted(cuts)), text) == grown(text)
