"""The settings of refunds: what may be paid back without being ordered."""

from __future__ import annotations

from pydantic import Field

from pylon.settings.values import Section, Whole

_MOST_MSATS = 100_000_000_000


class RefundsSettings(Section):
    """What goes back to customers whose paid jobs could not be done."""

    auto: bool = Field(
        default=False,
        description="Pay refunds without being told to, within the caps below. Others wait for pylon refunds pay.",
    )
    max_msats_per_job: Whole = Field(
        default=1_000_000, ge=0, le=_MOST_MSATS, description="The most that one job gets back by itself, in msats."
    )
    max_msats_per_day: Whole = Field(
        default=10_000_000,
        ge=0,
        le=_MOST_MSATS,
        description="The most that refunds take within 24 hours, routes included, before the rest has to wait.",
    )
    max_fee_msats: Whole = Field(
        default=5_000, ge=0, le=_MOST_MSATS, description="The most that the route of one refund may cost, in msats."
    )
