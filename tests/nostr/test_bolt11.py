"""BOLT11 reading: the examples of the specification, altered invoices, garbage."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import bolt11
import pytest
from bech32 import CHARSET, bech32_decode, bech32_encode
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.nostr.bolt11 import (
    MAX_INVOICE_CHARS,
    BadInvoice,
    InvoiceFacts,
    Network,
    check_invoice,
    read_invoice,
)

# From "Examples" and "Examples of Invalid Invoices" of BOLT 11 (CC BY 4.0); signed by SPEC_PAYEE.
SPEC_PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
SPEC_HASH = "0001020304050607080900010203040506070809000102030405060708090102"
COFFEE_BEANS = (
    "lnbc25m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5vdhkven9v5sxyetpdeessp5zyg3zyg3z"
    "yg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q5sqqqqqqqqqqqqqqqqsgq2a25dxl5hrntdtn6zvydt7d66hyzsyhqs4wdyna"
    "vys42xgl6sgx9c4g7me86a27t07mdtfry458rtjr0v92cnmswpsjscgt2vcse3sgpz3uapa"
)
METADATA = (
    "lnbc10m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdp9wpshjmt9de6zqmt9w3skgct5vysxjmnnd"
    "9jx2mq8q8a04uqsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q2gqqqqqqsgq7hf8he7ecf7n4ffphs6awl9"
    "t6676rrclv9ckg3d3ncn7fct63p6s365duk5wrk202cfy3aj5xnnp5gs3vrdvruverwwq7yzhkf5a3xqpd05wjc"
)
INVALID = {
    "bad checksum": (
        "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyqc"
        "7d8d0xqzpuyk0sg5g70me25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpn"
        "l2jfll544esqchsrnt"
    ),
    "no separator": (
        "pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyqc7d8d0xqzpu"
        "yk0sg5g70me25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpnl2jfll544e"
        "sqchsrny"
    ),
    "signature not recoverable": (
        "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpusp"
        "5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9qrsgqwgt7mcn5yqw3yx0w94pswkpq6j9uh6xfqqqtsk4tnar"
        "ugeektd4hg5975x9am52rz4qskukxdmjemg92vvqz8nvmsye63r5ykel43pgz7zq0g2"
    ),
    "too short": (
        "lnbc1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2urs"
        "dae8g6na6hlh"
    ),
    "unknown multiplier": (
        "lnbc2500x1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpusp"
        "5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9qrsgqrrzc4cvfue4zp3hggxp47ag7xnrlr8vgcmkjxk3j5jq"
        "ethnumgkpqp23z9jclu3v0a7e0aruz366e9wqdykw6dxhdzcjjhldxq0w6wgqcnu43j"
    ),
    "below a millisatoshi": (
        "lnbc2500000001p1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsx"
        "qzpusp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9qrsgq0lzc236j96a95uv0m3umg28gclm5lqxtqqwk3"
        "2uuk4k6673k6n5kfvx3d2h8s295fad45fdhmusm8sjudfhlf6dcsxmfvkeywmjdkxcp99202x"
    ),
}

KEY = PrivateKey(b"\x07" * 32)
PAYEE = KEY.public_key.format().hex()
NOW = 1_700_000_000


def make(
    amount_msats: int | None = 2_500,
    *,
    currency: str = "bcrt",
    description_hash: str | None = None,
    named: bool = False,
    expiry_s: int | None = 600,
) -> str:
    tag, char = bolt11.Tag, bolt11.TagChar
    tags = [tag(char.payment_hash, "ab" * 32), tag(char.payment_secret, "cd" * 32)]
    if description_hash is None:
        tags.append(tag(char.description, "a job"))
    else:
        tags.append(tag(char.description_hash, description_hash))
    if expiry_s is not None:
        tags.append(tag(char.expire_time, expiry_s))
    if named:
        tags.append(tag(char.payee, PAYEE))
    amount = None if amount_msats is None else bolt11.MilliSatoshi(amount_msats)
    invoice = bolt11.Bolt11(currency, NOW, bolt11.Tags(tags), amount)
    return bolt11.encode(invoice, KEY.to_hex(), keep_payee=named)


UNNAMED, NAMED = make(), make(named=True)


def with_prefix(text: str, prefix: str) -> str:
    """The same data under another prefix, with a checksum that holds."""
    _, data = bech32_decode(text)
    assert data is not None
    return bech32_encode(prefix, data)


def test_spec_examples() -> None:
    facts = read_invoice(COFFEE_BEANS)
    assert facts == InvoiceFacts(
        payment_hash=SPEC_HASH,
        amount_msats=2_500_000_000,
        network=Network.BITCOIN,
        created_at=1496314658,
        expires_at=1496314658 + 3600,
        description="coffee beans",
        description_hash=None,
        payee=SPEC_PAYEE,
    )
    assert read_invoice(COFFEE_BEANS.upper()) == facts
    assert read_invoice(METADATA).amount_msats == 1_000_000_000


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_spec_examples_of_invalid_invoices(text: str) -> None:
    with pytest.raises(BadInvoice):
        read_invoice(text)


@pytest.mark.parametrize(
    ("currency", "network"),
    [("bc", Network.BITCOIN), ("tb", Network.TESTNET), ("tbs", Network.SIGNET), ("bcrt", Network.REGTEST)],
)
@pytest.mark.parametrize("amount_msats", [None, 1, 10, 999, 1_000, 123_456_789, 10**11, 3 * 10**13])
def test_amount_and_network(currency: str, network: Network, amount_msats: int | None) -> None:
    facts = read_invoice(make(amount_msats, currency=currency))
    assert (facts.amount_msats, facts.network, facts.payee) == (amount_msats, network, PAYEE)


def test_expiry_defaults_to_an_hour_and_is_bounded() -> None:
    assert read_invoice(make(expiry_s=None)).expires_at == NOW + 3600
    with pytest.raises(BadInvoice, match="never expires"):
        read_invoice(make(expiry_s=2**55))


def test_description_hash_is_read() -> None:
    digest = hashlib.sha256(b"the request").hexdigest()
    facts = read_invoice(make(description_hash=digest))
    assert (facts.description, facts.description_hash) == (None, digest)


def test_a_forged_amount_shows_in_the_payee() -> None:
    altered = with_prefix(UNNAMED, "lnbcrt1n")
    try:
        facts = read_invoice(altered)
    except BadInvoice:
        return
    assert facts.payee != PAYEE
    with pytest.raises(BadInvoice, match="another node"):
        check_invoice(facts, amount_msats=100, network="regtest", now=NOW, payee=PAYEE)


@given(amount=st.integers(1, 10**12), unit=st.sampled_from(["", "m", "u", "n", "p"]))
@settings(max_examples=40, deadline=None)
def test_an_altered_amount_never_passes_for_the_payees(amount: int, unit: str) -> None:
    prefix = f"lnbcrt{amount}{unit}"
    for text in (UNNAMED, NAMED):
        if text.startswith(prefix + "1p"):
            continue
        try:
            facts = read_invoice(with_prefix(text, prefix))
        except BadInvoice:
            continue
        assert facts.payee != PAYEE


def test_a_named_payee_makes_an_altered_amount_invalid() -> None:
    assert read_invoice(NAMED).payee == PAYEE
    with pytest.raises(BadInvoice, match="payee"):
        read_invoice(with_prefix(NAMED, "lnbcrt1n"))


@given(position=st.integers(0, len(UNNAMED) - 1))
@settings(max_examples=60, deadline=None)
def test_mixed_case_is_refused(position: int) -> None:
    char = UNNAMED[position]
    altered = UNNAMED[:position] + char.upper() + UNNAMED[position + 1 :]
    if char.isdigit():
        assert altered == UNNAMED
        return
    with pytest.raises(BadInvoice, match="case"):
        read_invoice(altered)


@given(position=st.integers(len("lnbcrt25n1"), len(UNNAMED) - 1), char=st.sampled_from(CHARSET))
@settings(max_examples=80, deadline=None)
def test_one_changed_character_breaks_the_checksum(position: int, char: str) -> None:
    if UNNAMED[position] == char:
        return
    with pytest.raises(BadInvoice):
        read_invoice(UNNAMED[:position] + char + UNNAMED[position + 1 :])


@pytest.mark.parametrize(
    "prefix", ["lnbc-25n", "lnbcrt025n", "lnbcrt0", "lnltc25n", "lntbx", "bc25n", "ln", "lnbcrt99999999999"]
)
def test_prefixes_that_the_library_would_let_pass_or_misread(prefix: str) -> None:
    with pytest.raises(BadInvoice):
        read_invoice(with_prefix(UNNAMED, prefix))


@given(st.text(max_size=300) | st.text(alphabet="lnbcrt1 25np" + CHARSET, max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_raises_only_bad_invoice(text: str) -> None:
    for candidate in (text, "lnbcrt10n1" + text):
        with pytest.raises(BadInvoice):
            read_invoice(candidate)


@given(data=st.lists(st.integers(0, 31), max_size=400), prefix=st.sampled_from(["lnbc", "lnbcrt10n", "lntbs1m"]))
@settings(max_examples=150, deadline=None)
def test_any_fields_under_a_valid_checksum_raise_only_bad_invoice(data: list[int], prefix: str) -> None:
    try:
        facts = read_invoice(bech32_encode(prefix, data))
    except BadInvoice:
        return
    assert len(facts.payment_hash) == 64
    assert len(facts.payee) == 66


@given(cut=st.integers(0, 210), extra=st.lists(st.integers(0, 31), max_size=60))
@settings(max_examples=100, deadline=None)
def test_spliced_fields_never_pass_for_the_payees(cut: int, extra: list[int]) -> None:
    _, data = bech32_decode(UNNAMED)
    assert data is not None
    spliced = data[:cut] + extra + data[cut:]
    if spliced == data:
        return
    try:
        facts = read_invoice(bech32_encode("lnbcrt25n", spliced))
    except BadInvoice:
        return
    assert facts.payee != PAYEE


@pytest.mark.alone
def test_length_is_bounded_before_anything_is_decoded() -> None:
    started = time.perf_counter()
    with pytest.raises(BadInvoice, match="longer"):
        read_invoice("lnbcrt1" + "q" * 5_000_000)
    assert time.perf_counter() - started < 0.1
    with pytest.raises(BadInvoice):
        read_invoice("lnbcrt1" + "q" * (MAX_INVOICE_CHARS - 7))


def test_check_invoice_accepts_what_was_agreed() -> None:
    facts = read_invoice(UNNAMED)
    check_invoice(facts, amount_msats=2_500, network="regtest", now=NOW)
    check_invoice(facts, amount_msats=2_500, network="regtest", now=NOW + 599, payee=PAYEE)
    check_invoice(
        replace(facts, description_hash="aa" * 32),
        amount_msats=2_500,
        network="regtest",
        now=NOW,
        description_hash="aa" * 32,
    )


@pytest.mark.parametrize(
    ("amount_msats", "network", "now", "description_hash", "payee", "says"),
    [
        (2_501, "regtest", NOW, None, None, "asks 2500 msats where 2501 msats"),
        (2_500, "bitcoin", NOW, None, None, "for regtest, not for bitcoin"),
        (2_500, "regtest", NOW + 600, None, None, "expired 0 s ago"),
        (2_500, "regtest", NOW + 700.9, None, None, "expired 100 s ago"),
        (2_500, "regtest", NOW, "aa" * 32, None, "another description"),
        (2_500, "regtest", NOW, None, "02" * 33, "another node"),
    ],
)
def test_check_invoice_names_the_fault(
    amount_msats: int, network: str, now: float, description_hash: str | None, payee: str | None, says: str
) -> None:
    with pytest.raises(BadInvoice, match=says):
        check_invoice(
            read_invoice(UNNAMED),
            amount_msats=amount_msats,
            network=network,
            now=now,
            description_hash=description_hash,
            payee=payee,
        )


def test_check_invoice_refuses_an_open_amount() -> None:
    with pytest.raises(BadInvoice, match="names no amount"):
        check_invoice(read_invoice(make(None)), amount_msats=1, network="regtest", now=NOW)
