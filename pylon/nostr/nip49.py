"""NIP-49: a secret key under a passphrase (`ncryptsec1…`), by `nostr-sdk`.

The passphrase goes through scrypt, so every call here takes a moment and memory: half a second and 128 MiB to
write one, and what its `log_n` says to read one. Keep it off the loop. The library puts passphrases into NFKC, as
the NIP wants.
"""

from __future__ import annotations

from typing import Final

from pynostr import bech32

from pylon.nostr.keys import SecretKey, parse_secret_key

LOG_N: Final = 17
"""scrypt's cost: what the passphrase of a backup costs too, since whoever has both files tries the cheaper one."""

_READABLE: Final = range(10, 21)  # 1 MiB to 1 GiB: a file cannot make us take all the memory there is
_BYTES: Final = 91
_VERSION: Final = 2


class BadNcryptsec(ValueError):
    """The text is no encrypted key that can be read; never repeats it."""


class WrongPassphrase(ValueError):
    """The key does not open: another passphrase, or it is damaged."""


def encrypt_key(key: SecretKey, passphrase: str, *, log_n: int = LOG_N) -> str:
    """Return the key as `ncryptsec1…`, each time another one. Blocks. Raises `WrongPassphrase`: not Unicode."""
    import nostr_sdk

    secret = nostr_sdk.SecretKey.parse(key.reveal_hex())
    # By the NIP's own words: a key that was ever stored unencrypted is WEAK, and ours begin that way.
    try:
        made = nostr_sdk.EncryptedSecretKey(secret, passphrase, log_n, nostr_sdk.KeySecurity.WEAK)
        return str(made.to_bech32())
    except UnicodeError:
        raise WrongPassphrase("the passphrase is not valid Unicode") from None


def decrypt_key(ncryptsec: str, passphrase: str) -> SecretKey:
    """Return the key of an `ncryptsec1…`. Blocks. Raises `BadNcryptsec` or `WrongPassphrase`."""
    import nostr_sdk

    cost_of(ncryptsec)
    try:
        opened = nostr_sdk.EncryptedSecretKey.from_bech32(ncryptsec).decrypt(passphrase)
    except (nostr_sdk.NostrSdkError, UnicodeError):
        raise WrongPassphrase("another passphrase, or the encrypted key is damaged") from None
    return parse_secret_key(opened.to_hex())


def cost_of(ncryptsec: str) -> int:
    """Return scrypt's `log_n` of an encrypted key, without opening it. Raises `BadNcryptsec`."""
    prefix, data, encoding = bech32.bech32_decode(ncryptsec)
    raw = None if data is None else bech32.convertbits(data, 5, 8, False)
    if prefix != "ncryptsec" or encoding != bech32.Encoding.BECH32 or raw is None or len(raw) != _BYTES:
        raise BadNcryptsec("not a valid ncryptsec")
    if raw[0] != _VERSION:
        raise BadNcryptsec(f"an ncryptsec of version {raw[0]}, which this Pylon cannot read")
    if raw[1] not in _READABLE:
        raise BadNcryptsec(f"an ncryptsec whose scrypt cost (log_n {raw[1]}) is out of bounds")
    return int(raw[1])
