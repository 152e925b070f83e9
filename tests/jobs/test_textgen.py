import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs.ports import GenerationRequest, Message
from pylon.jobs.textgen import (
    MAX_MODEL_CHARS,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_TOKENS,
    MAX_TOP_K,
    PARAMS,
    TextGeneration,
    parse_textgen,
    to_generation,
)
from pylon.nostr.event import Event
from pylon.nostr.nip90 import BadRequest, Denial, ErrorPrefix, parse_request
from tests.support.events import event_with, events, job_request

PROMPT = ("i", "hi", "text")


def read(*tags: tuple[str, ...], content: str = "") -> TextGeneration:
    return parse_textgen(parse_request(event_with(PROMPT, *tags, content=content)))


def denied(*tags: tuple[str, ...]) -> Denial:
    with pytest.raises(BadRequest) as caught:
        read(*tags)
    return caught.value.denial


def test_every_parameter_is_honoured() -> None:
    asked = read(
        ("param", "model", "SmolLM2-135M"),
        ("param", "system", "Be brief."),
        ("param", "max_tokens", "100"),
        ("param", "temperature", "0.7"),
        ("param", "top-k", "40"),
        ("param", "Top_P", ".95"),
        ("param", "frequency_penalty", "-0.5"),
        ("param", "presence-penalty", "2"),
        ("param", "seed", "42"),
        ("param", "stop", "END", "\n\n"),
        ("param", "stop", "###"),
        ("output", "text/plain; charset=utf-8"),
    )
    assert asked == TextGeneration(
        prompt="hi",
        system="Be brief.",
        model="SmolLM2-135M",
        max_tokens=100,
        temperature=0.7,
        top_k=40,
        top_p=0.95,
        frequency_penalty=-0.5,
        presence_penalty=2.0,
        seed=42,
        stop=("END", "\n\n", "###"),
    )
    # Nothing is lost on the way to the backend, and what is priced is what is sent.
    generation = to_generation(asked, "smollm2.gguf", 64)
    assert generation == GenerationRequest(
        model="smollm2.gguf",
        messages=(Message("system", "Be brief."), Message("user", "hi")),
        max_tokens=64,
        temperature=0.7,
        top_k=40,
        top_p=0.95,
        frequency_penalty=-0.5,
        presence_penalty=2.0,
        seed=42,
        stop=("END", "\n\n", "###"),
    )
    assert asked.texts == tuple(message.content for message in generation.messages)


def test_nothing_asked_is_left_to_the_model() -> None:
    asked = read()
    assert asked == TextGeneration(prompt="hi")
    assert asked.texts == ("hi",)
    assert to_generation(asked, "m", 5) == GenerationRequest("m", (Message("user", "hi"),), 5)


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("max_tokens", "1", 1),
        ("max_tokens", str(MAX_TOKENS), MAX_TOKENS),
        ("max_tokens", "0100", 100),
        ("top_k", "0", 0),
        ("top_k", str(MAX_TOP_K), MAX_TOP_K),
        ("seed", "0", 0),
        ("seed", str(MAX_SEED), MAX_SEED),
        ("temperature", "0", 0.0),
        ("temperature", "-0", 0.0),
        ("temperature", "2.0", 2.0),
        ("temperature", "1.", 1.0),
        ("temperature", "1e-7", 1e-7),
        ("temperature", "5E-05", 5e-5),
        ("top_p", "1", 1.0),
        ("top_p", "0.0001", 0.0001),
        ("frequency_penalty", "-2", -2.0),
        ("presence_penalty", "2.000", 2.0),
    ],
)
def test_numbers_in_range(name: str, value: str, number: float) -> None:
    assert getattr(read(("param", name, value)), name) == number


def test_a_seed_that_llama_cpp_takes_for_random_is_not_promised() -> None:
    assert read(("param", "seed", "4294967294")).seed == 4294967294
    assert denied(("param", "seed", "4294967295")).prefix is ErrorPrefix.INVALID


NO_NUMBERS = [
    "",
    " ",
    "abc",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1e400",
    "1e3",
    "0x10",
    "1_0",
    " 1",
    "1 ",
    "1\n",
]
NO_NUMBERS += [
    "+1",
    "--1",
    "1,5",
    "١٢",
    "\uff11",
    "9" * 5000,
    "\x00",
    "\u2028",
    "true",
    "None",
    "1e",
    ".",
    "-",
    "1.5.1",
]
WHOLE = ["max_tokens", "top_k", "seed"]
DECIMAL = ["temperature", "top_p", "frequency_penalty", "presence_penalty"]


@pytest.mark.parametrize("name", WHOLE + DECIMAL)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    denial = denied(("param", name, value))
    assert denial.prefix is ErrorPrefix.INVALID
    assert denial.sentence.startswith(f"{name} is '")
    assert denial.sentence.isprintable()
    assert len(denial.sentence) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "0"),
        ("max_tokens", "-1"),
        ("max_tokens", "1.0"),
        ("max_tokens", str(MAX_TOKENS + 1)),
        ("max_tokens", "1" + "0" * 18),
        ("top_k", "-1"),
        ("top_k", str(MAX_TOP_K + 1)),
        ("top_k", "40.0"),
        ("seed", "-1"),
        ("seed", str(MAX_SEED + 1)),
        ("temperature", "2.01"),
        ("temperature", "-0.1"),
        ("top_p", "0"),
        ("top_p", "0.0"),
        ("top_p", "-0.5"),
        ("top_p", "1.01"),
        ("frequency_penalty", "2.1"),
        ("presence_penalty", "-2.1"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(name: str, value: str) -> None:
    denial = denied(("param", name, value))
    assert denial.prefix is ErrorPrefix.INVALID
    assert f"'{value}': give a " in denial.sentence


@pytest.mark.parametrize("name", ["mode", "top k", "n", "logit_bias", "prompt", "\x1b[2J", "x" * 5000, "mödel"])
def test_unknown_parameters_are_named_and_refused(name: str) -> None:
    denial = denied(("param", name, "1"))
    assert denial.prefix is ErrorPrefix.UNSUPPORTED_PARAM
    assert denial.sentence.isprintable()
    assert len(denial.sentence) < 500
    if name.isascii() and name.isprintable():
        assert name[:60].strip() in denial.sentence


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_a_parameter_without_value_is_refused(name: str) -> None:
    assert denied(("param", name)) == Denial(ErrorPrefix.INVALID, f"{name} has no value")


@pytest.mark.parametrize("name", sorted(PARAMS - {"stop"}))
def test_two_values_of_one_are_refused_however_they_come(name: str) -> None:
    expected = Denial(ErrorPrefix.INVALID, f"{name} has 2 values: one is taken")
    assert denied(("param", name, "1", "1")) == expected
    assert denied(("param", name, "1"), ("param", name.replace("_", "-").upper(), "1")) == expected


@pytest.mark.parametrize(
    "tags",
    [
        [("param", "stop", "")],
        [("param", "stop", "x" * (MAX_STOP_CHARS + 1))],
        [("param", "stop", "a", "b", "c", "d", "e")],
        [("param", "stop", each) for each in "abcde"],
        [("param", "model", "  ")],
        [("param", "model", "m" * (MAX_MODEL_CHARS + 1))],
        [("param", "system", "\n")],
    ],
)
def test_texts_out_of_bounds_are_refused(tags: list[tuple[str, ...]]) -> None:
    assert denied(*tags).prefix is ErrorPrefix.INVALID


def test_inputs_are_joined_by_a_blank_line_in_their_order() -> None:
    event = event_with(("i", "one"), ("i", "", "text"), ("i", "two", "text", "", "context"))
    assert parse_textgen(parse_request(event)).prompt == "one\n\ntwo"


def test_content_is_the_prompt_only_without_inputs() -> None:
    assert parse_textgen(parse_request(event_with(content="ask"))).prompt == "ask"
    assert read(content="note").prompt == "hi"


@pytest.mark.parametrize(
    "event", [event_with(), event_with(content=" \n"), event_with(("i", "")), event_with(("i", " "), content="x")]
)
def test_no_prompt_is_refused(event: Event) -> None:
    with pytest.raises(BadRequest, match=r"^invalid: no prompt"):
        parse_textgen(parse_request(event))


@pytest.mark.parametrize("kind", ["url", "event", "job"])
def test_inputs_to_be_fetched_are_refused(kind: str) -> None:
    denial = denied(("i", "https://169.254.169.254/", kind))
    assert denial.prefix is ErrorPrefix.UNSUPPORTED_INPUT
    assert kind in denial.sentence


@pytest.mark.parametrize("output", ["text/plain", "TEXT/Plain", "text/markdown", "text/*", "*/*", ""])
def test_outputs_that_text_is(output: str) -> None:
    assert read(("output", output)).prompt == "hi"


@pytest.mark.parametrize("output", ["application/json", "image/png", "text", "text/html", "\x1b[0m", "x" * 5000])
def test_other_outputs_are_refused(output: str) -> None:
    denial = denied(("output", output))
    assert denial.prefix is ErrorPrefix.UNSUPPORTED_OUTPUT
    assert denial.sentence.isprintable()
    assert len(denial.sentence) < 500


def test_encrypted_requests_and_other_kinds_are_refused() -> None:
    assert denied(("encrypted",)).prefix is ErrorPrefix.UNSUPPORTED_ENCRYPTION
    with pytest.raises(BadRequest, match=r"^unsupported-kind: kind 5100"):
        parse_textgen(parse_request(job_request(kind=5100)))


@given(events(st.just(5050)))
def test_whatever_comes_is_in_range_or_refused(event: Event) -> None:
    try:
        asked = parse_textgen(parse_request(event))
    except BadRequest as error:
        assert error.denial.info.isprintable()
        assert len(error.denial.info) < 700
        return
    assert asked.prompt.strip()
    numbers = (asked.temperature, asked.top_p, asked.frequency_penalty, asked.presence_penalty)
    assert all(number is None or (math.isfinite(number) and abs(number) <= 2) for number in numbers)
    assert asked.max_tokens is None or type(asked.max_tokens) is int
    assert asked.max_tokens is None or 1 <= asked.max_tokens <= MAX_TOKENS
    assert all(asked.stop)


@given(
    max_tokens=st.integers(1, MAX_TOKENS),
    seed=st.integers(0, MAX_SEED),
    temperature=st.floats(0, 2, allow_nan=False),
    penalty=st.floats(-2, 2, allow_nan=False),
)
def test_numbers_as_python_writes_them_are_read_back(
    max_tokens: int, seed: int, temperature: float, penalty: float
) -> None:
    written = round(temperature, 12), round(penalty, 12)
    asked = read(
        ("param", "max_tokens", str(max_tokens)),
        ("param", "seed", str(seed)),
        ("param", "temperature", str(written[0])),
        ("param", "presence_penalty", str(written[1])),
    )
    assert (asked.max_tokens, asked.seed) == (max_tokens, seed)
    assert (asked.temperature, asked.presence_penalty) == written
