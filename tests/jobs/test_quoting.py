"""What one job costs: the output that is priced, and the price of its kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs.catalogue import Offer
from pylon.jobs.pricing import Price, input_token_bound
from pylon.jobs.quoting import fitting_tokens, quote_job
from pylon.jobs.textgen import TextGeneration
from pylon.nostr.nip90 import BadRequest, ErrorPrefix

OFFER = Offer(
    "m", "b", "m", Price(1_000, 500, 2_000), max_output_tokens=100, default_output_tokens=50, kinds=(5050, 5001),
    kind_prices={5001: Price(3_000, min_msats=7_000)},
)  # fmt: skip
INPUT = input_token_bound(("hello",))


def asked(max_tokens: int | None = None) -> TextGeneration:
    return TextGeneration("hello", max_tokens=max_tokens)


def test_each_kind_has_its_price() -> None:
    text, summary = (
        quote_job(OFFER, kind, asked(), context_tokens=None, most_tokens=999, free=False) for kind in (5050, 5001)
    )
    assert (text.price, text.input_tokens, text.output_tokens) == (OFFER.price, INPUT, 50)
    assert summary.amount_msats == 7_000
    assert text.amount_msats == 2_000


def test_free_is_free_whatever_the_minimum() -> None:
    free = quote_job(OFFER, 5001, asked(), context_tokens=None, most_tokens=999, free=True)
    assert free.amount_msats == 0
    assert not any(line.amount_microsats for line in free.lines)


@given(st.none() | st.integers(1, 200), st.none() | st.integers(1, 400), st.integers(1, 200))
def test_what_is_priced_fits_and_is_what_was_asked(
    max_tokens: int | None, context_tokens: int | None, most_tokens: int
) -> None:
    given_ = {"context_tokens": context_tokens, "most_tokens": most_tokens}
    try:
        quoted = quote_job(OFFER, 5050, asked(max_tokens), **given_, free=False)  # type: ignore[arg-type]
    except BadRequest as refused:
        assert refused.denial.prefix is ErrorPrefix.TOO_LARGE
        too_much = max_tokens is not None and max_tokens > min(100, most_tokens)
        assert too_much or (context_tokens is not None and INPUT + (max_tokens or 1) > context_tokens)
    else:
        assert quoted.output_tokens == (max_tokens or quoted.output_tokens)
        assert 1 <= quoted.output_tokens <= min(100, most_tokens)
        assert context_tokens is None or quoted.input_tokens + quoted.output_tokens <= context_tokens


def test_a_larger_event_holds_more() -> None:
    assert 0 < fitting_tokens(65_536) < fitting_tokens(131_072)


@pytest.mark.parametrize("max_tokens", [101, 5_000])
def test_more_than_the_offer_gives_is_refused_and_said(max_tokens: int) -> None:
    with pytest.raises(BadRequest, match=f"max_tokens is {max_tokens}: at most 100"):
        quote_job(OFFER, 5050, asked(max_tokens), context_tokens=None, most_tokens=999, free=False)
