"""What an answer proves, for every kind of server and for whatever else may come."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends.marks import (
    CAVEATS,
    MAX_SHOWN,
    DetectedModel,
    Finding,
    Readiness,
    ServerKind,
    further_asks,
    judge,
)
from pylon.backends.openai_wire import MAX_MODEL_NAME, MAX_MODELS
from pylon.backends.probing import FIRST_ASKS, HEALTH, KOBOLD_CONTEXT, MODELS, PROPS, ROOT, Answer, Ask
from tests.support import model_servers as servers
from tests.support.model_servers import BY_KIND, Routes, answers_of, listing


def found(routes: Routes, **headers: str) -> Finding:
    """Return what comes of asking a server everything that it would be asked."""
    answers = answers_of(routes, FIRST_ASKS, headers)
    return judge(answers | answers_of(routes, further_asks(answers, judge(answers)), headers))


@pytest.mark.parametrize("kind", ServerKind)
def test_each_kind_is_told_by_its_own_marks(kind: ServerKind) -> None:
    finding = found(BY_KIND[kind])
    assert (finding.kind, finding.readiness, finding.detail) == (kind, Readiness.READY, CAVEATS.get(kind, ""))
    assert finding.models


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        (ServerKind.OLLAMA, "0.12.3"),
        (ServerKind.LLAMA_CPP, "b6800-aa3ee0ee"),
        (ServerKind.VLLM, "0.11.0"),
        (ServerKind.KOBOLDCPP, "1.100.1"),
        (ServerKind.LOCALAI, "v3.7.0 (a1b2c3d4)"),
        (ServerKind.APPLE_FM, "1.0.0"),
        (ServerKind.JAN, None),
    ],
)
def test_versions(kind: ServerKind, version: str | None) -> None:
    assert found(BY_KIND[kind]).version == version


def test_what_servers_tell_of_their_models() -> None:
    assert found(servers.LLAMA_CPP).models == (DetectedModel("smol", 96576768, "Q4_1", 512, ("completion",)),)
    assert found(servers.VLLM).models == (DetectedModel("Qwen/Qwen2.5-0.5B-Instruct", context_tokens=2048),)
    assert found(servers.LM_STUDIO).models == (
        DetectedModel("qwen2-vl-7b-instruct", None, "4bit", 32768, ("completion", "vision")),
        DetectedModel("llama-3.1-8b", None, "Q4_K_M", 4096, ("completion", "tool_use")),
        DetectedModel("nomic", None, "Q4_0", None, ("embedding",)),
    )
    assert [model.generates for model in found(servers.LM_STUDIO).models] == [True, True, False]
    assert [model.name for model in found(servers.LOCALAI).models] == ["gemma", "whisper-1"]


def test_ollama_is_asked_for_more_of_each_model() -> None:
    answers = answers_of(servers.OLLAMA, FIRST_ASKS)
    first = judge(answers)
    asks = further_asks(answers, first)
    assert [orjson.loads(ask.body or b"") for ask in asks] == [{"model": model.name} for model in first.models]
    for ask, shown in zip(asks, servers.OLLAMA_SHOWN.values(), strict=True):
        answers[ask] = Answer(200, {}, json.dumps(shown).encode())
    assert judge(answers).models == (
        DetectedModel("qwen3:8b", 5225388164, "Q4_K_M", 40960, ("completion", "tools", "thinking")),
        DetectedModel("nomic-embed-text:latest", 274302450, "F16", 2048, ("embedding",)),
    )


def test_only_who_needs_it_is_asked_for_its_health() -> None:
    # LiteLLM's /health runs a request on each of its models.
    assert HEALTH not in FIRST_ASKS
    first = {kind: answers_of(BY_KIND[kind], FIRST_ASKS) for kind in ServerKind}
    asked = {kind for kind, answers in first.items() if HEALTH in further_asks(answers, judge(answers))}
    assert {ServerKind.LLAMA_CPP, ServerKind.VLLM, ServerKind.APPLE_FM} <= asked
    assert not {ServerKind.LITELLM, ServerKind.OPENAI, ServerKind.OLLAMA} & asked
    for late in ({MODELS}, {ROOT}, {MODELS, ROOT}):
        answers = {ask: said for ask, said in first[ServerKind.LITELLM].items() if ask not in late}
        assert further_asks(answers, judge(answers)) == (), "it could be LiteLLM"


def test_koboldcpp_is_asked_for_its_context() -> None:
    answers = answers_of(servers.KOBOLDCPP, FIRST_ASKS)
    assert further_asks(answers, judge(answers)) == (KOBOLD_CONTEXT,)
    answers |= answers_of(servers.KOBOLDCPP, (KOBOLD_CONTEXT,))
    assert judge(answers).models == (DetectedModel("koboldcpp/Qwen3-8B-Q4_K_M", context_tokens=8192),)
    inactive = {**servers.KOBOLDCPP, "/v1/models": (200, listing("koboldcpp/inactive"))}
    assert (found(inactive).kind, found(inactive).readiness) == (ServerKind.KOBOLDCPP, Readiness.NOT_READY)


@pytest.mark.parametrize("lost", [ROOT.path, "/api/version"])
def test_ollama_needs_both_of_its_marks(lost: str) -> None:
    routes = {path: said for path, said in servers.OLLAMA.items() if path != lost}
    assert found(routes).kind is ServerKind.OPENAI


def test_the_form_of_localais_version_is_no_mark_by_itself() -> None:
    version = {"/version": servers.LOCALAI["/version"]}
    assert found(version).kind is None
    assert found({**version, "/v1/models": servers.LOCALAI["/v1/models"]}).kind is ServerKind.LOCALAI


def test_localai_that_imitates_ollama_is_localai() -> None:
    imitation = {path: servers.OLLAMA[path] for path in ("/", "/api/version", "/api/tags")}
    assert found({**servers.LOCALAI, **imitation}).kind is ServerKind.LOCALAI


def test_owned_by_vllm_alone_is_not_vllm() -> None:
    assert found({"/v1/models": servers.VLLM["/v1/models"]}).kind is ServerKind.OPENAI
    assert found({"/version": servers.VLLM["/version"]}).kind is None


def test_llama_cpp_is_known_by_its_header_alone_and_without_it() -> None:
    bare = found({"/v1/models": (200, listing("m"))}, server="llama.cpp")
    assert (bare.kind, bare.readiness) == (ServerKind.LLAMA_CPP, Readiness.READY)
    assert found(servers.LLAMA_CPP, server="nginx").kind is ServerKind.LLAMA_CPP


def test_llama_cpp_python_is_ready_with_a_caveat() -> None:
    finding = found(servers.LLAMA_CPP_PYTHON)
    assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP_PYTHON, Readiness.READY)
    assert "--interrupt_requests false" in finding.detail
    assert "estimated" in finding.detail


def test_aliases_are_models_too() -> None:
    routes: Routes = {"/v1/models": (200, listing("a.gguf", aliases=["a", "b", 7]))}
    assert [model.name for model in found(routes).models] == ["a.gguf", "a", "b"]


def test_a_server_that_loads_is_not_ready() -> None:
    loading = {**servers.LLAMA_CPP, "/health": (503, {"error": {"message": "Loading model"}})}
    finding = found(loading)
    assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP, Readiness.NOT_READY)
    assert "503" in finding.detail


def test_apple_intelligence_may_be_off() -> None:
    off = {"status": "degraded", "model_available": False, "platform": "macOS"}
    finding = found({**servers.APPLE_FM, "/health": (200, off)})
    assert (finding.kind, finding.readiness) == (ServerKind.APPLE_FM, Readiness.NOT_READY)
    assert "Apple Intelligence" in finding.detail


def test_a_server_without_models_is_not_ready() -> None:
    for routes in ({**servers.OLLAMA, "/api/tags": (200, {"models": []})}, {"/v1/models": (200, listing())}):
        finding = found(routes)
        assert (finding.readiness, finding.detail) == (Readiness.NOT_READY, "lists no models")
    broken = found({**servers.VLLM, **servers.JAN, "/v1/models": (500, b"oh")})
    assert broken.detail == "answers 500 when it is asked for its models"
    late = answers_of(servers.JAN, tuple(ask for ask in FIRST_ASKS if ask != MODELS))
    assert judge(late).detail == "did not list its models in time"


def test_a_server_that_wants_a_key_is_locked() -> None:
    jan = found({**servers.JAN, "/v1/models": (401, b"Missing authorization header")})
    assert (jan.kind, jan.readiness) == (ServerKind.JAN, Readiness.LOCKED)
    denied = (401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
    llama = found({"/": (404, b""), "/health": (200, {"status": "ok"}), "*": denied}, server="llama.cpp")
    assert (llama.kind, llama.readiness, llama.models) == (ServerKind.LLAMA_CPP, Readiness.LOCKED, ())
    assert "api_key" in llama.detail
    described = {"info": {"title": "FastAPI"}, "paths": {"/v1/models": {}, "/v1/chat/completions": {}}}
    vllm = found({**servers.VLLM, "/v1/models": denied, "/openapi.json": (200, described)})
    assert (vllm.kind, vllm.readiness) == (ServerKind.OPENAI, Readiness.LOCKED)
    page = servers.LITELLM["/"]
    assert found({"/": page}).kind is None, "a page alone lists no models"


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (
            {"*": (200, b"<html><h1>Welcome to nginx!</h1></html>")},
            "nginx: no model server known here",
        ),
        ({"*": (404, b"not found")}, "no model server"),
        ({"*": (200, {"status": "ok"})}, "no model server"),
        ({"*": (200, {"version": "1.2.3"})}, "no model server"),
        ({"*": (200, {"data": {"id": "x"}})}, "no model server"),
        ({"*": (200, {"data": [1, None, {"id": ""}, {"id": 7}]})}, "no model server"),
        ({"*": (200, {"data": []})}, "no model server"),
        ({"*": (200, {"object": "list", "data": [{"id": "x"}], "error": "no"})}, "no model server"),
        ({"*": (302, b"")}, "no model server"),
        ({"*": (401, b"who are you?")}, "wants a login for everything"),
        ({"/v1/models": (401, b"")}, "wants a key for /v1/models"),
    ],
)
def test_what_answers_is_not_for_that_a_model_server(routes: Routes, said: str) -> None:
    finding = found(routes, server="nginx")
    assert (finding.kind, finding.readiness, finding.models) == (None, Readiness.OTHER, ())
    assert said in finding.detail


def test_a_hostile_header_stays_text() -> None:
    assert "\x1b" not in found({"*": (200, b"")}, server="\x1b[2J").detail


def test_lists_are_bounded() -> None:
    many: Routes = {"/v1/models": (200, listing(*map(str, range(5_000))))}
    assert len(found(many).models) == MAX_MODELS
    shown = Finding(Readiness.READY, ServerKind.OLLAMA, models=tuple(DetectedModel(str(at)) for at in range(500)))
    assert len(further_asks({}, shown)) == MAX_SHOWN
    assert found({"/v1/models": (200, listing("x" * 10_000))}).kind is None


# --- anything at all --------------------------------------------------------------------------------------------

WORDS = [
    *("data", "models", "id", "name", "object", "owned_by", "meta", "n_ctx", "version", "result", "state", "type"),
    *("error", "info", "title", "backends", "loaded_models", "aliases", "capabilities", "details", "model_info"),
    *("default_generation_settings", "model_available", "max_context_length"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.binary(max_size=64) | JSON.map(orjson.dumps)
ANSWERS = st.builds(
    Answer,
    st.sampled_from([200, 200, 200, 204, 302, 401, 404, 500, 503]),
    st.dictionaries(st.sampled_from(["server", "content-type"]), st.text(max_size=8), max_size=2),
    BODIES,
)
ASKS = st.sampled_from([*FIRST_ASKS, KOBOLD_CONTEXT, Ask("/api/show", b'{"model":"a"}')])


@given(st.dictionaries(ASKS, ANSWERS, min_size=1, max_size=12))
def test_nothing_raises_on_any_bytes(answers: dict[Ask, Answer]) -> None:
    finding = judge(answers)
    assert (finding.kind is None) == (finding.readiness is Readiness.OTHER)
    assert bool(finding.models) or finding.readiness is not Readiness.READY
    for ask in further_asks(answers, finding):
        assert ask.body is None or orjson.loads(ask.body)


@given(st.sampled_from(sorted(ServerKind)), ASKS, BODIES)
def test_nothing_raises_when_one_answer_of_a_real_server_is_garbage(
    kind: ServerKind, ask: Ask, body: bytes
) -> None:
    answers = answers_of(BY_KIND[kind], FIRST_ASKS) | {ask: Answer(200, {}, body)}
    for model in judge(answers).models:
        assert 0 < len(model.name) <= MAX_MODEL_NAME
        numbers: list[Any] = [model.size_bytes, model.context_tokens]
        assert all(value is None or (type(value) is int and value >= 0) for value in numbers)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data":' * 50_000, b"\xff" * 100, b'"\\ud800"', b"1e999"])
def test_deep_and_broken_json_is_no_mark(body: bytes) -> None:
    finding = judge({ask: Answer(200, {}, body) for ask in (MODELS, PROPS, HEALTH)})
    assert finding.kind is None
