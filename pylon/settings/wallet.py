"""The settings of the wallet that is paid."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from pylon.settings.values import KeyFault, LightningAddress, Number, Secret, Section, WalletConnection, WebUrl


class WalletKind(StrEnum):
    """The wallets that Pylon can talk to."""

    NONE = "none"
    PHOENIXD = "phoenixd"
    LNBITS = "lnbits"
    FAKE = "fake"
    NWC = "nwc"
    LNURL = "lnurl"


class Network(StrEnum):
    """The Bitcoin network whose invoices are accepted."""

    BITCOIN = "bitcoin"
    TESTNET = "testnet"
    SIGNET = "signet"
    REGTEST = "regtest"


class WalletSettings(Section):
    """The Lightning wallet that is paid."""

    kind: WalletKind = Field(
        default=WalletKind.NONE,
        description=(
            "none; nwc: what speaks Nostr Wallet Connect; lnbits or phoenixd, by their HTTP API; lnurl: a lightning"
            " address; or fake: play money, for trials and tests."
        ),
    )
    url: WebUrl | None = Field(
        default=None,
        description="Where the wallet answers.",
        json_schema_extra={"allowed": "an http:// or https:// URL", "example": "http://127.0.0.1:3338"},
    )
    token: Secret = Field(
        default=None,
        description="Its access token. Better: PYLON_WALLET_TOKEN, or a systemd credential named wallet_token.",
    )
    pay_token: Secret = Field(
        default=None,
        description="The admin key, for lnbits that is to pay refunds. Better: PYLON_WALLET_PAY_TOKEN, likewise.",
    )
    uri: WalletConnection = Field(
        default=None,
        description="The nostr+walletconnect:// URI, for nwc. Better: PYLON_WALLET_URI, or wallet_uri likewise.",
    )
    address: LightningAddress | None = Field(
        default=None,
        description="The lightning address that is paid, for lnurl.",
        json_schema_extra={"allowed": "name@host", "example": "you@example.com"},
    )
    timeout_s: Number = Field(
        default=15.0, ge=0.1, le=120, description="How long the wallet may take to answer a call."
    )
    network: Network = Field(default=Network.BITCOIN, description="An invoice of any other network is refused.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for key in _WALLET_NEEDS[self.kind]:
            if getattr(self, key) is None:
                raise KeyFault(key, f"missing, and a {self.kind} wallet needs it")
        return self


_WALLET_NEEDS: dict[WalletKind, tuple[str, ...]] = {
    WalletKind.NONE: (),
    WalletKind.NWC: (),  # its uri is a secret
    WalletKind.PHOENIXD: ("url",),
    WalletKind.LNBITS: ("url",),
    WalletKind.FAKE: ("url",),
    WalletKind.LNURL: ("address",),
}
"""The keys, apart from secrets, without which a kind of wallet cannot be used."""
