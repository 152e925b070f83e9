"""What a bench is kept as, and when it says nothing any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends.bench import Level
from pylon.benches import (
    BadBenches,
    Bench,
    BenchWatch,
    Place,
    claims,
    conditions_of,
    holding,
    keep_benches,
    read_benches,
    why_stale,
)
from pylon.jobs.lanes import Speed
from pylon.jobs.ports import BackendHealth, BackendState, ModelInfo
from pylon.nostr.nip89 import MAX_TOKENS_PER_S, Measured
from pylon.settings import Settings

GPU = {"name": "gpu", "kind": "openai", "url": "http://h/v1", "api_key": "sk-hidden", "slots": 4}
SPARE = {"name": "spare", "kind": "ollama"}
MODELS = [
    {"name": "small", "backend": "gpu", "backend_model": "s", "also_on": ["spare=s:q4"], "base_msats": 1},
    {"name": "large", "backend": "spare", "base_msats": 1},
]


def settings(**gpu: Any) -> Settings:
    return Settings.model_validate({"backends": [{**GPU, **gpu}, SPARE], "models": MODELS})


def bench(backend: str = "gpu", model: str = "s", tokens_per_s: float = 41.4, **changes: Any) -> Bench:
    held = {each.name: each for each in settings().backends}[backend]
    level = Level(1, 3, 192, tokens_per_s, first_token_s=0.1804, token_s=0.02)
    made = Bench(
        at=1_764_000_000,
        pylon="0.1.0",
        software="llama.cpp b1",
        machine="a machine",
        backend=backend,
        kind=held.kind,
        model=model,
        size_bytes=100,
        quantization="Q4_0",
        settings=conditions_of(held),
        levels=(level, replace(level, concurrency=2, tokens_per_s=2 * tokens_per_s)),
    )
    return replace(made, **changes)


# --- the file -------------------------------------------------------------------------------------------------

numbers = st.floats(0, 1e9, allow_nan=False)
levels = st.builds(Level, *[st.integers(1, 64)] * 2, st.integers(0, 10**9), *[numbers] * 3, st.booleans())
words = st.text(max_size=20)
benches = st.builds(
    Bench,
    st.integers(0, 2**40),
    *[words] * 6,
    *[st.none() | st.integers(0, 2**53), st.none() | words],
    st.dictionaries(words, st.none() | st.integers(-(2**31), 2**31) | words, max_size=3),
    st.lists(levels, min_size=1, max_size=3).map(tuple),
)  # fmt: skip


@given(st.lists(benches, max_size=4, unique_by=lambda each: each.place))
def test_what_is_kept_is_read_back(tmp_path_factory: pytest.TempPathFactory, made: list[Bench]) -> None:
    file = tmp_path_factory.mktemp("benches") / "pylon.benches.json"
    keep_benches(file, made)
    assert read_benches(file) == {each.place: each for each in made}


def test_a_new_bench_takes_the_place_of_the_old_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "pylon.benches.json"
    keep_benches(file, [bench(), bench("spare", "large")])
    keep_benches(file, [bench(tokens_per_s=50)])
    assert {place: each.levels[0].tokens_per_s for place, each in read_benches(file).items()} == {
        ("gpu", "s"): 50,
        ("spare", "large"): 41.4,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert "sk-hidden" not in file.read_text()


def test_without_a_file_nothing_was_measured(tmp_path: Path) -> None:
    assert read_benches(tmp_path / "none") == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "benches": [{}]}', '{"version": 2, "benches": []}']
)
def test_a_file_that_is_none_of_ours_is_one_sentence_and_is_not_written_over(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pylon.benches.json"
    file.write_text(text)
    for act in (lambda: read_benches(file), lambda: keep_benches(file, [bench()])):
        with pytest.raises(BadBenches) as caught:
            act()
        assert "\n" not in str(caught.value) and "remove it and measure again" in str(caught.value)
    assert file.read_text() == text


# --- does it still hold? --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "model", "why"),
    [
        ({}, None, ""),
        ({}, ModelInfo("s", size_bytes=100, quantization="Q4_0"), ""),
        ({}, ModelInfo("s"), ""),
        ({}, ModelInfo("s", context_tokens=9), ""),
        ({"api_key": "sk-other", "stall_timeout_s": 9, "connect_timeout_s": 9}, None, ""),
        ({"api_key": None}, None, ""),
        ({"slots": 2}, None, "slots of gpu changed since"),
        ({"slots": 2, "url": "http://other/v1"}, None, "slots, url of gpu changed since"),
        ({"kind": "echo", "url": None, "api_key": None}, None, "kind, url of gpu changed since"),
        ({}, ModelInfo("s", size_bytes=101), "the model's size at gpu changed since"),
        ({}, ModelInfo("s", size_bytes=100, quantization="Q8_0"), "the model's quantization at gpu changed since"),
    ],
)
def test_a_bench_is_stale_when_what_was_measured_is_another(
    gpu: dict[str, Any], model: ModelInfo | None, why: str
) -> None:
    given = {key: value for key, value in {**GPU, **gpu}.items() if value is not None}
    held = Settings.model_validate({"backends": [given]}).backends[0]
    assert why_stale(bench(), held, model) == why


def test_only_what_is_sold_counts_and_the_slowest_is_what_is_claimed() -> None:
    known = {each.place: each for each in (bench(), bench("spare", "s:q4", 9.94), bench("gpu", "unsold"))}
    fresh, stale = holding(known, settings())
    assert (set(fresh), stale) == ({("gpu", "s"), ("spare", "s:q4")}, {})
    assert claims(fresh, settings()) == {"small": Measured(9.9, 180, 1_764_000_000)}
    fresh, stale = holding(known, settings(slots=1))
    assert (set(fresh), set(stale)) == ({("spare", "s:q4")}, {("gpu", "s")})
    assert claims({}, settings()) == {}


@pytest.mark.parametrize(
    ("measured", "claimed"), [(41.4, 41), (10.4, 10), (9.94, 9.9), (0.01, 0.1), (1e9, MAX_TOKENS_PER_S)]
)
def test_a_claim_has_no_more_digits_than_can_be_meant(measured: float, claimed: float) -> None:
    assert bench(tokens_per_s=measured).claim.tokens_per_s == claimed


def test_what_the_router_begins_with_is_one_job_alone() -> None:
    assert bench().speed == Speed(0.1804, 0.02)


# --- beside a running daemon ----------------------------------------------------------------------------------


async def test_a_daemon_hears_of_new_benches_and_drops_those_of_a_model_that_is_another_now(tmp_path: Path) -> None:
    file = tmp_path / "pylon.benches.json"
    there = ModelInfo("s")
    expected: list[Mapping[Place, Speed]] = []

    def states() -> dict[str, BackendState]:
        return {"gpu": BackendState("gpu", "openai", BackendHealth.READY, models=(there,))}

    watch = BenchWatch(file, settings(), states, expected.append)
    await watch.look()
    assert (expected[-1], watch.claims) == ({}, {})
    keep_benches(file, [bench()])
    await watch.look()
    assert expected[-1] == {("gpu", "s"): bench().speed}
    assert watch.claims == {"small": bench().claim}
    there = ModelInfo("s", size_bytes=7)
    await watch.look()
    assert (expected[-1], watch.claims) == ({}, {})
    there = ModelInfo("s", size_bytes=100)
    await watch.look()
    assert watch.claims == {"small": bench().claim}
    file.write_text(json.dumps({"version": 9, "benches": []}))
    await watch.look()
    assert (expected[-1], watch.claims) == ({}, {}), "a bad file is as good as none"
    file.unlink()
    await watch.look()
    assert watch.claims == {}
