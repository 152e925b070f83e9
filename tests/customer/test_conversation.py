"""What a customer makes of replies: in any order, several times, from anybody, of any shape."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.customer import conversation as module
from pylon.customer.conversation import Conversation, Drop
from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Remark, Result, Success, Update
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.nip90 import BadRequest, Denial, ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import (
    error_draft,
    feedback_draft,
    partial_draft,
    payment_required_draft,
    result_draft,
)
from tests.support import events
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, job_request, signed

ADDRESSED = job_request(providers=[PROVIDER.public_hex])
BROADCAST = job_request()
BOLT11 = "lnbcrt10u1pexample"


def feedback(request: Event, status: FeedbackStatus, info: str = "", key: SecretKey = PROVIDER) -> Event:
    return signed(feedback_draft(request.id, CUSTOMER.public_hex, status, info=info), key)


def partial(content: str, number: int, attempt: int = 1, request: Event = ADDRESSED) -> Event:
    draft = partial_draft(request.id, CUSTOMER.public_hex, content, number=number, attempt=attempt)
    return signed(draft, PROVIDER)


def result(content: str, request: Event = ADDRESSED, key: SecretKey = PROVIDER, at: int = events.NOW) -> Event:
    return signed(result_draft(request, content, amount_msats=4000), key, at)


def test_every_reply_becomes_its_update() -> None:
    talk = Conversation(ADDRESSED)
    who = PROVIDER.public_hex
    asked = payment_required_draft(
        ADDRESSED.id, CUSTOMER.public_hex, amount_msats=4000, bolt11=BOLT11, invoice_expires_at=1, eta_s=2
    )
    update = talk.hear(signed(asked, PROVIDER))
    assert isinstance(update, PaymentRequired)
    assert (update.provider, update.amount_msats, update.bolt11) == (who, 4000, BOLT11)
    assert update.info.startswith("Pay 4 sats")
    assert talk.hear(feedback(ADDRESSED, FeedbackStatus.PROCESSING, "soon")) == Processing(who, "soon")
    assert talk.hear(partial("The", 1)) == Partial(who, "The", 1, 1)
    final = result("The sea")
    assert talk.hear(final) == Result(who, "The sea", final, 4000, None)
    assert talk.hear(feedback(ADDRESSED, FeedbackStatus.SUCCESS)) == Success(who)
    assert not talk.dropped


def test_an_error_of_ours_is_split_into_prefix_and_sentence() -> None:
    denial = Denial(ErrorPrefix.BID_TOO_LOW, "this job costs 5 sats: too much")
    draft = error_draft(ADDRESSED.id, CUSTOMER.public_hex, denial, amount_msats=5000)
    heard = Conversation(ADDRESSED).hear(signed(draft, PROVIDER))
    assert heard == Failed(PROVIDER.public_hex, "bid-too-low", "this job costs 5 sats: too much", 5000)


@pytest.mark.parametrize(
    ("tag", "content", "sentence"),
    [
        (("status", "error", "no GPU: sorry"), "", "no GPU: sorry"),
        (("status", "error"), "no GPU", "no GPU"),
        (("status", "error"), "", ""),
    ],
)
def test_an_error_of_others_is_kept_whole(tag: tuple[str, ...], content: str, sentence: str) -> None:
    event = signed(Draft(7000, content, (tag, ("e", ADDRESSED.id))), PROVIDER)
    assert Conversation(ADDRESSED).hear(event) == Failed(PROVIDER.public_hex, "", sentence)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_in_any_order_the_text_only_grows_and_ends_with_the_result(order: tuple[int, ...]) -> None:
    talk = Conversation(ADDRESSED)
    said = [partial("a", 1), partial("ab", 2), partial("x", 1, attempt=2), result("xyz")]
    heard = [update for at in order if not isinstance(update := talk.hear(said[at]), Drop)]
    texts = [update.content for update in heard if isinstance(update, Partial | Result)]
    assert texts == sorted(texts, key=["a", "ab", "x", "xyz"].index)
    assert texts[-1] == "xyz"
    assert talk.dropped[Drop.STALE] == 4 - len(texts)


def test_partials_without_numbers_are_passed_on_as_they_come() -> None:
    talk = Conversation(ADDRESSED)
    texts = []
    for text in ("one ", "two "):
        event = signed(Draft(7000, text, (("status", "partial"), ("e", ADDRESSED.id))), PROVIDER)
        update = talk.hear(event)
        assert isinstance(update, Partial)
        assert update.number is None
        texts.append(update.content)
    assert texts == ["one ", "two "]


def test_the_same_event_counts_once_and_a_second_result_not_at_all() -> None:
    talk = Conversation(ADDRESSED)
    assert isinstance(talk.hear(result("first")), Result)
    assert talk.hear(result("first")) is Drop.DUPLICATE
    assert talk.hear(result("second", at=events.NOW + 1)) is Drop.DUPLICATE


def test_a_forged_copy_does_not_keep_the_true_event_out() -> None:
    talk = Conversation(ADDRESSED)
    true = result("the truth")
    for forged in (replace(true, content="a lie"), replace(true, sig="0" * 128), replace(true, created_at=1)):
        assert talk.hear(forged) is Drop.FORGED
    assert isinstance(talk.hear(true), Result)


@pytest.mark.parametrize("written", [PROVIDER.public_hex, encode_npub(PROVIDER.public_hex)])
def test_an_addressed_request_hears_its_provider_only(written: str) -> None:
    request = job_request(providers=[written])
    talk = Conversation(request)
    assert talk.hear(result("mine", request, STRANGER)) is Drop.STRANGER
    assert isinstance(talk.hear(result("theirs", request)), Result)


def test_a_request_to_a_malformed_key_is_answered_by_nobody() -> None:
    request = job_request(providers=["not a key"])
    assert Conversation(request).hear(result("hello", request)) is Drop.STRANGER


def test_a_broadcast_hears_all_until_one_is_paid() -> None:
    talk = Conversation(BROADCAST)
    assert isinstance(talk.hear(feedback(BROADCAST, FeedbackStatus.PROCESSING, key=STRANGER)), Processing)
    talk.listen_only_to(PROVIDER.public_hex)
    assert talk.hear(result("I was not paid", BROADCAST, STRANGER)) is Drop.STRANGER
    assert isinstance(talk.hear(result("I was", BROADCAST)), Result)
    talk.listen_only_to(None)
    assert isinstance(talk.hear(result("I was not paid", BROADCAST, STRANGER)), Result)


def test_replies_to_other_requests_and_other_kinds_are_unrelated() -> None:
    talk = Conversation(ADDRESSED)
    other = job_request("Another", providers=[PROVIDER.public_hex])
    assert talk.hear(result("theirs", other)) is Drop.UNRELATED
    assert talk.hear(signed(Draft(6001, "", (("e", ADDRESSED.id),)), PROVIDER)) is Drop.UNRELATED
    assert talk.hear(ADDRESSED) is Drop.UNRELATED
    assert talk.hear(signed(Draft(7000, "", (("e", ADDRESSED.id),)), PROVIDER)) is Drop.MALFORMED
    assert talk.dropped == {Drop.UNRELATED: 3, Drop.MALFORMED: 1}


def test_a_status_that_nip90_does_not_know_is_a_remark() -> None:
    talk = Conversation(ADDRESSED)
    about = ("e", ADDRESSED.id)
    who = PROVIDER.public_hex
    long = Draft(7000, "", (("status", "x" * 500, "y" * 5000), about))
    assert talk.hear(signed(long, PROVIDER)) == Remark(who, "x" * 64, "y" * 1024)
    said = Draft(7000, "two jobs before you", (("status", " Queued "), about))
    assert talk.hear(signed(said, PROVIDER)) == Remark(who, "Queued", "two jobs before you")
    assert talk.hear(signed(said, STRANGER)) is Drop.STRANGER
    assert talk.hear(signed(Draft(7000, "", (("status", " "), about)), PROVIDER)) is Drop.MALFORMED
    assert talk.hear(signed(Draft(7000, "", (("status", "queued"),)), PROVIDER)) is Drop.MALFORMED


def test_a_conversation_is_about_a_job_request() -> None:
    with pytest.raises(BadRequest):
        Conversation(signed(Draft(1, "hello")))


def test_a_crowd_of_providers_is_heard_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROVIDERS", 3)
    talk = Conversation(BROADCAST)
    keys = [SecretKey(bytes([7]) * 31 + bytes([n])) for n in range(5)]
    heard = [talk.hear(feedback(BROADCAST, FeedbackStatus.PROCESSING, key=key)) for key in keys]
    assert heard[3:] == [Drop.CROWDED, Drop.CROWDED]
    assert isinstance(talk.hear(result("still heard", BROADCAST, keys[0])), Result)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    talk = Conversation(ADDRESSED)
    said = [feedback(ADDRESSED, FeedbackStatus.PROCESSING, str(number)) for number in range(30)]
    for event in said:
        talk.hear(event)
    assert talk.hear(said[-1]) is Drop.DUPLICATE
    assert isinstance(talk.hear(said[0]), Processing), "forgotten, and harmless"


HOSTILE_TAGS = st.lists(
    events.tags
    | st.just(("e", BROADCAST.id))
    | st.tuples(st.just("status"), st.sampled_from([*FeedbackStatus, "?", ""]), events.texts)
    | st.tuples(st.just("amount"), events.texts, events.texts)
    | st.tuples(st.just("partial"), events.texts, events.texts),
    max_size=8,
).map(tuple)


@given(st.lists(st.tuples(st.sampled_from([6050, 7000, 6000, 1]), HOSTILE_TAGS, events.texts), max_size=6))
def test_nothing_a_stranger_signs_raises(said: list[tuple[int, tuple[tuple[str, ...], ...], str]]) -> None:
    talk = Conversation(BROADCAST)
    for kind, tags, content in said:
        heard = talk.hear(signed(Draft(kind, content, tags), STRANGER))
        assert isinstance(heard, Update | Drop)


@given(events.events(st.sampled_from([6050, 7000])))
def test_nothing_unsigned_is_ever_believed(event: Event) -> None:
    assert isinstance(Conversation(BROADCAST).hear(event), Drop)
