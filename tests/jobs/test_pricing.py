import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs.pricing import (
    MESSAGE_TOKENS,
    TEMPLATE_TOKENS,
    Price,
    Quote,
    check_bid,
    input_token_bound,
    quote,
)
from pylon.nostr.nip90 import MAX_MONEY_MSATS, ErrorPrefix
from tests.support.events import surrogate_texts, texts

rates = st.integers(0, 5000) | st.integers(0, MAX_MONEY_MSATS)
prices = st.builds(Price, rates, rates, rates, rates)
counts = st.integers(0, 5000) | st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("price", "input_tokens", "output_tokens", "amount_msats"),
    [
        (Price(), 1000, 1000, 0),
        (Price(base_msats=1), 0, 0, 1000),
        (Price(base_msats=1000), 0, 0, 1000),
        (Price(base_msats=1001), 0, 0, 2000),
        (Price(0, 100, 300), 1, 0, 1000),
        (Price(1000, 100, 300), 2000, 1000, 2000),
        (Price(1000, 500, 500), 1000, 1000, 2000),
        # Each line alone would round up to a sat more: only the sum is rounded.
        (Price(999, 1, 0), 1000, 0, 1000),
        (Price(0, 1, 1), 500, 500, 1000),
        (Price(0, 1, 0), 10**6, 0, 1000),
        (Price(0, 1, 0), 10**6 + 1, 0, 2000),
        (Price(min_msats=1), 0, 0, 1000),
        (Price(1000, 100, 300, min_msats=5000), 2000, 1000, 5000),
        (Price(1000, 100, 300, min_msats=1499), 2000, 1000, 2000),
        # The minimum and the rest are rounded together, once.
        (Price(900, 0, 0, min_msats=1001), 0, 0, 2000),
    ],
)
def test_prices(price: Price, input_tokens: int, output_tokens: int, amount_msats: int) -> None:
    quoted = quote(price, input_tokens, output_tokens)
    assert quoted.amount_msats == amount_msats


def exact(price: Price, input_tokens: int, output_tokens: int) -> Fraction:
    worked = (
        Fraction(price.base_msats)
        + Fraction(price.input_msats_per_1k * input_tokens, 1000)
        + Fraction(price.output_msats_per_1k * output_tokens, 1000)
    )
    return max(worked, Fraction(price.min_msats))


@given(prices, counts, counts)
def test_the_amount_is_whole_sats_and_less_than_one_above_the_exact_price(
    price: Price, input_tokens: int, output_tokens: int
) -> None:
    quoted = quote(price, input_tokens, output_tokens)
    assert type(quoted.amount_msats) is int
    assert quoted.amount_msats % 1000 == 0
    assert 0 <= quoted.amount_msats - exact(price, input_tokens, output_tokens) < 1000
    assert quoted.amount_msats >= price.min_msats


@given(prices, counts, counts)
def test_the_lines_explain_the_amount_exactly(price: Price, input_tokens: int, output_tokens: int) -> None:
    quoted = quote(price, input_tokens, output_tokens)
    assert sum(line.amount_microsats for line in quoted.lines) == quoted.amount_msats * 1000
    assert all(type(line.amount_microsats) is int and line.amount_microsats >= 0 for line in quoted.lines)
    labels = ["base", "input", "output", "up to the minimum", "rounding to whole sats"]
    assert [line.label for line in quoted.lines] == labels
    assert [line.tokens for line in quoted.lines] == [None, input_tokens, output_tokens, None, None]


@given(prices, counts, counts, st.integers(0, 10**6), st.sampled_from(dataclasses.fields(Price)))
def test_more_never_costs_less(
    price: Price, input_tokens: int, output_tokens: int, more: int, rate: dataclasses.Field[int]
) -> None:
    amount_msats = quote(price, input_tokens, output_tokens).amount_msats
    assert quote(price, input_tokens + more, output_tokens).amount_msats >= amount_msats
    assert quote(price, input_tokens, output_tokens + more).amount_msats >= amount_msats
    raised = min(MAX_MONEY_MSATS, getattr(price, rate.name) + more)
    dearer = dataclasses.replace(price, **{rate.name: raised})
    assert quote(dearer, input_tokens, output_tokens).amount_msats >= amount_msats


@pytest.mark.parametrize("name", ["base_msats", "input_msats_per_1k", "output_msats_per_1k", "min_msats"])
@pytest.mark.parametrize("value", [-1, MAX_MONEY_MSATS + 1])
def test_a_price_out_of_range_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Price(**{name: value})


def test_negative_counts_are_refused() -> None:
    for counts_ in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            quote(Price(), *counts_)


@given(prices, counts, counts, st.none() | st.integers(0, MAX_MONEY_MSATS))
def test_nothing_above_the_bid_passes_and_the_bid_changes_no_price(
    price: Price, input_tokens: int, output_tokens: int, bid_msats: int | None
) -> None:
    quoted = quote(price, input_tokens, output_tokens)
    denial = check_bid(quoted, bid_msats)
    if denial is None:
        assert bid_msats is None or quoted.amount_msats <= bid_msats
    else:
        assert bid_msats is not None
        assert quoted.amount_msats > bid_msats
        assert denial.prefix is ErrorPrefix.BID_TOO_LOW
        assert str(quoted.amount_msats) in denial.sentence
        assert str(bid_msats) in denial.sentence


def test_a_bid_is_a_ceiling_to_the_millisat() -> None:
    quoted: Quote = quote(Price(base_msats=5000), 0, 0)
    assert check_bid(quoted, 5000) is None
    assert check_bid(quoted, 4999) is not None
    assert check_bid(quoted, 0) is not None
    assert check_bid(quote(Price(), 5, 5), 0) is None


@given(st.lists(texts | surrogate_texts, max_size=4))
def test_the_token_bound_covers_bytes_template_and_messages(its_texts: list[str]) -> None:
    size = sum(len(text.encode(errors="surrogatepass")) for text in its_texts)
    assert input_token_bound(its_texts) == size + TEMPLATE_TOKENS + MESSAGE_TOKENS * len(its_texts)
