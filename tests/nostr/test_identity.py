"""NIP-06 and the spellings of a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.identity import generate_identity, identity_from_mnemonic, normalize_mnemonic, parse_identity
from pylon.nostr.keys import BadKey, encode_npub

# The two test vectors of NIP-06.
VECTORS = [
    (
        "leader monkey parrot ring guide accident before fence cannon height naive bean",
        "7f7ff03d123792d6ac594bfa67bf6d0c0ab55b6b1fdb6249303fe861f1ccba9a",
        "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp",
        "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu",
    ),
    (
        "what bleak badge arrange retreat wolf trade produce cricket blur garlic valid proud rude strong choose "
        "busy staff weather area salt hollow arm fade",
        "c15d739894c81a2fcfd3a2df85a0d2c0dbc47a280d092799f144d73d7ae78add",
        "nsec1c9wh8xy5eqdzln7n5t0ctgxjcrdug73gp5yj0x03gntn67h83twssdfhel",
        "npub16sdj9zv4f8sl85e45vgq9n7nsgt5qphpvmf7vk8r5hhvmdjxx4es8rq74h",
    ),
]


@pytest.mark.parametrize(("words", "secret_hex", "nsec", "npub"), VECTORS)
def test_the_vectors_of_nip_06(words: str, secret_hex: str, nsec: str, npub: str) -> None:
    identity = identity_from_mnemonic(words)
    assert identity.secret.reveal_hex() == secret_hex
    assert identity.secret.reveal_nsec() == nsec
    assert encode_npub(identity.secret.public_hex) == npub
    for spelling in (
        words.upper(),
        f"  {words.replace(' ', '  ')}\n",
        nsec,
        nsec.upper(),
        secret_hex,
        f" {nsec}\n",
    ):
        assert parse_identity(spelling).secret.reveal_hex() == secret_hex
    assert parse_identity(nsec).mnemonic is None


def test_a_new_identity_has_twelve_words_of_its_own() -> None:
    one, other = generate_identity(), generate_identity()
    assert one.mnemonic is not None
    assert len(one.mnemonic.split()) == 12
    assert identity_from_mnemonic(one.mnemonic).secret.public_hex == one.secret.public_hex
    assert one.secret.public_hex != other.secret.public_hex
    assert one.mnemonic not in repr(one)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing was given"),
        ("leader monkey", "not 2"),
        (" ".join(["leader"] * 12), "checksum"),
        (VECTORS[0][0].replace("monkey", "monkeys"), "word 2 is not in"),
        (VECTORS[0][2][:-1] + "q", "not a valid nsec"),
        (VECTORS[0][3], "neither 64 hex digits"),
        ("00" * 32, "not a valid secret key"),
        ("ff" * 32, "not a valid secret key"),
        ("abc", "neither 64 hex digits"),
    ],
)
def test_what_is_no_secret_is_refused_without_repeating_it(text: str, said: str) -> None:
    with pytest.raises(BadKey, match=said) as caught:
        parse_identity(text)
    assert text == "" or text not in str(caught.value)


@given(st.text())
def test_any_text_is_an_identity_or_a_bad_key(text: str) -> None:
    try:
        parse_identity(text)
    except BadKey as error:
        assert str(error).isprintable()


def test_words_are_compared_in_their_plain_form() -> None:
    full_width = "".join(chr(ord(char) + 0xFEE0) if char.isalpha() else char for char in VECTORS[0][0])
    assert normalize_mnemonic(full_width) == VECTORS[0][0]
