"""What two keys say to each other: NIP-44 (version 2) and the older NIP-04, by `nostr-sdk`.

Both derive the same secret from either side's key. NIP-44 is authenticated; NIP-04 is not, so whoever reads it
relies on the signature of the event that carries it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pylon.nostr.keys import SecretKey

MAX_NIP44_BYTES: Final = 65_535
"""The longest text that NIP-44 version 2 carries, in UTF-8."""

_NIP04_MARK: Final = "?iv="


class Encryption(StrEnum):
    """The two schemes, by the names that NIP-47 gives them."""

    NIP44 = "nip44_v2"
    NIP04 = "nip04"


class BadCiphertext(ValueError):
    """A text that cannot be encrypted, or none that was encrypted between these two keys; never repeats it."""


class Conversation:
    """Encrypts and decrypts between `key` and the public key `peer` (hex).

    Making the first one loads 40 MB of Rust, which takes 0.3 s: do it beside the loop. Raises `BadCiphertext` when
    `peer` is no public key. The library's own keys are made for each call: those that live until the interpreter
    ends complain on standard error then.
    """

    __slots__ = ("_key", "_peer", "_sdk")

    def __init__(self, key: SecretKey, peer: str) -> None:
        import nostr_sdk

        self._sdk: Any = nostr_sdk
        self._key = key
        self._peer = peer
        try:
            nostr_sdk.PublicKey.parse(peer)
        except nostr_sdk.NostrSdkError:
            raise BadCiphertext("not a public key") from None

    def encrypt(self, text: str, scheme: Encryption) -> str:
        """Return the payload; the same text twice gives two. Raises `BadCiphertext` for what cannot be carried."""
        sdk = self._sdk
        try:
            size = len(text.encode())
            if scheme is Encryption.NIP04:
                return str(sdk.nip04_encrypt(*self._keys(), text))
            if not 0 < size <= MAX_NIP44_BYTES:
                raise BadCiphertext(f"NIP-44 carries texts of 1 to {MAX_NIP44_BYTES} bytes, not of {size}")
            return str(sdk.nip44_encrypt(*self._keys(), text, sdk.Nip44Version.V2))
        except (sdk.NostrSdkError, UnicodeError):
            raise BadCiphertext(f"a text that {scheme} cannot carry") from None

    def decrypt(self, payload: str) -> str:
        """Return the text of a payload of either scheme, told by its form. Raises `BadCiphertext` alone."""
        decrypt = self._sdk.nip04_decrypt if _NIP04_MARK in payload else self._sdk.nip44_decrypt
        try:
            return str(decrypt(*self._keys(), payload))
        except Exception:  # noqa: BLE001 - a stranger's bytes: whatever the library makes of them is one fault
            raise BadCiphertext("not encrypted between these two keys") from None

    def _keys(self) -> tuple[Any, Any]:
        return self._sdk.SecretKey.parse(self._key.reveal_hex()), self._sdk.PublicKey.parse(self._peer)

    def __repr__(self) -> str:
        return "Conversation()"
