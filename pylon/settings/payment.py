"""The settings of how work is paid."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from pylon.settings.values import KeyFault, Number, Section, Whole

_MAX_CREDIT_MSATS = 10**11  # a bitcoin
_MAX_FREE_TOKENS = 10**12


class PaymentMode(StrEnum):
    """When a customer pays."""

    PREPAY = "prepay"
    POSTPAY = "postpay"
    FREE = "free"


class PaymentSettings(Section):
    """How work is paid."""

    mode: PaymentMode = Field(
        default=PaymentMode.PREPAY,
        description=(
            "prepay: nothing runs before its invoice is settled; postpay: customers within their credit pay after"
            " the work; free: nobody pays."
        ),
    )
    invoice_expiry_s: Whole = Field(default=600, ge=30, le=86_400, description="How long an invoice can be paid.")
    invoice_grace_s: Whole = Field(
        default=60,
        ge=0,
        le=86_400,
        description="How long after its expiry the wallet is still asked about an invoice.",
    )
    max_open_invoices: Whole = Field(
        default=256, ge=1, le=10_000, description="Unpaid invoices open at once, in all."
    )
    max_open_invoices_per_customer: Whole = Field(
        default=4, ge=1, le=1_000, description="Unpaid invoices open at once, for one customer."
    )
    max_invoices_per_job: Whole = Field(
        default=3, ge=1, le=20, description="Invoices that one job may need, one after another."
    )
    lookup_min_s: Number = Field(
        default=2.0,
        ge=0.05,
        le=600,
        description="The first wait before the wallet is asked about an invoice; it grows.",
    )
    lookup_max_s: Number = Field(default=30.0, ge=0.05, le=3600, description="The longest such wait.")
    min_price_msats: Whole = Field(
        default=0,
        ge=0,
        le=_MAX_CREDIT_MSATS,
        description="No job costs less than this, whatever its model's price; with mode free it says nothing.",
    )
    credit_msats: Whole = Field(
        default=0,
        ge=0,
        le=_MAX_CREDIT_MSATS,
        description="With postpay: what one job of any customer may cost to be done before it is paid, in msats.",
    )
    credit_history_percent: Whole = Field(
        default=0,
        ge=0,
        le=1_000,
        description="How much of what a customer has paid so far is added to that, in percent.",
    )
    credit_max_msats: Whole = Field(
        default=1_000_000, ge=0, le=_MAX_CREDIT_MSATS, description="The most credit of one customer, in msats."
    )
    credit_daily_msats: Whole = Field(
        default=1_000_000,
        ge=0,
        le=_MAX_CREDIT_MSATS,
        description="The most credit of all customers together within 24 hours, in msats.",
    )

    free_output_tokens_per_customer: Whole = Field(
        default=0,
        ge=0,
        le=_MAX_FREE_TOKENS,
        description=(
            "Output tokens that each customer gets for nothing within 24 hours; 0 for none. With free they are"
            " a limit, and 0 is none."
        ),
    )
    free_output_tokens: Whole = Field(
        default=0,
        ge=0,
        le=_MAX_FREE_TOKENS,
        description="What all customers together get for nothing within 24 hours; with free, 0 is no limit.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        gift = self.mode is not PaymentMode.FREE and self.free_output_tokens_per_customer
        if gift and not self.free_output_tokens:
            # Keys are free to make: who has a thousand would have a thousand gifts.
            raise KeyFault(
                "free_output_tokens", "missing: what all customers together get for nothing needs a limit"
            )
        if self.lookup_min_s > self.lookup_max_s:
            raise KeyFault("lookup_min_s", f"{self.lookup_min_s:g} is more than lookup_max_s")
        for key in ("credit_max_msats", "credit_daily_msats"):
            if self.credit_msats > getattr(self, key):
                raise KeyFault("credit_msats", f"{self.credit_msats} is more than {key}")
        return self
