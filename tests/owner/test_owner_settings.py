"""The settings of `[owner]`: what is taken from file and environment, and what a fault says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pylon import assembly
from pylon.settings import SettingsError, WhenUnknown, load_settings
from pylon.settings.load import merge_settings


def given(**owner: Any) -> Any:
    return merge_settings(Path("pylon.toml"), {"owner": owner}, {}, {}).settings


def test_by_default_there_is_no_rule() -> None:
    settings = given()
    assert assembly.make_owner_rules(settings).named == ()
    assert settings.owner.when_unknown is WhenUnknown.PAUSE, "the machine is its owner's first"


@pytest.mark.parametrize(
    "text", ["sat,sun 00:00-24:00; mon-fri 18:00-08:00", '["sat,sun 00:00-24:00", "mon-fri 18:00-08:00"]']
)
def test_hours_come_from_the_environment_too(text: str, tmp_path: Path) -> None:
    environ = {"PYLON_HOME": str(tmp_path), "PYLON_OWNER__HOURS": text}
    hours = load_settings(None, None, environ).settings.owner.hours
    assert hours == ("sat,sun 00:00-24:00", "mon-fri 18:00-08:00")


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ({"hours": ["mon-fri"]}, "owner.hours"),
        ({"hours": ["18:00-08:00", "mon 25:00-26:00"]}, "'mon 25:00-26:00': a time is 00:00 to 23:59"),
        ({"hours": ["holidays 08:00-09:00"]}, "days are mon, tue"),
        ({"time_zone": "Mars/Olympus"}, "not a time zone that this machine knows"),
        ({"time_zone": "../../etc/passwd"}, "not a time zone that this machine knows"),
        ({"idle_after_s": 0}, "owner.idle_after_s"),
        ({"gpu_memory_floor_mb": -1}, "owner.gpu_memory_floor_mb"),
        ({"when_unknown": "sleep"}, "owner.when_unknown"),
    ],
)
def test_a_fault_is_one_sentence_that_names_its_key(owner: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        given(**owner)
    text = str(caught.value)
    assert said in text and "owner." in text and "\n" not in text
