"""The settings of the machine's owner: when it may work for customers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from pylon.owner.hours import parse_window
from pylon.settings.values import Number, Section, Whole, listed


class WhenUnknown(StrEnum):
    """What a rule does whose state cannot be told on this machine."""

    PAUSE = "pause"
    RUN = "run"


def _listed_windows(value: object) -> object:
    """Take windows written as one text, as the environment gives them: JSON, or parted by semicolons."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return listed(value)
    return [part.strip() for part in value.split(";") if part.strip()]


def _windows(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parse_window(value)
        except ValueError as error:
            raise ValueError(f"'{value}': {error}") from None
    return values


def _zone(value: str) -> str:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(value)
    except (OSError, ValueError, LookupError):
        raise ValueError("not a time zone that this machine knows") from None
    return value


Windows = Annotated[tuple[str, ...], BeforeValidator(_listed_windows), AfterValidator(_windows)]
"""Days and times, such as mon-fri 18:00-08:00; days are parted by commas, so windows are not."""

Zone = Annotated[str, AfterValidator(_zone)]
"""The name of a time zone."""


class OwnerSettings(Section):
    """When this machine may work for customers; outside that it pauses by itself."""

    hours: Windows = Field(
        default=(),
        max_length=32,
        description="When work is allowed; an end before its start is on the next day. Without any, always."
        " As one text, in the environment, they are parted by semicolons.",
        json_schema_extra={
            "allowed": "a list of days and times, such as mon-fri 18:00-08:00 or sat,sun 00:00-24:00"
        },
    )
    time_zone: Zone | None = Field(
        default=None,
        description="The time zone of these hours; without it, this machine's.",
        json_schema_extra={"allowed": "a name such as Europe/Berlin", "example": "Europe/Berlin"},
    )
    idle_only: bool = Field(default=False, description="Work only while nobody uses this machine.")
    idle_after_s: Number = Field(
        default=600.0, ge=1, le=86_400, description="How long ago the last key or mouse must be for that."
    )
    ac_only: bool = Field(default=False, description="Work only on mains power.")
    gpu_memory_floor_mb: Whole = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Work only while other programs leave so much GPU memory, in MB; 0 for no such rule.",
    )
    settle_s: Number = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="How long mains power and GPU memory must be back before work goes on.",
    )
    put_back: bool = Field(
        default=False,
        description="Put running jobs back into the queue when a rule pauses, and do not let them finish.",
    )
    when_unknown: WhenUnknown = Field(
        default=WhenUnknown.PAUSE, description="What a rule does that cannot be told on this machine."
    )
