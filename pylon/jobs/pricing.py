"""What a job costs: integers from tokens to whole sats, and the comparison with the customer's bid.

The sum is exact until its one rounding: a price per 1,000 tokens in msats makes each token cost a whole number of
microsats (1 sat = 1,000 msats = 1,000,000 microsats). Only the total is rounded, up to whole sats, because most
wallets take nothing finer. There is no float in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pylon.nostr.nip90 import MAX_MONEY_MSATS, Denial, ErrorPrefix
from pylon.text import utf8_bytes

MSATS_PER_SAT: Final = 1000
MICROSATS_PER_MSAT: Final = 1000
MICROSATS_PER_SAT: Final = MSATS_PER_SAT * MICROSATS_PER_MSAT

MESSAGE_TOKENS: Final = 8
"""What a chat template writes around one message: role marks and line feeds, 4 to 7 tokens in the usual ones."""

TEMPLATE_TOKENS: Final = 96
"""What a template adds once: start and generation marks, and the system text that some put in when none is given
(SmolLM2 and Qwen about 25 tokens, Llama 3 about 30, gpt-oss about 75)."""


@dataclass(frozen=True, slots=True)
class Price:
    """An operator's price for a model and a job kind, in msats; all zero means free.

    No job costs less than `min_msats`. Raises `ValueError` when out of range.
    """

    base_msats: int = 0
    input_msats_per_1k: int = 0
    output_msats_per_1k: int = 0
    min_msats: int = 0

    def __post_init__(self) -> None:
        for name in ("base_msats", "input_msats_per_1k", "output_msats_per_1k", "min_msats"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_MONEY_MSATS:
                raise ValueError(f"{name} is {value}: give millisats from 0 to {MAX_MONEY_MSATS}")


@dataclass(frozen=True, slots=True)
class QuoteLine:
    """One line of the sum. Only input and output have tokens."""

    label: str
    amount_microsats: int
    tokens: int | None = None
    msats_per_1k: int | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job costs, in whole sats, and of what: `lines` add up to `amount_msats` exactly."""

    price: Price
    input_tokens: int
    output_tokens: int
    amount_msats: int

    @property
    def lines(self) -> tuple[QuoteLine, ...]:
        """The sum, to be explained to a human."""
        price = self.price
        parts = (
            QuoteLine("base", price.base_msats * MICROSATS_PER_MSAT),
            _tokens_line("input", self.input_tokens, price.input_msats_per_1k),
            _tokens_line("output", self.output_tokens, price.output_msats_per_1k),
        )
        exact = sum(part.amount_microsats for part in parts)
        missing = max(0, price.min_msats * MICROSATS_PER_MSAT - exact)
        rounding = self.amount_msats * MICROSATS_PER_MSAT - exact - missing
        return (*parts, QuoteLine("up to the minimum", missing), QuoteLine("rounding to whole sats", rounding))


def input_token_bound(texts: Iterable[str]) -> int:
    """Return an upper bound of the input tokens of a chat whose messages are `texts`, without asking a tokenizer.

    Byte-level BPE covers every byte by exactly one token, and SentencePiece falls back to one token per byte, so
    neither makes more tokens than there are UTF-8 bytes; to that comes what the chat template writes, including
    the space that SentencePiece may put before a text. The bound does not cover tokenizers that expand characters
    first (NFKC, as in T5), which no chat model that we know of uses.
    """
    tokens = TEMPLATE_TOKENS
    for text in texts:
        tokens += utf8_bytes(text) + MESSAGE_TOKENS
    return tokens


def quote(price: Price, input_tokens: int, output_tokens: int) -> Quote:
    """Return what `input_tokens` in and `output_tokens` out cost. Raises `ValueError` on a negative count."""
    if input_tokens < 0 or output_tokens < 0:
        raise ValueError("a token count is never negative")
    exact_microsats = (
        price.base_msats * MICROSATS_PER_MSAT
        + price.input_msats_per_1k * input_tokens
        + price.output_msats_per_1k * output_tokens
    )
    least_microsats = price.min_msats * MICROSATS_PER_MSAT
    sats = -(-max(exact_microsats, least_microsats) // MICROSATS_PER_SAT)
    return Quote(price, input_tokens, output_tokens, sats * MSATS_PER_SAT)


def check_bid(quoted: Quote, bid_msats: int | None) -> Denial | None:
    """Return why a bid does not cover the price, or None. Without a bid the customer has set no ceiling.

    The bid is a ceiling and no discount: whoever bids more is still invoiced `quoted.amount_msats`.
    """
    if bid_msats is None or quoted.amount_msats <= bid_msats:
        return None
    sentence = f"this job costs {quoted.amount_msats} msats and the bid is {bid_msats} msats"
    return Denial(ErrorPrefix.BID_TOO_LOW, sentence)


def _tokens_line(label: str, tokens: int, msats_per_1k: int) -> QuoteLine:
    # So many msats per 1,000 tokens are as many microsats per token.
    return QuoteLine(label, tokens * msats_per_1k, tokens, msats_per_1k)
