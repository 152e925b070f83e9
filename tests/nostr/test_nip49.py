"""NIP-49: the vector of the NIP, both ways, and what does not open."""

from __future__ import annotations

import pytest
from pynostr import bech32

from pylon.nostr.keys import SecretKey
from pylon.nostr.nip49 import LOG_N, BadNcryptsec, WrongPassphrase, cost_of, decrypt_key, encrypt_key

VECTOR = (
    "ncryptsec1qgg9947rlpvqu76pj5ecreduf9jxhselq2nae2kghhvd5g7dgjtcxfqtd67p9m0w57lspw8gsq6yphnm8623nsl8xn9j4jdzz84zm3frztj3z7s35vpzmqf6"
    "ksu8r89qk5z2zxfmu5gv8th8wclt0h4p"
)
SECRET = "3501454135014541350145413501453fefb02227e449e57cf4d3a3ce05378683"
KEY = SecretKey(bytes.fromhex(SECRET))
CHEAP = 10


def packed(raw: bytes | bytearray, prefix: str = "ncryptsec") -> str:
    return str(bech32.bech32_encode(prefix, bech32.convertbits(raw, 8, 5), bech32.Encoding.BECH32))


def unpacked(text: str) -> bytearray:
    _, data, _ = bech32.bech32_decode(text)
    return bytearray(bech32.convertbits(data, 5, 8, False))


def test_the_vector_of_the_nip_opens() -> None:
    assert cost_of(VECTOR) == 16
    assert decrypt_key(VECTOR, "nostr").reveal_hex() == SECRET


def test_there_and_back_and_never_the_same_twice() -> None:
    first, second = (encrypt_key(KEY, "correct horse battery", log_n=CHEAP) for _ in range(2))
    assert first != second
    assert SECRET not in first
    assert decrypt_key(first, "correct horse battery").reveal_hex() == SECRET
    assert cost_of(encrypt_key(KEY, "correct horse battery")) == LOG_N


def test_a_passphrase_is_one_in_whatever_code_points_it_was_typed() -> None:
    """The NIP's own example: ANGSTROM SIGN, OHM SIGN, and a letter with two marks."""
    made = encrypt_key(KEY, "\u212b\u2126\u1e9b\u0323", log_n=CHEAP)
    assert decrypt_key(made, "\u00c5\u03a9\u1e69").reveal_hex() == SECRET


def test_it_says_that_the_key_once_lay_in_plain() -> None:
    made = unpacked(encrypt_key(KEY, "correct horse battery", log_n=CHEAP))
    assert made[2 + 16 + 24] == 0x00


@pytest.mark.parametrize("passphrase", ["", "correct horse batterx", "\ud800"])
def test_another_passphrase_does_not_open(passphrase: str) -> None:
    made = encrypt_key(KEY, "correct horse battery", log_n=CHEAP)
    with pytest.raises(WrongPassphrase) as caught:
        decrypt_key(made, passphrase)
    assert made not in str(caught.value)


def test_text_that_is_no_unicode_is_no_passphrase() -> None:
    with pytest.raises(WrongPassphrase, match="not valid Unicode"):
        encrypt_key(KEY, "\udfff", log_n=CHEAP)


def test_one_changed_bit_does_not_open() -> None:
    raw = unpacked(encrypt_key(KEY, "correct horse battery", log_n=CHEAP))
    raw[-1] ^= 1
    with pytest.raises(WrongPassphrase, match="damaged"):
        decrypt_key(packed(raw), "correct horse battery")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a valid"),
        ("ncryptsec1", "not a valid"),
        (VECTOR[:-1] + "q", "not a valid"),
        (packed(unpacked(VECTOR), "nsec"), "not a valid"),
        (packed(unpacked(VECTOR)[:-1]), "not a valid"),
        (packed(b"\x01" + unpacked(VECTOR)[1:]), "version 1"),
        (packed(b"\x02\x09" + unpacked(VECTOR)[2:]), "log_n 9"),
        (packed(b"\x02\x40" + unpacked(VECTOR)[2:]), "log_n 64"),
    ],
)
def test_what_is_none_is_refused_before_any_work(text: str, said: str) -> None:
    with pytest.raises(BadNcryptsec, match=said):
        decrypt_key(text, "nostr")
