"""The bare side of `inference.py` for Ollama: a real one, asked by its own API without Pylon.

What was generated is counted by the tokenizer of llama.cpp's server, which runs beside it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson

from benchmarks.inference_sides import CONTEXT_TOKENS, TIME_LIMIT_S, Answer, Session, Side, model_server
from tests.support.go_programs import OLLAMA, find_program
from tests.support.model_programs import create, ollama, running

PARALLEL = 4
NAME = "smollm2:135m"


@dataclass(frozen=True)
class OllamaSession:
    """Jobs by Ollama, counts by the server."""

    client: httpx.AsyncClient
    counter: Session

    async def ask(self, prompt: str, tokens: int) -> Answer:
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": prompt}],
            "options": {"num_predict": tokens, "num_ctx": CONTEXT_TOKENS, "temperature": 0, "seed": 1},
            "stream": True,
        }
        started, first, parts = time.perf_counter(), 0.0, []
        async with self.client.stream("POST", "/api/chat", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if text := orjson.loads(line)["message"]["content"]:
                    first = first or time.perf_counter() - started
                    parts.append(text)
        return Answer("".join(parts), first, time.perf_counter() - started)

    async def count(self, text: str) -> int:
        return await self.counter.count(text)


@contextlib.contextmanager
def ollama_side() -> Iterator[Side]:
    """One Ollama for both sides."""
    if find_program(OLLAMA) is None:
        raise SystemExit("Ollama is missing: python -m tests.support.go_programs ollama builds it")
    with (
        tempfile.TemporaryDirectory(prefix="pylon-ollama-") as folder,
        model_server() as counting,
        running(ollama(Path(folder), parallel=PARALLEL)) as server,
    ):
        create(server, NAME)

        @contextlib.asynccontextmanager
        async def session() -> AsyncIterator[OllamaSession]:
            async with (
                counting.session() as counter,
                httpx.AsyncClient(base_url=server.url, timeout=TIME_LIMIT_S, trust_env=False) as client,
            ):
                yield OllamaSession(client, counter)

        backend: dict[str, str | int] = {"kind": "ollama", "url": server.url, "context_tokens": CONTEXT_TOKENS}
        yield Side(backend, NAME, PARALLEL, session)
