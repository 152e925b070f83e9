"""The fixtures that are shared by all tests, and how they report."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.lnbits import fresh_lnbits, lnbits

__all__ = ["fresh_lnbits", "lnbits"]

# A machine that is busy with other tests is no fault of the code: time is measured by benchmarks.
settings.register_profile("pylon", deadline=None)
settings.load_profile("pylon")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let reports hold lone surrogates, as hostile texts do: pytest-xdist can only pass on what UTF-8 can."""
    return encodable((yield))


def encodable(value: Any) -> Any:
    """Return plain data with every character that UTF-8 cannot carry written as an escape."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(encodable, value))
        case _:
            return value
