"""Backend `ollama` against the real Ollama: all that docs/ollama.md says of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from pylon.backends.detect import Place, detect
from pylon.backends.marks import Finding, Readiness, ServerKind
from pylon.backends.ollama import OllamaBackend, OllamaConfig
from pylon.jobs.ports import (
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelInfo,
    ModelMissing,
)
from pylon.nostr.nip90 import FeedbackStatus
from tests.support.go_programs import OLLAMA
from tests.support.model_programs import ModelProgram, create, ollama, running
from tests.support.ollama_stand_in import ollama_stand_in
from tests.support.provider import MODEL, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = pytest.mark.live

NAME = "smollm2:135m"
TRAINED = 8192
LIMIT_S = 180.0


def ask(
    text: str = "Name three colours.", max_tokens: int = 12, model: str = NAME, **more: Any
) -> GenerationRequest:
    """Return a request that is answered the same way each time: by luck, an answer may also be empty."""
    return GenerationRequest(model, (Message("user", text),), max_tokens, **{"temperature": 0.0, **more})


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Delta))


async def collect(backend: OllamaBackend, request: GenerationRequest) -> list[Chunk]:
    with anyio.fail_after(LIMIT_S):
        return [chunk async for chunk in backend.generate(request)]


@asynccontextmanager
async def backend_of(server: ModelProgram, **changes: Any) -> AsyncIterator[OllamaBackend]:
    config = {"name": "box", "url": server.url, "models": (NAME,), "context_tokens": 512, "check_timeout_s": 20.0}
    backend = OllamaBackend(OllamaConfig(**{**config, **changes}))
    async with backend.running():
        yield backend


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelProgram]:
    with running(ollama(tmp_path_factory.mktemp("ollama"))) as program:
        create(program, NAME)
        yield program


def in_memory(server: ModelProgram) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = server.get("/api/ps").json()["models"]
    return models


def loaded(state: BackendState) -> bool | None:
    return next(model.loaded for model in state.models if model.name == NAME)


# --- what it is and has -----------------------------------------------------------------------------------------


async def found_at(server: ModelProgram) -> Finding:
    """Detect it; a busy machine may need more than one look."""
    for _ in range(20):
        (found,) = await detect([Place(server.url, "")])
        if found.finding.models and found.finding.models[0].context_tokens:
            break
    return found.finding


async def test_it_is_detected_with_what_it_tells_of_its_model(server: ModelProgram) -> None:
    finding = await found_at(server)
    assert (finding.kind, finding.readiness) == (ServerKind.OLLAMA, Readiness.READY)
    assert f"v{finding.version}" == OLLAMA.version
    (model,) = finding.models
    assert (model.name, model.quantization, model.context_tokens) == (NAME, "Q4_1", TRAINED)
    assert model.size_bytes is not None
    assert model.size_bytes > 90_000_000
    assert model.capabilities == ("completion",)


async def test_its_models_their_context_and_their_memory(server: ModelProgram) -> None:
    async with backend_of(server, context_tokens=0) as backend:
        await backend.unload()
        state = await backend.check()
        assert (state.health, state.models) == (BackendHealth.READY, (ModelInfo(NAME),)), (
            "not known until it is loaded"
        )
        await collect(backend, ask(max_tokens=1))
        (model,) = (await backend.check()).models
        assert (model.context_tokens, model.loaded) == (in_memory(server)[0]["context_length"], True)
        assert backend.state().memory_bytes == in_memory(server)[0]["size"]
    async with backend_of(server, context_tokens=512) as backend:
        assert (await backend.check()).models == (ModelInfo(NAME, 512),)
        await collect(backend, ask(max_tokens=1))
        assert in_memory(server)[0]["context_length"] == 512
    async with backend_of(server, context_tokens=10 * TRAINED) as backend:
        assert (await backend.check()).models == (ModelInfo(NAME, TRAINED),)
        await collect(backend, ask(max_tokens=1))
        assert in_memory(server)[0]["context_length"] == TRAINED, "more than it was made for is not given"


async def test_a_name_without_a_tag_is_the_latest(server: ModelProgram) -> None:
    create(server, "bare")
    async with backend_of(server, models=("bare", NAME.upper())) as backend:
        state = await backend.check()
        assert (state.health, state.detail) == (BackendHealth.READY, "")
        assert text_of(await collect(backend, ask(model="bare")))
        assert text_of(await collect(backend, ask(model=NAME.upper())))
        await backend.unload()
        assert in_memory(server) == []


# --- the stand-in that other tests use instead ------------------------------------------------------------------


def shape(value: Any) -> Any:
    """Return the names in a JSON value, and the type of what each holds."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key not in {"model_info", "tensors"}}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


async def shapes(client: httpx.AsyncClient, name: str) -> list[tuple[str, int, Any]]:
    """Ask for everything that Pylon asks for, and return what each answer looks like."""
    message = {"role": "user", "content": "Say hi."}
    few, small = {"num_predict": 2, "temperature": 0}, {"num_predict": 2, "num_ctx": 256}
    uncut = {"truncate": False, "shift": False}
    chat = {"model": name, "messages": [message], "stream": True, "options": few, **uncut}
    long = {**chat, "messages": [{"role": "user", "content": "word " * 1000}], "options": small}
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/", None),
        ("GET", "/api/version", None),
        ("GET", "/api/tags", None),
        ("GET", "/nothing", None),
        ("POST", "/api/show", {"model": name.upper()}),
        ("POST", "/api/show", {"model": "absent:1b"}),
        ("POST", "/api/chat", chat),
        ("GET", "/api/ps", None),
        ("POST", "/api/chat", long),
        ("POST", "/api/chat", {**chat, "model": "absent:1b"}),
        ("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False}),
        ("POST", "/api/generate", {"model": "absent:1b", "keep_alive": 0, "stream": False}),
    ]
    found = []
    for method, path, body in asked:
        answer = await client.request(method, path, json=body, timeout=LIMIT_S)
        said: Any = answer.text
        if not answer.text.startswith("{"):
            pass
        elif answer.status_code >= 400:
            said = answer.json()  # word for word
        elif answer.headers["content-type"].startswith("application/x-ndjson"):
            parts = [shape(json.loads(line)) for line in answer.text.splitlines()]
            said = [parts[0], parts[-1]]
        else:
            said = shape(answer.json())
        found.append((f"{method} {path}", answer.status_code, said))
    return found


async def test_the_stand_in_answers_as_the_real_one_does(tmp_path: Path) -> None:
    with running(ollama(tmp_path)) as real:
        create(real, NAME)
        async with ollama_stand_in() as stand_in:
            stand_in.has = {NAME: TRAINED}
            stand_in.words = ("a", "b", "c")
            found = []
            for url in (real.url, stand_in.url):
                async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                    found.append(await shapes(client, NAME))
    for of_real, of_stand_in in zip(*found, strict=True):
        assert of_stand_in == of_real


# --- answers ----------------------------------------------------------------------------------------------------


async def test_it_streams_with_exact_counts_and_keeps_the_parameters(server: ModelProgram) -> None:
    async with backend_of(server) as backend:
        request = ask(temperature=0.0, seed=7, top_k=1, top_p=0.9, frequency_penalty=0.1, presence_penalty=0.1)
        *deltas, end = chunks = await collect(backend, request)
        assert len(deltas) > 5, "as it comes"
        assert isinstance(end, Finished)
        assert end == Finished(FinishReason.LENGTH, end.prompt_tokens, 12)
        assert 8 < end.prompt_tokens < 60
        again = await collect(backend, request)
        assert text_of(again) == text_of(chunks)
        assert again[-1] == end, "what it has read before counts as before"
        word = text_of(chunks).split()[1]
        cut = await collect(backend, ask(temperature=0.0, seed=7, max_tokens=40, stop=(word,)))
        assert word not in text_of(cut)
        assert isinstance(cut[-1], Finished)
        assert cut[-1].reason is FinishReason.STOP
        said = {text_of(await collect(backend, ask(temperature=2.0, seed=seed))) for seed in range(3)}
        assert len(said) > 1, "seed and temperature have effect"


async def test_a_model_that_ends_by_itself_has_stopped(server: ModelProgram) -> None:
    async with backend_of(server) as backend:
        *_, end = await collect(backend, ask("Say hi.", max_tokens=200, temperature=0.0))
        assert isinstance(end, Finished)
        assert (end.reason, end.estimated) == (FinishReason.STOP, False)
        assert 0 < end.output_tokens < 200


async def test_a_prompt_over_the_context_is_refused_and_not_cut(server: ModelProgram) -> None:
    async with backend_of(server) as backend:
        with pytest.raises(BackendRefused, match="the prompt is too long for box"):
            await collect(backend, ask("word " * 1000))


async def test_an_answer_that_fills_the_context_ends_as_length(server: ModelProgram) -> None:
    async with backend_of(server, context_tokens=256) as backend:
        request = ask("Tell a very long story about the sea.", max_tokens=2000, temperature=0.0)
        *_, end = await collect(backend, request)
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.LENGTH
        assert 250 <= end.prompt_tokens + end.output_tokens <= 257


async def test_a_model_that_it_does_not_have_is_missing_and_never_fetched(server: ModelProgram) -> None:
    async with backend_of(server, models=("gemma:2b",)) as backend:
        state = await backend.check()
        assert state.health is BackendHealth.DOWN
        assert "ollama pull gemma:2b" in state.detail
        with pytest.raises(ModelMissing, match="not found"):
            await collect(backend, ask(model="gemma:2b"))
    assert '"/api/pull"' not in server.log()


async def test_a_download_that_fails_says_why(tmp_path: Path) -> None:
    nowhere = "127.0.0.1:1/library/nothing:1b"
    with running(ollama(tmp_path)) as server:
        async with backend_of(server, models=(nowhere,), pull=True) as backend:
            await backend.check()
            with anyio.fail_after(LIMIT_S):
                while "failed" not in backend.state().detail:  # noqa: ASYNC110 - a download announces its end nowhere
                    await anyio.sleep(0.05)
            assert backend.state().health is BackendHealth.DOWN
            assert "connection refused" in backend.state().detail


# --- the runner and its memory ----------------------------------------------------------------------------------


async def test_closing_frees_the_runner(server: ModelProgram) -> None:
    ended = "context for request finished"
    async with backend_of(server, context_tokens=TRAINED) as backend:
        await collect(backend, ask(max_tokens=1))
        before = server.log().count(ended)
        async with aclosing(backend.generate(ask("Tell me a very long story.", max_tokens=4000))) as chunks:
            began = time.monotonic()
            for _ in range(10):
                assert isinstance(await anext(chunks), Delta)
            token_s = (time.monotonic() - began) / 10
        with anyio.fail_after(1000 * token_s):  # all of it takes four times as long
            while server.log().count(ended) == before:  # noqa: ASYNC110 - another program says it to its log alone
                await anyio.sleep(0.05)
            assert text_of(await collect(backend, ask(max_tokens=4))), "it has one slot"


@pytest.mark.parametrize(("keep_alive_s", "stays"), [(0, False), (-1, True), (3600, True)])
async def test_how_long_a_model_stays_loaded(server: ModelProgram, keep_alive_s: int, stays: bool) -> None:
    async with backend_of(server, keep_alive_s=keep_alive_s) as backend:
        await collect(backend, ask(max_tokens=1))
        with anyio.fail_after(LIMIT_S):
            while not stays and in_memory(server):  # noqa: ASYNC110 - it announces nothing
                await anyio.sleep(0.05)
        assert loaded(await backend.check()) is stays
        years_ahead = int(in_memory(server)[0]["expires_at"][:4]) - time.gmtime().tm_year if stays else 0
        assert (years_ahead > 10) is (keep_alive_s == -1)


async def test_unloading_gives_the_memory_back_and_the_next_job_loads_again(server: ModelProgram) -> None:
    async with backend_of(server) as backend:
        await collect(backend, ask(max_tokens=1))
        assert loaded(await backend.check())
        await backend.unload()
        assert in_memory(server) == []
        assert loaded(backend.state()) is False
        assert not backend.state().memory_bytes
        assert text_of(await collect(backend, ask()))


# --- restarts ---------------------------------------------------------------------------------------------------


async def test_a_server_that_dies_is_down_and_comes_back(tmp_path: Path) -> None:
    with running(ollama(tmp_path)) as server:
        create(server, NAME)
        async with backend_of(server) as backend:
            async with aclosing(backend.generate(ask("Tell me a long story.", max_tokens=400))) as chunks:
                assert isinstance(await anext(chunks), Delta)
                server.kill()
                with pytest.raises(BackendUnavailable, match=r"broke off its answer|ended its answer"):
                    async for _ in chunks:
                        pass
            with pytest.raises(BackendUnavailable, match="is Ollama running there"):
                await collect(backend, ask())
            assert (await backend.check()).health is BackendHealth.DOWN
            server.start()
            assert (await backend.check()).health is BackendHealth.READY
            assert text_of(await collect(backend, ask()))


@pytest.mark.e2e
async def test_the_market_does_a_job_although_the_server_restarts_in_the_middle(tmp_path: Path) -> None:
    with running(ollama(tmp_path)) as server, relay_process() as relay:
        create(server, NAME)
        backend = {"name": "b", "kind": "ollama", "url": server.url, "context_tokens": 2048}
        sold = {"name": MODEL, "backend": "b", "backend_model": NAME, "base_msats": 0}
        settings = {**market_settings(relay.url), "backends": [backend], "models": [sold]}
        async with (
            provider(tmp_path / "pylon", settings) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order(
                "Tell me a long story about the sea.", params=[("max_tokens", ["200"]), ("temperature", ["0"])]
            )
            await order.until(lambda order: order.feedback(FeedbackStatus.PARTIAL), "a partial result")
            server.kill()
            server.start()
            assert len((await order.result()).content) > 20
            assert order.errors == []
            detail = daemon.reports().detail(order.id)
            assert detail is not None
            assert detail.job.attempts > 1
