"""A stand-in for an Ollama server, on loopback. It is not Ollama: it runs no model and speaks its HTTP API alone.

The shapes (paths, fields, NDJSON lines, error sentences) are those of the real one, which
`tests/live/test_ollama.py` compares; what the real server does in time and memory is not shown here.

`/api/chat` answers `words` unless `chats` holds handlers: then each chat is answered by the next of them, the last
one again and again. `routes` replaces any other path. A chat occupies its runner until it ends or its client goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from pylon.jobs.ports import Backend, Delta, Finished, GenerationRequest, Message
from tests.support.openai_server import STREAM_END, Handler, ScriptedServer, Wire, answer, framed

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
DEFAULT_CONTEXT = 4096
LOADED_BYTES = 1_000_000
AT = "2025-11-01T12:00:00.000000Z"


@dataclass
class OllamaStandIn(ScriptedServer):
    """What it has, what it can fetch, and what it was asked. `models` maps names to what they were trained for."""

    has: dict[str, int] = field(default_factory=lambda: {"m:latest": 8192})
    library: dict[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ("a", "b")
    loaded: dict[str, int] = field(default_factory=dict)  # a model's name to the context it is loaded with
    lingers: int = 0  # how often a dropped model is still listed: its memory is not free at once
    runners: list[str] = field(default_factory=list)  # the models that are generating
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    pull_steps: list[Callable[[], Any]] = field(default_factory=list)
    _dropped: dict[str, int] = field(default_factory=dict)  # how often it is still listed
    tls: ssl.SSLContext | None = None
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, on the port of the last time."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.tls)
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End as a killed process does: every connection is cut, every runner gone."""
        assert self._server is not None
        self._server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks)
        self.tasks.clear()
        self.runners.clear()
        self.loaded.clear()

    def chatted(self) -> list[Wire]:
        """The chats that were asked for."""
        return [wire for wire in self.asked if wire.path == "/api/chat"]

    def pulled(self) -> list[str]:
        """The models that it was told to fetch."""
        return [wire.json["model"] for wire in self.asked if wire.path == "/api/pull"]

    def find(self, name: str) -> str | None:
        """The name under which it has a model: `m` is `m:latest`."""
        full = name if ":" in name else f"{name}:latest"
        return next((has for has in self.has if has.casefold() == full.casefold()), None)

    def _handler(self, wire: Wire) -> Handler:
        if wire.path in self.routes:
            return self.routes[wire.path]
        match wire.path:
            case "/":
                return answer(200, b"Ollama is running")
            case "/api/version":
                return answer(200, {"version": "0.12.6"})
            case "/api/tags":
                return answer(200, {"models": [_described(name) for name in self.has]})
            case "/api/ps":
                return answer(200, {"models": self._running()})
            case "/api/generate":
                return self._generate_none
            case "/api/show":
                return self._show
            case "/api/pull":
                return self._pull
            case "/api/chat":
                return self._chat
            case _:
                return answer(404, b"404 page not found")

    def _running(self) -> list[dict[str, Any]]:
        """List what is loaded; what was dropped still `lingers` times."""
        for name, left in list(self._dropped.items()):
            self._dropped[name] = left - 1
            if left <= 0:
                del self._dropped[name]
                self.loaded.pop(name, None)
        more = {"size": LOADED_BYTES, "size_vram": LOADED_BYTES // 2, "expires_at": AT}
        listed = {name: _described(name) for name in self.loaded}
        for entry in listed.values():
            del entry["modified_at"]
        return [{**listed[name], **more, "context_length": size} for name, size in self.loaded.items()]

    async def _generate_none(self, wire: Wire) -> None:
        """Take a request without a prompt: with `keep_alive` 0 it drops the model, and this one knows no other."""
        name = self.find(wire.json["model"])
        assert not wire.json.get("prompt") and wire.json["keep_alive"] == 0, wire.json
        if name is None:
            await answer(404, {"error": f"model '{wire.json['model']}' not found"})(wire)
            return
        self._dropped[name] = self.lingers
        said_so = {"response": "", "done": True, "done_reason": "unload"}
        await answer(200, {"model": wire.json["model"], "created_at": AT, **said_so})(wire)

    async def _show(self, wire: Wire) -> None:
        name = self.find(wire.json["model"])
        if name is None:
            await answer(404, {"error": f"model '{wire.json['model']}' not found"})(wire)
            return
        info = {"general.architecture": "llama", "llama.context_length": self.has[name]}
        shown = {"modelfile": "", "parameters": "", "template": "", "modified_at": AT, "tensors": []}
        about = {"details": _described(name)["details"], "model_info": info, "capabilities": ["completion"]}
        await answer(200, shown | about)(wire)

    async def _chat(self, wire: Wire) -> None:
        name = self.find(wire.json["model"])
        if name is None:
            await answer(404, {"error": f"model '{wire.json['model']}' not found"})(wire)
            return
        options = wire.json.get("options", {})
        self.loaded[name] = min(options.get("num_ctx", DEFAULT_CONTEXT), self.has[name])
        chat = self.chats.pop(0) if len(self.chats) > 1 else self.chats[0] if self.chats else self._generate
        self.runners.append(name)
        try:
            await chat(wire)
        finally:
            if name in self.runners:
                self.runners.remove(name)
            self.freed.set()
            if wire.json.get("keep_alive") == 0:
                self.loaded.pop(name, None)

    async def _generate(self, wire: Wire) -> None:
        """Answer `words`. A token is a word; a prompt that does not fit is cut, or refused where that is asked."""
        asked = wire.json
        context = next(reversed(self.loaded.values()))
        prompt = sum(len(message["content"].split()) for message in asked["messages"])
        if prompt > context and asked.get("truncate", True) is False:
            await answer(400, {"error": "the input length exceeds the context length"})(wire)
            return
        most = asked["options"]["num_predict"]
        parts = [said(word, model=asked["model"]) for word in self.words[:most]]
        reason = "length" if len(self.words) > most else "stop"
        end = done(min(prompt, context), len(parts), reason, model=asked["model"])
        await lines(*parts, end)(wire)

    async def _pull(self, wire: Wire) -> None:
        model = wire.json["model"]
        full = model if ":" in model else f"{model}:latest"
        if full not in self.library:
            await lines({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"})(wire)
            return
        await wire.send(STREAM_HEAD + framed(line({"status": "pulling manifest"})))
        for step in self.pull_steps:
            made = step()
            await wire.send(framed(line(await made if asyncio.iscoroutine(made) else made)))
        self.has[full] = self.library[full]
        await wire.send(framed(line({"status": "success"})) + STREAM_END)


@asynccontextmanager
async def ollama_stand_in(*chats: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[OllamaStandIn]:
    """Run one for the length of the `async with`."""
    stand_in = OllamaStandIn(chats=list(chats), tls=tls)
    await stand_in.start()
    try:
        yield stand_in
    finally:
        await stand_in.stop()


def _described(name: str) -> dict[str, Any]:
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": AT, "size": 1, "digest": digest, "details": details}


# --- answers ---------------------------------------------------------------------------------------------------


def line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def said(text: str | None, *, model: str = "m", **more: Any) -> dict[str, Any]:
    """One piece of an answer; `more` goes into its message."""
    message = {"role": "assistant", **({} if text is None else {"content": text}), **more}
    return {"model": model, "created_at": AT, "message": message, "done": False}


def done(prompt: Any, output: Any, reason: str | None = "stop", *, model: str = "m") -> dict[str, Any]:
    """The end of an answer; what is None is left out, as Ollama leaves out what is zero."""
    times = {"total_duration": 5, "load_duration": 1, "prompt_eval_duration": 2, "eval_duration": 2}
    end = {**said("", model=model), "done": True, **times}
    counts = {"done_reason": reason, "prompt_eval_count": prompt, "eval_count": output}
    return end | {key: value for key, value in counts.items() if value is not None}


def lines(*parts: dict[str, Any] | bytes, end: bool = True) -> Handler:
    """Answer 200 with these lines, each in a chunk of its own, bytes as they are; without `end` cut it off."""

    async def handle(wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for part in parts:
            await wire.send(framed(part if isinstance(part, bytes) else line(part)))
        if end:
            await wire.send(STREAM_END)
        else:
            wire.cut()

    return handle


def engine(backend: Backend, model: str) -> Handler:
    """Answer with what a real backend generates with its `model`, stopped when the client goes."""

    async def handle(wire: Wire) -> None:
        asked, options = wire.json, wire.json["options"]
        request = GenerationRequest(
            model,
            tuple(Message(message["role"], message["content"]) for message in asked["messages"]),
            max_tokens=options["num_predict"],
            temperature=options.get("temperature"),
            seed=options.get("seed"),
        )

        async def generate() -> None:
            await wire.send(STREAM_HEAD)
            async with aclosing(backend.generate(request)) as chunks:
                async for chunk in chunks:
                    match chunk:
                        case Delta(text):
                            part = said(text, model=asked["model"])
                        case Finished(reason, prompt, output):
                            part = done(prompt, output, reason.value, model=asked["model"])
                    await wire.send(framed(line(part)))
            await wire.send(STREAM_END)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generate)
            await wire.gone()
            tasks.cancel_scope.cancel()

    return handle
