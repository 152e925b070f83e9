"""The fixtures that are shared by all tests."""

from __future__ import annotations

from hypothesis import settings

from tests.support.lnbits import fresh_lnbits, lnbits

__all__ = ["fresh_lnbits", "lnbits"]

# A machine that is busy with other tests is no fault of the code: time is measured by benchmarks.
settings.register_profile("pylon", deadline=None)
settings.load_profile("pylon")
