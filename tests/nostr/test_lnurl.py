"""LNURL-pay: addresses, the specification's own examples, what hosts answer, and garbage."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.lnurl import (
    BadLnurl,
    InvoiceAnswer,
    LightningAddress,
    LnurlError,
    PayOffer,
    VerifyAnswer,
    callback_url,
    decode_lnurl,
    description_hash,
    encode_lnurl,
    parse_invoice_answer,
    parse_lightning_address,
    parse_pay_offer,
    parse_verify_answer,
)
from pylon.text import printable

# The example of LUD-01.
LUD01 = (
    "LNURL1DP68GURN8GHJ7UM9WFMXJCM99E3K7MF0V9CXJ0M385EKVCENXC6R2C35XVUKXEFCV5MKVV34X5EKZD3EV56NYD3HXQURZEPEXEJXXE"
    "PNXSCRVWFNV9NXZCN9XQ6XYEFHVGCXXCMYXYMNSERXFQ5FNS"
)
LUD01_URL = "https://service.com/api?q=3fc3645b439ce8e7f2553a69e5267081d96dcd340693afabe04be7b0ccd178df"
PUBKEY = "9630f464cca6a5147aa8a35f0bcdd3ce485324e732fd39e09233b1d848238f31"
METADATA = json.dumps([["text/plain", "Pays for jobs"], ["text/identifier", "pylon@example.com"]])
OFFER: dict[str, Any] = {
    "tag": "payRequest",
    "callback": "https://example.com/lnurlp/cb?id=7",
    "minSendable": 1_000,
    "maxSendable": 100_000_000,
    "metadata": METADATA,
    "commentAllowed": 30,
    "allowsNostr": True,
    "nostrPubkey": PUBKEY,
}

# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("pylon@example.com", "https://example.com/.well-known/lnurlp/pylon"),
        (" Pylon@Example.COM ", "https://example.com/.well-known/lnurlp/pylon"),
        ("a.b_c-d+tag@pay.example.co.uk", "https://pay.example.co.uk/.well-known/lnurlp/a.b_c-d%2Btag"),
        ("x@example.com:8443", "https://example.com:8443/.well-known/lnurlp/x"),
        ("x@127.0.0.1:5000", "http://127.0.0.1:5000/.well-known/lnurlp/x"),
        ("x@localhost", "http://localhost/.well-known/lnurlp/x"),
        ("x@localhost.example.com", "https://localhost.example.com/.well-known/lnurlp/x"),
    ],
)
def test_an_address_is_a_url(text: str, url: str) -> None:
    address = parse_lightning_address(text)
    assert address.url == url
    assert parse_lightning_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pylon",
        "@example.com",
        "pylon@",
        "a@b@c.com",
        "a b@example.com",
        "a@exa mple.com",
        "a/b@example.com",
        "a@example.com/path",
        "a@example.com?x=1",
        "a@example.com#x",
        "a@user:pw@example.com",
        "a@.com",
        "a@example..com",
        "a@[::1]",
        "ä@example.com",
        "a@exämple.com",
        "a@example.com:",
        "a@example.com:123456",
        "a" * 65 + "@example.com",
        "a@" + "b." * 200 + "com",
        "a\x00@example.com",
        "a@example.com\n.evil.example",
    ],
)
def test_what_is_no_address_is_refused_in_one_printable_sentence(text: str) -> None:
    with pytest.raises(BadLnurl) as caught:
        parse_lightning_address(text)
    assert printable(str(caught.value), limit=1_000) == str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_lightning_address(text)
    except BadLnurl:
        return
    assert isinstance(address, LightningAddress)
    parts = urlsplit(address.url)
    assert parts.netloc == address.host and parts.path.startswith("/.well-known/lnurlp/") and not parts.query


# --- bech32 and links ---------------------------------------------------------------------------------------------


def test_the_example_of_lud_01_reads_and_writes() -> None:
    assert decode_lnurl(LUD01) == LUD01_URL
    assert decode_lnurl("lightning:" + LUD01.lower()) == LUD01_URL
    assert encode_lnurl(LUD01_URL) == LUD01.lower()


@pytest.mark.parametrize(
    ("link", "url"),
    [
        ("lnurlp://example.com/pay?x=1", "https://example.com/pay?x=1"),
        ("lnurlp:example.com/pay", "https://example.com/pay"),
        ("LNURLP://example.com/pay", "https://example.com/pay"),
        ("lnurlp://127.0.0.1:5000/pay", "http://127.0.0.1:5000/pay"),
    ],
)
def test_links_of_lud_17(link: str, url: str) -> None:
    assert decode_lnurl(link) == url


@pytest.mark.parametrize(
    "text", ["", "lnurl1", LUD01[:-1], LUD01[:-1] + "q", "nsec1" + "q" * 58, "lnurlp:", "x" * 5_000]
)
def test_what_is_no_lnurl_is_refused(text: str) -> None:
    with pytest.raises(BadLnurl):
        decode_lnurl(text)


@pytest.mark.parametrize("url", ["ftp://example.com", "javascript:alert(1)", "not a url", "https://"])
def test_an_lnurl_of_something_else_than_the_web_is_refused(url: str) -> None:
    with pytest.raises(BadLnurl):
        decode_lnurl(encode_lnurl(url))


# --- what hosts answer --------------------------------------------------------------------------------------------


def test_an_offer_is_read() -> None:
    assert parse_pay_offer(OFFER) == PayOffer(
        callback="https://example.com/lnurlp/cb?id=7",
        min_msats=1_000,
        max_msats=100_000_000,
        metadata=METADATA,
        comment_chars=30,
        nostr_pubkey=PUBKEY,
    )
    assert parse_pay_offer(OFFER).description_hash == hashlib.sha256(METADATA.encode()).hexdigest()


def test_what_an_offer_may_leave_out() -> None:
    offer = parse_pay_offer({k: OFFER[k] for k in ("tag", "callback", "minSendable", "maxSendable", "metadata")})
    assert (offer.comment_chars, offer.nostr_pubkey) == (0, None)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("tag", "withdrawRequest"),
        ("tag", None),
        ("callback", None),
        ("callback", "file:///etc/passwd"),
        ("callback", "https://"),
        ("callback", "https://[::1"),
        ("callback", "https://example.com/\n"),
        ("callback", "https://example.com/" + "a" * 3_000),
        ("minSendable", 0),
        ("minSendable", "1000"),
        ("minSendable", 1_000.0),
        ("minSendable", True),
        ("minSendable", 200_000_000),
        ("maxSendable", -1),
        ("maxSendable", 10**30),
        ("metadata", None),
        ("metadata", "{}"),
        ("metadata", "[1]"),
        ("metadata", "no json"),
        ("metadata", "[" * 2_000),
    ],
)
def test_an_offer_of_another_shape_is_refused(change: str, value: Any) -> None:
    with pytest.raises(BadLnurl):
        parse_pay_offer({**OFFER, change: value})


@pytest.mark.parametrize(
    "change",
    [
        {"allowsNostr": False},
        {"allowsNostr": "true"},
        {"allowsNostr": 1},
        {"nostrPubkey": None},
        {"nostrPubkey": PUBKEY[:-1]},
        {"nostrPubkey": "npub1"},
    ],
)
def test_receipts_are_promised_only_by_a_yes_and_a_key(change: dict[str, Any]) -> None:
    assert parse_pay_offer({**OFFER, **change}).nostr_pubkey is None


@pytest.mark.parametrize("parse", [parse_pay_offer, parse_invoice_answer, parse_verify_answer])
def test_an_error_is_the_hosts_own_word_made_printable(parse: Any) -> None:
    with pytest.raises(LnurlError, match=r"^no such user\\x1b$"):
        parse({"status": "ERROR", "reason": "no such user\x1b"})
    with pytest.raises(LnurlError, match="no reason given"):
        parse({"status": "error"})


def test_invoices_and_their_verify_urls_are_read() -> None:
    assert parse_invoice_answer({"pr": "lnbc1", "routes": []}) == InvoiceAnswer("lnbc1")
    assert parse_invoice_answer({"pr": "lnbc1", "verify": None}) == InvoiceAnswer("lnbc1")
    url = "https://example.com/verify/1"
    assert parse_invoice_answer({"pr": "lnbc1", "verify": url}) == InvoiceAnswer("lnbc1", url)
    assert url not in repr(parse_invoice_answer({"pr": "lnbc1", "verify": url}))


@pytest.mark.parametrize(
    "value", [{}, {"pr": ""}, {"pr": 1}, {"pr": "l" * 5_000}, {"pr": "lnbc1", "verify": 7}, [], None]
)
def test_an_invoice_answer_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(BadLnurl):
        parse_invoice_answer(value)


def test_verify_answers_are_read() -> None:
    preimage = "AB" * 32
    answer = parse_verify_answer({"status": "OK", "settled": True, "preimage": preimage, "pr": "lnbc1"})
    assert answer == VerifyAnswer(True, "lnbc1", preimage.lower())
    assert preimage.lower() not in repr(answer)
    assert parse_verify_answer({"settled": False, "preimage": None, "pr": "lnbc1"}) == VerifyAnswer(False, "lnbc1")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"settled": "true"},
        {"settled": 1},
        {"settled": True, "preimage": "xy"},
        {"settled": True, "pr": 7},
        "settled",
    ],
)
def test_a_verify_answer_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(BadLnurl):
        parse_verify_answer(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(OFFER)), json_values)
def test_nothing_but_its_own_errors_is_raised(name: str, value: Any) -> None:
    for parse in (parse_pay_offer, parse_invoice_answer, parse_verify_answer):
        for answer in (value, {**OFFER, name: value}, {"pr": value, "verify": value, "settled": value}):
            try:
                parse(answer)
            except (BadLnurl, LnurlError) as error:
                assert printable(str(error), limit=1_000) == str(error)


# --- callbacks ----------------------------------------------------------------------------------------------------


def test_a_callback_keeps_its_own_query() -> None:
    url = callback_url(
        parse_pay_offer(OFFER), 21_000, comment="job & more", zap_request_json='{"a":"+ &"}', lnurl="lnurl1x"
    )
    assert url.startswith("https://example.com/lnurlp/cb?id=7&amount=21000&")
    assert parse_qs(urlsplit(url).query) == {
        "id": ["7"],
        "amount": ["21000"],
        "comment": ["job & more"],
        "nostr": ['{"a":"+ &"}'],
        "lnurl": ["lnurl1x"],
    }


def test_a_comment_is_cut_to_what_the_address_takes() -> None:
    offer = parse_pay_offer({**OFFER, "callback": "https://example.com/cb#top", "commentAllowed": 3})
    assert callback_url(offer, 1_000, comment="too long") == "https://example.com/cb?amount=1000&comment=too"
    silent = parse_pay_offer({**OFFER, "commentAllowed": 0})
    assert "comment" not in callback_url(silent, 1_000, comment="x")


def test_the_description_hash_is_that_of_the_text_as_it_stands() -> None:
    assert description_hash(METADATA) == hashlib.sha256(METADATA.encode()).hexdigest()
    assert description_hash('{"é":1}') == hashlib.sha256('{"é":1}'.encode()).hexdigest()
