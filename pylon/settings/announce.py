"""What is told to customers: the table `[announce]` of the settings."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from pylon.settings.values import ImageUrl, LightningAddress, Names, Number, Prose, Section


class ProfileMode(StrEnum):
    """Whether the key's profile and relay list are published too."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class AnnounceSettings(Section):
    """What is announced to customers (NIP-89), beside the models for sale and their prices."""

    enabled: bool = Field(default=True, description="Announce what is for sale, and keep that true.")
    about: Prose = Field(
        default="Sells inference for Lightning payments (NIP-90).",
        description="What customers read below the name.",
    )
    picture: ImageUrl | None = Field(
        default=None,
        description="A picture of the provider.",
        json_schema_extra={"allowed": "an http:// or https:// URL", "example": "https://example.com/pylon.png"},
    )
    lud16: LightningAddress | None = Field(
        default=None,
        description="A Lightning address for tips; jobs are paid by invoice.",
        json_schema_extra={"allowed": "name@host", "example": "you@example.com"},
    )
    topics: Names = Field(
        default=("text-generation",),
        max_length=16,
        description="Words that customers search for (`t` tags).",
        json_schema_extra={"allowed": "a list of at most 16 words"},
    )
    profile: ProfileMode = Field(
        default=ProfileMode.AUTO,
        description="Publish profile (kind 0) and relay list (kind 10002) too; auto: unless the key has its own.",
    )
    debounce_s: Number = Field(
        default=30.0,
        ge=1,
        le=3_600,
        description="The least time between two versions; changes are gathered for it.",
    )
    republish_s: Number = Field(
        default=21_600.0, ge=60, le=604_800, description="After so long it is published again, changed or not."
    )
