"""Backend `openai` against real servers that we did not write: llama.cpp's, alone and as a router, LiteLLM, and
llama-cpp-python's.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.backends.detect import Place, detect
from pylon.backends.marks import Finding, Readiness, ServerKind
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
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
    ModelMissing,
)
from tests.support.authority import make_authority
from tests.support.model import model_path
from tests.support.model_programs import ModelProgram, litellm, llama_cpp_server, llama_server, running
from tests.support.provider import market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = pytest.mark.live

KEY = "sk-of-the-test-alone"
CONTEXT = 512
LIMIT_S = 120.0


def ask(
    model: str = "smollm2", text: str = "Name three colours.", max_tokens: int = 12, **more: Any
) -> GenerationRequest:
    """Return a request that is answered the same way each time: by luck, an answer may also be empty."""
    return GenerationRequest(model, (Message("user", text),), max_tokens, **{"temperature": 0.0, **more})


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Delta))


async def collect(backend: OpenAIBackend, request: GenerationRequest) -> list[Chunk]:
    with anyio.fail_after(LIMIT_S):
        return [chunk async for chunk in backend.generate(request)]


@asynccontextmanager
async def backend_of(program: ModelProgram, path: str = "", **changes: Any) -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(
        OpenAIConfig(
            **{"name": "box", "url": program.url + path, "api_key": KEY, "check_timeout_s": 20.0, **changes}
        )
    )
    async with backend.running():
        yield backend


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - another program says it to nobody
            await anyio.sleep(0.05)
        return
    raise AssertionError(f"not within {LIMIT_S:g} s: {what}")


async def found_at(program: ModelProgram) -> Finding:
    """Detect a server; a busy machine may need more than one look."""
    for _ in range(20):
        (found,) = await detect([Place(program.url, "", api_key=KEY)])
        if found.finding.readiness is Readiness.READY:
            break
    return found.finding


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelProgram]:
    """One with a key, one slot, and its API below a path."""
    arguments = ("-c", str(CONTEXT), "-np", "1", "--slots")
    with running(llama_server(tmp_path_factory.mktemp("llama"), *arguments, api_key=KEY, prefix="/api")) as program:
        yield program


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, llama: ModelProgram) -> Iterator[ModelProgram]:
    """LiteLLM in front of that server."""
    upstream = {"model": "openai/smollm2", "api_base": f"{llama.url}/api/v1", "api_key": KEY}
    models: dict[str, dict[str, object]] = {"smollm2": {**upstream}, "seldom": {**upstream, "rpm": 1}}
    with running(litellm(tmp_path_factory.mktemp("litellm"), models, KEY)) as program:
        yield program


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelProgram]:
    """llama-cpp-python's own server, which by default would cut one request off for the next."""
    arguments = ("--n_ctx", str(CONTEXT), "--interrupt_requests", "False")
    with running(llama_cpp_server(tmp_path_factory.mktemp("binding"), *arguments, api_key=KEY)) as program:
        yield program


@pytest.fixture(params=["llama.cpp", "LiteLLM", "llama-cpp-python"])
def server(request: pytest.FixtureRequest) -> tuple[ModelProgram, str]:
    """Each of them, and the path of its URL in our settings."""
    fixtures = {"llama.cpp": ("llama", "/api"), "LiteLLM": ("proxy", "/v1"), "llama-cpp-python": ("binding", "")}
    name, path = fixtures[request.param]
    return request.getfixturevalue(name), path


def counts(server: tuple[ModelProgram, str]) -> bool:
    """Whether a server says what it used."""
    return server[0].name != "llama_cpp.server"


# --- what holds for each ----------------------------------------------------------------------------------------


async def test_it_generates_with_exact_counts_and_keeps_the_parameters(server: tuple[ModelProgram, str]) -> None:
    async with backend_of(*server) as backend:
        state = await backend.check()
        assert (state.health, state.detail) == (BackendHealth.READY, "")
        assert "smollm2" in [model.name for model in state.models]
        request = ask(temperature=0.0, seed=7, top_k=1, top_p=0.9, frequency_penalty=0.1, presence_penalty=0.1)
        *_, end = chunks = await collect(backend, request)
        assert text_of(chunks).strip()
        assert isinstance(end, Finished)
        assert (end.reason, end.estimated) == (FinishReason.LENGTH, not counts(server))
        if counts(server):
            assert end.output_tokens == 12
            assert 20 < end.prompt_tokens < 60
        else:
            assert 0 < end.output_tokens <= 12
            assert end.prompt_tokens > 0
        again = text_of(await collect(backend, request))
        assert again == text_of(chunks) or not counts(server), "the same seed says the same, but with the binding"
        words = text_of(chunks).split()
        cut = await collect(backend, ask(temperature=0.0, seed=7, max_tokens=40, stop=(words[1],)))
        assert words[1] not in text_of(cut)


async def test_a_model_that_ends_by_itself_has_stopped(server: tuple[ModelProgram, str]) -> None:
    async with backend_of(*server) as backend:
        *_, end = await collect(backend, ask(text="Say hi.", max_tokens=200, temperature=0.0))
        assert isinstance(end, Finished)
        assert (end.reason, end.estimated) == (FinishReason.STOP, not counts(server))
        assert 0 < end.output_tokens < 200


async def test_closing_frees_the_only_slot(server: tuple[ModelProgram, str], llama: ModelProgram) -> None:
    def generates() -> bool:
        if server[0].name == "llama_cpp.server":
            return False  # it tells nobody; below it must answer again
        return any(slot["is_processing"] for slot in llama.get("/api/slots").json())

    async with backend_of(*server) as backend:
        async with aclosing(backend.generate(ask(text="Tell me a long story.", max_tokens=400))) as chunks:
            assert isinstance(await anext(chunks), Delta)
            assert generates() or server[0].name == "llama_cpp.server"
        await until(lambda: not generates(), "the slot is free")
        assert text_of(await collect(backend, ask()))


async def test_a_prompt_over_the_context_is_refused(server: tuple[ModelProgram, str]) -> None:
    async with backend_of(*server) as backend:
        if not counts(server):  # it begins an answer of 200 and breaks it off
            with pytest.raises(BackendUnavailable, match="ended its answer before it was finished"):
                await collect(backend, ask(text="word " * 1000))
            return
        with pytest.raises(BackendRefused, match=r"512 (per request|tokens)"):
            await collect(backend, ask(text="word " * 1000))


async def test_a_model_that_it_does_not_have_is_missing(server: tuple[ModelProgram, str]) -> None:
    async with backend_of(*server) as backend:
        with pytest.raises(ModelMissing, match="box does not list the model gemma"):
            await collect(backend, ask("gemma"))


async def test_a_wrong_key_is_no_model(server: tuple[ModelProgram, str]) -> None:
    async with backend_of(*server, api_key="sk-wrong-key") as backend:
        state = await backend.check()
        assert state.health is BackendHealth.DOWN
        assert "sk-wrong-key" not in state.detail
        with pytest.raises(BackendUnavailable):
            await collect(backend, ask())


# --- llama-cpp-python's server ----------------------------------------------------------------------------------


async def test_llama_cpp_pythons_server_is_detected(binding: ModelProgram) -> None:
    finding = await found_at(binding)
    assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP_PYTHON, Readiness.READY)
    assert [model.name for model in finding.models] == ["smollm2"]


# --- llama.cpp's server -----------------------------------------------------------------------------------------


async def test_llama_cpp_tells_its_context_and_is_detected(tmp_path: Path) -> None:
    with running(llama_server(tmp_path, "-c", str(2 * CONTEXT), "-np", "2")) as program:
        finding = await found_at(program)
        assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP, Readiness.READY)
        (model,) = finding.models
        assert (model.name, model.quantization, model.context_tokens) == ("smollm2", "Q4_1", CONTEXT)
        async with backend_of(program, api_key=None) as backend:
            assert [model.context_tokens for model in (await backend.check()).models] == [CONTEXT]
            program.kill()
            with pytest.raises(BackendUnavailable):
                await collect(backend, ask())
            assert (await backend.check()).health is BackendHealth.DOWN
            program.start()
            assert (await backend.check()).health is BackendHealth.READY
            assert text_of(await collect(backend, ask()))


# --- llama.cpp's router -----------------------------------------------------------------------------------------


def router(folder: Path, *arguments: str) -> ModelProgram:
    """Return a router over two models, of which one is in memory at a time."""
    shelf = folder / "shelf"
    shelf.mkdir()
    for name in ("one", "two"):
        shutil.copyfile(model_path(), shelf / f"{name}.gguf")
    return llama_server(
        folder, "--models-dir", str(shelf), "--models-max", "1", "-c", str(CONTEXT), "-np", "1", *arguments
    )


def loaded(state: BackendState) -> dict[str, bool | None]:
    return {model.name: model.loaded for model in state.models}


async def test_a_router_loads_what_is_asked_for_and_drops_what_it_is_told(tmp_path: Path) -> None:
    with running(router(tmp_path)) as program:
        assert (await found_at(program)).kind is ServerKind.LLAMA_CPP
        async with backend_of(program, models=("one", "two")) as backend:
            assert loaded(await backend.check()) == {"one": False, "two": False}
            assert not backend.state().keeps_memory
            assert text_of(await collect(backend, ask("one")))
            state = await backend.check()
            assert loaded(state) == {"one": True, "two": False}
            assert [model.context_tokens for model in state.models] == [CONTEXT, None]
            assert text_of(await collect(backend, ask("two")))
            state = await backend.check()
            assert loaded(state) == {"one": False, "two": True}
            assert [model.context_tokens for model in state.models] == [CONTEXT, CONTEXT], (
                "what was told is remembered"
            )
            with pytest.raises(BackendRefused, match=f"takes {CONTEXT} per request"):
                await collect(backend, ask("two", text="word " * 1000))
            with pytest.raises(ModelMissing):
                await collect(backend, ask("three"))
            await backend.unload()
            assert loaded(await backend.check()) == {"one": False, "two": False}
            assert text_of(await collect(backend, ask("two"))), "it is loaded again when it is asked for"


async def test_a_router_finishes_an_answer_before_it_changes_models(tmp_path: Path) -> None:
    with running(router(tmp_path)) as program:
        async with backend_of(program) as backend, anyio.create_task_group() as tasks:
            answers: dict[str, list[Chunk]] = {}

            async def also() -> None:
                answers["two"] = await collect(backend, ask("two"))

            async with aclosing(
                backend.generate(ask("one", text="Tell me a long story.", max_tokens=60))
            ) as chunks:
                first = await anext(chunks)
                tasks.start_soon(also)
                answers["one"] = [first, *[chunk async for chunk in chunks]]
        for chunks_of in answers.values():
            assert isinstance(chunks_of[-1], Finished)


async def test_a_router_that_may_not_load_says_so(tmp_path: Path) -> None:
    with running(router(tmp_path, "--no-models-autoload")) as program:
        async with backend_of(program) as backend:
            with pytest.raises(BackendUnavailable, match="model is not loaded; load it there"):
                await collect(backend, ask("one"))


async def test_the_market_sells_both_models_of_a_router(tmp_path: Path) -> None:
    with running(router(tmp_path)) as program, relay_process() as relay:
        settings = market_settings(relay.url, backend_url=program.url, slots=1)
        models = [
            {"name": f"sold-{name}", "backend": "b", "backend_model": name, "base_msats": 0}
            for name in ("one", "two")
        ]
        async with (
            provider(tmp_path / "pylon", {**settings, "models": models}) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            params = [("max_tokens", ["8"])]
            orders = [
                await customer.order(params=[("model", [f"sold-{name}"]), *params])
                for name in ("one", "two", "one")
            ]
            for order in orders:
                assert (await order.result()).content
                assert order.errors == []


# --- LiteLLM ----------------------------------------------------------------------------------------------------


async def test_litellm_is_detected_and_looking_at_it_costs_nothing(
    proxy: ModelProgram, llama: ModelProgram
) -> None:
    def generated() -> int:
        return llama.log().count("launch_slot_")

    before = generated()
    finding = await found_at(proxy)
    assert (finding.kind, finding.readiness) == (ServerKind.LITELLM, Readiness.READY)
    assert [model.name for model in finding.models] == ["smollm2", "seldom"]
    async with backend_of(proxy) as backend:
        for _ in range(3):
            assert (await backend.check()).health is BackendHealth.READY
    assert generated() == before
    proxy.get("/health")
    assert generated() > before, "its /health runs a request on each model, which is why it is not asked"


async def test_a_limit_of_litellm_is_a_failure_that_may_pass(proxy: ModelProgram) -> None:
    # It answers 429, without a word of when to come again.
    async with backend_of(proxy) as backend:
        with pytest.raises(BackendUnavailable, match=r"429: .*[Rr]ate limit"):
            for _ in range(3):
                await collect(backend, ask("seldom", max_tokens=1))
        assert backend.state().health is BackendHealth.READY


async def test_a_private_authority_with_a_real_server(tmp_path: Path, llama: ModelProgram) -> None:
    authority = make_authority(tmp_path / "ca")
    upstream = {"model": "openai/smollm2", "api_base": f"{llama.url}/api/v1", "api_key": KEY}
    program = litellm(tmp_path, {"smollm2": upstream}, KEY)
    chain = str(tmp_path / "ca" / "server.pem")  # key and certificate
    program.command = (*program.command, "--ssl_keyfile_path", chain, "--ssl_certfile_path", chain)
    program.ca_file = authority.ca_file
    with running(program):
        async with backend_of(program, ca_file=authority.ca_file) as backend:
            assert text_of(await collect(backend, ask()))
        async with backend_of(program) as backend:
            assert "certificate" in (await backend.check()).detail
