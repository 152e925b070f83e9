"""How large a result is on the wire, and what it may leave out to fit a relay.

A relay's limit counts the frame `["EVENT",{…}]` as UTF-8, escapes included. In the JSON that we send (orjson) a
character of content takes its UTF-8 bytes, except that the quote, the backslash and the controls with a short form
(backspace, tab, line feed, form feed, carriage return) take 2 and every other C0 control takes 6. Hence one byte of
content is at most 6 bytes of frame, and the size of a text is the sum of the sizes of its parts.

A result that would not fit loses its `i` tags first, then its `request` tag. What then remains beside the content
is bounded whatever the request, so the worst case is known before an invoice is made.
"""

from __future__ import annotations

from typing import Final

import orjson

from pylon.nostr.event import BadEvent, Draft, Event
from pylon.nostr.nip90 import MAX_MONEY_MSATS, MAX_RELAY_URL
from pylon.nostr.nip90_replies import MAX_BOLT11, result_draft

MAX_ESCAPE: Final = 6
"""Bytes of frame that one byte of content takes at most: a control character as a six-byte Unicode escape."""

# Everything of a frame but the numbers, the tags and the content; 16 digits are the longest `created_at` (2**53).
_FRAME_BYTES: Final = len('["EVENT",]') + len(
    orjson.dumps({"id": "0" * 64, "pubkey": "0" * 64, "created_at": 10**15, "kind": 0, "sig": "0" * 128})
    + b',"tags":,"content":'
)


class ResultTooLarge(ValueError):
    """Even without its copies of the request the result is over the limit."""


def frame_bytes(draft: Draft) -> int:
    """Return the size of the frame that publishes `draft` once signed, at most 6 bytes too many.

    Raises `BadEvent` when the text cannot be encoded (a lone surrogate).
    """
    try:
        tags = len(orjson.dumps(draft.tags))
        content = len(orjson.dumps(draft.content))
    except (TypeError, orjson.JSONEncodeError) as error:
        raise BadEvent("text that is not valid Unicode") from error
    return _FRAME_BYTES + len(str(draft.kind)) - 1 + tags + content


def text_bytes(text: str) -> int:
    """Return the bytes that `text` takes within a JSON string. Raises `BadEvent` on a lone surrogate."""
    try:
        return len(orjson.dumps(text)) - 2
    except (TypeError, orjson.JSONEncodeError) as error:
        raise BadEvent("text that is not valid Unicode") from error


def fit_result(
    request: Event,
    content: str,
    *,
    limit_bytes: int,
    amount_msats: int | None = None,
    bolt11: str | None = None,
    relay_hint: str = "",
) -> Draft:
    """Return the result with as much of NIP-90's copies as a frame of `limit_bytes` allows.

    Raises `ResultTooLarge` when the content alone is too much, `BadEvent` on a lone surrogate, and `ValueError` as
    `result_draft` does.
    """
    for with_request, with_inputs in ((True, True), (True, False), (False, False)):
        draft = result_draft(
            request,
            content,
            amount_msats=amount_msats,
            bolt11=bolt11,
            relay_hint=relay_hint,
            with_request=with_request,
            with_inputs=with_inputs,
        )
        size = frame_bytes(draft)
        if size <= limit_bytes:
            return draft
    raise ResultTooLarge(f"the result takes {size} bytes and relays take {limit_bytes}")


def _bare_result_bytes() -> int:
    """Return the frame of an empty result without copies, with the longest hint, amount and invoice there are."""
    someone = Event("0" * 64, "0" * 64, 0, 5999, (), "", "0" * 128)
    hint = "wss://".ljust(MAX_RELAY_URL, "x")
    invoice = "ln".ljust(MAX_BOLT11, "x")
    draft = result_draft(
        someone,
        "",
        amount_msats=MAX_MONEY_MSATS,
        bolt11=invoice,
        relay_hint=hint,
        with_request=False,
        with_inputs=False,
    )
    return frame_bytes(draft)


BARE_RESULT_BYTES: Final = _bare_result_bytes()
"""The frame of a result without content and copies of the request, at most."""


def worst_case_result_bytes(output_bytes: int) -> int:
    """Return the largest frame that a result with `output_bytes` of UTF-8 output needs, whatever the output."""
    return BARE_RESULT_BYTES + MAX_ESCAPE * output_bytes


def max_output_bytes(limit_bytes: int) -> int:
    """Return how many bytes of UTF-8 output surely fit a frame of `limit_bytes`, whatever the output."""
    return max(0, (limit_bytes - BARE_RESULT_BYTES) // MAX_ESCAPE)


def max_output_text_bytes(limit_bytes: int) -> int:
    """Return the budget for `text_bytes` of the output: the exact measure, to count while it grows."""
    return max(0, limit_bytes - BARE_RESULT_BYTES)
