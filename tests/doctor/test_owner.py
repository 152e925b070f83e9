"""The doctor on the owner's rules: what they say now, what cannot be told here, and what never allows work."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pylon.backends.gpu_memory import GpuMemory
from pylon.doctor import owner
from pylon.doctor.findings import Finding, Level, Scene
from pylon.owner import idleness
from pylon.owner.rules import Unknown
from pylon.paths import paths_under
from pylon.settings import OwnerSettings, Settings

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC).timestamp()


async def examined(folder: Path, **rules: Any) -> list[Finding]:
    settings = Settings(owner=OwnerSettings(**rules))
    return await owner.check_owner(Scene(settings, paths_under(folder), None, None, lambda: NOON))


async def test_without_rules_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert await examined(tmp_path) == []


async def test_hours_say_what_holds_and_until_when(tmp_path: Path) -> None:
    (finding,) = await examined(tmp_path, hours=["18:00-08:00"], time_zone="UTC")
    assert (finding.level, finding.what) == (
        Level.OK,
        "hours: outside the hours of [owner], until 18:00: no work now",
    )
    (finding,) = await examined(tmp_path, hours=["thu 08:00-13:00"], time_zone="UTC")
    assert finding.what == "hours: within the hours of [owner], until 13:00"


async def test_hours_that_say_nothing_are_named(tmp_path: Path) -> None:
    _, finding = await examined(tmp_path, hours=["08:00-20:00", "20:00-08:00"])
    assert (finding.level, finding.what) == (Level.WARN, "hours: all hours are allowed")


@pytest.mark.parametrize(("unknown", "does"), [("pause", "pauses for as long"), ("run", "works all the same")])
async def test_what_cannot_be_told_is_named_with_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: str, does: str
) -> None:
    async def no_logind(*_: Any, **__: Any) -> Unknown:
        return Unknown("loginctl is not installed")

    monkeypatch.setattr(idleness, "idle_s", no_logind)
    (finding,) = await examined(tmp_path, idle_only=True, when_unknown=unknown)
    assert finding.level is Level.WARN
    assert finding.what.endswith("whether somebody uses this machine: loginctl is not installed")
    assert does in finding.fix and "owner.when_unknown" in finding.fix


async def test_a_floor_that_no_gpu_reaches_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def small() -> GpuMemory:
        return GpuMemory(8_000_000_000, 7_000_000_000)

    monkeypatch.setattr(owner, "read_gpu_memory", small)
    *_, finding = await examined(tmp_path, gpu_memory_floor_mb=9_000)
    assert finding.what == "gpu_memory_floor_mb: 9,000 MB are more than the 8,000 MB that there are"
    assert finding.level is Level.WARN
    found = await examined(tmp_path, gpu_memory_floor_mb=6_000)
    assert not [each for each in found if "are more than" in each.what]
