"""Where money goes back to: strict addresses, and the customer's words about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Draft
from pylon.nostr.nip90 import FEEDBACK_KIND
from pylon.nostr.refunds import (
    BadDestination,
    RefundWish,
    is_invoice,
    parse_address,
    parse_destination,
    parse_wish,
    profile_address,
    request_address,
    wish_draft,
)
from tests.support.events import CUSTOMER, NOW, signed
from tests.support.stall import invoice

JOB = "ab" * 32
US = "cd" * 32


@pytest.mark.parametrize("text", ["alice@pay.example", " Alice@Pay.Example ", "a.b-c_d+1@sub.pay.example"])
def test_addresses(text: str) -> None:
    assert parse_address(text) == text.strip().lower()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "@",
            "alice",
            "alice@",
            "@pay.example",
            "alice@pay..example",
        ),
        *("alice@[::1]", "alice@pay.example/x", "a b@pay.example"),
        *(
            "alice@bob@pay.example",
            "älice@pay.example",
            "alice@päy.example",
            "alice@pay.example\n.x",
        ),
        *(f"{'a' * 65}@pay.example", f"a@{'b' * 64}.example", "a@" + "b." * 130 + "example"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadDestination, match="name@host"):
        parse_address(text)


def test_a_destination_is_an_address_or_an_invoice() -> None:
    bolt11 = invoice().bolt11
    assert parse_destination(f"lightning:{bolt11.upper()}".replace("LIGHTNING", "lightning")) == bolt11
    assert is_invoice(parse_destination(bolt11))
    assert not is_invoice(parse_destination("alice@pay.example"))
    for wrong in ("", "lnbc", "bc1qxyz", "lnurl1" + "d" * 60, "lnbc1" + "d" * 2000, "lnbc1\x1b[31m" + "d" * 30):
        with pytest.raises(BadDestination):
            parse_destination(wrong)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    try:
        assert parse_destination(text).isascii()
    except BadDestination as error:
        assert text not in str(error) or len(text) < 30


def test_a_wish_survives_the_wire() -> None:
    event = signed(wish_draft(JOB, US, "Alice@pay.example"), CUSTOMER, NOW)
    assert event.tag_values("p") == [US]
    assert parse_wish(event) == RefundWish(JOB, "alice@pay.example")


@pytest.mark.parametrize(
    "draft",
    [
        Draft(kind=FEEDBACK_KIND, content="", tags=(("e", JOB), ("refund", "nobody"))),
        Draft(kind=FEEDBACK_KIND, content="", tags=(("e", "zz"), ("refund", "alice@pay.example"))),
        Draft(kind=FEEDBACK_KIND, content="", tags=(("e", JOB), ("refund",))),
        Draft(kind=5050, content="", tags=(("e", JOB), ("refund", "alice@pay.example"))),
    ],
)
def test_what_is_no_wish(draft: Draft) -> None:
    assert parse_wish(signed(draft, CUSTOMER, NOW)) is None


def test_addresses_in_requests_and_profiles() -> None:
    request = signed(Draft(kind=5050, content="", tags=(("lud16", "Bob@pay.example"),)), CUSTOMER, NOW)
    assert request_address(request) == "bob@pay.example"
    assert request_address(signed(Draft(kind=5050, content="", tags=()), CUSTOMER, NOW)) is None

    def said(content: str) -> str | None:
        return profile_address(signed(Draft(kind=0, content=content, tags=()), CUSTOMER, NOW))

    assert said('{"name":"b","lud16":"bob@pay.example"}') == "bob@pay.example"
    for content in ("", "[]", '{"lud16":7}', '{"lud16":"bob at home"}', "[" * 100_000, '{"name":"b"}'):
        assert said(content) is None
