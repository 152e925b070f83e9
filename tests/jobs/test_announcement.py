"""What is announced: from the offers and the backends' states to the events, without a network or a clock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pylon.jobs.announcement import (
    AnnounceConfig,
    ProfileMode,
    announcement_now,
    drafts_now,
    is_foreign,
    quantization_of,
)
from pylon.jobs.catalogue import Offer, Route
from pylon.jobs.ports import BackendHealth, BackendState, ModelInfo
from pylon.jobs.pricing import Price
from pylon.nostr.nip89 import Measured, ModelPrice, parse_announcement
from tests.support.events import PROVIDER, signed

CONFIG = AnnounceConfig(
    name="Shop", about="Answers.", lud16="shop@ln.example", topics=("llm",), relays=("wss://one", "wss://two")
)
SMALL = Offer("small", "a", "secret-path/small.Q4_K_M.gguf", Price(1000, 5, 10), ("tiny",))
LARGE = Offer("large", "b", "large", Price(2000), context_tokens=8192)


def state(
    name: str, *models: ModelInfo, health: BackendHealth = BackendHealth.READY, detail: str = ""
) -> BackendState:
    return BackendState(name, "openai", health, detail, models)


STATES = {
    "a": state("a", ModelInfo(SMALL.backend_model, 2048), ModelInfo("a private model")),
    "b": state("b", ModelInfo("large", 4096)),
}


def test_every_model_that_is_served_is_told_with_context_and_price() -> None:
    announcement = announcement_now(CONFIG, (SMALL, LARGE), STATES, paused=False)
    small, large = announcement.models
    assert (small.name, small.aliases, small.context_tokens, small.price) == (
        "small",
        ("tiny",),
        2048,
        ModelPrice(1000, 5, 10),
    )
    assert (large.context_tokens, large.price) == (8192, ModelPrice(2000)), (
        "the operator's figure, not the server's"
    )
    assert (small.quantization, large.quantization) == ("Q4_K_M", None)
    params = {param.name: param for param in announcement.params}
    assert params["model"].values == ("small", "large")
    assert {"max_tokens", "temperature", "seed", "stop"} <= params.keys()
    assert not any(param.required for param in announcement.params)
    assert (announcement.kinds, announcement.topics, announcement.encryption_supported) == (
        (5050,),
        ("llm",),
        False,
    )
    assert not announcement.paused


def test_only_what_is_for_sale_is_told_and_only_under_its_name() -> None:
    drafts = drafts_now(CONFIG, announcement_now(CONFIG, (SMALL, LARGE), STATES, paused=False))
    said = "".join(draft.content + str(draft.tags) for draft in drafts.values())
    assert "private" not in said and "secret-path" not in said and "gguf" not in said


@pytest.mark.parametrize("health", [health for health in BackendHealth if health is not BackendHealth.READY])
def test_a_model_whose_backend_is_not_ready_is_left_out(health: BackendHealth) -> None:
    states = STATES | {"a": replace(STATES["a"], health=health)}
    announcement = announcement_now(CONFIG, (SMALL, LARGE), states, paused=False)
    assert [model.name for model in announcement.models] == ["large"]
    assert announcement.params[0].values == ("large",)
    assert not announcement.paused


def test_a_model_that_its_backend_does_not_have_is_left_out() -> None:
    states = {"a": state("a", ModelInfo("something else")), "b": STATES["b"]}
    assert [model.name for model in announcement_now(CONFIG, (SMALL, LARGE), states, paused=False).models] == [
        "large"
    ]
    assert announcement_now(CONFIG, (SMALL,), {}, paused=False).models == ()


def test_any_backend_of_a_model_serves_it_and_the_smallest_context_is_told() -> None:
    both = replace(SMALL, also=(Route("b", "large"),))
    (model,) = announcement_now(CONFIG, (both,), STATES, paused=False).models
    assert model.context_tokens == 2048
    down = {**STATES, "a": state("a", health=BackendHealth.DOWN)}
    (model,) = announcement_now(CONFIG, (both,), down, paused=False).models
    assert model.context_tokens == 4096


def test_the_kinds_are_those_of_what_is_served_or_of_everything_while_nothing_is() -> None:
    summaries = replace(SMALL, kinds=(5001,))
    announcement = announcement_now(CONFIG, (summaries, LARGE), STATES, paused=False)
    assert announcement.kinds == (5001, 5050)
    assert "length" in {param.name for param in announcement.params}
    without = {**STATES, "a": state("a", health=BackendHealth.DOWN)}
    announcement = announcement_now(CONFIG, (summaries, LARGE), without, paused=False)
    assert announcement.kinds == (5050,)
    assert "length" not in {param.name for param in announcement.params}
    assert announcement_now(CONFIG, (summaries, LARGE), {}, paused=False).kinds == (5001, 5050)


def test_paused_when_the_operator_says_so_or_nothing_can_be_bought() -> None:
    told = announcement_now(CONFIG, (SMALL, LARGE), STATES, paused=True)
    assert told.paused and len(told.models) == 2
    nothing = announcement_now(CONFIG, (SMALL, LARGE), {}, paused=False)
    assert nothing.paused and nothing.models == () and nothing.kinds == (5050,)


def test_without_states_every_offer_is_told() -> None:
    told = announcement_now(CONFIG, (SMALL, LARGE), None, paused=True)
    assert [(model.name, model.context_tokens) for model in told.models] == [("small", None), ("large", 8192)]


def test_free_is_free_whatever_the_prices() -> None:
    told = announcement_now(replace(CONFIG, free=True), (SMALL, LARGE), STATES, paused=False)
    assert [model.price for model in told.models] == [ModelPrice(), ModelPrice()]


def test_profile_and_relay_list_beside_it() -> None:
    announcement = announcement_now(CONFIG, (LARGE,), STATES, paused=False)
    drafts = drafts_now(CONFIG, announcement)
    assert set(drafts) == {31990, 10002, 0}
    assert drafts[10002].tags == (("r", "wss://one"), ("r", "wss://two"))
    assert json.loads(drafts[0].content) == {"name": "Shop", "about": "Answers.", "lud16": "shop@ln.example"}
    assert set(drafts_now(replace(CONFIG, profile=ProfileMode.NEVER), announcement)) == {31990}


@pytest.mark.parametrize(
    ("mode", "kind", "found_at", "published_at", "foreign"),
    [
        ("auto", 0, 100, 0, True),  # never published by us
        ("auto", 10002, 101, 100, True),  # newer than ours
        ("auto", 0, 100, 100, False),  # ours
        ("auto", 0, 99, 100, False),  # an old copy on some relay
        ("auto", 0, None, 0, False),  # there is none
        ("auto", 31990, 100, 0, False),  # the announcement is always ours
        ("always", 0, 100, 0, False),
    ],
)
def test_what_was_published_elsewhere(
    mode: str, kind: int, found_at: int | None, published_at: int, foreign: bool
) -> None:
    assert is_foreign(replace(CONFIG, profile=ProfileMode(mode)), kind, found_at, published_at) is foreign


@pytest.mark.parametrize("limit_bytes", [4096, 16_384, 65_536])
def test_it_fits_the_relays(limit_bytes: int) -> None:
    offers = [Offer(f'"model" {at:03d} {"ä" * 40}', "a", f"m{at}", Price(at)) for at in range(256)]
    states = {"a": state("a", *(ModelInfo(f"m{at}") for at in range(256)))}
    told = announcement_now(replace(CONFIG, limit_bytes=limit_bytes), offers, states, paused=False)
    event = signed(drafts_now(CONFIG, told)[31990], PROVIDER)
    assert len(event.to_json().encode()) <= limit_bytes
    assert [model.name for model in told.models] == [offer.name for offer in offers[: len(told.models)]]
    assert len(told.models) > 5
    assert parse_announcement(event) == told


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("llama3:8b-instruct-q4_K_M", "Q4_K_M"),
        ("qwen2.5-7b-iq2_xxs", "IQ2_XXS"),
        ("Mistral-7B-AWQ", "AWQ"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("phi-bf16", "BF16"),
        ("llama-fp16", "FP16"),
        ("gpt-4", None),
        ("faq16", None),
        ("smollm2", None),
        ("", None),
    ],
)
def test_quantization_is_told_where_the_name_tells(name: str, known: str | None) -> None:
    assert quantization_of(name) == known


def test_where_the_kinds_differ_each_price_is_told_and_read() -> None:
    two = replace(LARGE, kinds=(5050, 5001), kind_prices={5001: Price(3000, min_msats=7000)})
    same = replace(SMALL, kinds=(5050, 5001), kind_prices={5050: SMALL.price, 5001: SMALL.price})
    announcement = announcement_now(CONFIG, (two, same), STATES, paused=False)
    large, small = announcement.models
    assert large.price == ModelPrice(2000)
    assert large.kind_prices == ((5050, ModelPrice(2000)), (5001, ModelPrice(3000, min_msats=7000)))
    assert small.kind_prices == ()
    event = signed(drafts_now(CONFIG, announcement)[31990], PROVIDER)
    assert parse_announcement(event).models == announcement.models
    free = announcement_now(replace(CONFIG, free=True), (two,), STATES, paused=False)
    assert free.models[0].kind_prices == () and free.models[0].free


def test_a_measure_is_told_of_the_model_that_it_is_of() -> None:
    claim = Measured(41, 180, 1_764_000_000)
    announcement = announcement_now(
        CONFIG, (SMALL, LARGE), STATES, paused=False, measured={"large": claim, "x": claim}
    )
    assert [model.measured for model in announcement.models] == [None, claim]
