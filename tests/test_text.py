import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.text import printable
from tests.support.events import surrogate_texts, texts

STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\u2028", "\\u2028"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_newlines_stay_when_asked_for_and_nothing_else() -> None:
    assert printable("a\n\tb\r\x1b", keep_newlines=True) == "a\n\tb\\x0d\\x1b"


def test_a_long_text_is_cut_and_marked() -> None:
    assert printable("x" * 10, limit=4) == "xxxx…"
    assert printable("é" * 10, limit=4) == "éééé…"
    assert printable("x" * 4, limit=4) == "xxxx"


def test_other_values_are_shown_as_their_text() -> None:
    assert printable(ValueError("bad\x07")) == "bad\\x07"


@given(texts | surrogate_texts, st.integers(0, 30), st.booleans())
def test_the_output_is_harmless_bounded_and_encodable(raw: str, limit: int, keep: bool) -> None:
    shown = printable(raw, limit=limit, keep_newlines=keep)
    steering = {char for char in shown if unicodedata.category(char) in STEERING}
    assert steering <= ({"\n", "\t"} if keep else set())
    assert len(shown) <= 10 * limit + 1
    shown.encode()
