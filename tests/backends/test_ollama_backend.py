"""Backend `ollama` against a stand-in for the server: its models, its answers, and how it may misbehave."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.backends import ollama as ollama_module
from pylon.backends.embedded import EmbeddedBackend, EmbeddedConfig
from pylon.backends.ollama import OllamaBackend, OllamaConfig
from pylon.jobs.ports import (
    Backend,
    BackendError,
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
from tests.support.authority import make_authority
from tests.support.model import model_path
from tests.support.ollama_stand_in import (
    LOADED_BYTES,
    STREAM_HEAD,
    OllamaStandIn,
    done,
    engine,
    line,
    lines,
    ollama_stand_in,
    said,
)
from tests.support.openai_server import Handler, Wire, answer, framed, hang, raw

ASK = GenerationRequest("m", (Message("user", "eight by"),), max_tokens=16)
GOOD = lines(said("a"), said("b"), done(7, 2))


@asynccontextmanager
async def serving(*chats: Handler, **changes: Any) -> AsyncIterator[tuple[OllamaBackend, OllamaStandIn]]:
    async with ollama_stand_in(*chats) as server:
        backend = OllamaBackend(OllamaConfig(**{"name": "box", "url": server.url, "models": ("m",), **changes}))
        async with backend.running():
            yield backend, server


async def collect(backend: OllamaBackend, request: GenerationRequest = ASK) -> list[Chunk]:
    with anyio.fail_after(10):
        return [chunk async for chunk in backend.generate(request)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Delta))


async def reaches(backend: Backend, wanted: Callable[[BackendState], bool], within_s: float = 5.0) -> BackendState:
    with anyio.fail_after(within_s):
        while True:
            if wanted(backend.state()):
                return backend.state()
            await anyio.sleep(0.002)


# --- memory -----------------------------------------------------------------------------------------------------


async def test_what_is_sold_is_dropped_and_nothing_else() -> None:
    has = {"m:latest": 8192, "q:4b": 8192, "owners:latest": 8192}
    async with serving(GOOD, models=("m", "q:4b", "cold")) as (backend, server):
        server.has, server.loaded, server.lingers = has, dict.fromkeys(has, 4096), 2
        assert (await backend.check()).memory_bytes == 2 * LOADED_BYTES, "the owner's own model is not ours"
        assert backend.state().gpu_bytes == LOADED_BYTES
        await backend.unload()
        assert list(server.loaded) == ["owners:latest"], "it returned before the memory was free"
        assert {wire.json["model"] for wire in server.asked if wire.path == "/api/generate"} == {"m", "q:4b"}
        state = backend.state()
        assert (state.memory_bytes, state.gpu_bytes, state.keeps_memory) == (0, 0, False)
        assert {model.name: model.loaded for model in state.models}["m"] is False
        assert text_of(await collect(backend)) == "ab", "the next job loads it again"
        assert "m:latest" in server.loaded


async def test_a_server_that_is_away_or_says_no_gives_nothing_back_and_raises_nothing() -> None:
    async with serving() as (backend, server):
        server.loaded["m:latest"] = 4096
        server.routes["/api/generate"] = answer(500, {"error": "busy"})
        await backend.unload()
        assert backend.state().memory_bytes == LOADED_BYTES
        await server.stop()
        await backend.unload()
        assert backend.state().health is BackendHealth.DOWN
        await server.start()
    await backend.unload()  # nor does one that is not running


async def test_memory_that_is_not_told_or_not_ours_is_unknown() -> None:
    async with serving() as (backend, server):
        server.routes["/api/ps"] = answer(200, {"models": [{"model": "m:latest", "size": 5}]})
        assert ((await backend.check()).memory_bytes, backend.state().gpu_bytes) == (5, None)
        server.routes["/api/ps"] = answer(404, b"")
        await backend.unload()
    elsewhere = OllamaBackend(OllamaConfig("far", "http://192.0.2.7:11434"))
    assert not elsewhere._is_here


# --- a good server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/api/"])
async def test_streams_text_and_exact_usage(suffix: str) -> None:
    async with ollama_stand_in(GOOD) as server:
        backend = OllamaBackend(OllamaConfig("box", server.url + suffix))
        async with backend.running():
            assert await collect(backend) == [Delta("a"), Delta("b"), Finished(FinishReason.STOP, 7, 2)]
        assert server.chatted()[0].headers["accept-encoding"] == "identity"


async def test_sends_only_the_parameters_given() -> None:
    async with serving() as (backend, server):
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
        bare, full = (chat.json for chat in server.chatted())
    whole = {"model": "m", "stream": True, "tools": [], "truncate": False, "shift": False}
    assert bare == {
        **whole,
        "messages": [{"role": "user", "content": "eight by"}],
        "options": {"num_predict": 16},
    }
    assert full == {
        **whole,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "options": {
            "num_predict": 5,
            "temperature": 0.0,
            "top_k": 1,
            "top_p": 0.5,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.25,
            "seed": 0,
            "stop": ["\n", "end"],
        },
    }


@pytest.mark.parametrize("keep_alive_s", [-1, 0, 90])
async def test_keep_alive_and_context_are_sent(keep_alive_s: int) -> None:
    async with serving(keep_alive_s=keep_alive_s, context_tokens=2048) as (backend, server):
        await collect(backend)
        asked = server.chatted()[0].json
    assert asked["keep_alive"] == keep_alive_s
    assert asked["options"]["num_ctx"] == 2048


async def test_length_is_told_from_stop() -> None:
    async with serving() as (backend, server):
        server.words = ("one", "two", "three")
        cut = await collect(backend, GenerationRequest("m", ASK.messages, 2))
        assert cut[-1] == Finished(FinishReason.LENGTH, 2, 2)
        assert (await collect(backend))[-1] == Finished(FinishReason.STOP, 2, 3)


async def test_thinking_is_not_output() -> None:
    async with serving(lines(said("", thinking="hm"), said(None, thinking="so"), said("a"), done(1, 5))) as (
        backend,
        _,
    ):
        assert await collect(backend) == [Delta("a"), Finished(FinishReason.STOP, 1, 5)]


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_thinking_is_delivered_when_nothing_else_comes(reason: str) -> None:
    chat = lines(said("", thinking="hm, "), said("", thinking="so"), done(1, 5, reason))
    async with serving(chat) as (backend, _):
        assert await collect(backend) == [Delta("hm, so"), Finished(FinishReason(reason), 1, 5)]


async def test_every_character_comes_through_however_it_is_split() -> None:
    # Python takes U+0085 and U+2028 for ends of lines; in JSON they are text.
    text = "€uro \x85 next \u2028 line \u2029 end \U0001f600"
    whole = line(said(text))
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    async with serving(lines(b"\n", b"\r\n", *pieces, line(done(1, 1))[:-1])) as (backend, _):
        assert text_of(await collect(backend)) == text


# --- counts and ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(None, None), (3, None), (None, 2), (-1, 2), (3, 2**60)])
async def test_missing_or_absurd_usage_is_estimated(counts: tuple[Any, Any]) -> None:
    async with serving(lines(said("abcde"), done(*counts))) as (backend, _):
        assert (await collect(backend))[-1] == Finished(FinishReason.STOP, 2, 2, estimated=True)


async def test_no_count_of_no_output_is_zero() -> None:
    async with serving(lines(done(3, None))) as (backend, _):
        assert await collect(backend) == [Finished(FinishReason.STOP, 3, 0)]


@pytest.mark.parametrize("end", [True, False])
async def test_a_stream_without_its_end_is_a_break(end: bool) -> None:
    async with serving(lines(said("a"), end=end)) as (backend, server):
        with pytest.raises(BackendUnavailable, match=r"ended its answer before|broke off its answer"):
            await collect(backend)
        assert len(server.chatted()) == 1


@pytest.mark.parametrize("reason", ["load", "unload"])
async def test_a_model_that_was_only_loaded_answered_nothing(reason: str) -> None:
    async with serving(lines(done(None, None, reason))) as (backend, _):
        with pytest.raises(BackendUnavailable, match=reason):
            await collect(backend)


async def test_a_server_that_never_closes_after_the_end_is_complete() -> None:
    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD + framed(line(said("a")) + line(done(3, 1))))
        await wire.gone()

    async with serving(chat) as (backend, _):
        assert await collect(backend) == [Delta("a"), Finished(FinishReason.STOP, 3, 1)]


# --- cancelling and restarts ------------------------------------------------------------------------------------


async def begins(wire: Wire) -> None:
    await wire.send(STREAM_HEAD + framed(line(said("a"))))
    await wire.gone()


async def test_closing_the_generator_frees_the_runner() -> None:
    async with serving(begins) as (backend, server), aclosing(backend.generate(ASK)) as chunks:
        assert await anext(chunks) == Delta("a")
        assert server.runners == ["m:latest"]
        await chunks.aclose()
        with anyio.fail_after(1):
            await server.freed.wait()
        assert server.runners == []


@pytest.mark.parametrize("begun", [True, False])
async def test_cancelling_frees_the_runner(begun: bool) -> None:
    reached = asyncio.Event()

    async def chat(wire: Wire) -> None:
        if begun:
            await wire.send(STREAM_HEAD)
        reached.set()
        await wire.gone()

    async with serving(chat) as (backend, server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, backend)
            with anyio.fail_after(5):
                await reached.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(1):
            await server.freed.wait()
        assert server.runners == []


async def test_a_restart_in_the_middle_is_a_break_and_then_it_works_again() -> None:
    async with serving(begins, GOOD) as (backend, server):
        async with aclosing(backend.generate(ASK)) as chunks:
            assert await anext(chunks) == Delta("a")
            await server.stop()
            with pytest.raises(BackendUnavailable, match="broke off its answer"):
                await anext(chunks)
        assert backend.state().health is not BackendHealth.DOWN, "that one answer broke is not the next one's fault"
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await collect(backend)
        assert (await backend.check()).health is BackendHealth.DOWN
        await server.start()
        assert (await backend.check()).health is BackendHealth.READY
        assert text_of(await collect(backend)) == "ab"


async def test_a_restart_between_two_jobs_is_not_noticed() -> None:
    async with serving(GOOD) as (backend, server):
        await collect(backend)
        await server.stop()
        await server.start()
        assert text_of(await collect(backend)) == "ab"


async def test_a_slow_consumer_is_not_a_stalled_server() -> None:
    async with serving(GOOD, stall_timeout_s=0.2) as (backend, _):
        chunks = []
        async for chunk in backend.generate(ASK):
            chunks.append(chunk)
            await anyio.sleep(0.25)
        assert text_of(chunks) == "ab"


async def test_a_server_that_is_not_there() -> None:
    async with ollama_stand_in() as server:
        url = server.url
    backend = OllamaBackend(OllamaConfig("box", url))
    async with backend.running():
        assert (await backend.check()).health is BackendHealth.DOWN
        with pytest.raises(BackendUnavailable, match=r"box at http://127\.0\.0\.1:\d+ cannot be reached"):
            await collect(backend)


async def test_outside_running_it_is_unavailable() -> None:
    backend = OllamaBackend(OllamaConfig("box", "http://127.0.0.1:1"))
    with pytest.raises(BackendUnavailable, match="box is not running"):
        await collect(backend)
    assert (await backend.check()).health is BackendHealth.DOWN


# --- time limits ------------------------------------------------------------------------------------------------


async def empty_parts(wire: Wire) -> None:
    await wire.send(STREAM_HEAD)
    while True:
        await wire.send(framed(line(said(""))))
        await asyncio.sleep(0.02)


async def drips(wire: Wire) -> None:
    for byte in STREAM_HEAD * 100:
        await wire.send(bytes([byte]))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("chat", [hang, empty_parts, begins, drips])
async def test_silence_has_a_limit_and_empty_parts_do_not_extend_it(chat: Handler) -> None:
    async with serving(chat, first_token_timeout_s=0.3, stall_timeout_s=0.3) as (backend, server):
        with anyio.fail_after(3), pytest.raises(BackendUnavailable, match=r"did not start|stopped sending"):
            await collect(backend)
        assert len(server.chatted()) == 1


async def test_thinking_is_progress() -> None:
    async def chat(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for _ in range(4):
            await wire.send(framed(line(said("", thinking="hm"))))
            await asyncio.sleep(0.2)
        await wire.send(framed(line(said("a")) + line(done(1, 1))))
        await wire.gone()

    async with serving(chat, first_token_timeout_s=0.5, stall_timeout_s=0.5) as (backend, _):
        assert text_of(await collect(backend)) == "a"


# --- models -----------------------------------------------------------------------------------------------------


async def test_models_carry_the_operators_names_and_no_context_that_nobody_knows() -> None:
    async with serving(models=("small", "big:7b")) as (backend, server):
        server.has = {"small:latest": 2048, "big:7b": 131_072, "unsold:1b": 512}
        state = await backend.check()
    assert (state.health, state.detail) == (BackendHealth.READY, "")
    assert state.models == (ModelInfo("small"), ModelInfo("big:7b"), ModelInfo("unsold:1b"))


async def test_the_context_is_what_is_loaded() -> None:
    async with serving(GOOD) as (backend, server):
        await collect(backend)
        (model,) = (await backend.check()).models
        assert (model, model.loaded) == (ModelInfo("m", 4096), True)
        server.routes["/api/ps"] = answer(404, b"404 page not found")
        (model,) = (await backend.check()).models
        assert (model, model.loaded) == (ModelInfo("m"), None)


async def test_the_context_that_is_asked_for_is_bounded_by_the_models_own() -> None:
    async with serving(context_tokens=16_384, models=("m", "n")) as (backend, server):
        server.has["n:latest"] = 131_072
        assert (await backend.check()).models == (ModelInfo("m", 8192), ModelInfo("n", 16_384))
        await backend.check()
        shown = [wire for wire in server.asked if wire.path == "/api/show"]
        assert len(shown) == 2, "a model is asked about once for each digest"


async def test_a_prompt_is_never_cut() -> None:
    long = GenerationRequest("m", (Message("user", "word " * 200),), max_tokens=4)
    async with serving(context_tokens=128) as (backend, _):
        with pytest.raises(BackendRefused, match="the prompt is too long for box"):
            await collect(backend, long)


@pytest.mark.parametrize(
    ("sold", "has"), [("m", "m:latest"), ("m:latest", "m:latest"), ("hf.co/A/b", "hf.co/a/B:latest")]
)
async def test_a_name_without_a_tag_is_the_latest(sold: str, has: str) -> None:
    async with serving(lines(said("a", model=sold), done(1, 1, model=sold)), models=(sold,)) as (backend, server):
        server.has = {has: 8192}
        assert [model.name for model in (await backend.check()).models] == [sold]


async def test_a_tag_is_not_another_tag() -> None:
    async with serving(models=("m:1b",)) as (backend, _):
        state = await backend.check()
        assert (state.health, [model.name for model in state.models]) == (BackendHealth.DOWN, ["m:latest"])
        assert "ollama pull m:1b" in state.detail
        with pytest.raises(ModelMissing, match="box does not have the model"):
            await collect(backend, GenerationRequest("m:1b", ASK.messages, 1))


async def test_another_model_is_not_passed_off_as_the_one_asked_for() -> None:
    async with serving(lines(said("a", model="other"), done(1, 1))) as (backend, _):
        with pytest.raises(ModelMissing, match="answered with the model other instead of m"):
            await collect(backend)


async def test_a_model_that_vanished_is_not_sold_until_it_is_back() -> None:
    async with serving(models=("m", "n")) as (backend, server):
        server.has["n:latest"] = 4096
        await backend.check()
        del server.has["m:latest"]
        with pytest.raises(ModelMissing):
            await collect(backend)
        state = backend.state()
        assert (state.health, [model.name for model in state.models]) == (BackendHealth.READY, ["n"])
        del server.has["n:latest"]
        with pytest.raises(ModelMissing):
            await collect(backend, GenerationRequest("n", ASK.messages, 1))
        assert backend.state().health is BackendHealth.DOWN
        server.has["m:latest"] = 8192
        assert (await backend.check()).health is BackendHealth.READY
        assert text_of(await collect(backend)) == "ab"


@pytest.mark.parametrize(
    "tags",
    [
        answer(404, b"<html>nothing here</html>"),
        answer(200, b"<html>a web page</html>"),
        answer(200, b"[" * 100_000),
        answer(200, {"models": "m"}),
        answer(200, {"data": []}),
        answer(200, b"\xff\xfe"),
        answer(200, {"models": [{"model": "m", "pad": "x" * 5_000_000}]}),
        answer(200, gzip.compress(b'{"models": []}'), "Content-Encoding: gzip"),
        answer(401, {"error": "\x1b[31mwho\nare you"}),
        answer(301, b"", "Location: http://[bad"),
        answer(500, {"error": "kaputt\n\x1b[0m"}),
        answer(500, b"[1]"),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        hang,
    ],
)
async def test_check_never_raises(tags: Handler) -> None:
    async with serving(check_timeout_s=0.5) as (backend, server):
        server.routes["/api/tags"] = tags
        state = await backend.check()
    assert state.health is BackendHealth.DOWN
    assert state.detail
    assert state.detail.isprintable()


@pytest.mark.parametrize("path", ["/api/show", "/api/ps"])
@pytest.mark.parametrize("nothing", [answer(500, b""), answer(404, {"error": "no"})])
async def test_what_a_server_does_not_say_of_its_models_is_unknown(path: str, nothing: Handler) -> None:
    async with serving() as (backend, server):
        server.routes[path] = nothing
        assert (await backend.check()).models == (ModelInfo("m"),)


# --- fetching ---------------------------------------------------------------------------------------------------


async def test_an_absent_model_is_not_fetched_unless_the_operator_wants_it() -> None:
    async with serving(models=("new",)) as (backend, server):
        server.library["new:latest"] = 4096
        assert (await backend.check()).health is BackendHealth.DOWN
        with pytest.raises(ModelMissing):
            await collect(backend, GenerationRequest("new", ASK.messages, 1))
        assert server.pulled() == []


async def test_a_sold_model_is_fetched_and_says_how_far_it_is() -> None:
    half, rest = asyncio.Event(), asyncio.Event()

    async def downloading() -> dict[str, Any]:
        await half.wait()
        return {"status": "pulling abc", "digest": "sha256:abc", "total": 200, "completed": 86}

    async def verifying() -> dict[str, Any]:
        await rest.wait()
        return {"status": "verifying sha256 digest"}

    async with serving(models=("new",), pull=True) as (backend, server):
        server.library = {"new:latest": 4096, "other:latest": 4096}
        server.pull_steps = [downloading, verifying]
        assert (await backend.check()).health is BackendHealth.LOADING
        half.set()
        state = await reaches(backend, lambda state: "%" in state.detail)
        assert (state.health, state.detail) == (BackendHealth.LOADING, "pulling new: 43 %")
        assert await backend.check() == state, "a check tells how far it is and begins no second download"
        rest.set()
        await reaches(backend, lambda state: state.health is BackendHealth.READY)
        assert text_of(await collect(backend, GenerationRequest("new", ASK.messages, 16))) == "ab"
        assert server.pulled() == ["new"]


async def test_a_customer_cannot_make_it_fetch() -> None:
    async with serving(pull=True) as (backend, server):
        server.library["other:latest"] = 4096
        await backend.check()
        with pytest.raises(ModelMissing):
            await collect(backend, GenerationRequest("other", ASK.messages, 1))
        assert (await backend.check()).health is BackendHealth.READY
        assert server.pulled() == []


async def test_one_absent_model_does_not_stop_the_others() -> None:
    hold = asyncio.Event()

    async def waits() -> dict[str, Any]:
        await hold.wait()
        return {"status": "writing manifest"}

    async with serving(models=("m", "new"), pull=True) as (backend, server):
        server.library["new:latest"] = 4096
        server.pull_steps = [waits]
        await backend.check()
        state = await reaches(backend, lambda state: "pulling new: " in state.detail)
        assert state.health is BackendHealth.READY
        assert text_of(await collect(backend)) == "ab"
        hold.set()
        await reaches(backend, lambda state: [model.name for model in state.models] == ["m", "new"])


async def test_a_failed_download_says_why_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_module, "PULL_AGAIN_S", 0.01)
    async with serving(models=("new",), pull=True) as (backend, server):
        await backend.check()
        state = await reaches(backend, lambda state: state.health is BackendHealth.DOWN)
        assert state.detail == "pulling new failed: box broke off: pull model manifest: file does not exist"
        assert await backend.check() == state
        server.library["new:latest"] = 4096
        await reaches(backend, lambda state: state.health is BackendHealth.READY)


@pytest.mark.parametrize(
    "pull",
    [
        lines({"status": "pulling manifest"}),
        lines({"status": "pulling manifest"}, end=False),
        lines(b"3\n"),
        answer(403, b"no"),
        lines(b'{"status": "\\u001b[31m', b"x" * 1_200_000),
        hang,
    ],
)
async def test_a_download_never_raises(pull: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_module, "PULL_SILENCE_S", 0.3)
    async with serving(models=("new",), pull=True) as (backend, server):
        server.routes["/api/pull"] = pull
        await backend.check()
        state = await reaches(backend, lambda state: "failed" in state.detail)
        assert state.health is BackendHealth.DOWN
        assert state.detail.isprintable()


async def test_ending_stops_a_download() -> None:
    reached, gone = asyncio.Event(), asyncio.Event()

    async def pull(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        reached.set()
        await wire.gone()
        gone.set()

    async with ollama_stand_in() as server:
        server.routes["/api/pull"] = pull
        backend = OllamaBackend(OllamaConfig("box", server.url, models=("new",), pull=True))
        async with backend.running():
            await backend.check()
            with anyio.fail_after(5):
                await reached.wait()
        with anyio.fail_after(1):
            await gone.wait()


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "error", "said_so"),
    [
        (answer(400, {"error": "the input length exceeds the context length"}), BackendRefused, "too long for box"),
        (lines({"error": "prompt exceeds the available context size"}), BackendRefused, "too long for box"),
        (answer(400, {"error": "bad \x1b[31mtop_k"}), BackendRefused, r"bad \\x1b\[31mtop_k"),
        (answer(400, {"error": '"m" does not support chat'}), BackendRefused, "does not support chat"),
        (answer(413, b""), BackendRefused, "answered 413: nothing more"),
        (answer(404, {"error": "model 'm' not found"}), ModelMissing, "not found"),
        (lines({"error": "model 'm' not found"}), ModelMissing, "not found"),
        (answer(404, b"404 page not found"), BackendRefused, "answered 404"),
        (answer(401, {"error": "unauthorized"}), BackendUnavailable, "wants a login"),
        (answer(408, b"late"), BackendUnavailable, "late"),
        (answer(429, {"error": "slow down"}), BackendUnavailable, "slow down"),
        (answer(500, {"error": "model requires more system memory"}), BackendUnavailable, "more system memory"),
        (answer(503, {"error": "server busy, please try again"}), BackendUnavailable, "server busy"),
        (answer(502, b"<html>" + b"x" * 2_000_000), BackendUnavailable, "502"),
        (answer(302, b"", "Location: http://127.0.0.1:1/"), BackendUnavailable, "302"),
        (answer(204, b""), BackendUnavailable, "ended its answer before"),
        (answer(200, b"<html>a web page</html>"), BackendUnavailable, "not Ollama's API"),
        (answer(200, gzip.compress(line(said("a"))), "Content-Encoding: gzip"), BackendUnavailable, "compressed"),
        (raw(b"nonsense\r\n\r\n"), BackendUnavailable, "broke off its answer"),
        (lines(b"{\n"), BackendUnavailable, "not Ollama's API"),
        (lines(b"3\n"), BackendUnavailable, "not Ollama's API"),
        (lines(b"[" * 100_000 + b"\n"), BackendUnavailable, "not Ollama's API"),
        (lines({"done": False}), BackendUnavailable, "not Ollama's API"),
        (lines({"message": {"role": "assistant", "content": 3}}), BackendUnavailable, "not Ollama's API"),
        (lines(b'{"message": {"role": "a", "content": "\\ud800"}}\n'), BackendUnavailable, "not Ollama's API"),
        (lines({"error": 3}), BackendUnavailable, "not Ollama's API"),
        (lines(said("a"), {"error": "an error was encountered\x07"}), BackendUnavailable, r"broke off: an error"),
        (lines(b'{"x": "' + b"x" * 1_200_000), BackendUnavailable, "line of more than 1048576"),
        (lines(*[b"x" * 60_000] * 20), BackendUnavailable, "line of more than 1048576"),
    ],
)
async def test_what_an_error_means(chat: Handler, error: type[BackendError], said_so: str) -> None:
    async with serving(chat) as (backend, _):
        with pytest.raises(error, match=said_so) as caught:
            await collect(backend)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_output_is_bounded() -> None:
    async with serving(lines(*[said("x" * 100)] * 100), max_output_bytes=1000) as (backend, _):
        seen = []
        with pytest.raises(BackendUnavailable, match="more than 1000 bytes of output"):
            async for chunk in backend.generate(ASK):
                seen.append(chunk)
        assert len(seen) == 10


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest("m", (Message("user", "\ud800"),), 1),
        GenerationRequest("m", ASK.messages, 1, stop=("\ud800",)),
        GenerationRequest("", ASK.messages, 1),
    ],
)
async def test_what_cannot_be_sent_is_refused(request_: GenerationRequest) -> None:
    async with serving(GOOD) as (backend, server):
        with pytest.raises(BackendRefused):
            await collect(backend, request_)
        assert server.chatted() == []


# --- the environment and the settings ---------------------------------------------------------------------------


async def test_the_environment_sends_it_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password from-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("OLLAMA_API_KEY", "key-of-another-server")
    async with serving(GOOD) as (backend, server):
        server.routes["/api/tags"] = answer(200, {"models": [{"model": "m"}]}, "Set-Cookie: a=b; Path=/")
        await backend.check()
        await collect(backend)
        for wire in server.asked:
            assert not {"authorization", "cookie"} & wire.headers.keys()


async def test_a_private_authority_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    async with ollama_stand_in(GOOD, tls=authority.server) as server:
        for ca_file, health in ((authority.ca_file, BackendHealth.READY), (None, BackendHealth.DOWN)):
            backend = OllamaBackend(OllamaConfig("box", server.url, models=("m",), ca_file=ca_file))
            async with backend.running():
                assert (await backend.check()).health is health
                if ca_file is not None:
                    assert text_of(await collect(backend)) == "ab"


async def test_an_authority_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    backend = OllamaBackend(OllamaConfig("box", "https://127.0.0.1:1", ca_file=tmp_path / "ca.pem"))
    async with backend.running():
        state = await backend.check()
    assert state.health is BackendHealth.DOWN
    assert state.detail.startswith(f"box cannot be asked: ca_file {tmp_path / 'ca.pem'} cannot be read")


def test_an_environment_that_its_client_cannot_use_does_not_stop_us() -> None:
    environment = {
        "ALL_PROXY": "socks5h://127.0.0.1:9050",
        "OLLAMA_HOST": "http://[bad",
        "SSL_CERT_FILE": "/nowhere",
    }
    program = (
        "import os; before = dict(os.environ)\n"
        "from pylon.backends.ollama import OllamaBackend\n"
        "assert dict(os.environ) == before\n"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:11434", "ftp://host", "http://", "http://u:p@host", "http://host?x=1", "http://host:99999"],
)
def test_a_bad_url_is_one_sentence(url: str) -> None:
    with pytest.raises(ValueError, match="the backend's url"):
        OllamaConfig("box", url)


# --- a real engine ----------------------------------------------------------------------------------------------


@pytest.mark.e2e
async def test_a_real_engine_behind_the_stand_in(tmp_path: Path) -> None:
    config = EmbeddedConfig(
        "llama",
        model_path(),
        "smollm2",
        tmp_path / "llama.log",
        context_tokens=512,
        slots=1,
        threads=1,
        gpu_layers=0,
    )
    llama = EmbeddedBackend(config)
    ask = GenerationRequest(
        "smollm2:135m", (Message("user", "Name three colours."),), max_tokens=12, temperature=0.0, seed=7
    )
    async with llama.running():
        await reaches(llama, lambda state: state.health is BackendHealth.READY, within_s=60)
        async with serving(engine(llama, "smollm2"), models=("smollm2:135m",)) as (backend, server):
            server.has = {"smollm2:135m": 8192}
            assert (await backend.check()).health is BackendHealth.READY
            *_, end = chunks = await collect(backend, ask)
            assert text_of(chunks).strip()
            assert isinstance(end, Finished)
            assert end.prompt_tokens > 3
            assert 1 <= end.output_tokens <= 12
            assert not end.estimated
            async with aclosing(backend.generate(GenerationRequest(ask.model, ask.messages, 400))) as stream:
                await anext(stream)
            with anyio.fail_after(5):
                await server.freed.wait()
            assert text_of(await collect(backend, ask)) == text_of(chunks), "its only slot is free again"


# --- anything at all --------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["model", "message", "role", "content", "thinking", "done", "done_reason", "error", "eval_count"]
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
        st.sampled_from([b"\r", b"\n", b"\r\n", b"{", b"}\n", b"null\n", b"\xef\xbb\xbf", b"\xe2\x80", b"\xa8"]),
        st.just(line(said("a"))),
        st.just(line(done(3, 1))),
        _json.map(lambda value: json.dumps(value).encode() + b"\n"),
        _json.map(lambda value: json.dumps({**said("a"), "message": value, "done": value}).encode() + b"\n"),
        _json.map(lambda value: json.dumps({**done(1, 1), "error": value, "eval_count": value}).encode() + b"\n"),
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
    outcome = asyncio.run(_outcome(lines(*filter(None, parts), end=end)))
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
