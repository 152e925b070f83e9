"""The settings of the way in: whose requests are taken, how many and how large."""

from __future__ import annotations

from pydantic import Field

from pylon.settings.values import FilePath, Section, Whole


class IntakeSettings(Section):
    """What is taken from relays."""

    max_age_s: Whole = Field(default=900, ge=10, le=86_400, description="Requests older than this are left alone.")
    max_future_s: Whole = Field(
        default=600, ge=0, le=86_400, description="Requests dated further ahead are left alone."
    )
    replies_per_minute: Whole = Field(
        default=120, ge=0, le=100_000, description="Error replies sent, to all customers."
    )
    requests_per_customer_per_minute: Whole = Field(
        default=60, ge=1, le=1_000_000, description="Requests taken from one customer."
    )
    requests_per_minute: Whole = Field(
        default=60_000, ge=1, le=10_000_000, description="Requests taken from all customers together."
    )
    max_prompt_bytes: Whole = Field(
        default=32_768, ge=1, le=1_048_576, description="The longest prompt that is taken."
    )
    max_prompt_tokens: Whole = Field(
        default=0, ge=0, le=10_000_000, description="The same in tokens, at most as many as bytes; 0 for no limit."
    )
    open_jobs_per_customer: Whole = Field(
        default=0, ge=0, le=10_000, description="A customer's share of a queue; 0 for all of it."
    )
    running_per_customer: Whole = Field(
        default=0, ge=0, le=10_000, description="Jobs of one customer that run at once; 0 for no limit."
    )
    targeted_only: bool = Field(
        default=False, description="Take only requests addressed to this provider, and leave those to anyone alone."
    )
    allow_file: FilePath | None = Field(
        default=None,
        description="Customers who are always served, an npub or hex key a line; read again by pylon reload.",
        json_schema_extra={"allowed": "an absolute path", "example": "/etc/pylon/allow.txt"},
    )
    allow_only: bool = Field(default=False, description="Serve nobody but those in allow_file.")
    deny_file: FilePath | None = Field(
        default=None,
        description="Customers who are never served, likewise; it wins over allow_file.",
        json_schema_extra={"allowed": "an absolute path", "example": "/etc/pylon/deny.txt"},
    )
    min_pow_bits: Whole = Field(
        default=0,
        ge=0,
        le=64,
        description="The proof of work (NIP-13) that a request must carry, unless its customer is in allow_file.",
    )
