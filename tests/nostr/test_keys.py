import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.keys import (
    BadKey,
    SecretKey,
    encode_npub,
    parse_public_key,
    parse_secret_key,
    verify_schnorr,
)
from tests.support.events import surrogate_texts, texts

# BIP-340's own vectors: public key, message, signature.
VALID = [
    (
        "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "e907831f80848d1069a5371b402410364bdf1c5f8307b0084c55f1ce2dca8215"
        "25f66a4a85ea8b71e482a74f382d2ce5ebeee8fdb2172f477df4900d310536c0",
    ),
    (
        "dff1d77f2a671c5f36183726db2341be58feae1da2deced843240f7b502ba659",
        "243f6a8885a308d313198a2e03707344a4093822299f31d0082efa98ec4e6c89",
        "6896bd60eeae296db48a229ff71dfe071bde413e6d43f917dc8dcf8c78de3341"
        "8906d11ac976abccb20b091292bff4ea897efcb639ea871cfa95f6de339e4b0a",
    ),
    (
        "d69c3509bb99e412e68b0fe8544e72837dfa30746d8be2aa65975f29d22dc7b9",
        "4df3c3f68fcc83b27e9d42c90431a72499f17875c81a599b566c9889b9696703",
        "00000000000000000000003b78ce563f89a0ed9414f5aa28ad0d96d6795f9c63"
        "76afb1548af603b3eb45c9f8207dee1060cb71c04e80f593060b07d28308d7f4",
    ),
]
OFF_CURVE = "eefdea4cdb677750a420fee807eacf21eb9898ae79b9768766e4faa04a2d4a34"
ODD_R = (
    "fff97bd5755eeea420453a14355235d382f6472f8568a18b2f057a1460297556"
    "3cc27944640ac607cd107ae10923d9ef7a73c643e166be5ebeafa34b1ac553e2"
)

# NIP-19's own examples.
NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
NPUB_HEX = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
NSEC_HEX = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"


@pytest.mark.parametrize(("public", "digest", "signature"), VALID)
def test_valid_vectors_hold_and_every_damaged_one_does_not(public: str, digest: str, signature: str) -> None:
    assert verify_schnorr(public, digest, signature)
    assert not verify_schnorr(public, digest, signature[:-1] + ("1" if signature[-1] != "1" else "2"))
    assert not verify_schnorr(public, digest[:-1] + ("1" if digest[-1] != "1" else "2"), signature)
    assert not verify_schnorr(VALID[0][0] if public != VALID[0][0] else VALID[1][0], digest, signature)


def test_invalid_vectors_do_not_hold() -> None:
    public, digest, signature = VALID[1]
    assert not verify_schnorr(OFF_CURVE, digest, signature)
    assert not verify_schnorr(public, digest, ODD_R)
    assert not verify_schnorr(public, digest, "f" * 128)
    assert not verify_schnorr(public, digest, "0" * 128)


def test_public_keys_of_the_vectors() -> None:
    assert SecretKey(b"\x00" * 31 + b"\x03").public_hex == VALID[0][0]
    secret = "b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef"
    assert parse_secret_key(secret).public_hex == VALID[1][0]


@given(texts | surrogate_texts, texts | surrogate_texts, texts | surrogate_texts)
def test_verify_never_raises(public: str, digest: str, signature: str) -> None:
    assert verify_schnorr(public, digest, signature) is False


@given(st.binary(min_size=32, max_size=32))
def test_what_is_signed_verifies_and_signatures_differ(digest: bytes) -> None:
    key = SecretKey(b"\x07" * 32)
    first, second = key.sign(digest), key.sign(digest)
    assert verify_schnorr(key.public_hex, digest.hex(), first)
    assert verify_schnorr(key.public_hex, digest.hex(), second)
    assert first != second  # fresh auxiliary randomness


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_32_byte_digests_are_signed(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretKey(b"\x07" * 32).sign(b"\x00" * size)


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        b"\x01" * 31,
        b"\x01" * 33,
        b"\x00" * 32,
        b"\xff" * 32,
        bytes.fromhex("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"),  # the group's order
    ],
)
def test_no_key_from_a_number_outside_the_group(secret: bytes) -> None:
    with pytest.raises(BadKey):
        SecretKey(secret)


def test_generated_keys_differ() -> None:
    assert SecretKey.generate().public_hex != SecretKey.generate().public_hex


def test_nip19_examples_both_ways() -> None:
    assert encode_npub(NPUB_HEX) == NPUB
    assert parse_public_key(NPUB) == NPUB_HEX
    assert parse_public_key(f"  {NPUB_HEX.upper()}\n") == NPUB_HEX
    assert parse_secret_key(NSEC).reveal_hex() == NSEC_HEX
    assert parse_secret_key(NSEC_HEX).reveal_nsec() == NSEC


@given(st.binary(min_size=32, max_size=32).filter(any))
def test_a_secret_survives_its_spellings(secret: bytes) -> None:
    try:
        key = SecretKey(secret)
    except BadKey:
        return
    assert parse_secret_key(key.reveal_nsec()).reveal_hex() == secret.hex()
    assert parse_public_key(encode_npub(key.public_hex)) == key.public_hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        NSEC,  # a secret where a public key is asked for
        NPUB[:-1],
        NPUB[:-1] + "q",
        NPUB + "q",
        NPUB[:20] + NPUB[20:].upper(),
        NPUB_HEX[:-1],
        NPUB_HEX + "00",
        "zz" * 32,
        " ".join([NPUB_HEX[:32], NPUB_HEX[32:]]),
        "ab " * 21 + "a",
        OFF_CURVE,
        "npub1",
        "npub1\u2028",
    ],
)
def test_not_a_public_key(text: str) -> None:
    with pytest.raises(BadKey):
        parse_public_key(text)


@given(texts | surrogate_texts)
def test_parsing_a_key_raises_only_bad_key_and_never_repeats_the_text(text: str) -> None:
    for parse in (parse_public_key, parse_secret_key):
        for spelling in (text, "nsec1" + text, "npub1" + text):
            try:
                parse(spelling)
            except BadKey as error:
                assert len(text.strip()) < 12 or text.strip() not in str(error)


def test_a_secret_is_not_shown_by_anything_that_prints() -> None:
    key = parse_secret_key(NSEC)
    raw = bytes.fromhex(NSEC_HEX)
    shown = [repr(key), str(key), f"{key}", f"{key!r:>80}", repr([key]), repr({"key": key})]
    for text in shown:
        assert NSEC_HEX not in text
        assert NSEC not in text
        assert repr(raw) not in text
    assert key.public_hex[:8] in repr(key)


def test_a_mistyped_secret_is_not_in_the_traceback() -> None:
    mistyped = NSEC[:-1] + "q"
    try:
        parse_secret_key(mistyped)
    except BadKey as error:
        assert mistyped not in "".join(traceback.format_exception(error))
    else:
        pytest.fail("a mistyped nsec was taken")
