"""NIP-44 and NIP-04 between two keys, over what strangers may send instead."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.nostr.encryption import MAX_NIP44_BYTES, BadCiphertext, Conversation, Encryption
from pylon.nostr.keys import SecretKey
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, surrogate_texts, texts

OURS = Conversation(CUSTOMER, PROVIDER.public_hex)
THEIRS = Conversation(PROVIDER, CUSTOMER.public_hex)
schemes = st.sampled_from(Encryption)


@given(st.text(min_size=1), schemes)
@settings(max_examples=60)
def test_either_side_reads_what_either_wrote(text: str, scheme: Encryption) -> None:
    payload = OURS.encrypt(text, scheme)
    assert text not in payload or len(text) < 8
    assert THEIRS.decrypt(payload) == text
    assert OURS.decrypt(payload) == text
    assert payload != OURS.encrypt(text, scheme)


def test_the_official_example_of_nip44() -> None:
    # The first `encrypt_decrypt` vector of the NIP's own list: keys 1 and 2, the text "a".
    reader = Conversation(SecretKey(bytes(31) + b"\x02"), SecretKey(bytes(31) + b"\x01").public_hex)
    payload = (
        "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABee0G5VSK0/9YypIObAtDKfYE"
        "AjD35uVkHyB0F4DwrcNaCXlCWZKaArsGrY6M9wnuTMxWfp1RTN9Xga8no+kF5Vsb"
    )
    assert reader.decrypt(payload) == "a"


@given(schemes)
def test_a_third_key_reads_nothing(scheme: Encryption) -> None:
    payload = OURS.encrypt("secret words of some length", scheme)
    other = Conversation(STRANGER, CUSTOMER.public_hex)
    try:
        assert "secret" not in other.decrypt(payload)  # NIP-04 knows no wrong key, only wrong padding
        assert scheme is Encryption.NIP04
    except BadCiphertext:
        pass


@given(texts | surrogate_texts | st.text().map(lambda text: f"{text}?iv={text}"))
def test_nonsense_is_one_fault(payload: str) -> None:
    with pytest.raises(BadCiphertext, match="not encrypted between these two keys"):
        THEIRS.decrypt(payload)


@pytest.mark.parametrize("text", ["", "x" * (MAX_NIP44_BYTES + 1), "\ud800"])
def test_what_nip44_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(BadCiphertext):
        OURS.encrypt(text, Encryption.NIP44)


def test_a_changed_payload_of_nip44_is_no_payload() -> None:
    payload = OURS.encrypt("pay 1 sat", Encryption.NIP44)
    changed = payload[:60] + ("A" if payload[60] != "A" else "B") + payload[61:]
    with pytest.raises(BadCiphertext):
        THEIRS.decrypt(changed)


def test_no_key_is_shown() -> None:
    assert CUSTOMER.reveal_hex() not in repr(OURS)
    with pytest.raises(BadCiphertext, match="not a public key"):
        Conversation(CUSTOMER, "zz")
