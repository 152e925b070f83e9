"""Backend `openai` against a scripted server: every way in which a server is known to misbehave."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.backends import openai as openai_module
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.jobs.ports import (
    BackendBusy,
    BackendError,
    BackendHealth,
    BackendRefused,
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
from tests.support.openai_server import (
    DONE,
    STREAM_HEAD,
    Handler,
    ScriptedServer,
    Wire,
    answer,
    event,
    framed,
    hang,
    piece,
    raw,
    scripted_server,
    stream,
    usage,
)

ASK = GenerationRequest("m", (Message("user", "eight by"),), max_tokens=16)
GOOD = stream(piece("a"), piece("b"), piece(None, "stop"), usage(7, 2), DONE)
KEY = "sk-very-secret-key"


@asynccontextmanager
async def serving(*chats: Handler, **changes: Any) -> AsyncIterator[tuple[OpenAIBackend, ScriptedServer]]:
    async with scripted_server(*chats) as server:
        backend = OpenAIBackend(OpenAIConfig(**{"name": "box", "url": server.url, **changes}))
        async with backend.running():
            yield backend, server


async def collect(backend: OpenAIBackend, request: GenerationRequest = ASK) -> list[Chunk]:
    with anyio.fail_after(10):
        return [chunk async for chunk in backend.generate(request)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Delta))


# --- memory -----------------------------------------------------------------------------------------------------


class Router:
    """llama.cpp's server that loads models as they are asked for, as far as memory goes."""

    def __init__(self, server: ScriptedServer, **words: str) -> None:
        self.words = words
        self.dropped: list[str] = []
        self.lingers = 2
        server.routes |= {"/v1/models": self._models, "/models/unload": self._unload}

    async def _models(self, wire: Wire) -> None:
        for name in self.dropped:
            self.lingers -= 1
            self.words[name] = "unloaded" if self.lingers <= 0 else "loaded"
        data = [
            {"id": name, "owned_by": "llamacpp", "status": {"value": word}, "meta": {"n_ctx": 512}}
            for name, word in self.words.items()
        ]
        await answer(200, {"object": "list", "data": data})(wire)

    async def _unload(self, wire: Wire) -> None:
        self.dropped.append(wire.json["model"])
        await answer(200, {"success": True})(wire)


async def test_llama_cpps_router_drops_what_is_sold_and_nothing_else() -> None:
    async with serving(models=("m", "cold")) as (backend, server):
        router = Router(server, m="loaded", cold="unloaded", owners="loaded")
        state = await backend.check()
        assert not state.keeps_memory
        assert {model.name: model.loaded for model in state.models} == {"m": True, "cold": False, "owners": True}
        await backend.unload()
        assert router.dropped == ["m"]
        assert {model.name: model.loaded for model in backend.state().models}["m"] is False


async def test_any_other_server_keeps_its_memory_and_is_asked_for_nothing() -> None:
    async with serving(models=("m",)) as (backend, server):
        server.routes["/v1/models"] = answer(200, {"data": [{"id": "m", "status": {"value": "loaded"}}]})
        await backend.unload()
        assert server.posts() == []
        assert backend.state().keeps_memory


async def test_a_router_that_is_away_or_says_no_raises_nothing() -> None:
    async with serving(models=("m",)) as (backend, server):
        router = Router(server, m="loaded")
        server.routes["/models/unload"] = answer(400, {"error": {"message": "model is not loaded"}})
        await backend.unload()
        assert router.dropped == []
    await backend.unload()


# --- a good server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_streams_text_and_exact_usage(suffix: str) -> None:
    async with scripted_server(GOOD) as server:
        backend = OpenAIBackend(OpenAIConfig("box", server.url + suffix, api_key=KEY))
        async with backend.running():
            assert await collect(backend) == [Delta("a"), Delta("b"), Finished(FinishReason.STOP, 7, 2)]
        post = server.posts()[0]
        assert post.path == "/v1/chat/completions"
        assert post.headers["authorization"] == f"Bearer {KEY}"
        assert post.headers["accept-encoding"] == "identity"


async def test_sends_only_the_parameters_given() -> None:
    async with serving(GOOD) as (backend, server):
        await collect(backend)
        await collect(
            backend,
            GenerationRequest(
                "m",
                (Message("system", "s"), Message("user", "u")),
                max_tokens=5,
                temperature=0.0,
                top_k=1,
                top_p=0.5,
                frequency_penalty=-0.5,
                presence_penalty=0.25,
                seed=0,
                stop=("\n", "end"),
            ),
        )
        bare, full = (post.json for post in server.posts())
    assert bare == {
        "model": "m",
        "messages": [{"role": "user", "content": "eight by"}],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert full == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 0.5,
        "frequency_penalty": -0.5,
        "presence_penalty": 0.25,
        "seed": 0,
        "stop": ["\n", "end"],
    }


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("", "/v1"),
        ("/api", "/api/v1"),
        ("/api", "/api"),
        ("/openai/v1", "/openai/v1"),
        ("/v1beta/openai", "/v1beta/openai"),
    ],
)
async def test_the_api_is_found_under_a_base_path_and_with_or_without_v1(path: str, api: str) -> None:
    async with scripted_server() as server:
        nothing = answer(404, b"<html>no such page</html>")
        tried = (f"{path}/v1", path)
        server.routes = {f"{base}/{each}": nothing for base in tried for each in ("models", "chat/completions")}
        server.routes[f"{api}/models"] = answer(200, {"data": [{"id": "m"}]})
        server.routes[f"{api}/chat/completions"] = GOOD
        backend = OpenAIBackend(OpenAIConfig("box", server.url + path))
        async with backend.running():
            assert text_of(await collect(backend)) == "ab"
            server.asked.clear()
            assert (await backend.check()).health is BackendHealth.READY
            assert [wire.path for wire in server.asked] == [f"{api}/models"], "what was found is remembered"


async def test_a_url_that_names_v1_is_taken_at_its_word() -> None:
    async with scripted_server() as server:
        server.routes = {"/v1/models": answer(404, b"no"), "/models": answer(200, {"data": [{"id": "m"}]})}
        backend = OpenAIBackend(OpenAIConfig("box", f"{server.url}/v1"))
        async with backend.running():
            assert (await backend.check()).health is BackendHealth.DOWN


async def test_a_server_that_wants_a_key_is_not_asked_elsewhere() -> None:
    async with serving() as (backend, server):
        server.routes["/v1/models"] = answer(401, b"no")
        assert "does not accept our API key" in (await backend.check()).detail
        assert [wire.path for wire in server.asked] == ["/v1/models"]


async def test_comments_crlf_and_split_characters_are_read() -> None:
    euro = piece("€uro").replace(b"\n", b"\r\n")
    cut = euro.index("€".encode()) + 1
    chat = stream(b": ping\n\n", b":\r\n\r\n", euro[:cut], euro[cut:-1], euro[-1:], piece(None, "stop"), DONE)
    async with serving(chat) as (backend, _):
        assert text_of(await collect(backend)) == "€uro"


async def test_length_is_told_from_stop() -> None:
    async with serving(stream(piece("a", "length"), usage(1, 1), DONE)) as (backend, _):
        assert (await collect(backend))[-1] == Finished(FinishReason.LENGTH, 1, 1)


def thought(text: str, name: str = "reasoning_content") -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": None, name: text}}]})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_counted_and_not_delivered_beside_an_answer(name: str) -> None:
    async with serving(stream(thought("hm", name), piece("a", "stop"), usage(1, 9), DONE)) as (backend, _):
        assert await collect(backend) == [Delta("a"), Finished(FinishReason.STOP, 1, 9)]


@pytest.mark.parametrize("finish", ["stop", "length"])
async def test_reasoning_is_delivered_when_nothing_else_comes(finish: str) -> None:
    chat = stream(thought("hm, "), thought("so"), piece(None, finish), usage(1, 16), DONE)
    async with serving(chat) as (backend, _):
        assert await collect(backend) == [Delta("hm, so"), Finished(FinishReason(finish), 1, 16)]


async def test_reasoning_is_in_an_estimate_and_is_bounded() -> None:
    thoughts = [thought("x" * 100)] * 20
    async with serving(stream(*thoughts, piece(None, "stop")), max_output_bytes=1000) as (backend, _):
        ask = GenerationRequest("m", ASK.messages, max_tokens=10_000)
        assert await collect(backend, ask) == [
            Delta("x" * 1000),
            Finished(FinishReason.STOP, 2, 500, estimated=True),
        ]


# --- counts and ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [b"", usage(-1, 2), usage(True, 2), usage("7", 2), usage(1e300, 2)])
async def test_missing_or_absurd_usage_is_estimated(counts: bytes) -> None:
    async with serving(stream(piece("abcde", "stop"), *([counts] if counts else []), DONE)) as (backend, _):
        assert (await collect(backend))[-1] == Finished(FinishReason.STOP, 2, 2, estimated=True)


@pytest.mark.parametrize("end", [True, False])
async def test_no_done_after_a_finish_reason_is_complete(end: bool) -> None:
    async with serving(stream(piece("a", "stop"), usage(3, 1), end=end)) as (backend, _):
        assert await collect(backend) == [Delta("a"), Finished(FinishReason.STOP, 3, 1)]


async def test_a_server_that_never_closes_after_the_end_is_complete() -> None:
    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD + framed(piece("a", "stop")))
        await wire.gone()

    async with serving(chat, stall_timeout_s=0.1) as (backend, _):
        assert await collect(backend) == [Delta("a"), Finished(FinishReason.STOP, 2, 1, estimated=True)]


@pytest.mark.parametrize("end", [True, False])
async def test_an_end_without_a_finish_reason_is_a_break(end: bool) -> None:
    async with serving(stream(piece("a"), end=end)) as (backend, server):
        with pytest.raises(BackendUnavailable):
            await collect(backend)
        assert len(server.posts()) == 1, "bytes had arrived, so it must not be sent again"


# --- connections ------------------------------------------------------------------------------------------------


async def drop(wire: Wire) -> None:
    wire.cut()


async def test_a_dead_kept_connection_is_replaced_by_a_fresh_one() -> None:
    async with serving(GOOD, drop, GOOD) as (backend, server):
        await collect(backend)
        assert text_of(await collect(backend)) == "ab"
        first, dead, again = server.posts()
    assert first.connection == dead.connection, "the trap needs a kept connection"
    assert again.connection != first.connection
    assert again.body == dead.body


async def test_a_server_that_came_back_with_another_model_is_not_asked() -> None:
    async with serving(GOOD) as (backend, server):
        await collect(backend)

        async def restart(wire: Wire) -> None:
            server.models = ("other",)
            wire.cut()

        server.chats = [restart, GOOD]
        with pytest.raises(ModelMissing):
            await collect(backend)
        assert len(server.posts()) == 2


async def test_the_retry_is_bounded() -> None:
    async with serving(drop) as (backend, server):
        with pytest.raises(BackendUnavailable):
            await collect(backend)
        assert len(server.posts()) == 2
        assert backend.state().health is BackendHealth.DOWN


async def test_closing_the_generator_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD + framed(piece("a")))
        await wire.gone()
        gone.set()

    async with serving(chat) as (backend, _), aclosing(backend.generate(ASK)) as chunks:
        assert await anext(chunks) == Delta("a")
        await chunks.aclose()
        with anyio.fail_after(1):
            await gone.wait()


@pytest.mark.parametrize("begun", [True, False])
async def test_cancelling_closes_the_connection(begun: bool) -> None:
    reached, gone = asyncio.Event(), asyncio.Event()

    async def chat(wire: Wire) -> None:
        if begun:
            await wire.send(STREAM_HEAD)
        reached.set()
        await wire.gone()
        gone.set()

    async with serving(chat) as (backend, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, backend)
            with anyio.fail_after(5):
                await reached.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(1):
            await gone.wait()


async def test_a_slow_consumer_is_not_a_stalled_server() -> None:
    async with serving(GOOD, stall_timeout_s=0.2) as (backend, _):
        chunks = []
        async for chunk in backend.generate(ASK):
            chunks.append(chunk)
            await anyio.sleep(0.25)
        assert text_of(chunks) == "ab"


async def test_a_server_that_is_not_there() -> None:
    async with scripted_server(GOOD) as server:
        url = server.url
    backend = OpenAIBackend(OpenAIConfig("box", url))
    async with backend.running():
        assert (await backend.check()).health is BackendHealth.DOWN
        with pytest.raises(BackendUnavailable, match=r"box at http://127\.0\.0\.1:\d+ cannot be reached"):
            await collect(backend)


async def test_outside_running_it_is_unavailable() -> None:
    backend = OpenAIBackend(OpenAIConfig("box", "http://127.0.0.1:1"))
    with pytest.raises(BackendUnavailable, match="box is not running"):
        await collect(backend)


# --- time limits ------------------------------------------------------------------------------------------------


async def pings(wire: Wire) -> None:
    await wire.send(STREAM_HEAD)
    while True:
        await wire.send(framed(b": ping\n\n"))
        await asyncio.sleep(0.02)


async def stalls(wire: Wire) -> None:
    await wire.send(STREAM_HEAD + framed(piece("a")))
    await wire.gone()


async def drips(wire: Wire) -> None:
    for byte in STREAM_HEAD * 100:
        await wire.send(bytes([byte]))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("chat", [hang, pings, stalls, drips])
async def test_silence_has_a_limit_and_keepalives_do_not_extend_it(chat: Handler) -> None:
    async with serving(chat, first_token_timeout_s=0.3, stall_timeout_s=0.3) as (backend, server):
        with anyio.fail_after(3), pytest.raises(BackendUnavailable, match=r"did not start|stopped sending"):
            await collect(backend)
        assert len(server.posts()) == 1


# --- models -----------------------------------------------------------------------------------------------------


async def test_a_model_that_is_not_listed_is_missing_and_never_asked_for() -> None:
    async with serving(GOOD) as (backend, server):
        with pytest.raises(ModelMissing, match="box does not list the model gemma"):
            await collect(backend, GenerationRequest("gemma", ASK.messages, 1))
        assert server.posts() == []


async def test_a_list_that_is_refused_is_no_refusal_of_the_request() -> None:
    # LiteLLM without a database says so to a wrong key.
    async with serving(GOOD) as (backend, server):
        server.routes["/v1/models"] = answer(400, {"error": {"message": "No connected db."}})
        with pytest.raises(BackendUnavailable, match="No connected db"):
            await collect(backend)


async def test_aliases_are_models_and_a_new_model_is_found_at_once() -> None:
    async with serving(GOOD) as (backend, server):
        await collect(backend)
        server.routes["/v1/models"] = answer(200, {"data": [{"id": "x", "aliases": ["n", "x", 3]}, "junk", {}]})
        assert text_of(await collect(backend, GenerationRequest("n", ASK.messages, 1))) == "ab"
        assert [model.name for model in backend.state().models] == ["x", "n"]


async def test_the_list_is_asked_for_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_module, "MODELS_FRESH_S", 0.0)
    async with serving(GOOD) as (backend, server):
        await collect(backend)
        server.models = ("other",)
        with pytest.raises(ModelMissing):
            await collect(backend)


async def test_check_reads_the_context_of_a_slot_from_llama_cpp() -> None:
    async with serving() as (backend, server):
        server.routes["/v1/models"] = answer(200, {"data": [{"id": "m", "owned_by": "llamacpp"}]})
        server.routes["/props"] = answer(200, {"default_generation_settings": {"n_ctx": 2048}})
        state = await backend.check()
    assert state.health is BackendHealth.READY
    assert [(model.name, model.context_tokens) for model in state.models] == [("m", 2048)]


async def test_nobody_but_llama_cpp_is_asked_for_its_health() -> None:
    # LiteLLM's /health runs a request on every model it has.
    async with serving() as (backend, server):
        await backend.check()
        assert [wire.path for wire in server.asked] == ["/v1/models"]


async def test_a_router_tells_which_models_are_loaded() -> None:
    async with serving() as (backend, server):
        data = [
            {"id": "a", "owned_by": "llamacpp", "status": {"value": "loaded"}},
            {"id": "b", "owned_by": "llamacpp", "status": {"value": "unloaded", "failed": True}},
            {"id": "c", "owned_by": "llamacpp", "status": 3},
        ]
        server.routes["/v1/models"] = answer(200, {"data": data})
        server.routes["/props"] = answer(200, {"role": "router", "default_generation_settings": {"n_ctx": 0}})
        models = (await backend.check()).models
    assert [(model.name, model.loaded, model.context_tokens) for model in models] == [
        ("a", True, None),
        ("b", False, None),
        ("c", None, None),
    ]


async def test_the_context_of_a_model_that_a_router_unloaded_is_remembered() -> None:
    async with serving() as (backend, server):
        entry: dict[str, Any] = {
            "id": "a",
            "owned_by": "llamacpp",
            "status": {"value": "loaded"},
            "meta": {"n_ctx": 512},
        }
        for loaded in (True, False):
            if not loaded:
                entry = {**entry, "status": {"value": "unloaded"}, "meta": None}
            server.routes["/v1/models"] = answer(200, {"data": [entry]})
            (model,) = (await backend.check()).models
            assert (model.context_tokens, model.loaded) == (512, loaded)


async def test_loading_is_not_down() -> None:
    loading = answer(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
    async with serving(GOOD) as (backend, server):
        server.routes["/health"] = loading
        server.routes["/v1/models"] = answer(200, {"data": [{"id": "m", "owned_by": "llamacpp"}]})
        assert (await backend.check()).health is BackendHealth.LOADING
        with pytest.raises(BackendUnavailable, match="Loading model"):
            await collect(backend)
        server.routes["/health"] = answer(200, {"status": "ok"})
        assert (await backend.check()).health is BackendHealth.READY
        server.chats = [loading]
        with pytest.raises(BackendUnavailable, match="Loading model"):
            await collect(backend)


@pytest.mark.parametrize(
    "models",
    [
        answer(404, b"<html>nothing here</html>"),
        answer(200, b"<html>a web page</html>"),
        answer(200, b"[" * 100_000),
        answer(200, {"data": "m"}),
        answer(200, b'{"data": [{"id": "\\ud800"}]}'),
        answer(200, {"data": [{"id": "m", "pad": "x" * 5_000_000}]}),
        answer(200, gzip.compress(b'{"data": []}'), "Content-Encoding: gzip"),
        answer(401, {"error": {"message": KEY}}),
        answer(301, b"", "Location: http://[bad"),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        hang,
    ],
)
async def test_check_never_raises(models: Handler) -> None:
    async with serving(check_timeout_s=0.5, api_key=KEY) as (backend, server):
        server.routes["/v1/models"] = models
        state = await backend.check()
    assert state.health is BackendHealth.DOWN
    assert state.detail
    assert KEY not in state.detail
    assert state.detail.isprintable()


# --- a server that wants quiet ----------------------------------------------------------------------------------

AT = 1_767_225_600.0  # 2026-01-01 00:00:00


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (("Retry-After: 7",), 7.0),
        (("Retry-After: 0.5",), 0.5),
        (("Retry-After: Thu, 01 Jan 2026 00:00:09 GMT",), 9.0),
        (("Retry-After: Thu, 01 Jan 2026 00:00:09 GMT", "Date: Thu, 01 Jan 2026 00:00:04 GMT"), 5.0),
        (("Retry-After: Thu, 01 Jan 2015 00:00:09 GMT",), 0.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_what_a_busy_server_asks_for_is_told(status: int, headers: tuple[str, ...], wait_s: float) -> None:
    async with scripted_server(answer(status, {"error": {"message": "slow down"}}, *headers)) as server:
        backend = OpenAIBackend(OpenAIConfig("box", server.url), clock=lambda: AT)
        async with backend.running():
            with pytest.raises(BackendBusy, match="slow down; it wants to be asked again in") as caught:
                await collect(backend)
            assert caught.value.retry_after_s == wait_s
            assert backend.state().health is BackendHealth.READY, "that it is busy does not make it down"


@pytest.mark.parametrize("said", ["", "soon", "-3", "²", "1.2.3", "Thu, 99 Jan 2026 00:00:09 GMT", "9" * 400])
async def test_a_retry_after_that_says_nothing_is_none(said: str) -> None:
    async with serving(answer(429, b"{}", f"Retry-After: {said}")) as (backend, _):
        with pytest.raises(BackendUnavailable) as caught:
            await collect(backend)
        assert not isinstance(caught.value, BackendBusy)


async def test_a_server_that_wants_quiet_is_not_checked() -> None:
    async with serving() as (backend, server):
        assert (await backend.check()).health is BackendHealth.READY
        server.routes["/v1/models"] = answer(429, b"{}", "Retry-After: 100")
        for _ in range(3):
            state = await backend.check()
            assert state.health is BackendHealth.READY
            assert [model.name for model in state.models] == ["m"]
            assert "asked again in 100 s" in state.detail
        assert len(server.asked) == 2


# --- TLS --------------------------------------------------------------------------------------------------------


async def test_a_private_authority_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    ours, other = make_authority(tmp_path / "ours"), make_authority(tmp_path / "other")
    async with scripted_server(GOOD, tls=ours.server) as server:
        for ca_file, well in ((ours.ca_file, True), (other.ca_file, False), (None, False)):
            backend = OpenAIBackend(OpenAIConfig("box", server.url, api_key=KEY, ca_file=ca_file))
            async with backend.running():
                state = await backend.check()
                assert (state.health is BackendHealth.READY) is well
                if well:
                    assert text_of(await collect(backend)) == "ab"
                else:
                    assert "certificate" in state.detail
        assert len(server.posts()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file or directory"), ("no PEM", "holds no certificate in PEM form")],
)
async def test_an_authority_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, content: str | None, said: str
) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    backend = OpenAIBackend(OpenAIConfig("box", "https://127.0.0.1:1", ca_file=ca_file))
    async with backend.running():
        state = await backend.check()
    assert (state.health, state.detail) == (BackendHealth.DOWN, f"box cannot be asked: ca_file {ca_file} {said}")


# --- refusals ---------------------------------------------------------------------------------------------------

OVERLONG = {
    "error": {
        "code": 400,
        "message": "request (3030 tokens) exceeds the available context size (2048 tokens)",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 3030,
        "n_ctx": 2048,
    }
}


@pytest.mark.parametrize(
    ("chat", "error", "said"),
    [
        (answer(400, OVERLONG), BackendRefused, "the prompt has 3030 tokens and box takes 2048 per request"),
        (answer(400, {"error": {"code": "context_length_exceeded"}}), BackendRefused, "too long for box"),
        (stream(event(OVERLONG)), BackendRefused, "3030 tokens"),
        (answer(400, {"error": {"message": "bad \x1b[31mtop_k"}}), BackendRefused, r"bad \\x1b\[31mtop_k"),
        (answer(413, b""), BackendRefused, "answered 413: nothing more"),
        (answer(422, {"detail": [{"loc": ["body"], "msg": "no"}]}), BackendRefused, "loc"),
        (answer(401, {"error": KEY}), BackendUnavailable, "does not accept our API key"),
        (answer(403, b"no"), BackendUnavailable, "does not accept our API key"),
        (answer(400, {"error": {"message": f"key {KEY}"}}), BackendRefused, r"key \[api_key\]"),
        (answer(404, {"error": {"message": "x", "code": "model_not_found"}}), ModelMissing, "x"),
        (answer(404, {"error": {"message": 'model "m" not found'}}), ModelMissing, "not found"),
        (answer(400, {"error": {"message": "model 'm' not found", "code": 400}}), ModelMissing, "not found"),
        (
            answer(400, {"error": {"message": "Invalid model name passed in model=m. Call"}}),
            ModelMissing,
            "Invalid",
        ),
        (answer(400, {"error": {"message": "model is not loaded"}}), BackendUnavailable, "load it there"),
        (answer(408, b"late"), BackendUnavailable, "late"),
        (answer(429, {"error": {"message": "slow down"}}), BackendUnavailable, "slow down"),
        (answer(500, {"error": "kaputt"}), BackendUnavailable, "kaputt"),
        (answer(502, b"<html>" + b"x" * 100_000), BackendUnavailable, "502"),
        (answer(200, {"choices": []}), BackendUnavailable, "instead of an event stream"),
        (answer(302, b"", "Location: http://127.0.0.1:1/"), BackendUnavailable, "302"),
        (raw(b"nonsense\r\n\r\n"), BackendUnavailable, "cannot be reached"),
        (stream(b"data: {\n\n"), BackendUnavailable, "not the OpenAI API"),
        (stream(b"data: 3\n\n"), BackendUnavailable, "not the OpenAI API"),
        (stream(event({"choices": "x"})), BackendUnavailable, "not the OpenAI API"),
        (stream(event({"choices": [{"delta": {"content": 3}}]})), BackendUnavailable, "not the OpenAI API"),
        (stream(event({"error": {"message": "slot lost"}})), BackendUnavailable, "slot lost"),
        (stream(piece(None, "content_filter")), BackendRefused, "content filter"),
        (stream(piece("a"), piece(None, "abort")), BackendUnavailable, "broke off"),
        (stream(b"data: " + b"x" * 1_200_000), BackendUnavailable, "event of more than 1048576"),
        (stream(*[b"data: " + b"x" * 60_000 + b"\n"] * 20), BackendUnavailable, "event of more than 1048576"),
    ],
)
async def test_what_an_error_means(chat: Handler, error: type[BackendError], said: str) -> None:
    async with serving(chat, api_key=KEY) as (backend, _):
        with pytest.raises(error, match=said) as caught:
            await collect(backend)
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_a_compressed_stream_is_not_unpacked() -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with serving(raw(head + framed(gzip.compress(b"data: x" * 1000)) + b"0\r\n\r\n")) as (backend, _):
        with pytest.raises(BackendUnavailable, match="compressed"):
            await collect(backend)


async def test_output_is_bounded() -> None:
    async with serving(stream(*[piece("x" * 100)] * 100), max_output_bytes=1000) as (backend, _):
        seen = []
        with pytest.raises(BackendUnavailable, match="more than 1000 bytes of output"):
            async for chunk in backend.generate(ASK):
                seen.append(chunk)
        assert len(seen) == 10


async def test_text_that_json_cannot_carry_is_refused() -> None:
    async with serving(GOOD) as (backend, _):
        with pytest.raises(BackendRefused):
            await collect(backend, GenerationRequest("m", (Message("user", "\ud800"),), 1))


async def test_cookies_are_not_kept() -> None:
    async with serving(GOOD) as (backend, server):
        server.routes["/v1/models"] = answer(200, {"data": [{"id": "m"}]}, "Set-Cookie: a=b; Path=/")
        await collect(backend)
        assert "cookie" not in server.posts()[0].headers


# --- settings ---------------------------------------------------------------------------------------------------


def test_the_key_is_not_in_the_repr() -> None:
    config = OpenAIConfig("box", "http://127.0.0.1:1", api_key=KEY)
    assert KEY not in repr(config)
    assert KEY not in repr(vars(OpenAIBackend(config)))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://u:p@host",
        "http://host?x=1",
        "http://host:99999",
        "http://[",
        "http://exa mple",
        "http://host\x00",
        "http://xn--zz.x",
    ],
)
def test_a_bad_url_is_one_sentence(url: str) -> None:
    with pytest.raises(ValueError, match="the backend's url"):
        OpenAIConfig("box", url)


@pytest.mark.parametrize("key", ["two\r\nlines", "schlüssel"])
def test_a_key_that_no_header_carries_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        OpenAIConfig("box", "http://127.0.0.1:1", api_key=key)
    assert key not in str(caught.value)


# --- anything at all --------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "finish_reason", "usage", "error", "code", "message", "index"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_parts = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"\r", b"\n", b"\r\n", b"data:", b"data: [DONE]", b":", b"event: error", b"\xef\xbb\xbf", b"\xe2\x82"]
        ),
        st.just(piece("a")),
        st.just(piece(None, "stop")),
        _json.map(event),
        _json.map(lambda value: event({"choices": [{"delta": {"content": value}, "finish_reason": value}]})),
        _json.map(lambda value: event({"choices": [value], "usage": value, "error": value})),
    ),
    max_size=6,
)


async def _outcome(chat: Handler) -> list[Chunk] | BackendError:
    async with serving(chat, first_token_timeout_s=2, stall_timeout_s=2) as (backend, _):
        try:
            return await collect(backend)
        except BackendError as error:
            assert str(error).isprintable()
            return error


@settings(max_examples=100, deadline=None)
@given(parts=_parts, end=st.booleans())
def test_any_stream_ends_well_or_in_a_backend_error(parts: list[bytes], end: bool) -> None:
    outcome = asyncio.run(_outcome(stream(*filter(None, parts), end=end)))
    if isinstance(outcome, list):
        *deltas, last = outcome
        assert isinstance(last, Finished)
        assert all(isinstance(chunk, Delta) and chunk.text for chunk in deltas)


@settings(max_examples=60, deadline=None)
@given(
    head=st.sampled_from(
        [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 400 No\r\n", b"HTTP/1.1 302 Go\r\nLocation: ", STREAM_HEAD]
    ),
    rest=st.binary(max_size=60),
)
def test_any_bytes_end_well_or_in_a_backend_error(head: bytes, rest: bytes) -> None:
    asyncio.run(_outcome(raw(head + rest)))
