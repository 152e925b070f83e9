"""`pylon backends`: what is found, what is configured, and real prompts through it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import tomlkit

from pylon.backends import detect, gpus
from pylon.backends.detect import Place
from pylon.backends.gpus import Gpu
from pylon.cli.app import run
from pylon.cli.bench import read_words
from pylon.lock import instance_lock
from tests.support import model_servers as servers
from tests.support.control_views import NASTY
from tests.support.fake_daemon import fake_daemon, run_pylon
from tests.support.gguf_files import model_bytes
from tests.support.model import model_path
from tests.support.model_servers import listing, model_server
from tests.support.openai_server import (
    DONE,
    Handler,
    ScriptedServer,
    answer,
    piece,
    scripted_server,
    stream,
    usage,
)

SEA = stream(piece("The sea "), piece("is wide."), piece(None, "stop"), usage(9, 4), DONE)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(detect, "KNOWN_PLACES", ())
    monkeypatch.setattr(gpus, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(gpus, "amd_gpus", lambda: ())
    monkeypatch.setattr(gpus, "apple_gpus", lambda: ())
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def configure(home: Path, backends: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]] = ()) -> None:
    priced = [{"base_msats": 1000, **model} for model in models]
    (home / "pylon.toml").write_text(tomlkit.dumps({"backends": list(backends), "models": priced}))
    (home / "pylon.toml").chmod(0o600)


async def pylon(*arguments: str) -> int:
    return await anyio.to_thread.run_sync(run, list(arguments))


@asynccontextmanager
async def serving(home: Path, *chats: Handler, **backend: Any) -> AsyncIterator[ScriptedServer]:
    """Run a server and configure it as the backend `local`, which sells `sea` from its model `m`."""
    async with scripted_server(*chats) as server:
        configure(
            home,
            [{"name": "local", "kind": "openai", "url": f"{server.url}/v1", **backend}],
            [{"name": "sea", "aliases": ["ocean"], "backend": "local", "backend_model": "m"}],
        )
        yield server


# --- detect -----------------------------------------------------------------------------------------------------


async def test_detect_tells_what_answers_what_does_not_and_what_is_nothing_of_the_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = {"*": (200, b"<html>Welcome to nginx!</html>")}
    monkeypatch.setattr(gpus, "nvidia_gpus", lambda: (Gpu("NVIDIA T4", "NVIDIA", 16_000_000_000, 15_000_000_000),))
    async with model_server(servers.OLLAMA) as ollama, model_server(page, "Server: nginx") as nginx:
        places = (
            Place(nginx.url, "llama.cpp, LocalAI"),
            Place(ollama.url, "vLLM"),
            Place("http://127.0.0.1:9", "Jan"),
        )
        monkeypatch.setattr(detect, "KNOWN_PLACES", places)
        assert await pylon("backends", "detect") == 0
        lines = capsys.readouterr().out.splitlines()
        assert await pylon("backends", "detect", "--json") == 0
        told = json.loads(capsys.readouterr().out)
    assert lines[0] == "Servers"
    assert lines[1].split() == ["address", "state", "what", "answers", "models"]
    assert lines[2].split("  ")[1:3] == [nginx.url, "not that API"]
    assert lines[2].endswith("nginx: no model server known here; usually llama.cpp, LocalAI")
    assert lines[3].split() == [ollama.url, "ready", "Ollama", "0.12.3", "2"]
    assert lines[4].split() == ["http://127.0.0.1:9", "not", "running", "usually", "Jan"]
    at = lines.index(f"Models of Ollama 0.12.3 at {ollama.url}")
    assert lines[at + 2].split() == [
        "qwen3:8b",
        "5.2",
        "GB",
        "Q4_K_M",
        "40,960",
        "completion,",
        "tools,",
        "thinking",
    ]
    assert lines[-1].split() == ["NVIDIA", "T4", "NVIDIA", "16.0", "GB", "15.0", "GB"]
    assert [(each["state"], each["kind"]) for each in told["servers"]] == [
        *(("other", None), ("ready", "ollama"), ("not-running", None)),
    ]
    assert told["servers"][1]["models"][1] == {
        "name": "nomic-embed-text:latest",
        "size_bytes": 274302450,
        "quantization": "F16",
        "context_tokens": 2048,
        "capabilities": ["embedding"],
    }
    assert told["gpus"][0]["free_bytes"] == 15_000_000_000


async def test_detect_asks_where_the_settings_say_with_their_key_and_shows_it_nowhere(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(home, api_key="sk-very-secret") as server:
        assert await pylon("backends", "detect") == 0
        assert await pylon("backends", "detect", "--json") == 0
        said = capsys.readouterr().out
        assert {wire.headers.get("authorization") for wire in server.asked} == {"Bearer sk-very-secret"}
    assert "configured as local" in said
    assert '"configured_as": "local"' in said
    assert "none found" in said
    assert "sk-very-secret" not in said


async def test_names_of_strangers_steer_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with model_server({"/v1/models": (200, listing(NASTY))}) as server:
        monkeypatch.setattr(detect, "KNOWN_PLACES", (Place(server.url, ""),))
        assert await pylon("backends", "detect") == 0
        assert await pylon("backends", "detect", "--json") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.replace("\n", "").isprintable()


def test_detect_with_settings_that_cannot_be_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "pylon.toml").write_text("[[backends]]\nname = 7\n")
    assert run(["backends", "detect"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- list -------------------------------------------------------------------------------------------------------


async def test_list_asks_each_backend(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(home) as server:
        settings = tomlkit.loads((home / "pylon.toml").read_text()).unwrap()
        more = [
            {"name": "gone", "kind": "openai", "url": "http://127.0.0.1:9/v1"},
            {"name": "words", "kind": "echo"},
            {"name": "lost", "kind": "embedded", "gguf": str(home / "none.gguf")},
            {"name": "small", "kind": "embedded", "gguf": str(model_path())},
        ]
        other = {"name": "lake", "backend": "local"}
        configure(home, settings["backends"] + more, [*settings["models"], other])
        assert await pylon("backends", "list", "--json") == 0
        told = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
        assert await pylon("backends", "list") == 0
        lines = capsys.readouterr().out.splitlines()
    assert {name: (each["kind"], each["now"]["state"]) for name, each in told.items()} == {
        "local": ("openai", "ready"),
        "gone": ("openai", "down"),
        "words": ("echo", "ready"),
        "lost": ("embedded", "down"),
        "small": ("embedded", "stopped"),
    }
    assert told["local"]["address"] == f"{server.url}/v1"
    never = {"measured": None, "stale": ""}
    assert told["local"]["sold"] == [
        {"name": "sea", "backend_model": "m", "available": True, **never},
        {"name": "lake", "backend_model": "lake", "available": False, **never},
    ]
    assert "gguf not found" in told["lost"]["now"]["detail"]
    assert lines[0].split() == ["name", "kind", "address", "state", "sold"]
    assert lines[1].endswith("sea, lake  does not list lake")
    assert "cannot be reached" in lines[2]


def test_what_the_daemon_runs_is_asked_of_the_daemon(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, [{"name": "local", "kind": "embedded", "gguf": str(model_path())}])
    with fake_daemon(home):
        assert run(["backends", "list", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["now"] == {"state": "ready", "detail": "", "listed": ["smollm2"]}


def test_nothing_configured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backends", "list"]) == 0
    assert "pylon init proposes it" in capsys.readouterr().out
    assert run(["backends", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


async def test_another_settings_file(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, [{"name": "words", "kind": "echo"}])
    other = (home / "pylon.toml").rename(tmp_path / "other.toml")
    assert await pylon("--config", str(other), "backends", "list") == 0
    assert await pylon("backends", "test", "words", "--config", str(other)) == 0
    assert capsys.readouterr().out.count("words") == 2


# --- test -------------------------------------------------------------------------------------------------------


async def test_a_prompt_is_answered_and_measured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(home, SEA) as server:
        assert await pylon("backends", "test", "local", "--prompt", "And the sea?", "--max-tokens", "7") == 0
        (sent,) = server.posts()
    assert sent.json["model"] == "m"
    assert sent.json["max_tokens"] == 7
    assert sent.json["messages"] == [{"role": "user", "content": "And the sea?"}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The sea is wide."
    facts = {line[:14].strip(): line[14:].strip() for line in lines[2:]}
    assert facts["backend"] == "local, model m"
    assert facts["first token"].endswith(" ms")
    assert facts["whole answer"].endswith(" tokens/s")
    assert facts["tokens"] == "9 in, 4 out (as it counts)"
    assert facts["ended by"] == "the model"


@pytest.mark.parametrize("model", ["sea", "ocean", "m"])
async def test_the_measures_as_json_and_a_model_by_any_of_its_names(
    home: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    async with serving(home, SEA) as server:
        assert await pylon("backends", "test", "local", "--model", model, "--json") == 0
        assert server.posts()[0].json["model"] == "m"
    told = json.loads(capsys.readouterr().out)
    assert (told["backend"], told["model"], told["output"]) == ("local", "m", "The sea is wide.")
    assert (told["prompt_tokens"], told["output_tokens"], told["estimated"]) == (9, 4, False)
    assert 0 < told["first_token_s"] <= told["seconds"]
    assert told["tokens_per_s"] == pytest.approx(4 / told["seconds"], rel=0.01)


async def test_counts_that_are_guessed_are_told_as_that(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(home, stream(piece("word " * 8), piece(None, "length"), DONE)):
        assert await pylon("backends", "test", "local") == 0
    said = capsys.readouterr().out
    assert "10 out (estimated: it does not count)" in said
    assert "--max-tokens" in said


async def test_what_is_sold_nowhere_is_tried_by_the_first_model_listed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted_server(SEA) as server:
        configure(home, [{"name": "local", "kind": "openai", "url": server.url}])
        assert await pylon("backends", "test", "local", "--json") == 0
        assert json.loads(capsys.readouterr().out)["model"] == "m"
        server.models = ()
        assert await pylon("backends", "test", "local") == 1
        assert capsys.readouterr().err == "pylon: local lists no models\n"


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (answer(500, {"error": {"message": "out of \x1bmemory"}}), "out of \\x1bmemory"),
        (stream(piece("The"), end=False), "local"),
        (stream(piece(None, "length"), usage(3, 128), DONE), "finished without a word"),
    ],
)
async def test_a_failure_is_one_sentence_and_1(
    home: Path, capsys: pytest.CaptureFixture[str], chat: Handler, said: str
) -> None:
    async with serving(home, chat):
        assert await pylon("backends", "test", "local", "--json") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pylon: ")
    assert said in err
    assert err.count("\n") == 1


async def test_a_server_that_is_away_or_lacks_the_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(home, SEA) as server:
        assert await pylon("backends", "test", "local", "--model", "lake") == 1
        assert capsys.readouterr().err == "pylon: local does not list the model lake\n"
        server.routes["/v1/models"] = answer(503, {"error": {"message": "Loading model"}})
        assert await pylon("backends", "test", "local") == 1
        assert "Loading model" in capsys.readouterr().err
    assert await pylon("backends", "test", "local") == 1
    assert "cannot be reached" in capsys.readouterr().err


async def test_a_folder_of_models_is_listed_and_tried(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Path(__file__).parents[1] / "support" / "llama_cpp_library"
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.syspath_prepend(str(library))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(model_bytes())
    backends = [
        {"name": name, "kind": "llama_cpp", "path": str(at)} for name, at in (("files", folder), ("no", home / "x"))
    ]
    configure(home, backends, [{"name": "sea", "backend": "files", "backend_model": "m"}])
    assert await pylon("backends", "list") == 0
    _, files, absent = capsys.readouterr().out.splitlines()
    assert files.split()[:5] == ["files", "llama_cpp", str(folder), "stopped", "sea"]
    assert absent.endswith(f"down     nothing  not found: {home / 'x'}")
    assert await pylon("backends", "test", "files", "--model", "sea", "--prompt", "say The sea is wide.") == 0
    said = capsys.readouterr().out
    assert said.startswith("The sea is wide.\n")
    assert "8 in, 5 out (as it counts)" in said
    assert await pylon("backends", "test", "no") == 1
    assert capsys.readouterr().err == f"pylon: {home / 'x'} cannot be read: No such file or directory\n"


def test_an_unknown_backend_is_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backends", "test", "nowhere"]) == 2
    assert "configured: none" in capsys.readouterr().err
    configure(home, [{"name": "words", "kind": "echo"}])
    assert run(["backends", "test", "nowhere"]) == 2
    assert capsys.readouterr().err == "pylon: no backend is called 'nowhere'; configured: words\n"


@pytest.mark.e2e
def test_the_real_model_is_loaded_asked_and_gone_again_while_a_daemon_runs(home: Path) -> None:
    backend = {"name": "local", "kind": "embedded", "gguf": str(model_path()), "threads": 1, "gpu_layers": 0}
    configure(home, [backend], [{"name": "smollm2-135m", "backend": "local"}])
    with fake_daemon(home):
        done = run_pylon("backends", "test", "local", "--max-tokens", "8", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert "loaded a second time" in done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["estimated"]) == ("smollm2-135m", False)
    assert 0 < told["output_tokens"] <= 8
    assert told["first_token_s"] < 30
    assert (home / "pylon.trial" / "pylon.backend-local.log").stat().st_size > 0
    assert not (home / "pylon.backend-local.log").exists()


@pytest.mark.e2e
def test_a_model_that_cannot_be_loaded_is_one_sentence(home: Path) -> None:
    (home / "broken.gguf").write_bytes(b"GGUF, not really")
    configure(home, [{"name": "local", "kind": "embedded", "gguf": str(home / "broken.gguf")}])
    done = run_pylon("backends", "test", "local", home=home)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot be loaded" in done.stderr


# --- how fast --------------------------------------------------------------------------------------------------


WORDS: dict[str, Any] = {"name": "words", "kind": "echo", "slots": 2}


def test_a_bench_is_shown_kept_and_used(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, [WORDS], [{"name": "parrot", "backend": "words"}])
    assert run(["price", "parrot"]) == 0
    assert "measured" not in capsys.readouterr().out
    assert run(["backends", "bench", "--concurrency", "1", "2", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "words (echo), parrot"
    assert lines[1].split() == ["at", "once", "jobs", "tokens/s", "of", "each", "first", "token"]
    assert [line.split()[:2] for line in lines[2:5]] == [["1", "3"], ["2", "6"], ["4", "12"]]
    assert lines[5].strip() == "Pylon runs 2 at once here (slots); the rest would wait in its queue."
    assert lines[-1] == f"Kept in {home / 'pylon.benches.json'}"
    assert run(["backends", "list", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)[0]["sold"]
    assert model["measured"]["tokens_per_s"] > 0 and not model["stale"]
    assert run(["price", "parrot"]) == 0
    said = capsys.readouterr().out
    assert "It takes this machine 0.0 s at most (" in said and " tokens/s, measured on " in said
    assert "An hour of such jobs, one after another, brings " in said


def test_a_stale_bench_is_ignored_and_said_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, [WORDS], [{"name": "parrot", "backend": "words"}])
    assert run(["backends", "bench", "words", "--concurrency", "1,3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [level["concurrency"] for level in told["benches"][0]["levels"]] == [1, 3]
    assert told["failed"] == []
    configure(home, [{**WORDS, "slots": 3}], [{"name": "parrot", "backend": "words"}])
    assert run(["backends", "list"]) == 0
    assert "measure again: slots of words changed since" in capsys.readouterr().out
    assert run(["price", "parrot"]) == 0
    said = capsys.readouterr().out
    assert "not known: slots of words changed since; measure again: pylon backends bench." in said
    assert run(["price", "parrot", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["work"]["seconds"] is None


async def test_what_fails_is_told_and_the_rest_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server: dict[str, Any] = {"name": "away", "kind": "openai", "url": "http://127.0.0.1:9"}
    models: list[dict[str, Any]] = [
        {"name": "parrot", "backend": "words"},
        {"name": "lake", "backend": "away", "aliases": ["pond"]},
    ]
    configure(home, [server, WORDS], models)
    assert await pylon("backends", "bench", "--concurrency", "1") == 1
    out, err = capsys.readouterr()
    assert out.startswith("words (echo), parrot\n")
    assert err.startswith("away: ") and err.count("\n") == 1
    assert await pylon("backends", "bench", "--model", "pond", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["benches"], [each["backend"] for each in told["failed"]]) == ([], ["away"])


async def test_a_server_is_measured_with_its_software(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(home, SEA) as server:
        assert await pylon("backends", "bench", "--model", "ocean", "--concurrency", "2", "--json") == 0
        assert len(server.posts()) == 1 + 6
        assert all(wire.json["model"] == "m" for wire in server.posts())
    (bench,) = json.loads(capsys.readouterr().out)["benches"]
    assert (bench["model"], bench["levels"][0]["tokens"]) == ("m", 6 * 4)
    assert bench["software"] == "OpenAI-compatible server"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no backend is called 'nowhere'; configured: words"),
        (["words", "other"], "one backend at a time, or none for all of them: words other"),
        (["--concurrency", "0"], "--concurrency: '0' is no number from 1 to 64"),
        (["--concurrency", "1", "65"], "--concurrency: '65' is no number from 1 to 64"),
        (["--concurrency", "x"], "--concurrency: 'x' is no number from 1 to 64"),
        (["--model", "lake"], "no backend sells 'lake'"),
    ],
)
def test_wrong_usage_of_bench_is_a_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    spare: dict[str, Any] = {"name": "spare", "kind": "echo"}
    configure(home, [WORDS, spare][: 1 if "nowhere" in arguments else 2])
    assert run(["backends", "bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"pylon: {said}")


def test_a_backend_that_is_called_as_a_number_can_be_named() -> None:
    assert read_words(["2", "4"], ["1"], ["2"]) == ("2", (1, 4))
    assert read_words(["8", "2"], ["4"], []) == (None, (2, 4, 8))
    assert read_words(["gpu"], [], ["gpu"]) == ("gpu", (1, 2, 4))


async def test_a_file_that_cannot_be_added_to_is_told_before_anything_runs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(home, SEA) as server:
        (home / "pylon.benches.json").write_text("{}")
        assert await pylon("backends", "bench") == 1
        assert "remove it and measure again" in capsys.readouterr().err
        assert server.posts() == []
        assert await pylon("backends", "list") == 0, "a bad file keeps nothing else from being shown"
        assert "remove it and measure again" in capsys.readouterr().err


def test_beside_a_running_daemon_it_warns(home: Path) -> None:
    configure(home, [WORDS], [{"name": "parrot", "backend": "words"}])
    with instance_lock(home / "pylon.lock"):
        done = run_pylon("backends", "bench", "--concurrency", "1", home=home)
    assert done.returncode == 0
    assert done.stderr == "pylon runs: its jobs and this share the machine, and both are slower for it\n"
