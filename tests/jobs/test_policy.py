import hashlib
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs.policy import (
    Address,
    Counters,
    Drop,
    IntakePolicy,
    Load,
    OutputBudget,
    RateLimiter,
    SeenIds,
    TokenBucket,
    addressed_to,
    check_load,
    check_prompt,
    check_times,
    job_deadline,
)
from pylon.nostr.nip90 import ErrorPrefix, JobRequest, parse_request
from pylon.nostr.nip90_fit import BARE_RESULT_BYTES, text_bytes
from tests.support.events import NOW, PROVIDER, STRANGER, event_with, job_request, surrogate_texts, texts

POLICY = IntakePolicy(max_age_s=100, max_future_s=10, max_prompt_bytes=20)


def request_at(created_at: int = NOW, expires_at: int | None = None) -> JobRequest:
    return parse_request(job_request(created_at=created_at, expires_at=expires_at))


def number_id(number: int) -> str:
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()


# --- one request ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("created_at", "expires_at", "prefix"),
    [
        (NOW, None, None),
        (NOW - 100, None, None),
        (NOW - 101, None, ErrorPrefix.TOO_OLD),
        (0, None, ErrorPrefix.TOO_OLD),
        (NOW + 10, None, None),
        (NOW + 11, None, ErrorPrefix.IN_FUTURE),
        (2**53 - 1, None, ErrorPrefix.IN_FUTURE),
        (NOW, NOW + 1, None),
        (NOW, NOW, ErrorPrefix.EXPIRED),
        (NOW, 0, ErrorPrefix.EXPIRED),
        (NOW - 1000, NOW - 1, ErrorPrefix.EXPIRED),
        (NOW - 1000, NOW + 1, ErrorPrefix.TOO_OLD),
    ],
)
def test_times(created_at: int, expires_at: int | None, prefix: ErrorPrefix | None) -> None:
    denial = check_times(request_at(created_at, expires_at), float(NOW), POLICY)
    assert (denial and denial.prefix) == prefix


@pytest.mark.parametrize(
    ("providers", "address"),
    [
        ((), Address.BROADCAST),
        ((PROVIDER.public_hex,), Address.TARGETED),
        ((STRANGER.public_hex, PROVIDER.public_hex), Address.TARGETED),
        ((STRANGER.public_hex,), Address.OTHER),
        (("npub1x",), Address.OTHER),
        (("",), Address.OTHER),
    ],
)
def test_whom_a_request_is_for(providers: tuple[str, ...], address: Address) -> None:
    request = parse_request(job_request(providers=providers))
    assert addressed_to(request.event, PROVIDER.public_hex) is address


def test_a_p_tag_without_value_is_no_broadcast() -> None:
    assert addressed_to(event_with(("p",)), PROVIDER.public_hex) is Address.OTHER


def test_prompts_are_measured_in_bytes_together() -> None:
    assert check_prompt(["x" * 20], POLICY) is None
    assert check_prompt(["🙂" * 5], POLICY) is None
    for its_texts in (["x" * 21], ["x" * 10, "y" * 11], ["🙂" * 6], ["\ud800" * 7]):
        denial = check_prompt(its_texts, POLICY)
        assert denial is not None
        assert denial.prefix is ErrorPrefix.TOO_LARGE


LIMITS = IntakePolicy(
    max_queued=4, max_queued_per_customer=3, max_open_invoices=2, max_open_invoices_per_customer=1
)


@pytest.mark.parametrize(
    ("load", "free", "prepaid"),
    [
        (Load(), None, None),
        (Load(queued=3, queued_of_customer=2), None, None),
        (Load(queued=4), "the queue is full (4 of 4)", "the queue is full (4 of 4)"),
        (
            Load(queued_of_customer=3),
            "you have too many open jobs here (3 of 3)",
            "you have too many open jobs here (3 of 3)",
        ),
        (Load(open_invoices=1), None, None),
        (Load(open_invoices=2), None, "too many invoices wait for payment (2 of 2)"),
        (Load(open_invoices_of_customer=1), None, "you have too many unpaid invoices here (1 of 1)"),
        (Load(queued=9), "the queue is full (9 of 4)", "the queue is full (9 of 4)"),
    ],
)
def test_load(load: Load, free: str | None, prepaid: str | None) -> None:
    for sentence, is_prepaid in ((free, False), (prepaid, True)):
        denial = check_load(load, LIMITS, prepaid=is_prepaid)
        assert (denial and denial.sentence) == sentence
        assert denial is None or denial.prefix is ErrorPrefix.QUEUE_FULL


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.none() | st.integers(0, 10**18))
def test_the_deadline_is_the_lesser(accepted_at: int, timeout_s: int, expires_at: int | None) -> None:
    deadline_at = job_deadline(accepted_at, timeout_s, expires_at)
    assert deadline_at <= accepted_at + timeout_s
    assert expires_at is None or deadline_at <= expires_at
    assert deadline_at in (accepted_at + timeout_s, expires_at)


@pytest.mark.parametrize("name", [each.name for each in fields(IntakePolicy)])
def test_a_negative_limit_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(POLICY, **{name: -1})


# --- output ---------------------------------------------------------------------------------------------------

pieces = st.lists(texts | st.sampled_from(["\x00", "\n", "🙂", "word "]), max_size=12)


@given(pieces, st.integers(0, 200))
def test_output_ends_where_the_frame_would_be_full(its_pieces: list[str], spare_bytes: int) -> None:
    budget = OutputBudget(BARE_RESULT_BYTES + spare_bytes)
    taken = "".join(budget.take(piece) for piece in its_pieces)
    whole = "".join(its_pieces)
    assert whole.startswith(taken)
    assert text_bytes(taken) <= spare_bytes
    assert budget.exhausted == (taken != whole)
    if budget.exhausted:
        # Not one more character would have fitted.
        assert text_bytes(whole[: len(taken) + 1]) > spare_bytes
        assert budget.left_bytes == 0
        assert budget.take("x") == ""
    else:
        assert budget.left_bytes == spare_bytes - text_bytes(taken)


@given(surrogate_texts)
def test_output_with_lone_surrogates_becomes_text(text: str) -> None:
    taken = OutputBudget(10**6).take(text)
    assert "\ufffd" in taken
    taken.encode()


def test_a_pair_of_surrogates_in_one_piece_is_its_character() -> None:
    assert OutputBudget(10**6).take("a\ud83d\ude42") == "a🙂"


def test_without_room_nothing_is_taken() -> None:
    budget = OutputBudget(10)
    assert budget.left_bytes == 0
    assert budget.take("") == ""
    assert not budget.exhausted
    assert budget.take("x") == ""
    assert budget.exhausted


# --- rates ----------------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(per_minute=60, burst=3)
    assert [bucket.take(1000.0) for _ in range(5)] == [True, True, True, False, False]
    assert not bucket.take(1000.9)
    assert bucket.take(1001.0)
    assert not bucket.take(1001.5)
    assert [bucket.take(2000.0) for _ in range(4)] == [True, True, True, False]


@given(
    st.integers(1, 6000),
    st.integers(1, 50),
    st.lists(st.integers(0, 3_000_000), min_size=1, max_size=200),
)
def test_a_bucket_never_gives_more_than_burst_and_rate_allow(per_minute: int, burst: int, gaps: list[int]) -> None:
    bucket = TokenBucket(per_minute, burst)
    now_micros, taken = NOW * 10**6, 0
    for gap in gaps:
        now_micros += gap
        taken += bucket.take(now_micros / 10**6)
    elapsed_micros = now_micros - NOW * 10**6
    # One microsecond of slack per step, because time comes as a float.
    assert taken <= burst + (elapsed_micros + len(gaps)) * per_minute / 60_000_000
    assert taken >= 1


@given(st.integers(1, 600), st.integers(1, 20))
def test_who_keeps_to_the_rate_is_never_refused(per_minute: int, burst: int) -> None:
    bucket = TokenBucket(per_minute, burst)
    step = 60 / per_minute + 1e-5
    assert all(bucket.take(1000 + index * step) for index in range(200))


def test_a_rate_of_zero_shuts() -> None:
    assert not TokenBucket(0).take(1000.0)
    assert not TokenBucket(0, burst=5).take(1000.0)
    assert not TokenBucket(60, burst=0).take(1000.0)
    with pytest.raises(ValueError, match="negative"):
        TokenBucket(-1)


def test_a_clock_set_back_locks_out_no_longer_than_an_empty_bucket() -> None:
    bucket = TokenBucket(per_minute=60, burst=2)
    assert [bucket.take(1_000_000.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(500.0 + second) for second in range(5)] == [False, True, True, True, True]


def test_customers_are_limited_apart() -> None:
    limiter = RateLimiter(per_minute=2)
    assert [limiter.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert limiter.take("b", 0.0)
    assert not limiter.take("a", 29.0)
    assert limiter.take("a", 31.0)


def test_the_limiter_forgets_the_least_recently_seen_first() -> None:
    limiter = RateLimiter(per_minute=1, max_keys=2)
    assert limiter.take("a", 0.0)
    assert limiter.take("b", 0.0)
    assert not limiter.take("a", 1.0)  # seen again: b is now the oldest
    assert limiter.take("c", 1.0)
    assert not limiter.take("a", 2.0)
    assert limiter.take("b", 2.0)


def test_a_flood_of_keys_does_not_grow_the_limiter() -> None:
    limiter = RateLimiter(per_minute=1, max_keys=100)
    for number in range(1000):
        limiter.take(number_id(number), 0.0)
    assert len(limiter) == 100


# --- memory of fixed size -------------------------------------------------------------------------------------


def test_an_id_is_new_once() -> None:
    seen = SeenIds()
    assert number_id(1) not in seen
    assert seen.add(number_id(1))
    assert not seen.add(number_id(1))
    assert number_id(1) in seen
    assert number_id(2) not in seen


@given(st.integers(1, 20), st.lists(st.integers(0, 60), max_size=150))
def test_at_least_the_last_ids_are_remembered_and_never_more_than_twice_as_many(
    capacity: int, numbers: list[int]
) -> None:
    seen = SeenIds(capacity)
    added: list[int] = []
    for number in numbers:
        if seen.add(number_id(number)):
            added.append(number)
        assert len(seen) <= 2 * capacity
        assert all(number_id(each) in seen for each in added[-capacity:])


def test_remembering_costs_little() -> None:
    seen = SeenIds(50_000)
    for number in range(150_000):
        seen.add(number_id(number))
    assert len(seen) <= 100_000
    tables = sum(sys.getsizeof(each) for each in (seen._recent, seen._older))
    assert tables + len(seen) * sys.getsizeof(bytes(32)) < 130 * len(seen)


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        SeenIds(0)


def test_counters_know_their_reasons_and_no_others() -> None:
    counters = Counters()
    counters.add(Drop.DUPLICATE)
    counters.add("duplicate")
    counters.add(ErrorPrefix.BID_TOO_LOW)
    for number in range(1000):
        counters.add(f"made-up-{number}")
    assert counters.as_dict() == {"other": 1000, "duplicate": 2, "bid-too-low": 1}


def test_drops_and_prefixes_do_not_collide() -> None:
    assert not {member.value for member in Drop} & {member.value for member in ErrorPrefix}
