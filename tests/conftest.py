"""The fixtures that are shared by all tests."""

from __future__ import annotations

from tests.support.lnbits import fresh_lnbits, lnbits

__all__ = ["fresh_lnbits", "lnbits"]
