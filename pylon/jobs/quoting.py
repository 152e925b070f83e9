"""What one job of an offer costs: the bounds of its tokens, and their price. Pure.

Intake prices every request by this, and `pylon price` explains a price by it.
"""

from __future__ import annotations

from typing import Final

from pylon.jobs.catalogue import Offer
from pylon.jobs.pricing import Price, Quote, input_token_bound, quote
from pylon.jobs.textgen import TextGeneration
from pylon.nostr.nip90 import BadRequest, ErrorPrefix
from pylon.nostr.nip90_fit import max_output_text_bytes

OUTPUT_BYTES_PER_TOKEN: Final = 16
"""What a token of output takes on the wire at most, for the check before an invoice: English text takes 4 to 5, and
the worst texts of usual tokenizers stay below 12 on average. Whatever comes, the runner counts exactly and cuts."""


def fitting_tokens(limit_bytes: int) -> int:
    """Return how many tokens of output surely fit an event of `limit_bytes`."""
    return max_output_text_bytes(limit_bytes) // OUTPUT_BYTES_PER_TOKEN


def quote_job(
    offer: Offer, kind: int, asked: TextGeneration, *, context_tokens: int | None, most_tokens: int, free: bool
) -> Quote:
    """Return what a job costs, its `output_tokens` being the `max_tokens` that it runs with.

    `context_tokens` is what one request may use (None: not known), `most_tokens` what fits a relay's event; with
    `free` nobody pays, whatever the prices. Raises `BadRequest` when it cannot be done as asked.
    """
    input_tokens = input_token_bound(asked.texts)
    output_tokens = output_token_bound(offer, asked, input_tokens, context_tokens, most_tokens)
    return quote(Price() if free else offer.price_of(kind), input_tokens, output_tokens)


def output_token_bound(
    offer: Offer, asked: TextGeneration, input_tokens: int, context_tokens: int | None, most_tokens: int
) -> int:
    """Return how much output is priced: what was asked for if it surely fits, never silently less.

    Raises `BadRequest`.
    """
    most = min(offer.max_output_tokens, most_tokens)
    if context_tokens is not None and input_tokens + (asked.max_tokens or 1) > context_tokens:
        sentence = (
            f"the prompt may take {input_tokens} tokens and the context has {context_tokens}:"
            " shorten it or lower max_tokens"
        )
        raise BadRequest(ErrorPrefix.TOO_LARGE, sentence)
    if asked.max_tokens is None:
        left = most if context_tokens is None else min(most, context_tokens - input_tokens)
        return min(offer.default_output_tokens, left)
    if asked.max_tokens > most:
        sentence = f"max_tokens is {asked.max_tokens}: at most {most} are generated and fit a relay's event"
        raise BadRequest(ErrorPrefix.TOO_LARGE, sentence)
    return asked.max_tokens
