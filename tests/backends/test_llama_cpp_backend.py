"""Backend `llama_cpp`: real child processes that run a stand-in for the library, and their supervision."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.backends import llama_cpp as module
from pylon.backends import llama_cpp_process as process_module
from pylon.backends.child_process import ChildFault
from pylon.backends.llama_cpp import LlamaCppBackend, LlamaCppConfig
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
from tests.support.gguf_files import model_bytes

LIBRARY = Path(__file__).parents[1] / "support" / "llama_cpp_library"
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(LIBRARY))
    monkeypatch.syspath_prepend(str(LIBRARY))
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)


def request(said: str, model: str = "a", **changes: Any) -> GenerationRequest:
    return replace(GenerationRequest(model, (Message("user", said),), max_tokens=100_000), **changes)


def put(folder: Path, *names: str) -> Path:
    models = folder / "models"
    models.mkdir(exist_ok=True)
    for name in names:
        (models / f"{name}.gguf").write_bytes(model_bytes())
    return models


def config(folder: Path, *names: str, **changes: Any) -> LlamaCppConfig:
    path = put(folder, *(names or ("a",)))
    made = LlamaCppConfig("files", path, folder / "logs" / "files.log", threads=1, idle_unload_s=0)
    return replace(made, **changes)


@asynccontextmanager
async def running(made: LlamaCppConfig) -> AsyncIterator[LlamaCppBackend]:
    backend = LlamaCppBackend(made, rng=random.Random(1))
    with anyio.fail_after(LIMIT_S):
        async with backend.running():
            yield backend


async def collect(backend: LlamaCppBackend, asked: GenerationRequest) -> tuple[str, Finished]:
    *deltas, last = [chunk async for chunk in backend.generate(asked)]
    assert isinstance(last, Finished)
    assert all(isinstance(delta, Delta) for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), last


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.005)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return True


def loaded(backend: LlamaCppBackend) -> dict[str, bool | None]:
    return {model.name: model.loaded for model in backend.state().models}


# --- jobs -------------------------------------------------------------------------------------------------------


async def test_a_model_is_loaded_by_its_first_job_and_the_folder_is_what_is_offered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLON_IDENTITY__NSEC", "secret-of-the-operator")
    backend = LlamaCppBackend(config(tmp_path, "a", "b"))
    assert backend.state().health is BackendHealth.UNKNOWN
    async with backend.running():
        state = backend.state()
        assert (state.kind, state.health, state.detail) == ("llama_cpp", BackendHealth.READY, "")
        assert [(model.name, model.context_tokens) for model in state.models] == [("a", 2048), ("b", 2048)]
        assert (loaded(backend), backend.child_pids) == ({"a": False, "b": False}, {})
        text, finished = await collect(backend, request("say one two"))
        assert (text, finished) == ("one two", Finished(FinishReason.STOP, 6, 3))
        assert finished.estimated is False
        assert loaded(backend) == {"a": True, "b": False}
        ((pid,),) = backend.child_pids.values()
        assert b"secret-of-the-operator" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert Path(f"/proc/{pid}/cmdline").read_bytes().count(b"\0") == 3, "only the program is in its arguments"
        await collect(backend, request("say again"))
        assert backend.child_pids == {"a": (pid,)}, "it stays loaded"
    assert gone(pid)
    assert (backend.state().health, backend.state().detail) == (BackendHealth.DOWN, "stopped")
    assert capfd.readouterr() == ("", "")
    log = tmp_path / "logs" / "files.log"
    assert "native code prints this" in log.read_text()
    assert "two" not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


async def test_the_context_is_what_the_settings_say_and_the_model_has(tmp_path: Path) -> None:
    for asked, given in ((512, 512), (4096, 2048)):
        backend = LlamaCppBackend(config(tmp_path, context_tokens=asked))
        assert [model.context_tokens for model in (await backend.check()).models] == [given]


async def test_every_field_of_a_request_reaches_the_model(tmp_path: Path) -> None:
    asked = request(
        "tell",
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        frequency_penalty=1.5,
        presence_penalty=-0.5,
        seed=11,
        stop=("}",),
    )
    async with running(config(tmp_path)) as backend:
        text, finished = await collect(backend, asked)
    told = json.loads(text + "}")
    assert {key: told[key] for key in ("temp", "top_k", "top_p", "seed")} == {
        "temp": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "seed": 11,
    }
    assert (told["frequency_penalty"], told["presence_penalty"]) == (1.5, -0.5)
    assert finished.reason is FinishReason.STOP
    async with running(config(tmp_path)) as backend:
        _, finished = await collect(backend, request("say a b c", max_tokens=2))
    assert (finished.reason, finished.output_tokens) == (FinishReason.LENGTH, 2)


async def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    async with running(config(tmp_path, context_tokens=256)) as backend:
        with pytest.raises(ModelMissing, match="files has no model b in "):
            await collect(backend, request("say yes", "b"))
        with pytest.raises(BackendRefused) as refused:
            await collect(backend, request("say " + "w " * 300))
        said = "a on files refuses the request: its prompt has 304 tokens, and the model takes 256 per request"
        assert str(refused.value) == said
        with pytest.raises(BackendUnavailable, match="a on files failed: RuntimeError; the log is "):
            await collect(backend, request("fail secretly"))
        assert (await collect(backend, request("say yes")))[0] == "yes"
        (pids,) = backend.child_pids.values()
        assert len(pids) == 1, "none of this needs another process"
    with pytest.raises(BackendUnavailable, match="is not running"):
        await collect(backend, request("say yes"))


@pytest.mark.parametrize("said", ["sing", "read"])
async def test_closing_stops_the_work_and_the_same_child_goes_on(tmp_path: Path, said: str) -> None:
    async with running(config(tmp_path)) as backend:
        await collect(backend, request("say hello"))
        pids = backend.child_pids
        if said == "sing":
            async with aclosing(backend.generate(request(said))) as chunks:
                await anext(chunks)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, backend, request(said))
                log = tmp_path / "logs" / "files.log"
                await until(lambda: "generating, read" in log.read_text())
                tasks.cancel_scope.cancel()
        assert (await collect(backend, request("say yes")))[0] == "yes"
        assert backend.child_pids == pids


async def test_jobs_of_one_model_run_one_after_another_or_beside_each_other_in_as_many_children(
    tmp_path: Path,
) -> None:
    for slots in (1, 2):
        async with running(config(tmp_path, slots=slots)) as backend, anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(collect, backend, request("sing", max_tokens=20))
            await until(lambda slots=slots: backend.state().models[0].loaded)  # type: ignore[misc]
            if slots == 2:
                await until(lambda: len(backend.child_pids["a"]) == 2)
            assert len(backend.child_pids["a"]) <= slots


# --- children that end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGKILL"])
async def test_a_crash_costs_one_attempt_and_the_model_comes_back(tmp_path: Path, how: str) -> None:
    async with running(config(tmp_path)) as backend:
        with pytest.raises(
            BackendUnavailable, match=f"was ended by signal {int(signal.Signals[how])}; its log is "
        ):
            async for _ in backend.generate(request("crash" if how == "SIGSEGV" else "sing")):
                if how == "SIGKILL":
                    ((pid,),) = backend.child_pids.values()
                    os.kill(pid, signal.SIGKILL)
        await until(lambda: backend.state().health is BackendHealth.DOWN)
        assert f"was ended by signal {int(signal.Signals[how])}" in backend.state().detail
        assert backend.state().models == ()
        assert (await collect(backend, request("say yes")))[0] == "yes", "it is waited for"
        assert (backend.state().health, backend.state().detail) == (BackendHealth.READY, "")
        assert loaded(backend) == {"a": True}


async def test_a_child_that_is_killed_beside_another_takes_nothing_from_it(tmp_path: Path) -> None:
    made = config(tmp_path, slots=2)
    async with running(made) as backend, aclosing(backend.generate(request("sing"))) as first:
        await anext(first)
        with pytest.raises(BackendUnavailable):
            await collect(backend, request("crash"))
        await until(lambda: len(backend.child_pids["a"]) == 1)
        assert isinstance(await anext(first), Delta)
        assert backend.state().health is BackendHealth.READY
        assert (await collect(backend, request("say yes")))[0] == "yes"


async def test_a_model_that_crashes_while_loading_is_tried_again_with_growing_pauses(
    tmp_path: Path,
) -> None:
    pauses = [module.restart_pause_s(failures) for failures in range(1, 40)]
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert pauses[-1] == 30
    log = tmp_path / "logs" / "files.log"
    async with running(config(tmp_path, "crashes", "b")) as backend:
        with pytest.raises(BackendUnavailable, match="was ended by signal 11"):
            await collect(backend, request("say yes", "crashes"))
        await until(lambda: log.read_text().count("settings") > 3)
        with pytest.raises(BackendUnavailable, match="was ended by signal 11"):
            await collect(backend, request("say yes", "crashes"))
        assert backend.state().health is BackendHealth.READY, "the other model can be sold"
        assert "the process for crashes was ended by signal 11" in backend.state().detail
        assert list(loaded(backend)) == ["b"]
        await backend.unload()
        assert (await collect(backend, request("say yes", "b")))[0] == "yes"


async def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    async with running(config(tmp_path, "wrong", models=("wrong",))) as backend:
        with pytest.raises(BackendUnavailable, match="wrong cannot be loaded: ValueError: Failed to load model"):
            await collect(backend, request("say yes", "wrong"))
        assert backend.state().health is BackendHealth.DOWN
        assert "wrong cannot be loaded" in backend.state().detail


async def test_a_child_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_STOPS_S", 0.05)
    async with running(config(tmp_path, stall_timeout_s=0.1)) as backend:
        await collect(backend, request("say hello"))
        ((pid,),) = backend.child_pids.values()
        with pytest.raises(BackendUnavailable, match=r"a on files stopped sending within 0\.1 s"):
            await collect(backend, request("sleep"))
        await until(lambda: gone(pid))
        await until(lambda: backend.state().health is BackendHealth.READY and loaded(backend)["a"])
        monkeypatch.setattr(process_module, "_BEGINS_S", 0.1)
        ((pid,),) = backend.child_pids.values()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BackendUnavailable, match="did not begin"):
            await collect(backend, request("say yes"))
        await until(lambda: gone(pid))


async def test_a_program_that_talks_nonsense_is_no_model(tmp_path: Path) -> None:
    for text, said in (("hello", "cannot be loaded: None"), ("x" * 3_000_000, "while loading")):
        program = tmp_path / "program.py"
        program.write_text(f"input(); print({text!r})")
        process = process_module.ModelProcess(
            process_module.ModelProcessConfig(
                "files", "a", tmp_path, Path(sys.executable), tmp_path / "log", 1, 1, 0, False, 10, 10, 10, program
            )
        )
        try:
            with pytest.raises(ChildFault, match=said):
                await process.start()
        finally:
            await process.end()


async def test_a_model_that_takes_too_long_to_load_is_given_up(tmp_path: Path) -> None:
    async with running(config(tmp_path, "waits", start_timeout_s=0.3)) as backend:
        with pytest.raises(BackendUnavailable, match=r"waits was not loaded within 0\.3 s"):
            await collect(backend, request("say yes", "waits"))


PARENT = """
import asyncio, sys
from pathlib import Path
from pylon.backends.llama_cpp import LlamaCppBackend, LlamaCppConfig
from pylon.jobs.ports import GenerationRequest, Message
async def main():
    backend = LlamaCppBackend(LlamaCppConfig("files", Path(sys.argv[1]), Path(sys.argv[2]), threads=1))
    async with backend.running():
        async for _ in backend.generate(GenerationRequest("a", (Message("user", "say hello"),), 10)):
            pass
        print(backend.child_pids["a"][0], flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child with its parent at once")
async def test_the_children_die_with_their_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(put(tmp_path, "a")), str(tmp_path / "log")]
    with anyio.fail_after(LIMIT_S):
        async with await anyio.open_process(command, stderr=None) as parent:
            assert parent.stdout
            pid = int(await parent.stdout.receive())
            assert not gone(pid)
            os.kill(pid, signal.SIGSTOP)  # it cannot see stdin close: only the kernel's signal is left
            parent.kill()
            await until(lambda: gone(pid))


# --- memory -----------------------------------------------------------------------------------------------------


async def test_a_model_without_work_is_unloaded_and_the_next_job_loads_it_again(tmp_path: Path) -> None:
    async with running(config(tmp_path, idle_unload_s=0.05)) as backend:
        await collect(backend, request("say hello"))
        await until(lambda: backend.child_pids == {})
        assert (backend.state().health, loaded(backend)) == (BackendHealth.READY, {"a": False})
        assert (await collect(backend, request("say yes")))[0] == "yes"


async def test_unload_ends_the_children_and_the_next_job_loads_again(tmp_path: Path) -> None:
    backend = LlamaCppBackend(config(tmp_path))
    await backend.unload()  # before anything runs
    with anyio.fail_after(LIMIT_S):
        async with backend.running():
            await collect(backend, request("say hello"))
            ((pid,),) = backend.child_pids.values()
            await backend.unload()
            assert gone(pid)
            assert (backend.child_pids, loaded(backend)) == ({}, {"a": False})
            assert (await collect(backend, request("say yes")))[0] == "yes"
            async with aclosing(backend.generate(request("sing"))) as chunks:
                await anext(chunks)
                ((pid,),) = backend.child_pids.values()
                await backend.unload()
                assert isinstance(await anext(chunks), Delta), "a job that runs is let finish"
            await until(lambda: gone(pid))


async def test_only_so_many_models_are_in_memory_at_once(tmp_path: Path) -> None:
    async with running(config(tmp_path, "a", "b", "c", max_loaded=2)) as backend:
        for name in ("a", "b", "a", "c"):
            assert (await collect(backend, request("say yes", name)))[0] == "yes"
        assert loaded(backend) == {"a": True, "b": False, "c": True}, "the one that was idle for longest went"
        async with aclosing(backend.generate(request("sing", "a"))) as first:
            await anext(first)
            assert (await collect(backend, request("say yes", "b")))[0] == "yes"
            assert loaded(backend) == {"a": True, "b": True, "c": False}, "one that works stays"


async def test_a_model_waits_for_room_and_not_for_ever(tmp_path: Path) -> None:
    made = config(tmp_path, "a", "b", first_token_timeout_s=0.1)
    async with running(made) as backend, aclosing(backend.generate(request("sing", "a"))) as first:
        await anext(first)
        with pytest.raises(BackendUnavailable, match=r"files had no room for b within 0\.1 s"):
            await collect(backend, request("say yes", "b"))
    async with running(replace(made, first_token_timeout_s=LIMIT_S)) as backend:
        async with anyio.create_task_group() as tasks, aclosing(backend.generate(request("sing", "a"))) as first:
            await anext(first)
            tasks.start_soon(collect, backend, request("say yes", "b"))
            await anext(first)
        assert loaded(backend) == {"a": False, "b": True}


async def test_a_job_that_gives_up_while_a_model_loads_leaves_it_to_the_next(tmp_path: Path) -> None:
    async with running(config(tmp_path, "waits")) as backend:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, backend, request("say no", "waits"))
                await until(lambda: backend.child_pids)
                scope.cancel()
        pids = backend.child_pids
        (tmp_path / "models" / "waits.go").touch()
        assert (await collect(backend, request("say yes", "waits")))[0] == "yes"
        assert backend.child_pids == pids


# --- what lies there --------------------------------------------------------------------------------------------


async def test_a_file_that_changes_is_loaded_again_and_one_that_goes_is_gone(tmp_path: Path) -> None:
    made = config(tmp_path, "a", "b")
    async with running(made) as backend:
        await collect(backend, request("say hello"))
        ((pid,),) = backend.child_pids.values()
        (made.path / "a.gguf").write_bytes(model_bytes(1024))
        state = await backend.check()
        assert [(model.name, model.context_tokens) for model in state.models] == [("a", 1024), ("b", 2048)]
        await until(lambda: gone(pid))
        assert (await collect(backend, request("say yes")))[0] == "yes"
        ((pid,),) = backend.child_pids.values()
        (made.path / "a.gguf").unlink()
        assert list(loaded(backend)) == ["a", "b"]
        await backend.check()
        assert list(loaded(backend)) == ["b"]
        await until(lambda: gone(pid))
        with pytest.raises(ModelMissing):
            await collect(backend, request("say yes"))


async def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path)

    async def said(**changes: Any) -> tuple[BackendHealth, str]:
        state = await LlamaCppBackend(replace(made, **changes)).check()
        return state.health, state.detail

    (made.path / "broken.gguf").write_bytes(b"<html>")
    assert await said() == (BackendHealth.READY, "broken.gguf is no GGUF file")
    assert await said(models=("a",)) == (BackendHealth.READY, "")
    assert await said(models=("broken",)) == (BackendHealth.DOWN, "broken.gguf is no GGUF file")
    absent = f"{made.path} has no b.gguf"
    assert await said(models=("a", "b")) == (BackendHealth.READY, absent)
    assert await said(models=("b", "c")) == (BackendHealth.DOWN, f"{absent}; and 1 more")
    assert await said(path=tmp_path / "x") == (
        BackendHealth.DOWN,
        f"{tmp_path / 'x'} cannot be read: No such file or directory",
    )
    (tmp_path / "empty").mkdir()
    assert await said(path=tmp_path / "empty") == (
        BackendHealth.DOWN,
        f"there is no GGUF file in {tmp_path / 'empty'}",
    )
    monkeypatch.setattr(module, "LIBRARY", "no_such_library")
    install = "llama-cpp-python is not installed: pip install 'pylon-nostr[llama-cpp]'"
    assert await said() == (BackendHealth.DOWN, install)
    assert await said(python=Path(sys.executable)) == (
        BackendHealth.DOWN,
        f"llama-cpp-python is not installed for {sys.executable}",
    )
    assert await said(python=tmp_path / "python") == (
        BackendHealth.DOWN,
        f"{tmp_path / 'python'} cannot be started: No such file or directory",
    )


async def test_without_the_library_jobs_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARY", "no_such_library")
    async with running(config(tmp_path)) as backend:
        with pytest.raises(BackendUnavailable, match=r"pip install 'pylon-nostr\[llama-cpp\]'"):
            await collect(backend, request("say yes"))


async def test_another_python_may_have_the_library(tmp_path: Path) -> None:
    async with running(config(tmp_path, python=Path(sys.executable))) as backend:
        assert (await collect(backend, request("say yes")))[0] == "yes"


async def test_gpu_layers_without_a_gpu_are_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers, environ, said in ((7, "", "built without a GPU"), (-1, "", ""), (7, "PRETEND_GPU", "")):
        if environ:
            monkeypatch.setenv(environ, "1")
        async with running(config(tmp_path, gpu_layers=layers)) as backend:
            await collect(backend, request("say hello"))
            assert (backend.state().health, bool(said)) == (BackendHealth.READY, bool(backend.state().detail))
            assert said in backend.state().detail


def test_absurd_numbers_are_refused(tmp_path: Path) -> None:
    for changes in ({"slots": 0}, {"context_tokens": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            config(tmp_path, **changes)
