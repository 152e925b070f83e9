"""Keys: BIP-340 signing and checking, and their NIP-19 spellings.

coincurve's `sign_schnorr` builds the key pair and verifies its own signature on every call (125 µs here); the
daemon signs several events per job, so the pair is built once and libsecp256k1 is called directly (37 µs), the
way pynostr reaches the same library. Every call into C gives up the interpreter's lock, which a busy process
pays for dearly: so keys are parsed once, and BIP-340's auxiliary randomness comes from a seed and a counter.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from functools import lru_cache
from typing import Any, Final

import coincurve
from coincurve._libsecp256k1 import ffi as _ffi
from coincurve._libsecp256k1 import lib as _lib
from pynostr import bech32

_CONTEXT: Final[Any] = coincurve.PublicKey.from_secret(b"\x01" * 32).context.ctx


class BadKey(ValueError):
    """The text is not a key of the kind asked for; the message never repeats it."""


class SecretKey:
    """A secp256k1 secret. Neither `repr` nor `str` shows it; `reveal_nsec` is the only way out."""

    __slots__ = ("_count", "_pair", "_secret", "_seed", "public_hex")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise BadKey("a secret key has 32 bytes")
        pair = _ffi.new("secp256k1_keypair *")
        if not _lib.secp256k1_keypair_create(_CONTEXT, pair, secret):
            raise BadKey("not a valid secret key")
        self._secret = secret
        self._pair = pair
        self._seed = secrets.token_bytes(32)
        self._count = itertools.count()
        self.public_hex: str = coincurve.PrivateKey(secret).public_key.format()[1:].hex()

    @classmethod
    def generate(cls) -> SecretKey:
        """Return a key from the operating system's randomness."""
        return cls(coincurve.PrivateKey().secret)

    def sign(self, digest: bytes) -> str:
        """Return the BIP-340 signature of a 32-byte digest, hex."""
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        signature = _ffi.new("unsigned char[64]")
        aux = hashlib.sha256(self._seed + next(self._count).to_bytes(8, "big")).digest()
        if not _lib.secp256k1_schnorrsig_sign32(_CONTEXT, signature, digest, self._pair, aux):
            raise ValueError("signing failed")
        return bytes(_ffi.buffer(signature)).hex()

    def reveal_nsec(self) -> str:
        """Return the secret as `nsec1…`. For the identity file only."""
        return _encode("nsec", self._secret)

    def reveal_hex(self) -> str:
        """Return the secret as hex. For libraries that sign themselves."""
        return self._secret.hex()

    def __repr__(self) -> str:
        return f"SecretKey(public={self.public_hex[:8]}…)"


def verify_schnorr(public_hex: str, digest_hex: str, signature_hex: str) -> bool:
    """Tell whether a BIP-340 signature holds. Never raises."""
    try:
        key = _parse_point(public_hex)
        digest = bytes.fromhex(digest_hex)
        signature = bytes.fromhex(signature_hex)
    except (ValueError, TypeError):
        return False
    if key is None or len(digest) != 32 or len(signature) != 64:
        return False
    return bool(_lib.secp256k1_schnorrsig_verify(_CONTEXT, signature, digest, 32, key))


@lru_cache(maxsize=4096)
def _parse_point(public_hex: str) -> Any:
    """Return libsecp256k1's form of a public key, None when there is no such point. Raises `ValueError`."""
    raw = bytes.fromhex(public_hex)
    key = _ffi.new("secp256k1_xonly_pubkey *")
    if len(raw) != 32 or not _lib.secp256k1_xonly_pubkey_parse(_CONTEXT, key, raw):
        return None
    return key


def encode_npub(public_hex: str) -> str:
    """Return the NIP-19 spelling of a public key."""
    return _encode("npub", bytes.fromhex(public_hex))


def parse_public_key(text: str) -> str:
    """Return the hex of a public key written as hex or `npub1…`. Raises `BadKey`."""
    text = text.strip()
    raw = _decode("npub", text) if text.lower().startswith("npub1") else _from_hex(text)
    if _parse_point(raw.hex()) is None:
        raise BadKey("not a point on the curve")
    return raw.hex()


def parse_secret_key(text: str) -> SecretKey:
    """Return the key written as hex or `nsec1…`. Raises `BadKey` without repeating the text."""
    text = text.strip()
    return SecretKey(_decode("nsec", text) if text.lower().startswith("nsec1") else _from_hex(text))


def _from_hex(text: str) -> bytes:
    try:
        # The length is that of the text: fromhex() itself would skip spaces between the digits.
        raw = bytes.fromhex(text) if len(text) == 64 else b""
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise BadKey("neither 64 hex digits nor a NIP-19 key")
    return raw


def _encode(prefix: str, raw: bytes) -> str:
    return str(bech32.bech32_encode(prefix, bech32.convertbits(raw, 8, 5), bech32.Encoding.BECH32))


def _decode(prefix: str, text: str) -> bytes:
    hrp, data, encoding = bech32.bech32_decode(text)
    if hrp != prefix or data is None or encoding != bech32.Encoding.BECH32:
        raise BadKey(f"not a valid {prefix}")
    raw = bech32.convertbits(data, 5, 8, False)
    if raw is None or len(raw) != 32:
        raise BadKey(f"not a valid {prefix}")
    return bytes(raw)
