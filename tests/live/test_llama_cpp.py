"""Backend `llama_cpp` with the real library and a real model; a whole daemon whose model is killed under a job."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.backends.llama_cpp import LlamaCppBackend, LlamaCppConfig
from pylon.backends.memory import resident_bytes
from pylon.jobs.ports import (
    BackendHealth,
    BackendRefused,
    BackendUnavailable,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelMissing,
)
from pylon.nostr.nip90 import FeedbackStatus
from tests.support.llama_cpp_python import llama_cpp_python
from tests.support.model import model_path
from tests.support.provider import MODEL, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = pytest.mark.live

LIMIT_S = 600.0
CONTEXT = 2048
CATS = GenerationRequest("smollm2", (Message("user", "Tell me about cats."),), max_tokens=24, temperature=0.0)
LONG = replace(CATS, messages=(Message("user", "The quick brown fox jumps over the lazy dog. " * 100),))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, which are the same one."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("smollm2", "other"):
        (folder / f"{name}.gguf").symlink_to(model_path())
    return folder


def config(folder: Path, **changes: Any) -> LlamaCppConfig:
    made = LlamaCppConfig(
        "files",
        folder,
        folder.parent / "files.log",
        python=llama_cpp_python(),
        context_tokens=CONTEXT,
        threads=1,
        idle_unload_s=0,
    )
    return replace(made, **changes)


@asynccontextmanager
async def running(made: LlamaCppConfig) -> AsyncIterator[LlamaCppBackend]:
    backend = LlamaCppBackend(made)
    with anyio.fail_after(LIMIT_S):
        async with backend.running():
            yield backend


async def collect(backend: LlamaCppBackend, asked: GenerationRequest) -> tuple[str, Finished]:
    *deltas, last = [chunk async for chunk in backend.generate(asked)]
    assert isinstance(last, Finished)
    return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), last


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.005)


REFERENCE = """
import json, sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)
made = llm.create_chat_completion([{"role": "user", "content": sys.argv[2]}], max_tokens=24, temperature=0.0)
print(json.dumps({"text": made["choices"][0]["message"]["content"], "prompt": made["usage"]["prompt_tokens"]}))
"""


async def test_text_counts_and_parameters(models: Path) -> None:
    command = [str(llama_cpp_python()), "-c", REFERENCE, str(model_path()), CATS.messages[0].content]
    reference = json.loads((await anyio.run_process(command)).stdout)
    async with running(config(models)) as backend:
        state = backend.state()
        assert [(model.name, model.context_tokens) for model in state.models] == [
            ("other", CONTEXT),
            ("smollm2", CONTEXT),
        ]
        whole, finished = await collect(backend, CATS)
        assert whole.strip()
        assert (whole, finished) == (reference["text"], Finished(FinishReason.LENGTH, reference["prompt"], 24))
        assert (await collect(backend, CATS))[0] == whole, "what one asked leaves nothing for the next"
        stop = whole.split()[3]
        cut, finished = await collect(backend, replace(CATS, stop=(stop,)))
        assert (cut, finished.reason) == (whole[: whole.index(stop)], FinishReason.STOP)
        assert finished.output_tokens < 24
        assert (await collect(backend, replace(CATS, max_tokens=3)))[1].output_tokens == 3
        hot = replace(CATS, temperature=1.5, seed=7)
        first, again = [(await collect(backend, hot))[0] for _ in range(2)]
        others = {(await collect(backend, replace(hot, seed=seed)))[0] for seed in (8, 9)}
        assert first == again
        assert others - {first}
        greedy = {(await collect(backend, replace(hot, top_k=1, seed=seed)))[0] for seed in (1, 2)}
        assert greedy == {whole}
        assert (await collect(backend, replace(hot, top_p=1e-9)))[0] == whole
        repeated = GenerationRequest("smollm2", (Message("user", "Say ha ten times: ha ha ha ha"),), 40, 0.0)
        plain = (await collect(backend, repeated))[0]
        assert (await collect(backend, replace(repeated, frequency_penalty=2.0)))[0] != plain
        assert (await collect(backend, replace(repeated, presence_penalty=2.0)))[0] != plain
        asked = GenerationRequest("smollm2", (Message("user", "Answer with one word: yes."),), 200, 0.0)
        assert (await collect(backend, asked))[1].reason is FinishReason.STOP


async def test_what_cannot_be_done_is_one_sentence(models: Path) -> None:
    (models / "broken.gguf").write_bytes(model_path().read_bytes()[: 20 << 20])
    async with running(config(models, context_tokens=512)) as backend:
        with pytest.raises(BackendRefused, match=r"its prompt has \d+ tokens, and the model takes 512 per request"):
            await collect(backend, LONG)
        with pytest.raises(ModelMissing):
            await collect(backend, replace(CATS, model="absent"))
        assert backend.state().detail == "broken.gguf ends before its weights do: it was not downloaded whole"
        with pytest.raises(BackendUnavailable, match="it was not downloaded whole"):
            await collect(backend, replace(CATS, model="broken"))
        _, finished = await collect(backend, replace(CATS, max_tokens=100_000, temperature=1.5, seed=1))
        assert finished.prompt_tokens + finished.output_tokens <= 512


async def test_a_file_that_only_the_library_finds_broken_is_told(models: Path) -> None:
    whole = model_path().read_bytes()
    (models / "smollm2.gguf").unlink()
    (models / "smollm2.gguf").write_bytes(whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    async with running(config(models, models=("smollm2",))) as backend:
        assert backend.state().health is BackendHealth.READY
        with pytest.raises(BackendUnavailable, match="smollm2 cannot be loaded: ValueError: Failed to load model"):
            await collect(backend, CATS)
        assert (backend.state().health, "cannot be loaded" in backend.state().detail) == (BackendHealth.DOWN, True)
    log = (models.parent / "files.log").read_text()
    assert "blk.0.attn_q.weight" in log, "llama.cpp's own words are in the log"


async def test_closing_is_fast_while_it_reads_and_while_it_writes(models: Path) -> None:
    async with running(config(models)) as backend:
        reference, _ = await collect(backend, CATS)
        began_at = anyio.current_time()
        await collect(backend, replace(LONG, max_tokens=1))
        reads_s = anyio.current_time() - began_at
        pids = backend.child_pids
        for part in (0.2, 0.5):
            with anyio.move_on_after(reads_s * part) as scope:
                await collect(backend, replace(LONG, max_tokens=1))
            late_s = anyio.current_time() - scope.deadline
            assert scope.cancelled_caught
            print(f"reading takes {reads_s:.2f} s; broken off after {part:.0%} of it in {late_s * 1000:.0f} ms")
            assert late_s < reads_s * (1 - part), "it was read to its end"
            assert (await collect(backend, CATS))[0] == reference
        async with aclosing(backend.generate(replace(CATS, max_tokens=1500))) as chunks:
            await anext(chunks)
            began_at = anyio.current_time()
        print(f"writing was broken off in {(anyio.current_time() - began_at) * 1000:.0f} ms")
        assert (await collect(backend, CATS))[0] == reference
        assert backend.child_pids == pids, "the same process went on"


@pytest.mark.parametrize("slots", [1, 2])
async def test_two_at_once_are_both_right(models: Path, slots: int) -> None:
    async with running(config(models, slots=slots)) as backend:
        reference, _ = await collect(backend, CATS)
        told: list[str] = []

        async def one() -> None:
            told.append((await collect(backend, CATS))[0])

        async with anyio.create_task_group() as tasks:
            for _ in range(2 * slots):
                tasks.start_soon(one)
        assert told == [reference] * 2 * slots
        assert len(backend.child_pids["smollm2"]) == slots


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_ends_costs_one_attempt(models: Path, how: signal.Signals) -> None:
    async with running(config(models)) as backend:
        with pytest.raises(BackendUnavailable, match=f"was ended by signal {int(how)}"):
            async for _ in backend.generate(replace(CATS, max_tokens=1500)):
                os.kill(backend.child_pids["smollm2"][0], how)
        assert (await collect(backend, CATS))[0], "it comes back"


async def test_memory_is_given_back_when_idle_when_told_and_for_another_model(models: Path) -> None:
    async with running(config(models, idle_unload_s=0.2)) as backend:
        await collect(backend, CATS)
        await until(lambda: not backend.child_pids)
    async with running(config(models)) as backend:
        reference, _ = await collect(backend, CATS)
        (pid,) = backend.child_pids["smollm2"]
        taken = await resident_bytes(pid)
        assert taken is not None
        assert taken > 100 << 20
        assert (await backend.check()).memory_bytes == pytest.approx(taken, rel=0.1)
        await backend.unload()
        assert await resident_bytes(pid) is None
        assert backend.state().memory_bytes == 0
        assert (await collect(backend, CATS))[0] == reference
        assert (await collect(backend, replace(CATS, model="other")))[0] == reference
        assert list(backend.child_pids) == ["other"]
        assert {model.name: model.loaded for model in backend.state().models} == {"other": True, "smollm2": False}


@pytest.mark.e2e
async def test_a_jobs_model_is_killed_under_it_and_the_next_attempt_delivers(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(model_path(), folder / "smollm2.gguf")
    with relay_process() as relay:
        settings = market_settings(relay.url)
        backend = {"name": "b", "kind": "llama_cpp", "path": str(folder), "python": str(llama_cpp_python())}
        sold = {"name": MODEL, "backend": "b", "backend_model": "smollm2", "base_msats": 1000}
        settings = {**settings, "backends": [{**backend, "threads": 1}], "models": [sold]}
        async with (
            provider(tmp_path, settings) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            params = [("model", [MODEL]), ("max_tokens", ["300"]), ("temperature", ["0"])]
            order = await customer.order(params=params)
            with anyio.fail_after(LIMIT_S):
                await order.until(lambda order: order.feedback(FeedbackStatus.PARTIAL), "partial", LIMIT_S)
            (child,) = children(daemon.pid)
            os.kill(child, signal.SIGKILL)
            with anyio.fail_after(LIMIT_S):
                assert (await order.result()).content
            assert order.errors == []
            assert daemon.running
            await daemon.until(is_ready, "ready for jobs")
            shown = (await daemon.pylon("jobs", "show", order.request.id)).stdout
            assert "was ended by signal 9" in shown
            logs = [file.name for file in daemon.paths.state_dir.glob("pylon.backend-b.log*")]
            assert logs == ["pylon.backend-b.log"]
            assert "llama_model_loader" not in daemon.log()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started for models."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"llama_cpp_child" in command:
            found.append(int(stat.parent.name))
    return found
