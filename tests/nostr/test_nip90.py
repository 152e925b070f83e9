import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Event
from pylon.nostr.nip90 import (
    MAX_INPUTS,
    MAX_MONEY_MSATS,
    MAX_PARAMS,
    MAX_RELAY_URL,
    MAX_RELAYS,
    BadRequest,
    Denial,
    ErrorPrefix,
    InputType,
    JobInput,
    cancel_draft,
    clean_relays,
    normal_name,
    parse_deletion,
    parse_msats,
    parse_request,
    request_draft,
    result_kind,
)
from tests.support.events import CUSTOMER, NOW, PROVIDER, event_with, events, hex64, job_request, signed, texts

ID = "ab" * 32

relay_urls = st.from_regex(r"\Awss?://[a-z0-9.:\[\]/-]{1,40}\Z")
inputs = st.builds(JobInput, data=texts, type=st.sampled_from(InputType), relay=texts, marker=texts)
names = st.from_regex(r"\A[a-z0-9_]{1,20}\Z")
params = st.tuples(names, st.lists(texts, max_size=3).map(tuple))


@given(
    kind=st.integers(5000, 5999),
    its_inputs=st.lists(inputs, max_size=4).map(tuple),
    its_params=st.lists(params, max_size=4).map(tuple),
    output=st.none() | names,
    bid_msats=st.none() | st.integers(0, MAX_MONEY_MSATS),
    relays=st.lists(relay_urls, max_size=MAX_RELAYS, unique=True).map(tuple),
    topics=st.lists(texts, max_size=3).map(tuple),
    providers=st.lists(hex64, max_size=3).map(tuple),
    expires_at=st.none() | st.integers(0, 10**18),
)
def test_a_request_survives_the_wire(
    kind: int,
    its_inputs: tuple[JobInput, ...],
    its_params: tuple[tuple[str, tuple[str, ...]], ...],
    output: str | None,
    bid_msats: int | None,
    relays: tuple[str, ...],
    topics: tuple[str, ...],
    providers: tuple[str, ...],
    expires_at: int | None,
) -> None:
    event = signed(
        request_draft(
            kind,
            its_inputs,
            params=its_params,
            output=output,
            bid_msats=bid_msats,
            relays=relays,
            topics=topics,
            providers=providers,
            expires_at=expires_at,
        )
    )
    request = parse_request(event)
    assert (request.id, request.customer, request.kind, request.created_at) == (
        event.id,
        CUSTOMER.public_hex,
        kind,
        NOW,
    )
    assert request.inputs == its_inputs
    assert request.params == its_params
    assert request.output == output
    assert request.bid_msats == bid_msats
    assert request.relays == relays
    assert request.topics == topics
    assert request.providers == providers
    assert request.expires_at == expires_at
    assert not request.encrypted


@given(events(st.integers(4990, 6010)))
def test_parsing_raises_only_bad_request_with_a_harmless_sentence(event: Event) -> None:
    try:
        request = parse_request(event)
    except BadRequest as error:
        assert error.denial.info.isprintable()
        assert len(error.denial.info) < 700
        assert str(error) == error.denial.info
    else:
        assert 5000 <= request.kind < 6000
        assert request.bid_msats is None or 0 <= request.bid_msats <= MAX_MONEY_MSATS
        assert len(request.relays) <= MAX_RELAYS
        assert all(url.isascii() and url.isprintable() and len(url) <= MAX_RELAY_URL for url in request.relays)
        assert all(name and name == normal_name(name) for name, _ in request.params)


def denial_of(event: Event) -> Denial:
    with pytest.raises(BadRequest) as caught:
        parse_request(event)
    return caught.value.denial


@pytest.mark.parametrize("kind", [0, 5, 4999, 6000, 7000, 65535])
def test_other_kinds_are_no_requests(kind: int) -> None:
    assert denial_of(event_with(kind=kind)).prefix is ErrorPrefix.UNSUPPORTED_KIND


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (("i", "x"), JobInput("x")),
        (("i", "x", ""), JobInput("x")),
        (("i", "x", " Text "), JobInput("x")),
        (("i", "", "text"), JobInput("")),
        (("i", "x", "url"), JobInput("x", InputType.URL)),
        (("i", ID, "event", "wss://r"), JobInput(ID, InputType.EVENT, "wss://r")),
        (("i", ID, "job", "", "m", "more"), JobInput(ID, InputType.JOB, "", "m")),
    ],
)
def test_inputs_of_the_wild(tag: tuple[str, ...], expected: JobInput) -> None:
    assert parse_request(event_with(tag)).inputs == (expected,)


@pytest.mark.parametrize(
    ("tag", "prefix"),
    [
        (("i",), ErrorPrefix.INVALID),
        (("i", "x", "image"), ErrorPrefix.UNSUPPORTED_INPUT),
        (("i", "x", "\x1b[2J" * 100), ErrorPrefix.UNSUPPORTED_INPUT),
        (("param",), ErrorPrefix.INVALID),
        (("param", " "), ErrorPrefix.INVALID),
        (("expiration",), ErrorPrefix.INVALID),
        (("expiration", "soon"), ErrorPrefix.INVALID),
        (("expiration", "-5"), ErrorPrefix.INVALID),
        (("expiration", "1.5"), ErrorPrefix.INVALID),
        (("expiration", "9" * 20), ErrorPrefix.INVALID),
    ],
)
def test_malformed_tags_have_a_reason(tag: tuple[str, ...], prefix: ErrorPrefix) -> None:
    assert denial_of(event_with(tag)).prefix is prefix


@pytest.mark.parametrize(
    "bid",
    [
        "abc",
        "",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "nan",
        "0x10",
        "1_000",
        " 1",
        "1\n",
        "١٢",
        "1000 msats",
        str(MAX_MONEY_MSATS + 1),
        "9" * 5000,
        "\x00",
        "\u2028",
    ],
)
def test_a_bid_that_is_no_amount_is_refused(bid: str) -> None:
    denial = denial_of(event_with(("i", "x"), ("bid", bid)))
    assert denial.prefix is ErrorPrefix.INVALID
    assert denial.sentence.startswith("bid '")


def test_bids_that_are_amounts() -> None:
    for bid, bid_msats in (("0", 0), ("007", 7), ("1000", 1000), (str(MAX_MONEY_MSATS), MAX_MONEY_MSATS)):
        assert parse_request(event_with(("bid", bid))).bid_msats == bid_msats
    assert parse_request(event_with(("bid", "5", "more"))).bid_msats == 5
    assert parse_request(event_with()).bid_msats is None


def test_a_bid_without_value_is_not_taken_for_no_bid() -> None:
    assert denial_of(event_with(("bid",))).prefix is ErrorPrefix.INVALID


@pytest.mark.parametrize("name", ["bid", "output", "expiration"])
def test_two_of_what_may_come_once_are_refused(name: str) -> None:
    denial = denial_of(event_with((name, "5"), (name, "500")))
    assert denial == Denial(ErrorPrefix.INVALID, f"more than one {name} tag")


def test_params_keep_order_and_repetition_under_normalised_names() -> None:
    event = event_with(
        ("param", "Top-K", "40"), ("param", "stop", "a", "b"), ("param", "stop", "c"), ("param", " seed ")
    )
    expected = (("top_k", ("40",)), ("stop", ("a", "b")), ("stop", ("c",)), ("seed", ()))
    assert parse_request(event).params == expected


def test_relays_are_merged_cleaned_and_bounded() -> None:
    many = [f"wss://{number}.example" for number in range(100)]
    event = event_with(
        ("relays", "wss://a", "ws://b:1/x", "wss://a", "http://c", "", "wss://", "wss://sp ace", 'wss://q"'),
        ("relays",),
        ("relays", "wss://\x00", "wss://ü", "wss://" + "x" * MAX_RELAY_URL, "WSS://D"),
        ("relays", *many),
    )
    relays = parse_request(event).relays
    assert relays[:3] == ("wss://a", "ws://b:1/x", "WSS://D")
    assert len(relays) == MAX_RELAYS
    assert clean_relays(many) == tuple(many[:MAX_RELAYS])


def test_a_malformed_provider_still_means_someone() -> None:
    assert parse_request(event_with(("p",), ("p", "npub1x"))).providers == ("", "npub1x")


def test_encrypted_and_empty_output() -> None:
    assert parse_request(event_with(("encrypted",))).encrypted
    assert parse_request(event_with(("output", " "))).output is None
    assert parse_request(event_with(("output",))).output is None


def test_floods_of_tags_are_refused() -> None:
    inputs_denial = denial_of(event_with(*[("i", "x")] * (MAX_INPUTS + 1)))
    params_denial = denial_of(event_with(*[("param", "a", "x")] * (MAX_PARAMS + 1)))
    assert inputs_denial.prefix is params_denial.prefix is ErrorPrefix.TOO_LARGE
    assert len(parse_request(event_with(*[("i", "x")] * MAX_INPUTS)).inputs) == MAX_INPUTS


def test_a_request_that_cannot_be_is_not_drafted() -> None:
    with pytest.raises(ValueError, match="kind 6000"):
        request_draft(6000)
    with pytest.raises(ValueError, match="bid"):
        request_draft(5050, bid_msats=-1)
    with pytest.raises(ValueError, match="bid"):
        request_draft(5050, bid_msats=MAX_MONEY_MSATS + 1)


def test_input_tags_are_no_longer_than_needed() -> None:
    draft = request_draft(
        5050, [JobInput("x"), JobInput("x", relay="wss://r"), JobInput("x", InputType.JOB, marker="m")]
    )
    assert draft.tags == (("i", "x", "text"), ("i", "x", "text", "wss://r"), ("i", "x", "job", "", "m"))


@given(st.lists(hex64, max_size=5, unique=True))
def test_deletions_name_ids_once(ids: list[str]) -> None:
    tags = [("e", each) for each in (*ids, *ids)] + [("e",), ("e", "zz"), ("e", ID.upper()), ("a", ID)]
    assert parse_deletion(event_with(*tags, kind=5)) == tuple(ids)
    assert parse_deletion(event_with(*tags, kind=1)) == ()


def test_a_cancellation_is_a_deletion_of_the_request() -> None:
    event = signed(cancel_draft(ID, 5050, "changed my mind"))
    assert event.kind == 5
    assert event.tags == (("e", ID), ("k", "5050"))
    assert parse_deletion(event) == (ID,)


@given(events(st.just(5)))
def test_parsing_a_deletion_never_raises(event: Event) -> None:
    assert all(len(each) == 64 for each in parse_deletion(event))


@pytest.mark.parametrize(("text", "amount_msats"), [("0", 0), ("21", 21), ("", None), ("٣", None), ("1e3", None)])
def test_msats(text: str, amount_msats: int | None) -> None:
    assert parse_msats(text) == amount_msats


def test_result_kinds() -> None:
    assert (result_kind(5050), result_kind(5999)) == (6050, 6999)


def test_a_denial_is_prefix_and_sentence() -> None:
    assert Denial(ErrorPrefix.BID_TOO_LOW, "more").info == "bid-too-low: more"


def test_prefixes_are_machine_readable() -> None:
    for prefix in ErrorPrefix:
        assert prefix.value.replace("-", "").isalpha()
        assert prefix.value == prefix.value.lower()


def test_the_helper_makes_valid_requests() -> None:
    request = parse_request(job_request("hi", bid_msats=5, providers=[PROVIDER.public_hex]))
    assert request.inputs == (JobInput("hi"),)
    assert request.providers == (PROVIDER.public_hex,)
