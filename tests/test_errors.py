"""Exceptions as one line."""

from __future__ import annotations

from pylon.errors import describe_error


def test_type_and_message() -> None:
    assert describe_error(ValueError("bad\nthing\x1b[0m")) == "ValueError: bad\\x0athing\\x1b[0m"
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_groups_are_what_their_members_say() -> None:
    same = [OSError("a"), OSError("a")]
    group = BaseExceptionGroup("unhandled", [ExceptionGroup("inner", same), KeyError("k")])
    assert describe_error(group) == "OSError: a; KeyError: 'k'"
    many = ExceptionGroup("many", [ValueError(str(number)) for number in range(5)])
    assert describe_error(many) == "ValueError: 0; ValueError: 1; ValueError: 2 (and 2 more)"


def test_hostile_str_and_length() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe_error(Broken()) == "Broken"
    assert len(describe_error(ValueError("x" * 10**6))) < 600
