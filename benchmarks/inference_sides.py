"""The bare side of `inference.py` for each kind of backend: the same model asked without Pylon.

A kind is a context manager in `SIDES` that starts what it needs and yields a `Side`: what the daemon's settings say
of it, and how it is asked directly. Texts of both sides are counted alike, by the tokenizer of llama.cpp's server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import orjson

from pylon.backends import llama_child, llama_cpp_child
from pylon.backends.models import bundled_model_path
from tests.support.foreign_venvs import find_python
from tests.support.llama_cpp_python import LLAMA_CPP_PYTHON

MODEL = "smollm2-135m"
SLOTS = 8
CONTEXT_TOKENS = 1024
TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Answer:
    """One job's text and how long its first token and its end took."""

    text: str
    first_s: float
    took_s: float


class Session(Protocol):
    """The bare side, held for a round."""

    async def ask(self, prompt: str, tokens: int) -> Answer:
        """Have the model answer, greedily."""
        ...

    async def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        ...


@dataclass(frozen=True)
class Side:
    """One kind of backend, which runs `slots` jobs at once and calls the model `model`.

    `backend` is the daemon's `[[backends]]` without name and slots.
    """

    backend: Mapping[str, str | int]
    model: str
    slots: int
    session: Callable[[], AbstractAsyncContextManager[Session]]


def gguf() -> Path:
    """Return the model's file."""
    path = bundled_model_path()
    if path is None:
        raise SystemExit("the model is missing: run `make test` once, which installs it")
    return path


# --- llama.cpp's server: for itself, and as the child that `embedded` starts -----------------------------------


@dataclass(frozen=True)
class Server:
    """The model server and the key it wants."""

    url: str
    api_key: str

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[ServerSession]:
        """Have connections to it."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        # A connection each: over a kept one that carried a stream about one request in a hundred fails.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=TIME_LIMIT_S, limits=limits, trust_env=False
        ) as client:
            yield ServerSession(client)


class ServerSession:
    """OpenAI's chat completions, and llama.cpp's tokenizer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, prompt: str, tokens: int) -> Answer:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "seed": 1,
            "stream": True,
        }
        started, first, parts = time.perf_counter(), 0.0, []
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in orjson.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        first = first or time.perf_counter() - started
                        parts.append(text)
        return Answer("".join(parts), first, time.perf_counter() - started)

    async def count(self, text: str) -> int:
        response = await self._client.post("/tokenize", json={"content": text})
        return len(response.json()["tokens"])


@contextlib.contextmanager
def model_server() -> Iterator[Server]:
    """Run llama.cpp's server on loopback."""
    key = secrets.token_urlsafe(16)
    settings = {
        "parent_pid": os.getpid(),
        "api_key": key,
        "gguf": str(gguf()),
        "model_name": MODEL,
        "slots": SLOTS,
        "context_tokens": CONTEXT_TOKENS,
        "threads": os.cpu_count() or 1,
        "gpu_layers": 0,
    }
    with child_program([sys.executable, str(llama_child.__file__)], settings) as child:
        report = child.hear()
        if "url" not in report:
            raise SystemExit(f"the model server did not start: {report}")
        yield Server(report["url"], key)


@contextlib.contextmanager
def openai_side() -> Iterator[Side]:
    """One server for both sides."""
    with model_server() as server:
        backend = {"kind": "openai", "url": server.url, "api_key": server.api_key}
        yield Side(backend, MODEL, SLOTS, server.session)


@contextlib.contextmanager
def embedded_side() -> Iterator[Side]:
    """A server of our own beside the daemon's child, which nobody else can ask."""
    with model_server() as server:
        backend: dict[str, str | int] = {"kind": "embedded", "gguf": str(gguf()), "context_tokens": CONTEXT_TOKENS}
        threads = {"threads": os.cpu_count() or 1, "gpu_layers": 0}
        yield Side({**backend, **threads}, MODEL, SLOTS, server.session)


# --- llama-cpp-python ---------------------------------------------------------------------------------------------


class Child:
    """A child program that is spoken to in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._turn = threading.Lock()
        self._jobs = 0

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send it one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for one line of it."""
        assert self._process.stdout is not None
        heard: dict[str, Any] = json.loads(self._process.stdout.readline())
        return heard

    def ask(self, prompt: str, tokens: int) -> Answer:
        """Run one job of `llama_cpp_child`."""
        fixed = {"temperature": 0.0, "seed": 1, "stop": [], "max_tokens": tokens}
        open_ = dict.fromkeys(("top_k", "top_p", "frequency_penalty", "presence_penalty"))
        with self._turn:
            self._jobs += 1
            started, first, parts = time.perf_counter(), 0.0, []
            messages = [{"role": "user", "content": prompt}]
            self.tell({"op": "generate", "id": self._jobs, "messages": messages, **fixed, **open_})
            while "done" not in (event := self.hear()):
                if text := event.get("text"):
                    first = first or time.perf_counter() - started
                    parts.append(text)
            return Answer("".join(parts), first, time.perf_counter() - started)


@contextlib.contextmanager
def child_program(command: list[str], settings: Mapping[str, Any]) -> Iterator[Child]:
    """Run a child program of ours, told its settings."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        child = Child(process)
        child.tell(settings)
        yield child
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class ChildSession:
    """Jobs by the child, counts by the server."""

    child: Child
    counter: Session

    async def ask(self, prompt: str, tokens: int) -> Answer:
        return await asyncio.to_thread(self.child.ask, prompt, tokens)

    async def count(self, text: str) -> int:
        return await self.counter.count(text)


@contextlib.contextmanager
def llama_cpp_side() -> Iterator[Side]:
    """The child program driven directly beside the daemon's own child."""
    python = find_python(LLAMA_CPP_PYTHON)
    if python is None:
        raise SystemExit("llama-cpp-python is missing: python -m tests.support.llama_cpp_python compiles it")
    shared: dict[str, str | int] = {
        "context_tokens": CONTEXT_TOKENS,
        "threads": os.cpu_count() or 1,
        "gpu_layers": 0,
    }
    settings = {**shared, "parent_pid": os.getpid(), "gguf": str(gguf()), "flash_attention": False}
    with (
        child_program([str(python), "-P", str(llama_cpp_child.__file__)], settings) as child,
        model_server() as server,
    ):
        report = child.hear()
        if "loaded" not in report:
            raise SystemExit(f"the model was not loaded: {report}")

        @contextlib.asynccontextmanager
        async def session() -> AsyncIterator[ChildSession]:
            async with server.session() as counter:
                yield ChildSession(child, counter)

        backend = {"kind": "llama_cpp", "path": str(gguf()), "python": str(python), **shared}
        yield Side(backend, gguf().stem, 1, session)


SIDES: Mapping[str, Callable[[], AbstractContextManager[Side]]] = {
    "openai": openai_side,
    "embedded": embedded_side,
    "llama_cpp": llama_cpp_side,
}
