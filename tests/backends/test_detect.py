"""Detection against servers on loopback: each kind with its marks, and the ones that lie, stall and flood."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends import llama_child
from pylon.backends.detect import KNOWN_PLACES, PLACE_TIMEOUT_S, Place, detect, ollama_url, places_to_ask
from pylon.backends.marks import DetectedModel, Finding, Readiness, ServerKind
from tests.support import model_servers as servers
from tests.support.authority import make_authority
from tests.support.model import model_path
from tests.support.model_servers import BY_KIND, model_server
from tests.support.openai_server import Handler, answer, hang, raw, scripted_server

OVERHEAD_S = 0.5
PROMISED_S = 2.0
BUSY_S = 8.0


async def look(*urls: str, api_key: str | None = None) -> list[Finding]:
    """Detect at these addresses; the limit is what is promised, and what a busy machine adds is not ours."""
    assert PLACE_TIMEOUT_S + OVERHEAD_S <= PROMISED_S
    began_at = time.monotonic()
    found = await detect([Place(url, "", api_key=api_key) for url in urls])
    assert time.monotonic() - began_at < PROMISED_S + BUSY_S
    assert [each.place.url for each in found] == list(urls)
    return [each.finding for each in found]


@pytest.mark.parametrize("kind", ServerKind)
async def test_each_kind_of_server_on_any_port(kind: ServerKind) -> None:
    async with model_server(BY_KIND[kind]) as server:
        (finding,) = await look(server.url)
        assert (finding.kind, finding.readiness) == (kind, Readiness.READY)
        assert all(wire.headers["accept-encoding"] == "identity" for wire in server.asked)
        assert not any("authorization" in wire.headers for wire in server.asked)


async def test_ollama_tells_size_quantization_context_and_capabilities() -> None:
    async with model_server(servers.OLLAMA) as server:
        (finding,) = await look(server.url)
    assert finding.models == (
        DetectedModel("qwen3:8b", 5225388164, "Q4_K_M", 40960, ("completion", "tools", "thinking")),
        DetectedModel("nomic-embed-text:latest", 274302450, "F16", 2048, ("embedding",)),
    )


async def test_koboldcpp_tells_its_context() -> None:
    async with model_server(servers.KOBOLDCPP) as server:
        (finding,) = await look(server.url)
    assert [model.context_tokens for model in finding.models] == [8192]


async def test_llama_cpp_by_its_header() -> None:
    async with model_server(servers.OPENAI, servers.LLAMA_HEADER) as server:
        (finding,) = await look(server.url)
    assert finding.kind is ServerKind.LLAMA_CPP


async def test_a_private_authority_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    async with model_server(servers.VLLM, tls=authority.server) as server:
        knows, other = (
            Place(server.url, "", name, ca_file=file) for name, file in (("a", authority.ca_file), ("b", None))
        )
        broken = Place(server.url, "", "c", ca_file=tmp_path / "absent.pem")
        found = [each.finding for each in await detect([knows, other, broken])]
    assert [each.kind for each in found] == [ServerKind.VLLM, None, None]
    assert "with a certificate that is trusted here" in found[1].detail
    assert "cannot be read" in found[2].detail


async def test_a_key_goes_to_its_own_place_only() -> None:
    async with model_server(servers.OPENAI) as mine, model_server(servers.OPENAI) as other:
        await detect([Place(mine.url, "", api_key="of-mine"), Place(other.url, "")])
        assert {wire.headers.get("authorization") for wire in mine.asked} == {"Bearer of-mine"}
        assert {wire.headers.get("authorization") for wire in other.asked} == {None}


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with model_server(servers.VLLM) as server, scripted_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        (finding,) = await look(server.url)
        assert finding.kind is ServerKind.VLLM
        assert proxy.asked == []


PAGE = b"<html><body><h1>Welcome to nginx!</h1></body></html>"
FLOOD = b'{"object":"list","data":[' + b'{"id":"x"},' * 1_000_000 + b'{"id":"x"}]}'


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (answer(200, PAGE, "Server: nginx/1.28"), "nginx/1.28"),
        (answer(404, b"not found"), "no model server"),
        (answer(200, b'{"data": [{"id": '), "no model server"),
        (answer(200, b"\xff\xfe\x00garbage"), "no model server"),
        (answer(200, FLOOD), "no model server"),
        (answer(302, b"", "Location: http://127.0.0.1:1/v1/models"), "no model server"),
        (answer(200, {"object": "list", "data": [{"id": "x"}]}, "Content-Encoding: gzip"), "no model server"),
        (answer(401, b"no"), "wants a login for everything"),
        (hang, "does not answer HTTP"),
        (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "does not answer HTTP"),
        (raw(b""), "does not answer HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}"), "no model server"),
    ],
    ids=["page", "404", "half-json", "bytes", "flood", "redirect", "gzip", "401", "mute", "ssh", "shut", "short"],
)
async def test_what_answers_is_not_for_that_a_model_server(handler: Handler, said: str) -> None:
    async with model_server({}) as server:
        server.routes["*"] = handler
        server.routes = Everything(handler)
        (finding,) = await look(server.url)
    assert (finding.kind, finding.readiness) == (None, Readiness.OTHER)
    assert said in finding.detail


class Everything(dict[str, Handler]):
    """The same answer to whatever is asked."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    def __contains__(self, path: object) -> bool:
        return True

    def __missing__(self, path: str) -> Handler:
        return self._handler


async def test_one_path_that_hangs_hides_nothing_else() -> None:
    async with model_server(servers.OLLAMA) as server:
        server.routes["/health"] = server.routes["/api/show"] = hang
        (finding,) = await look(server.url)
    assert (finding.kind, finding.readiness, len(finding.models)) == (ServerKind.OLLAMA, Readiness.READY, 2)
    assert finding.models[0].context_tokens is None


async def test_all_at_once_within_two_seconds_though_some_are_mute() -> None:
    with socket.socket() as closed, socket.socket() as deaf:
        closed.bind(("127.0.0.1", 0))
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # the kernel accepts, nobody reads
        async with model_server(servers.VLLM) as good, drip() as slow, scripted_server() as plain:
            nobody, mute = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (closed, deaf))
            found = await look(mute, nobody, slow, good.url, plain.url, *[f"{mute}/{at}" for at in range(5)])
    assert [finding.readiness for finding in found] == [
        *(Readiness.OTHER, Readiness.NOT_RUNNING, Readiness.OTHER, Readiness.READY, Readiness.READY),
        *[Readiness.OTHER] * 5,
    ]
    assert [finding.kind for finding in found[3:5]] == [ServerKind.VLLM, ServerKind.OPENAI]


@asynccontextmanager
async def drip() -> AsyncIterator[str]:
    """A server whose header never ends."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await stream.send(b"HTTP/1.1 200 OK\r\n")
                while True:
                    await stream.send(b"X: y\r\n")
                    await anyio.sleep(0.05)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def test_a_place_that_cannot_exist_is_not_running() -> None:
    (finding,) = await look("http://a..b:1")
    assert finding.readiness is Readiness.NOT_RUNNING


# --- where to look ----------------------------------------------------------------------------------------------


def test_every_known_place_is_asked_once() -> None:
    urls = [place.url for place in places_to_ask({})]
    assert urls == [place.url for place in KNOWN_PLACES]
    ports = {int(url.rpartition(":")[2]) for url in urls}
    assert ports == {11434, 8080, 8000, 1234, 11435, 8081, 5001, 1337}


def test_configured_places_come_first_and_replace_known_ones() -> None:
    mine = Place("http://localhost:8080", "", "local", "key")
    far = Place("https://gpu.example/api", "", "far")
    places = places_to_ask({"OLLAMA_HOST": "127.0.0.1:11434"}, [mine, far])
    assert places[0] == Place("http://localhost:8080", "llama.cpp, LocalAI", "local", "key")
    assert places[1] == far
    assert len(places) == len(KNOWN_PLACES) + 1
    assert "key" not in repr(mine)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", None),
        ("  ", None),
        ("192.168.1.5", "http://192.168.1.5:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8123", "http://127.0.0.1:8123"),
        (":8123", "http://127.0.0.1:8123"),
        ('"box:1234"', "http://box:1234"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("https://box:1/ollama/", "https://box:1/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("[::]:77", "http://[::1]:77"),
        ("box:port", None),
        ("box:99999999", None),
        ("ftp://box", None),
        ("http://user:secret@box", "http://box:80"),
    ],
)
def test_ollama_host(host: str, url: str | None) -> None:
    assert ollama_url(host) == url


@given(st.text(max_size=24) | st.text("htps:/[]@0.1a#?", max_size=24))
def test_ollama_host_may_hold_anything(host: str) -> None:
    url = ollama_url(host)
    assert url is None or url.startswith(("http://", "https://"))


# --- the real one -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """llama.cpp's own server with a real model: its url and its key."""
    log: Path = tmp_path_factory.mktemp("child") / "llama.log"
    key = secrets.token_urlsafe(16)
    settings = {
        "parent_pid": os.getpid(),
        "api_key": key,
        "gguf": str(model_path()),
        "model_name": "smollm2-135m",
        "slots": 1,
        "context_tokens": 512,
        "threads": 1,
        "gpu_layers": 0,
    }
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-P", llama_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())["url"], key
        process.stdin.close()  # this alone ends it
        assert process.wait(timeout=5) == 0


@pytest.mark.e2e
async def test_the_real_llama_cpp_server_is_found_with_its_model(llama: tuple[str, str]) -> None:
    url, key = llama
    (finding,) = await look(url, api_key=key)
    assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP, Readiness.READY)
    size = finding.models[0].size_bytes
    assert size is not None
    assert 80_000_000 < size < 110_000_000
    assert finding.models == (DetectedModel("smollm2-135m", size, "Q4_1", 512, ("completion",)),)


@pytest.mark.e2e
async def test_the_real_llama_cpp_server_without_its_key_is_locked(llama: tuple[str, str]) -> None:
    (finding,) = await look(llama[0])
    assert (finding.kind, finding.readiness) == (ServerKind.LLAMA_CPP, Readiness.LOCKED)
