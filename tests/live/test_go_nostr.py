"""A customer made of go-nostr, nak's library (tests/live/go), buys from the daemon.

It makes a key, publishes a request for kind 5050 and tells what comes of it; its invoice is paid by the test.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import Event, parse_event
from pylon.nostr.nip90_replies import result_draft
from tests.support.events import PROVIDER, job_request, signed
from tests.support.go_programs import CUSTOMER, program_path
from tests.support.openai_server import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    ScriptedServer,
    Wire,
    framed,
    piece,
    scripted_server,
)
from tests.support.provider import MODEL, market_settings, provider
from tests.support.relay import relay_process
from tests.support.scripted_relay import Peer, scripted_relay
from tests.support.wallet import WalletProcess

pytestmark = [pytest.mark.e2e, pytest.mark.live]

LIMIT_S = 60
MAX_LINE = 1 << 20
PROMPT = 'Sag\'s zurück:\n\t„ü“ & <"\\"> 🙂'


@pytest.fixture
def program() -> str:
    return str(program_path(CUSTOMER))


class Customer:
    """The running program, read line by line."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def told(self) -> dict[str, Any]:
        """Return what it tells next. Fails with its own words when it ends instead."""
        try:
            line: dict[str, Any] = json.loads(await self._lines.receive_until(b"\n", MAX_LINE))
        except anyio.IncompleteRead:
            code, words = await self.ended()
            raise AssertionError(f"the customer ended with code {code}: {words}") from None
        return line

    async def ended(self) -> tuple[int, str]:
        """Wait for its end and return its exit code and what it said on stderr."""
        assert self._process.stderr is not None
        words = b"".join([part async for part in self._process.stderr])
        return await self._process.wait(), words.decode()


@asynccontextmanager
async def customer(
    program: str, relay: str, pubkey: str, prompt: str = PROMPT, limit: str = f"{LIMIT_S}s"
) -> AsyncIterator[Customer]:
    arguments = ["-relay", relay, "-provider", pubkey, "-prompt", prompt, "-limit", limit]
    async with await anyio.open_process([program, *arguments], stdin=subprocess.DEVNULL) as process:
        try:
            yield Customer(process)
        finally:
            if process.returncode is None:
                process.kill()


class Talker:
    """A model's server that says word after word until it is told to come to the end."""

    def __init__(self, script: ScriptedServer) -> None:
        self.enough = anyio.Event()
        script.models = (MODEL,)
        script.chats = [self._chat]

    async def _chat(self, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        while not self.enough.is_set():
            await wire.send(framed(piece("and ")))
            with anyio.move_on_after(0.05):
                await self.enough.wait()
        await wire.send(framed(piece("so on", "stop")) + framed(DONE) + STREAM_END)


async def test_it_follows_a_free_job_to_its_result(tmp_path: Path, program: str) -> None:
    with relay_process() as relay:
        async with scripted_server() as script:
            talker = Talker(script)
            async with (
                provider(tmp_path, market_settings(relay.url, backend_url=script.url)) as daemon,
                customer(program, relay.url, daemon.pubkey) as buyer,
            ):
                with anyio.fail_after(LIMIT_S):
                    request = await buyer.told()
                    heard: list[dict[str, Any]] = []
                    # The library hands events on in any order, so the answer ends when both were heard.
                    while not {"processing", "partial"} <= {each["status"] for each in heard}:
                        heard.append(await buyer.told())
                    talker.enough.set()
                    while (result := await buyer.told())["kind"] == 7000:
                        heard.append(result)
                    assert await buyer.ended() == (0, "")
                assert {each["status"] for each in heard} == {"processing", "partial"}
                assert not any("bolt11" in each or "amount" in each for each in heard)
                assert (result["kind"], result["pubkey"]) == (6050, daemon.pubkey)
                partials = [each["content"] for each in heard if each["status"] == "partial"]
                assert result["content"].endswith("and so on")
                assert all(each and result["content"].startswith(each) for each in partials)
                detail = daemon.reports().detail(request["id"])
                assert detail is not None
                assert detail.job.customer == request["pubkey"]
    (asked,) = script.posts()
    assert asked.json["messages"][-1]["content"] == PROMPT


async def test_the_invoice_that_it_prints_is_paid_and_the_result_comes(tmp_path: Path, program: str) -> None:
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        settings = market_settings(relay.url, paid_to=wallet)
        async with (
            provider(tmp_path, settings, wallet=wallet) as daemon,
            customer(program, relay.url, daemon.pubkey) as buyer,
        ):
            with anyio.fail_after(LIMIT_S):
                await buyer.told()
                asked = await buyer.told()
                assert asked["status"] == "payment-required"
                amount_msats = read_invoice(asked["bolt11"]).amount_msats
                assert asked["amount"] == str(amount_msats)
                await wallet.payer().pay(asked["bolt11"])
                while (result := await buyer.told())["kind"] == 7000:
                    assert result["status"] in {"processing", "partial", "success"}
                assert result["content"] == PROMPT
                assert await buyer.ended() == (0, "")
            settled = {"delivered/settled": 1}
            books = (await daemon.until(lambda status: status.jobs_by_state == settled, "done with the job")).books
            assert books.earned_msats == amount_msats == (await wallet.books())["received_msats"]


# --- that it looks at what it gets ------------------------------------------------------------------------------


def whole(request: Event) -> Event:
    return signed(result_draft(request, "yes"), PROVIDER)


def altered(request: Event) -> Event:
    return replace(whole(request), content="no")


def without_request(request: Event) -> Event:
    return signed(result_draft(request, "yes", with_request=False), PROVIDER)


def for_another(request: Event) -> Event:
    draft = result_draft(request, "yes")
    (_, *others) = draft.tags
    return signed(replace(draft, tags=(("request", job_request().to_json()), *others)), PROVIDER)


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (whole, 0, ""),
        (altered, 1, "id or signature of event "),
        (without_request, 1, "is no event"),
        (for_another, 1, "holds another request"),
    ],
)
async def test_a_result_that_is_not_right_is_refused(program: str, reply: Any, code: int, words: str) -> None:
    async def relay_of(peer: Peer) -> None:
        _, name, *_ = await peer.get("REQ")
        await peer.send("EOSE", name)
        _, request = await peer.get("EVENT")
        await peer.ok(request["id"])
        await peer.send("EVENT", name, json.loads(reply(parse_event(request)).to_json()))
        await peer.socket.wait_closed()

    async with scripted_relay(relay_of) as relay, customer(program, relay.url, PROVIDER.public_hex) as buyer:
        with anyio.fail_after(LIMIT_S):
            assert (await buyer.told())["kind"] == 5050
            ended = await buyer.ended()
    assert ended[0] == code
    assert words in ended[1]
    assert ended[1].count("\n") == bool(code)


async def test_without_a_provider_its_time_ends_in_one_sentence(program: str) -> None:
    with relay_process() as relay:
        async with customer(program, relay.url, PROVIDER.public_hex, limit="300ms") as buyer:
            with anyio.fail_after(LIMIT_S):
                code, words = await buyer.ended()
    assert code == 1
    assert words == f"customer: no result from {PROVIDER.public_hex} over {relay.url} within 300ms\n"
