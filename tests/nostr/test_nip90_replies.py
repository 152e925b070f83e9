import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Event, verify
from pylon.nostr.nip90 import MAX_MONEY_MSATS, MAX_RELAY_URL, Denial, ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import (
    MAX_BOLT11,
    MAX_INFO,
    BadReply,
    Feedback,
    JobResult,
    error_draft,
    feedback_draft,
    parse_feedback,
    parse_result,
    partial_draft,
    payment_required_draft,
    result_draft,
)
from tests.support.events import CUSTOMER, PROVIDER, event_with, events, hex64, job_request, signed, texts

ID = "ab" * 32
INVOICE = "lnbcrt10n1pjq" + "q" * 200

amounts = st.integers(0, MAX_MONEY_MSATS)
invoices = st.from_regex(r"\Aln[a-z0-9]{1,300}\Z")
payments = st.tuples(amounts, st.none() | invoices) | st.just((None, None))


@given(
    hex64,
    hex64,
    st.sampled_from(FeedbackStatus),
    texts,
    texts,
    payments,
    st.sampled_from(["", "wss://relay.example", "not a relay", "wss://" + "x" * MAX_RELAY_URL]),
)
def test_feedback_survives_the_wire(
    request_id: str,
    customer: str,
    status: FeedbackStatus,
    info: str,
    content: str,
    payment: tuple[int | None, str | None],
    relay_hint: str,
) -> None:
    draft = feedback_draft(
        request_id,
        customer,
        status,
        info=info,
        content=content,
        amount_msats=payment[0],
        bolt11=payment[1],
        relay_hint=relay_hint,
    )
    event = signed(draft, PROVIDER)
    assert event.kind == 7000
    assert event.tag("p") == ("p", customer)
    assert event.tag("e") == (
        ("e", request_id, relay_hint) if relay_hint == "wss://relay.example" else ("e", request_id)
    )
    assert parse_feedback(event) == Feedback(request_id, status, info[:MAX_INFO], content, *payment)


@given(hex64, texts, st.integers(1, 10**6), st.integers(1, 99))
def test_partials_carry_number_and_attempt(request_id: str, content: str, number: int, attempt: int) -> None:
    draft = partial_draft(request_id, CUSTOMER.public_hex, content, number=number, attempt=attempt)
    assert ("status", "partial") in draft.tags
    feedback = parse_feedback(signed(draft, PROVIDER))
    assert feedback == Feedback(request_id, FeedbackStatus.PARTIAL, content=content, number=number, attempt=attempt)


@given(texts, payments, st.booleans(), st.booleans())
def test_results_survive_the_wire(
    content: str, payment: tuple[int | None, str | None], with_request: bool, with_inputs: bool
) -> None:
    request = job_request("a prompt")
    draft = result_draft(
        request,
        content,
        amount_msats=payment[0],
        bolt11=payment[1],
        relay_hint="wss://relay.example",
        with_request=with_request,
        with_inputs=with_inputs,
    )
    event = signed(draft, PROVIDER)
    assert parse_result(event) == JobResult(request.id, content, *payment)
    assert event.tag_values("i") == (["a prompt"] if with_inputs else [])
    assert event.tag_values("request") == ([request.to_json()] if with_request else [])


def test_a_result_has_every_tag_of_nip90() -> None:
    request = event_with(("i", "a", "text", "", "m"), ("i", "b"), ("bid", "9000"), kind=5050)
    draft = result_draft(request, "done", amount_msats=9000, bolt11=INVOICE, relay_hint="wss://r")
    assert draft.kind == 6050
    assert draft.content == "done"
    assert draft.tags == (
        ("request", request.to_json()),
        ("e", request.id, "wss://r"),
        ("p", CUSTOMER.public_hex),
        ("i", "a", "text", "", "m"),
        ("i", "b"),
        ("amount", "9000", INVOICE),
    )
    copied = json.loads(draft.tags[0][1])
    assert copied["sig"] == request.sig
    assert verify(request)


def test_payment_required_tells_price_expiry_and_time() -> None:
    draft = payment_required_draft(
        ID,
        CUSTOMER.public_hex,
        amount_msats=21_000,
        bolt11=INVOICE,
        invoice_expires_at=1_800_000_000,
        eta_s=12,
    )
    assert draft.tags == (
        (
            "status",
            "payment-required",
            "Pay 21 sats before 2027-01-15 08:00:00 UTC; the result then takes about 12 s.",
        ),
        ("e", ID),
        ("p", CUSTOMER.public_hex),
        ("amount", "21000", INVOICE),
    )


@pytest.mark.parametrize(
    ("amount_msats", "text"), [(1000, "Pay 1 sat "), (0, "Pay 0 sats "), (1500, "Pay 1.500 sats ")]
)
def test_amounts_are_spoken_in_sats(amount_msats: int, text: str) -> None:
    draft = payment_required_draft(ID, ID, amount_msats=amount_msats, bolt11=INVOICE, invoice_expires_at=0, eta_s=0)
    assert draft.tags[0][2].startswith(text)
    assert draft.tags[0][2].endswith("a time not measured yet.")


def test_an_error_has_prefix_sentence_and_our_price() -> None:
    denial = Denial(ErrorPrefix.BID_TOO_LOW, "this job costs 5000 msats and the bid is 1 msats")
    feedback = parse_feedback(signed(error_draft(ID, CUSTOMER.public_hex, denial, amount_msats=5000), PROVIDER))
    assert feedback.status is FeedbackStatus.ERROR
    assert feedback.info == denial.info
    assert feedback.prefix is ErrorPrefix.BID_TOO_LOW
    assert (feedback.amount_msats, feedback.bolt11) == (5000, None)


def test_an_error_of_another_provider_has_no_prefix_of_ours() -> None:
    feedback = parse_feedback(event_with(("status", "error", "oops: no"), ("e", ID), kind=7000))
    assert feedback.prefix is None
    success = parse_feedback(event_with(("status", "success", "invalid: no"), ("e", ID), kind=7000))
    assert success.prefix is None


@pytest.mark.parametrize(
    ("amount_msats", "bolt11"),
    [
        (None, INVOICE),
        (1000, ""),
        (1000, "lnbc 1"),
        (1000, 'lnbc"'),
        (1000, "LNBC1"),
        (1000, "ln" + "q" * MAX_BOLT11),
    ],
)
def test_an_invoice_that_could_break_an_event_is_not_written(amount_msats: int | None, bolt11: str) -> None:
    with pytest.raises(ValueError, match="invoice"):
        feedback_draft(ID, ID, FeedbackStatus.PAYMENT_REQUIRED, amount_msats=amount_msats, bolt11=bolt11)
    with pytest.raises(ValueError, match="invoice"):
        result_draft(job_request(), "x", amount_msats=amount_msats, bolt11=bolt11)


@given(events(st.sampled_from([7000, 6000, 6050, 6999])))
def test_reading_raises_only_bad_reply(event: Event) -> None:
    for parse in (parse_feedback, parse_result):
        try:
            reply = parse(event)
        except BadReply as error:
            assert str(error).isprintable()
        else:
            assert len(reply.request_id) == 64
            assert reply.amount_msats is None or 0 <= reply.amount_msats <= MAX_MONEY_MSATS
            assert reply.bolt11 is None or (reply.bolt11.isascii() and reply.bolt11.isalnum())


@pytest.mark.parametrize(
    "tags",
    [
        (),
        (("e", ID),),
        (("status", "success"),),
        (("status",), ("e", ID)),
        (("status", "done"), ("e", ID)),
        (("status", "success"), ("e", "zz")),
        (("status", "success"), ("e",), ("request", "not json")),
        (("status", "success"), ("request", "[" * 5000)),
        (("status", "success"), ("request", "[1]")),
        (("status", "success"), ("request", '{"id":5}')),
        (("status", "success"), ("request", '{"id":"zz"}')),
    ],
)
def test_feedback_for_nothing_is_refused(tags: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(BadReply):
        parse_feedback(event_with(*tags, kind=7000))


def test_other_kinds_are_no_replies() -> None:
    with pytest.raises(BadReply, match="kind 6050"):
        parse_feedback(event_with(("status", "success"), ("e", ID), kind=6050))
    for kind in (5050, 5999, 7000):
        with pytest.raises(BadReply, match=f"kind {kind}"):
            parse_result(event_with(("e", ID), kind=kind))


def test_a_foreign_reply_may_name_the_request_only_by_its_copy() -> None:
    request = job_request()
    result = parse_result(event_with(("e", "zz"), ("request", request.to_json()), kind=6050, content="x"))
    assert result == JobResult(request.id, "x")


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (("amount",), (None, None)),
        (("amount", "1.5"), (None, None)),
        (("amount", "abc", INVOICE), (None, INVOICE)),
        (("amount", "1000", ""), (1000, None)),
        (("amount", "1000", "hello world"), (1000, None)),
        (("amount", "1000", "lnbc\x1b[2J"), (1000, None)),
        (("amount", "1000", "ln" + "q" * 100_000), (1000, None)),
        (("amount", "1000", f" {INVOICE.upper()}\n"), (1000, INVOICE)),
    ],
)
def test_malformed_amounts_count_as_absent(tag: tuple[str, ...], expected: tuple[int | None, str | None]) -> None:
    feedback = parse_feedback(event_with(("status", " Payment-Required "), ("e", ID), tag, kind=7000))
    assert feedback.status is FeedbackStatus.PAYMENT_REQUIRED
    assert (feedback.amount_msats, feedback.bolt11) == expected


@pytest.mark.parametrize(
    "tag", [("partial",), ("partial", "1"), ("partial", "-1", "1"), ("partial", "1", "9" * 99)]
)
def test_partials_of_other_providers_have_no_number(tag: tuple[str, ...]) -> None:
    feedback = parse_feedback(event_with(("status", "partial"), ("e", ID), tag, kind=7000, content="so far"))
    assert (feedback.content, feedback.number, feedback.attempt) == ("so far", None, None)
