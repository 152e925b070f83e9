"""Backend `embedded`: the real llama.cpp server, a real model, real processes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from pylon.backends import embedded as embedded_module
from pylon.backends import llama_child
from pylon.backends.child_process import default_threads
from pylon.backends.embedded import EmbeddedBackend, EmbeddedConfig
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.jobs.ports import (
    Backend,
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
from tests.support.model import model_path

pytestmark = pytest.mark.e2e

MODEL = "smollm2-135m"
ASK = GenerationRequest(
    MODEL, (Message("user", "Name three colours of the rainbow."),), max_tokens=24, temperature=0.8, seed=7
)
CONTEXT = 512
MB = 1 << 20


@dataclass(frozen=True)
class Child:
    url: str
    api_key: str
    pid: int


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """The child program, started as the backend starts it, for the tests that only need its server."""
    log = tmp_path_factory.mktemp("child") / "llama.log"
    key = secrets.token_urlsafe(16)
    settings = {
        "parent_pid": os.getpid(),
        "api_key": key,
        "gguf": str(model_path()),
        "model_name": MODEL,
        "slots": 2,
        "context_tokens": CONTEXT,
        "threads": 1,
        "gpu_layers": 0,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", llama_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    report = json.loads(process.stdout.readline())
    yield Child(report["url"], key, process.pid)
    process.stdin.close()  # this alone must end it
    assert process.wait(timeout=2) == 0
    process.stdout.close()


@asynccontextmanager
async def server(child: Child, **changes: object) -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(replace(OpenAIConfig("llama", child.url, child.api_key), **changes))  # type: ignore[arg-type]
    async with backend.running():
        yield backend


async def collect(backend: Backend, request: GenerationRequest = ASK) -> tuple[str, Finished]:
    chunks: list[Chunk] = []
    with anyio.fail_after(20):
        async for chunk in backend.generate(request):
            chunks.append(chunk)
    *deltas, last = chunks
    assert isinstance(last, Finished)
    assert all(isinstance(delta, Delta) for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), last


# --- the server -------------------------------------------------------------------------------------------------


async def test_the_model_is_listed_with_the_context_of_one_slot(child: Child) -> None:
    async with server(child) as backend:
        state = await backend.check()
    assert state.health is BackendHealth.READY
    assert [(model.name, model.context_tokens) for model in state.models] == [(MODEL, CONTEXT)]


def test_it_listens_on_loopback_only_and_wants_the_key(child: Child) -> None:
    host, port = child.url.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    for other in ("127.0.0.2", "::1"):
        with pytest.raises(OSError, match=r"."):
            socket.create_connection((other, int(port)), timeout=1)
    for path in ("/v1/models", "/v1/chat/completions", "/slots", "/props", "/completion"):
        assert httpx.post(child.url + path, content=b"{}").status_code == 401, path
        wrong = {"Authorization": "Bearer wrong"}
        assert httpx.get(child.url + path, headers=wrong).status_code == 401, path


async def test_a_wrong_key_is_told_as_that(child: Child) -> None:
    async with server(child, api_key="wrong") as backend:
        state = await backend.check()
        assert (state.health, "does not accept our API key" in state.detail) == (BackendHealth.DOWN, True)


async def test_usage_is_exact(child: Child) -> None:
    async with server(child) as backend:
        text, finished = await collect(backend)
    assert text
    assert finished.estimated is False
    assert finished.reason in FinishReason
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {child.api_key}"}) as client:
        said = (await client.post(child.url + "/tokenize", json={"content": text})).json()
    # The end-of-turn token is counted but not shown; sampled tokens need not be the shortest spelling.
    assert abs(finished.output_tokens - len(said["tokens"])) <= 2
    assert finished.prompt_tokens > 10


async def test_max_tokens_is_kept(child: Child) -> None:
    async with server(child) as backend:
        _, finished = await collect(backend, replace(ASK, max_tokens=3))
    assert (finished.reason, finished.output_tokens) == (FinishReason.LENGTH, 3)


async def test_the_same_seed_gives_the_same_text_and_another_does_not(child: Child) -> None:
    hot = replace(ASK, temperature=1.5)
    async with server(child) as backend:
        first, again = [(await collect(backend, hot))[0] for _ in range(2)]
        others = {(await collect(backend, replace(hot, seed=seed)))[0] for seed in (8, 9)}
    assert first == again
    assert others - {first}


async def test_temperature_zero_and_top_k_one_agree_whatever_the_seed(child: Child) -> None:
    async with server(child) as backend:
        texts = {
            (await collect(backend, replace(ASK, temperature=0.0, seed=1)))[0],
            (await collect(backend, replace(ASK, temperature=0.0, seed=2)))[0],
            (await collect(backend, replace(ASK, temperature=2.0, top_k=1, seed=3)))[0],
        }
    assert len(texts) == 1


async def test_stop_ends_the_text(child: Child) -> None:
    plain = replace(ASK, temperature=0.0)
    async with server(child) as backend:
        whole, _ = await collect(backend, plain)
        stop = whole.split()[2]
        cut, finished = await collect(backend, replace(plain, stop=(stop,)))
    assert cut == whole[: whole.index(stop)]
    assert finished.reason is FinishReason.STOP


async def test_a_prompt_beyond_the_slot_is_refused_clearly(child: Child) -> None:
    async with server(child) as backend:
        with pytest.raises(BackendRefused, match=f"takes {CONTEXT} per request"):
            await collect(backend, replace(ASK, messages=(Message("user", "word " * 1000),)))


async def test_another_models_name_is_not_served(child: Child) -> None:
    async with server(child) as backend:
        with pytest.raises(ModelMissing):
            await collect(backend, replace(ASK, model="gemma"))


async def test_closing_frees_the_slot(child: Child) -> None:
    headers = {"Authorization": f"Bearer {child.api_key}"}

    async def busy(client: httpx.AsyncClient) -> int:
        slots = (await client.get(child.url + "/slots", headers=headers)).json()
        return sum(slot["is_processing"] for slot in slots)

    async with server(child) as backend, httpx.AsyncClient() as client:
        # The instruction model would soon end its turn; a story gives time to look.
        story = replace(ASK, messages=(Message("user", "Write a long story about a fox."),), max_tokens=400)
        async with aclosing(backend.generate(story)) as chunks:
            await anext(chunks)
            assert await busy(client) == 1
        with anyio.fail_after(1):
            while await busy(client):
                pass


async def test_more_jobs_than_slots_all_end(child: Child) -> None:
    done: list[int] = []

    async def one(backend: OpenAIBackend) -> None:
        done.append((await collect(backend, replace(ASK, max_tokens=8)))[1].output_tokens)

    async with server(child) as backend, anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(one, backend)
    assert len(done) == 6


# --- the supervision --------------------------------------------------------------------------------------------


def config(folder: Path) -> EmbeddedConfig:
    return EmbeddedConfig("own", model_path(), MODEL, folder / "logs" / "llama.log", CONTEXT, slots=1, threads=1)


async def until(condition: Callable[[], object], limit_s: float = 15) -> None:
    """Wait for what nobody announces: the state of a process."""
    with anyio.fail_after(limit_s):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def becomes(backend: EmbeddedBackend, health: BackendHealth) -> None:
    await until(lambda: backend.state().health is health)


def process_file(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def gone(pid: int) -> bool:
    """Tell whether the process has ended; whoever is its parent now may not have collected it."""
    try:
        return process_file(pid, "stat").rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return True


async def test_a_killed_child_fails_its_job_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLON_IDENTITY__NSEC", "secret-of-the-operator")
    backend = EmbeddedBackend(config(tmp_path))
    assert backend.state().health is BackendHealth.UNKNOWN
    entered_at = time.monotonic()
    async with backend.running():
        assert time.monotonic() - entered_at < 0.5, "start-up must not wait for the model"
        await becomes(backend, BackendHealth.LOADING)
        with pytest.raises(BackendUnavailable, match="own is not up: loading smollm2-135m"):
            await collect(backend)
        await becomes(backend, BackendHealth.READY)
        pid = backend.child_pid
        assert pid
        assert b"secret-of-the-operator" not in process_file(pid, "environ")
        assert process_file(pid, "cmdline").count(b"\0") == 3, "nothing but the program in its arguments"
        with pytest.raises(BackendUnavailable):
            async for _ in backend.generate(replace(ASK, max_tokens=400)):
                os.kill(pid, signal.SIGKILL)
        await becomes(backend, BackendHealth.DOWN)
        assert "was ended by signal 9" in backend.state().detail
        await becomes(backend, BackendHealth.READY)
        assert (await backend.check()).kind == "embedded"
        assert (await collect(backend))[0]
        pid = backend.child_pid
        assert pid
    assert gone(pid)
    assert (backend.state().health, backend.child_pid) == (BackendHealth.DOWN, None)
    assert capfd.readouterr() == ("", ""), "the engine's output belongs into its log"
    log = (tmp_path / "logs" / "llama.log").read_text()
    assert "model loaded" in log
    assert "rainbow" not in log
    assert (tmp_path / "logs" / "llama.log").stat().st_mode & 0o777 == 0o600


PARENT = """
import asyncio, sys
from pathlib import Path
from pylon.backends.embedded import EmbeddedBackend, EmbeddedConfig
async def main():
    config = EmbeddedConfig("own", Path(sys.argv[1]), "m", Path(sys.argv[2]), 512, slots=1, threads=1)
    backend = EmbeddedBackend(config)
    async with backend.running():
        while backend.child_pid is None or (sys.argv[3] != "started" and backend.state().health != "ready"):
            await asyncio.sleep(0.005)
        print(backend.child_pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child with its parent at once")
@pytest.mark.parametrize("when", ["started", "ready", "stopped"])
async def test_the_child_dies_with_its_parent(tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", PARENT, str(model_path()), str(tmp_path / "llama.log"), when]
    async with await anyio.open_process(command, stderr=None) as parent:
        assert parent.stdout
        with anyio.fail_after(20):
            pid = int(await parent.stdout.receive())
        assert not gone(pid)
        if when == "stopped":  # it cannot see stdin close: only the kernel's signal is left
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        try:
            await until(lambda: gone(pid), 2)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- memory -----------------------------------------------------------------------------------------------------


async def test_unloading_gives_all_of_its_memory_back_and_the_next_job_loads_again(tmp_path: Path) -> None:
    backend = EmbeddedBackend(config(tmp_path))
    async with backend.running():
        await becomes(backend, BackendHealth.READY)
        held = (await backend.check()).memory_bytes
        assert held is not None
        assert held > 50 * MB, "the model alone is larger"
        text, _ = await collect(backend)
        pid = backend.child_pid
        assert pid
        await backend.unload()
        assert gone(pid), "it returned before the memory was free"
        state = await backend.check()
        assert (state.health, state.memory_bytes, backend.child_pid) == (BackendHealth.READY, 0, None)
        assert [(model.name, model.context_tokens, model.loaded) for model in state.models] == [
            (MODEL, CONTEXT, False)
        ], "what is promised does not change"
        await backend.unload()  # twice is once
        assert (await collect(backend))[0] == text
        again = (await backend.check()).memory_bytes
        assert again is not None
        assert again > 50 * MB


async def test_unloaded_before_it_runs_nothing_is_loaded_until_a_job_comes(tmp_path: Path) -> None:
    backend = EmbeddedBackend(config(tmp_path))
    await backend.unload()
    with pytest.raises(BackendUnavailable, match="own is not up: its memory is given back"):
        await collect(backend)
    async with backend.running():
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        assert (backend.child_pid, backend.state().health) == (None, BackendHealth.READY)
        assert [model.name for model in backend.state().models] == [MODEL]
        # All who wait for the same child get their answer.
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(collect, backend)
            await becomes(backend, BackendHealth.LOADING)


async def test_unloading_while_it_loads_ends_that_at_once(tmp_path: Path) -> None:
    backend = EmbeddedBackend(config(tmp_path))
    async with backend.running():
        await until(lambda: backend.child_pid is not None)
        pid = backend.child_pid
        assert pid
        with anyio.fail_after(10):
            await backend.unload()
        assert gone(pid)
        assert backend.state().memory_bytes == 0


async def test_a_model_that_cannot_be_loaded_again_fails_the_job_and_is_down(tmp_path: Path) -> None:
    gguf = tmp_path / "gone.gguf"
    backend = EmbeddedBackend(replace(config(tmp_path), gguf=gguf))
    await backend.unload()
    async with backend.running():
        with pytest.raises(BackendUnavailable, match="gguf not found"):
            await collect(backend)
        assert backend.state().health is BackendHealth.DOWN


async def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = EmbeddedBackend(replace(config(tmp_path), gguf=tmp_path / "no.gguf"))
    async with missing.running():
        await becomes(missing, BackendHealth.DOWN)
        assert missing.state().detail == f"gguf not found: {tmp_path / 'no.gguf'}"
    monkeypatch.setattr(embedded_module, "ENGINE", "no_such_engine")
    engineless = EmbeddedBackend(config(tmp_path))
    async with engineless.running():
        await becomes(engineless, BackendHealth.DOWN)
        assert "pip install 'pylon-nostr[embedded]'" in (await engineless.check()).detail


async def test_a_file_that_is_no_model_is_said(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"this is no model")
    backend = EmbeddedBackend(replace(config(tmp_path), gguf=bad))
    async with backend.running():
        await becomes(backend, BackendHealth.DOWN)
        assert "llama.log" in backend.state().detail
        assert backend.state().detail.isprintable()


async def test_leaving_while_loading_leaves_no_child(tmp_path: Path) -> None:
    backend = EmbeddedBackend(config(tmp_path))
    async with backend.running():
        await until(lambda: backend.child_pid is not None)
        pid = backend.child_pid
        assert pid
    assert gone(pid)


async def test_a_child_that_no_longer_answers_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "_CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(embedded_module, "_HANGS_AFTER_S", 0.5)
    monkeypatch.setattr(embedded_module, "_CHECK_TIMEOUT_S", 0.3)
    backend = EmbeddedBackend(config(tmp_path))
    async with backend.running():
        await becomes(backend, BackendHealth.READY)
        stopped = backend.child_pid
        assert stopped
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: gone(stopped), 5)
        await becomes(backend, BackendHealth.READY)
        assert backend.child_pid not in {None, stopped}


def test_half_of_the_cores_stay_with_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((1, 1), (2, 1), (16, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_threads() == threads


def test_absurd_numbers_are_refused(tmp_path: Path) -> None:
    for changes in ({"slots": 0}, {"context_tokens": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            replace(config(tmp_path), **changes)  # type: ignore[arg-type]
