"""What each kind of model server answers, as seen on the wire or in its documentation, and a server that does."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pylon.backends.marks import ServerKind
from pylon.backends.probing import Answer, Ask
from tests.support.openai_server import Handler, ScriptedServer, Wire, answer, scripted_server

LLAMA_HEADER = "Server: llama.cpp"


def listing(*names: str, **fields: Any) -> dict[str, Any]:
    """Return a `/v1/models` answer."""
    return {"object": "list", "data": [{"id": name, "object": "model", **fields} for name in names]}


Routes = dict[str, tuple[int, Any]]

OLLAMA: Routes = {
    "/": (200, b"Ollama is running"),
    "/api/version": (200, {"version": "0.12.3"}),
    "/api/tags": (
        200,
        {
            "models": [
                {
                    "name": "qwen3:8b",
                    "model": "qwen3:8b",
                    "size": 5225388164,
                    "details": {"quantization_level": "Q4_K_M"},
                },
                {"name": "nomic-embed-text:latest", "size": 274302450, "details": {"quantization_level": "F16"}},
            ]
        },
    ),
    "/v1/models": (200, listing("qwen3:8b", "nomic-embed-text:latest", owned_by="library")),
}
OLLAMA_SHOWN = {
    "qwen3:8b": {
        "capabilities": ["completion", "tools", "thinking"],
        "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
    },
    "nomic-embed-text:latest": {
        "capabilities": ["embedding"],
        "model_info": {"general.architecture": "nomic-bert", "nomic-bert.context_length": 2048},
    },
}
LLAMA_CPP: Routes = {
    "/health": (200, {"status": "ok"}),
    "/v1/models": (
        200,
        {
            "models": [{"name": "smol", "model": "smol", "capabilities": ["completion"]}],
            **listing("smol", owned_by="llamacpp", meta={"n_ctx_train": 8192, "size": 96576768, "ftype": "Q4_1"}),
        },
    ),
    "/props": (
        200,
        {"default_generation_settings": {"n_ctx": 512}, "total_slots": 2, "build_info": "b6800-aa3ee0ee"},
    ),
}
LLAMA_CPP_PYTHON: Routes = {
    "/openapi.json": (200, {"openapi": "3.1.0", "info": {"title": "🦙 llama.cpp Python API", "version": "0.3.16"}}),
    "/v1/models": (200, listing("/models/tiny.gguf", owned_by="me", permissions=[])),
}
VLLM: Routes = {
    "/health": (200, b""),
    "/version": (200, {"version": "0.11.0"}),
    "/openapi.json": (200, {"info": {"title": "FastAPI"}}),
    "/v1/models": (200, listing("Qwen/Qwen2.5-0.5B-Instruct", owned_by="vllm", max_model_len=2048)),
}
LM_STUDIO: Routes = {
    "/api/v0/models": (
        200,
        {
            "object": "list",
            "data": [
                {
                    "id": "qwen2-vl-7b-instruct",
                    "object": "model",
                    "type": "vlm",
                    "arch": "qwen2_vl",
                    "compatibility_type": "mlx",
                    "quantization": "4bit",
                    "state": "not-loaded",
                    "max_context_length": 32768,
                },
                {
                    "id": "llama-3.1-8b",
                    "object": "model",
                    "type": "llm",
                    "quantization": "Q4_K_M",
                    "state": "loaded",
                    "max_context_length": 131072,
                    "loaded_context_length": 4096,
                    "capabilities": ["tool_use"],
                },
                {
                    "id": "nomic",
                    "object": "model",
                    "type": "embeddings",
                    "quantization": "Q4_0",
                    "state": "not-loaded",
                },
            ],
        },
    ),
    "/v1/models": (200, listing("qwen2-vl-7b-instruct", "llama-3.1-8b", "nomic", owned_by="organization_owner")),
    "*": (200, {"error": "Unexpected endpoint or method. (GET /)"}),
}
KOBOLDCPP: Routes = {
    "/": (200, b"<!doctype html><title>KoboldAI Lite</title>"),
    "/api/extra/version": (200, {"result": "KoboldCpp", "version": "1.100.1", "protected": False, "llm": True}),
    "/api/extra/true_max_context_length": (200, {"value": 8192}),
    "/v1/models": (200, listing("koboldcpp/Qwen3-8B-Q4_K_M", owned_by="koboldcpp", root="koboldcpp")),
    # It imitates the two others.
    "/api/version": (200, {"version": "0.7.0"}),
    "/api/tags": (200, {"models": [{"name": "koboldcpp/Qwen3-8B-Q4_K_M"}]}),
    "/props": (200, {"default_generation_settings": {"n_ctx": 8192}, "total_slots": 1}),
}
LOCALAI: Routes = {
    "/": (200, b"<html><title>LocalAI</title>"),
    "/system": (200, {"backends": ["llama-cpp", "whisper"], "loaded_models": [{"id": "gemma"}]}),
    "/version": (200, {"version": "v3.7.0 (a1b2c3d4)"}),
    "/v1/models": (200, listing("gemma", "whisper-1")),
}
LITELLM: Routes = {
    "/": (200, b"<!DOCTYPE html><html><head><title>LiteLLM API - Swagger UI</title>"),
    "/v1/models": (200, listing("sold", created=1677610602, owned_by="openai")),
}
JAN: Routes = {
    "/": (200, b"<!DOCTYPE html><title>API Docs</title>"),
    "/openapi.json": (200, {"openapi": "3.0.0", "info": {"title": "Jan API Server Endpoints", "version": "1.0"}}),
    "/v1/models": (200, listing("jan-v3-4b", created=1, owned_by="user")),
    "*": (401, b"Missing authorization header"),
}
APPLE_FM: Routes = {
    "/health": (200, {"status": "ok", "model_available": True, "version": "1.0.0", "platform": "macOS"}),
    "/v1/models": (200, listing("apple-foundation-model", owned_by="apple")),
}
OPENAI: Routes = {"/v1/models": (200, listing("some-model", owned_by="someone"))}

BY_KIND: Mapping[ServerKind, Routes] = {
    ServerKind.OLLAMA: OLLAMA,
    ServerKind.LLAMA_CPP: LLAMA_CPP,
    ServerKind.LLAMA_CPP_PYTHON: LLAMA_CPP_PYTHON,
    ServerKind.VLLM: VLLM,
    ServerKind.LM_STUDIO: LM_STUDIO,
    ServerKind.KOBOLDCPP: KOBOLDCPP,
    ServerKind.LOCALAI: LOCALAI,
    ServerKind.LITELLM: LITELLM,
    ServerKind.JAN: JAN,
    ServerKind.APPLE_FM: APPLE_FM,
    ServerKind.OPENAI: OPENAI,
}


def body_of(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def answers_of(
    routes: Routes, asks: tuple[Ask, ...], headers: Mapping[str, str] | None = None
) -> dict[Ask, Answer]:
    """Return what a server with these routes answers, without any server."""
    missing = routes.get("*", (404, b'{"detail":"Not Found"}'))
    said = {ask: routes.get(ask.path, missing) for ask in asks}
    return {ask: Answer(status, headers or {}, body_of(value)) for ask, (status, value) in said.items()}


@asynccontextmanager
async def model_server(
    routes: Routes, *headers: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """Run one that answers so; whatever it does not have is its `*`, or a 404."""
    async with scripted_server(tls=tls) as server:
        server.models = ()
        server.routes = _Routes({path: answer(*said, *headers) for path, said in routes.items()}, *headers)
        if routes is OLLAMA:
            server.routes["/api/show"] = _show
        yield server


async def _show(wire: Wire) -> None:
    shown = OLLAMA_SHOWN.get(wire.json["model"])
    await answer(*((200, shown) if shown else (404, {"error": "model not found"})))(wire)


class _Routes(dict[str, Handler]):
    """Routes that know every path."""

    def __init__(self, known: dict[str, Handler], *headers: str) -> None:
        super().__init__(known)
        self._else = known.get("*", answer(404, {"detail": "Not Found"}, *headers))

    def __contains__(self, path: object) -> bool:
        return True

    def __missing__(self, path: str) -> Handler:
        return self._else
