import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import MAX_CREATED_AT, BadEvent, Draft, Event
from pylon.nostr.messages import event_frame
from pylon.nostr.nip90 import MAX_MONEY_MSATS, MAX_RELAY_URL
from pylon.nostr.nip90_fit import (
    BARE_RESULT_BYTES,
    ResultTooLarge,
    fit_result,
    frame_bytes,
    max_output_bytes,
    max_output_text_bytes,
    text_bytes,
    worst_case_result_bytes,
)
from pylon.nostr.nip90_replies import MAX_BOLT11
from tests.support.events import NOW, PROVIDER, event_with, job_request, signed, surrogate_texts, tags, texts

HINT = "wss://".ljust(MAX_RELAY_URL, "x")
INVOICE = "ln".ljust(MAX_BOLT11, "q")

# Few distinct characters make long outputs quickly; each class of escape and of UTF-8 length is there.
wide_texts = st.text(st.sampled_from('\x00\x01\x1f\n"\\a\x7fé世🙂\u2028'), max_size=300)


def frame_of(draft: Draft, created_at: int = NOW) -> bytes:
    return event_frame(draft.sign(PROVIDER, created_at)).encode()


@given(st.integers(0, 65535), texts | wide_texts, st.lists(tags, max_size=5).map(tuple))
def test_the_size_is_known_before_signing(kind: int, content: str, its_tags: tuple[tuple[str, ...], ...]) -> None:
    draft = Draft(kind, content, its_tags)
    assert len(frame_of(draft, MAX_CREATED_AT - 1)) == frame_bytes(draft)
    assert frame_bytes(draft) - 6 == len(frame_of(draft))


@given(wide_texts, wide_texts)
def test_the_size_of_a_text_is_the_sum_of_its_parts(first: str, second: str) -> None:
    assert text_bytes(first) + text_bytes(second) == text_bytes(first + second)
    assert text_bytes(first) <= 6 * len(first.encode())


@given(surrogate_texts)
def test_lone_surrogates_have_no_size(text: str) -> None:
    with pytest.raises(BadEvent):
        text_bytes(text)
    with pytest.raises(BadEvent):
        frame_bytes(Draft(1, text))
    with pytest.raises(BadEvent):
        fit_result(job_request(), text, limit_bytes=65536)


def has(draft: Draft) -> tuple[bool, bool]:
    names = {tag[0] for tag in draft.tags}
    return "request" in names, "i" in names


def test_inputs_go_first_and_then_the_request() -> None:
    request = job_request("p" * 1000)
    whole = fit_result(request, "out", limit_bytes=10**6, amount_msats=1000, relay_hint="wss://r")
    assert has(whole) == (True, True)
    without_inputs = fit_result(
        request, "out", limit_bytes=frame_bytes(whole) - 1, amount_msats=1000, relay_hint="wss://r"
    )
    assert has(without_inputs) == (True, False)
    bare = fit_result(
        request, "out", limit_bytes=frame_bytes(without_inputs) - 1, amount_msats=1000, relay_hint="wss://r"
    )
    assert has(bare) == (False, False)
    assert {tag[0] for tag in bare.tags} == {"e", "p", "amount"}
    with pytest.raises(ResultTooLarge, match=f"relays take {frame_bytes(bare) - 1}"):
        fit_result(request, "out", limit_bytes=frame_bytes(bare) - 1, amount_msats=1000, relay_hint="wss://r")


def test_a_limit_met_exactly_is_met() -> None:
    request = job_request()
    whole = fit_result(request, "out", limit_bytes=10**6)
    assert fit_result(request, "out", limit_bytes=frame_bytes(whole)) == whole


requests: st.SearchStrategy[Event] = st.builds(
    lambda kind, its_tags: event_with(*its_tags, kind=kind), st.integers(5000, 5999), st.lists(tags, max_size=6)
)


@given(requests, wide_texts, st.integers(0, 6000))
def test_output_within_the_bound_fits_whatever_it_and_the_request_are(
    request: Event, output: str, spare_bytes: int
) -> None:
    limit_bytes = BARE_RESULT_BYTES + spare_bytes
    allowed = max_output_bytes(limit_bytes)
    content = output.encode()[:allowed].decode(errors="ignore")
    draft = fit_result(
        request,
        content,
        limit_bytes=limit_bytes,
        amount_msats=MAX_MONEY_MSATS,
        bolt11=INVOICE,
        relay_hint=HINT,
    )
    assert len(frame_of(draft, MAX_CREATED_AT - 1)) <= limit_bytes


@given(st.integers(0, 3000), st.sampled_from("\x00\x1f\nx🙂"))
def test_the_worst_case_is_an_upper_bound_and_is_reached(output_bytes: int, char: str) -> None:
    content = char * (output_bytes // len(char.encode()))
    request = event_with(kind=5999)
    draft = fit_result(
        request, content, limit_bytes=10**6, amount_msats=MAX_MONEY_MSATS, bolt11=INVOICE, relay_hint=HINT
    )
    bare = Draft(draft.kind, draft.content, tuple(tag for tag in draft.tags if tag[0] != "request"))
    size = len(frame_of(bare, MAX_CREATED_AT - 1))
    assert size <= worst_case_result_bytes(output_bytes)
    if char in "\x00\x1f":
        assert size == worst_case_result_bytes(output_bytes)


@given(st.integers(0, 200_000))
def test_the_bounds_agree(limit_bytes: int) -> None:
    allowed = max_output_bytes(limit_bytes)
    if limit_bytes >= BARE_RESULT_BYTES:
        assert worst_case_result_bytes(allowed) <= limit_bytes < worst_case_result_bytes(allowed + 1)
        assert max_output_text_bytes(limit_bytes) == limit_bytes - BARE_RESULT_BYTES
    else:
        assert allowed == max_output_text_bytes(limit_bytes) == 0


def test_a_usual_relay_takes_ten_thousand_bytes_of_anything() -> None:
    assert max_output_bytes(65_536) > 10_000
    assert len(event_frame(signed(fit_result(job_request("x"), "\x00" * 10_000, limit_bytes=65_536)))) < 65_536
