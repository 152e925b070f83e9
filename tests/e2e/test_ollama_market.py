"""A whole sale of an Ollama model: the real daemon in front of the stand-in for the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.backends.ollama_wire import full_name
from tests.support.ollama_stand_in import STREAM_HEAD, line, ollama_stand_in, said
from tests.support.openai_server import Wire, framed
from tests.support.provider import MODEL, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = pytest.mark.e2e

NAME = "smollm2:135m"


async def test_a_model_is_fetched_sold_and_delivered_although_the_server_restarts(tmp_path: Path) -> None:
    go_on, begun = anyio.Event(), anyio.Event()

    async def downloading() -> dict[str, Any]:
        await go_on.wait()
        return {"status": "pulling abc", "total": 100, "completed": 99}

    async def begins(wire: Wire) -> None:
        await wire.send(STREAM_HEAD + framed(line(said("half an ", model=NAME))))
        begun.set()
        await wire.gone()

    with relay_process() as relay:
        async with ollama_stand_in(begins) as server:
            server.has = {}
            server.library = {full_name(NAME): 8192}
            server.words = ("a whole ", "answer")
            server.pull_steps = [lambda: {"status": "pulling abc", "total": 100, "completed": 43}, downloading]
            settings = market_settings(relay.url)
            backend = {"name": "b", "kind": "ollama", "url": server.url, "pull": True, "context_tokens": 4096}
            sold = {"name": MODEL, "backend": "b", "backend_model": NAME, "base_msats": 1000}
            async with provider(
                tmp_path, {**settings, "backends": [backend], "models": [sold]}, started=False
            ) as daemon:
                daemon.launch()
                status = await daemon.until(lambda status: "%" in status.backends[0].detail, "fetching the model")
                assert (status.backends[0].health, status.backends[0].detail) == (
                    "loading",
                    f"pulling {NAME}: 43 %",
                )
                go_on.set()
                await daemon.until(is_ready, "ready for jobs")
                async with shop(relay.url, provider=daemon.pubkey) as customer:
                    order = await customer.order(params=[("model", [MODEL])])
                    await begun.wait()
                    server.chats.clear()
                    await server.stop()
                    await server.start()
                    assert (await order.result()).content == "a whole answer"
                    assert order.errors == []
                assert server.pulled() == [NAME]
                assert server.runners == []
