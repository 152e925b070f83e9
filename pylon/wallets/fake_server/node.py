"""The Lightning node of the fake wallet, as far as invoices show it: a key that signs BOLT11."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from bolt11 import Bolt11, Feature, Features, FeatureState, MilliSatoshi, Tag, TagChar, Tags, encode
from coincurve import PrivateKey

MAX_AMOUNT_MSATS: Final = 10 * 100_000_000_000
"""Ten bitcoin: beyond any price here, and below where `bolt11` 2.2.0 writes wrong amounts (1,000 bitcoin)."""

MAX_DESCRIPTION_BYTES: Final = 639
"""A BOLT11 field holds 1,023 groups of five bits."""

MAX_EXPIRY_S: Final = 365 * 86_400
MIN_FINAL_CLTV_BLOCKS: Final = 18

_FEATURES: Final = Features.from_feature_list(
    {
        Feature.var_onion_optin: FeatureState.required,
        Feature.payment_secret: FeatureState.required,
        Feature.basic_mpp: FeatureState.supported,
    }
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What an invoice shall say, checked."""

    own_id: str
    amount_msats: int
    expiry_s: int
    description: str
    description_hash: str | None


@dataclass(frozen=True, slots=True)
class Signed:
    """An invoice with its secret."""

    bolt11: str
    payment_hash: str
    preimage: str


class Node:
    """Signs invoices with one key, kept in the wallet's database."""

    def __init__(self, secret_hex: str) -> None:
        self._secret_hex = secret_hex
        self.public_hex: str = PrivateKey.from_hex(secret_hex).public_key.format().hex()

    def sign(self, draft: Draft, created_at: int) -> Signed:
        """Return a new invoice with fresh randomness; the same draft twice gives two invoices. About 6 ms."""
        preimage = secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        tags = [Tag(TagChar.payment_hash, payment_hash), Tag(TagChar.payment_secret, secrets.token_hex(32))]
        if draft.description_hash is None:
            tags.append(Tag(TagChar.description, draft.description))
        else:
            tags.append(Tag(TagChar.description_hash, draft.description_hash))
        tags.append(Tag(TagChar.expire_time, draft.expiry_s))
        tags.append(Tag(TagChar.min_final_cltv_expiry, MIN_FINAL_CLTV_BLOCKS))
        tags.append(Tag(TagChar.features, _FEATURES))
        invoice = Bolt11("bcrt", created_at, Tags(tags), MilliSatoshi(draft.amount_msats))
        return Signed(encode(invoice, self._secret_hex), payment_hash, preimage.hex())

    def __repr__(self) -> str:
        return f"Node(public={self.public_hex[:8]}…)"
