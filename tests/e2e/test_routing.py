"""A model on two servers, end to end: the real daemon moves on when one of them breaks, and says so."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pylon.nostr.nip90 import JobInput, request_draft
from tests.support.openai_server import DONE, ScriptedServer, answer, piece, scripted_server, stream, usage
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Shop, shop

pytestmark = pytest.mark.e2e

BROKEN = answer(500, {"error": {"message": "out of memory"}})
AT_SPARE = "the-same-model:q4"


@asynccontextmanager
async def house(
    tmp_path: Path, first: ScriptedServer, spare: ScriptedServer
) -> AsyncIterator[tuple[Provider, Shop]]:
    """The daemon with both servers behind one model, and a customer."""
    with relay_process() as relay:
        settings: dict[str, Any] = market_settings(relay.url, backend_url=first.url, slots=2)
        settings["backends"].append({"name": "spare", "kind": "openai", "url": f"{spare.url}/v1", "slots": 2})
        settings["models"] = [{**settings["models"][0], "also_on": [f"spare={AT_SPARE}"], "kinds": [5050, 5001]}]
        async with (
            provider(tmp_path, settings) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            yield daemon, customer


def says(text: str) -> Any:
    return stream(piece(text), piece(None, "stop"), usage(5, 2), DONE)


async def test_a_job_goes_on_at_the_other_server_before_its_first_token(tmp_path: Path) -> None:
    async with scripted_server(BROKEN) as first, scripted_server(says("from the spare")) as spare:
        first.models, spare.models = (MODEL,), (AT_SPARE,)
        async with house(tmp_path, first, spare) as (daemon, customer):
            order = await customer.order("hello")
            assert (await order.result()).content == "from the spare"
            assert len(first.posts()) == 1
            assert spare.posts()[0].json["model"] == AT_SPARE
            detail = await anyio.to_thread.run_sync(lambda: daemon.reports().detail(order.id))
            assert detail is not None
            assert (detail.job.backend, detail.job.attempts) == ("spare", 1)
            assert "rerouted -> running/none" in [line.entry for line in detail.journal]
            (model,) = (await anyio.to_thread.run_sync(daemon.control.status)).models
            assert (model.backend, model.available) == ("b, spare", True)


async def test_a_server_that_keeps_failing_is_left_alone_and_the_market_goes_on(tmp_path: Path) -> None:
    async with scripted_server(BROKEN) as first, scripted_server(says("from the spare")) as spare:
        first.models, spare.models = (MODEL,), (AT_SPARE,)
        async with house(tmp_path, first, spare) as (daemon, customer):
            for number in range(8):
                order = await customer.order(f"number {number}")
                assert (await order.result()).content == "from the spare"
            assert len(first.posts()) == 5, "five failures in a row open its circuit"
            status = await anyio.to_thread.run_sync(daemon.control.status)
            (line,) = [backend for backend in status.backends if backend.name == "b"]
            assert line.detail.startswith("fails too often: left alone for")


async def test_a_summary_is_sold_beside_text(tmp_path: Path) -> None:
    async with scripted_server(says("short")) as first, scripted_server(BROKEN) as spare:
        first.models, spare.models = (MODEL,), (AT_SPARE,)
        async with house(tmp_path, first, spare) as (_, customer):
            draft = request_draft(5001, [JobInput("A long text.")], params=[("length", ["one word"])])
            order = customer.follow(draft.sign(customer.key, int(time.time())))
            await customer.publish(order.request)
            await order.until(
                lambda each: [event for event in each.events.values() if event.kind == 6001], "summary"
            )
            asked = first.posts()[0].json["messages"]
            assert [message["role"] for message in asked] == ["system", "user"]
            assert asked[1]["content"] == "Summarize this text in one word:\n\nA long text."
