"""NIP-06: a key from twelve words, and the spellings of a secret that an operator may bring along."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from pylon.nostr.keys import BadKey, SecretKey, parse_secret_key

if TYPE_CHECKING:
    from mnemonic import Mnemonic

WORD_COUNTS = (12, 15, 18, 21, 24)


@dataclass(frozen=True, slots=True)
class Identity:
    """A secret key, and the words it was made from where there are any. Neither is in its repr."""

    secret: SecretKey
    mnemonic: str | None = field(default=None, repr=False)


def generate_identity() -> Identity:
    """Return a new identity of twelve words, from the operating system's randomness."""
    return identity_from_mnemonic(_words().generate(128))


def identity_from_mnemonic(text: str) -> Identity:
    """Return the identity of NIP-06 words (no passphrase, account 0). Raises `BadKey` without repeating them."""
    import nostr_sdk

    words = normalize_mnemonic(text)
    # Absent, not None: an empty passphrase and account 0 are what every NIP-06 client takes.
    keys = nostr_sdk.Keys.from_mnemonic(words)
    return Identity(parse_secret_key(keys.secret_key().to_hex()), words)


def parse_identity(text: str) -> Identity:
    """Return the identity written as `nsec1…`, 64 hex digits or NIP-06 words. Raises `BadKey`."""
    text = text.strip()
    if not text:
        raise BadKey("nothing was given; wanted: nsec1…, 64 hex digits, or 12 to 24 words")
    if len(text.split()) > 1:
        return identity_from_mnemonic(text)
    return Identity(parse_secret_key(text))


def normalize_mnemonic(text: str) -> str:
    """Return words in lower case, parted by single spaces. Raises `BadKey` when they are no English BIP-39."""
    words = unicodedata.normalize("NFKD", text).lower().split()
    if len(words) not in WORD_COUNTS:
        raise BadKey(f"a mnemonic has 12, 15, 18, 21 or 24 words, not {len(words)}")
    known = frozenset(_words().wordlist)
    strange = next((index for index, word in enumerate(words, 1) if word not in known), None)
    if strange is not None:
        raise BadKey(f"word {strange} is not in the English BIP-39 list")
    if not _words().check(" ".join(words)):
        raise BadKey("the words do not belong together: their checksum is wrong")
    return " ".join(words)


@cache
def _words() -> Mnemonic:
    from mnemonic import Mnemonic

    return Mnemonic("english")
