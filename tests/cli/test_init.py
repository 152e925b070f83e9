"""`pylon init`: an identity that is never lost, never shown by accident, and a proposal that offers nothing."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import pytest

from pylon.backends import detect
from pylon.backends.detect import Place
from pylon.cli.app import run
from pylon.cli.proposals import FoundServer, Offer, find_servers, proposal_toml
from pylon.settings import load_settings
from pylon.settings.example import render_example, uncommented
from pylon.settings.identity_file import read_identity
from tests.support import model_servers as servers
from tests.support.model_servers import model_server
from tests.support.openai_server import Handler, ScriptedServer, answer, hang, raw, scripted_server

WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"
NPUB = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PYLON_NSEC", "PYLON_MNEMONIC", "PYLON_WALLET_TOKEN", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYLON_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(detect, "KNOWN_PLACES", ())
    return tmp_path / "home"


def stdin_is(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_new_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    said = capsys.readouterr().out
    stored = json.loads((home / "identity.json").read_text())
    assert stored["npub"] in said
    assert str(home / "identity.json") in said
    assert str(home / "pylon.toml") in said
    assert "--show-mnemonic" in said
    assert stored["nsec"] not in said
    assert stored["mnemonic"] not in said
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "identity.json").stat().st_mode & 0o777 == 0o600
    assert (home / "pylon.toml").read_text() == render_example()


def test_a_second_one_needs_force_and_keeps_the_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    before = (home / "identity.json").read_text()
    assert run(["init"]) == 1
    said = capsys.readouterr().err
    assert "--force" in said
    assert said.count("\n") == 1
    assert (home / "identity.json").read_text() == before
    (home / "pylon.toml").write_text("# mine\n")
    assert run(["init", "--force"]) == 0
    (backup,) = home.glob("identity.json.*.bak")
    assert backup.read_text() == before
    assert str(backup) in capsys.readouterr().out
    assert (home / "identity.json").read_text() != before
    assert (home / "pylon.toml").read_text() == "# mine\n", "settings are never replaced"


def test_the_words_are_shown_only_when_asked_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    capsys.readouterr()
    before = (home / "identity.json").read_text()
    assert run(["init", "--show-mnemonic"]) == 0
    assert json.loads(before)["mnemonic"] in capsys.readouterr().out
    assert (home / "identity.json").read_text() == before


@pytest.mark.parametrize("secret", [NSEC, WORDS, f"  {WORDS.upper()}\n"])
def test_import_from_stdin(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    stdin_is(monkeypatch, secret)
    assert run(["init", "--import", "-"]) == 0
    said = capsys.readouterr().out
    assert NPUB in said
    assert NSEC not in said
    assert read_identity(home / "identity.json").secret.reveal_nsec() == NSEC


@pytest.mark.parametrize(("name", "secret"), [("PYLON_NSEC", NSEC), ("PYLON_MNEMONIC", WORDS)])
def test_import_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, secret: str
) -> None:
    monkeypatch.setenv(name, secret)
    assert run(["init", "--import"]) == 0
    assert read_identity(home / "identity.json").secret.reveal_nsec() == NSEC
    assert f"{name} is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (NSEC[:-1] + "q", "stdin: not a valid nsec"),
        (WORDS.replace("bean", "zoo"), "checksum is wrong"),
        ("", "nothing was given"),
    ],
)
def test_a_bad_secret_is_refused_without_repeating_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str, said: str
) -> None:
    stdin_is(monkeypatch, secret)
    assert run(["init", "--import", "-"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not secret or secret not in error
    assert not (home / "identity.json").exists()


def test_a_secret_as_an_argument_is_refused_unrepeated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--import", NSEC]) == 2
    assert NSEC not in capsys.readouterr().err
    assert not home.exists()


def test_on_a_terminal_the_secret_is_typed_unseen(home: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pylon", "init", "--import", "--no-detect"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        seen = _read_until(master, b"words:")
        os.write(master, NSEC.encode() + b"\n")
        seen += _read_until(master, b"pylon start")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert NPUB.encode() in seen
    assert NSEC.encode() not in seen


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 20
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not come; seen: {seen!r}"
        seen += os.read(descriptor, 4096)
    return seen


def test_another_home_by_flag(tmp_path: Path, home: Path) -> None:
    assert run(["init", "--home", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "identity.json").exists()
    assert not home.exists()


def test_a_shared_folder_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    home.chmod(0o755)
    (home / "letters.txt").touch()
    assert run(["init"]) == 1
    assert f"run: chmod 700 {home}" in capsys.readouterr().err


# --- what is found and proposed -------------------------------------------------------------------------------


@asynccontextmanager
async def server_with(*models: str, route: Handler | None = None) -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        server.models = models
        server.routes = {} if route is None else {"/v1/models": route}
        yield server


async def test_only_servers_that_list_models_are_found() -> None:
    page = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
    async with (
        server_with("a", "/private/dir/b.Q4.gguf", "evil\x1b[2J") as good,
        server_with(route=page) as html,
        server_with(route=answer(200, {"data": {"id": "x"}})) as other,
        server_with(route=answer(404, {"error": "no"})) as missing,
        server_with(route=hang) as mute,
        server_with() as empty,
    ):
        servers = (html, other, missing, mute, empty, good)
        places = [Place(server.url, "a server") for server in servers]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = Place(f"http://127.0.0.1:{closed.getsockname()[1]}", "nobody")
            began = time.monotonic()
            found = await find_servers([nobody, *places])
        assert time.monotonic() - began < 3
    assert [(server.name, server.url) for server in found] == [("openai", f"{good.url}/v1")]
    assert found[0].offers == (Offer("a", "a"), Offer("b.Q4", "/private/dir/b.Q4.gguf"))


async def test_a_proposal_offers_nothing_until_it_is_uncommented(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server_with("alpha", "beta") as server:
        monkeypatch.setattr(detect, "KNOWN_PLACES", (Place(server.url, "a test server"),))
        assert await anyio.to_thread.run_sync(run, ["init"]) == 0
        said = capsys.readouterr().out
        assert f"Found OpenAI-compatible server at {server.url}/v1: alpha, beta" in said
        settings = load_settings().settings
        assert settings.models == ()
        assert settings.backends == ()
        added = (home / "pylon.toml").read_text().removeprefix(render_example())
        proposed = tomllib.loads(uncommented(added))
        assert proposed["backends"] == [{"name": "openai", "kind": "openai", "url": f"{server.url}/v1"}]
        assert [model["name"] for model in proposed["models"]] == ["alpha", "beta"]

        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "beta"]) == 0
        sold = load_settings().settings
        assert [model.name for model in sold.models] == ["beta"]
        assert sold.models[0].has_price(5050)
        assert sold.models[0].backend == sold.backends[0].name == "openai"
        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "alpha"]) == 0
        both = load_settings().settings
        assert [model.name for model in both.models] == ["beta", "alpha"]
        assert [backend.name for backend in both.backends] == ["openai"]
        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "alpha"]) == 2
        assert "'alpha' already names a model" in capsys.readouterr().err


async def test_selling_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_with("alpha", "/x/b.gguf") as server:
        monkeypatch.setattr(detect, "KNOWN_PLACES", (Place(server.url, "a test server"),))
        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "b"]) == 0
    (model,) = load_settings().settings.models
    assert (model.name, model.name_at_backend) == ("b", "/x/b.gguf")


async def test_what_is_found_is_proposed_as_what_it_is() -> None:
    async with (
        model_server(servers.OLLAMA) as ollama,
        model_server(servers.LLAMA_CPP) as llama,
        server_with("a") as one,
        server_with("b") as two,
    ):
        found = await find_servers([Place(each.url, "vLLM") for each in (ollama, llama, one, two)])
    assert [(server.name, server.title, server.backend_kind, server.url) for server in found] == [
        ("ollama", "Ollama", "ollama", ollama.url),
        ("llama-cpp", "llama.cpp", "openai", f"{llama.url}/v1"),
        ("openai", "OpenAI-compatible server", "openai", f"{one.url}/v1"),
        ("openai-2", "OpenAI-compatible server", "openai", f"{two.url}/v1"),
    ]
    assert [offer.name for offer in found[0].offers] == ["qwen3:8b"], "a model that only embeds writes no text"


async def test_models_of_two_servers_go_to_two_backends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_with("a") as first, server_with("b") as second, server_with("c") as third:
        monkeypatch.setattr(detect, "KNOWN_PLACES", (Place(first.url, ""),))
        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "a"]) == 0
        monkeypatch.setattr(detect, "KNOWN_PLACES", tuple(Place(each.url, "") for each in (second, third, first)))
        assert await anyio.to_thread.run_sync(run, ["init", "--sell", "b", "--sell", "c"]) == 0
        settings = load_settings().settings
        urls = [f"{server.url}/v1" for server in (first, second, third)]
    assert [getattr(backend, "url", None) for backend in settings.backends] == urls
    names = [backend.name for backend in settings.backends]
    assert len(set(names)) == 3
    assert [(model.name, model.backend) for model in settings.models] == list(zip("abc", names, strict=True))


def test_what_is_not_found_cannot_be_sold(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--sell", "ghost"]) == 2
    assert "--sell ghost: no server found here has that model" in capsys.readouterr().err
    assert not home.exists(), "nothing is left half done"
    assert run(["init", "--sell", "ghost", "--no-detect"]) == 2


def test_names_that_could_break_out_of_the_file_stay_text() -> None:
    name = 'x"\\ # [[models]]'
    server = FoundServer("p", "P", "openai", "http://h/v1", (Offer(name, name),))
    assert tomllib.loads(proposal_toml(server, [name]))["models"][0]["name"] == name
    assert tomllib.loads(proposal_toml(server)) == {}
