"""A wallet that answers anything at all: the client raises the right kind of `WalletError` and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.jobs.ports import InvoiceRequest, WalletAmbiguous, WalletError, WalletRefused, WalletUnavailable
from pylon.wallets.answers import BadAnswer, Fields
from pylon.wallets.fake import FakePayer, FakeWallet, FakeWalletConfig
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.wallet import listed_by

ORDER = InvoiceRequest("mine", 1_000, 600)
HASH = "ab" * 32
INVOICE: dict[str, Any] = {
    "own_id": "mine",
    "payment_hash": HASH,
    "bolt11": "lnbcrt1",
    "amount_msats": 1_000,
    "created_at": 1_700_000_000,
    "expires_at": 1_700_000_600,
    "state": "pending",
    "received_msats": 0,
    "settled_at": None,
}


@asynccontextmanager
async def answering(raw: bytes, *, then_hold: bool = False) -> AsyncIterator[str]:
    """The url of a server that answers every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            if then_hold:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def json_response(value: object) -> bytes:
    return response(json.dumps(value).encode())


def client_of(url: str, timeout_s: float = 5.0) -> FakeWallet:
    return FakeWallet(FakeWalletConfig(token="secret-token", url=url, timeout_s=timeout_s), time.time)


NOT_HTTP_JSON = {
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "nothing": b"",
    "not json": response(b"<html>"),
    "a list": response(b"[]"),
    "null": response(b"null"),
    "deep": response(b"[" * 100_000),
    "lone surrogate": response(b'{"own_id": "\\ud800"}'),
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "server error": response(b'{"error": "x"}', "500 Oops"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "redirect": response(b"", "302 Found", "Location: http://169.254.169.254/\r\n"),
    "compressed": response(gzip.compress(json.dumps(INVOICE).encode()), headers="Content-Encoding: gzip\r\n"),
    "too long": response(b"[" + b" " * 5_000_000 + b"]"),
}


@pytest.mark.parametrize("raw", NOT_HTTP_JSON.values(), ids=NOT_HTTP_JSON.keys())
async def test_an_unreadable_answer(raw: bytes) -> None:
    async with answering(raw) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletAmbiguous) as caught:
                await client.create_invoice(ORDER)
            assert "secret-token" not in str(caught.value)
            with pytest.raises(WalletAmbiguous):
                await client.pay("lnbcrt1", own_id="x", max_fee_msats=0)
            with pytest.raises(WalletUnavailable):
                await client.look_up(HASH)
            with pytest.raises(WalletUnavailable):
                await anext(client.settlements())
            assert not (await client.check()).ready


@pytest.mark.parametrize(
    "change",
    [
        {"own_id": "another"},
        {"own_id": None},
        {"payment_hash": "AB" * 32},
        {"payment_hash": 7},
        {"bolt11": "l" * 5_000},
        {"bolt11": ["lnbcrt1"]},
        {"amount_msats": "1000"},
        {"amount_msats": 1000.0},
        {"amount_msats": True},
        {"amount_msats": -1},
        {"amount_msats": 2**63},
        {"created_at": None},
        {"expires_at": 1e300},
        {"state": "paid"},
        {"state": {}},
        {"settled_at": "now"},
    ],
    ids=str,
)
async def test_a_wrong_member_is_ambiguous_for_a_create_and_unavailable_for_a_question(
    change: dict[str, object],
) -> None:
    wrong = {**INVOICE, **change}
    async with answering(json_response(wrong)) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletAmbiguous, match="answered"):
                await client.create_invoice(ORDER)
    async with answering(json_response({"invoices": [wrong], "invoice": wrong, "next": None})) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletUnavailable, match="answered"):
                await client.find("mine")


async def test_an_answer_about_another_invoice_is_not_believed() -> None:
    async with answering(json_response({"invoice": INVOICE})) as url:
        client = client_of(url)
        async with client.running():
            assert (await client.look_up(HASH)) is not None
            with pytest.raises(WalletUnavailable, match="other than the one asked for"):
                await client.look_up("cd" * 32)


async def test_a_missing_invoice_member_is_not_read_as_unknown() -> None:
    async with answering(json_response({})) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletUnavailable, match="no invoice"):
                await client.look_up(HASH)


async def test_a_list_without_an_end_is_refused() -> None:
    for following in (0, 7):
        async with answering(json_response({"invoices": [INVOICE], "next": following})) as url:
            client = client_of(url)
            async with client.running():
                with pytest.raises(WalletUnavailable, match="without an end"):
                    await listed_by(client, 0)


async def test_a_refusal_is_told_without_its_escape_codes() -> None:
    body = json.dumps({"error": "no \x1b[31m\u202e" + "x" * 1_000}).encode()
    async with answering(response(body, "400 Bad Request")) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletRefused) as caught:
                await client.create_invoice(ORDER)
            said = str(caught.value)
            assert said.isprintable()
            assert "no \\x1b[31m\\u202e" in said
            assert len(said) < 300


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized"])
async def test_a_refusal_that_repeats_our_token_is_told_without_it(status: str) -> None:
    body = json.dumps({"error": "we do not know Bearer secret-token"}).encode()
    async with answering(response(body, status)) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletError) as caught:
                await client.create_invoice(ORDER)
            assert "we do not know Bearer [token]" in str(caught.value)
            assert "secret-token" not in f"{client.state()} {caught.value!r}"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error": 5}', b"<html>"])
async def test_a_refusal_without_a_sentence_names_its_status(body: bytes) -> None:
    async with answering(response(body, "418 Teapot")) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletRefused, match="HTTP status 418"):
                await client.create_invoice(ORDER)


async def test_a_dripping_answer_ends_with_the_timeout() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", then_hold=True) as url:
        client = client_of(url, timeout_s=0.3)
        async with client.running():
            started = time.monotonic()
            with pytest.raises(WalletAmbiguous):
                await client.create_invoice(ORDER)
            with pytest.raises(WalletUnavailable):
                await client.balance_msats()
            assert time.monotonic() - started < 3


async def test_nobody_there_is_unavailable_for_every_call() -> None:
    async with answering(b"") as url:
        pass
    client = client_of(url)
    bolt11 = Node("33" * 32).sign(Draft("x", 1_000, 600, "", None), int(time.time())).bolt11
    async with client.running():
        for call in (
            client.create_invoice(ORDER),
            client.pay("lnbcrt1", own_id="x", max_fee_msats=0),
            client.balance_msats(),
            anext(client.settlements()),
            FakePayer(url, "token").pay(bolt11),
        ):
            with pytest.raises(WalletUnavailable):
                await call


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"[]",
        b"{}",
        b'{"payment_hash": "x", "amount_msats": 1, "settled_at": 1}',
        json.dumps({"payment_hash": HASH, "amount_msats": -1, "settled_at": 1}).encode(),
    ],
)
async def test_a_stream_of_something_else_breaks_clearly(line: bytes) -> None:
    raw = b"HTTP/1.1 200 OK\r\n\r\n\n" + line + b"\n"
    async with answering(raw, then_hold=True) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletUnavailable), anyio.fail_after(5):
                await anext(client.settlements())
            assert not client.state().ready


async def test_a_line_without_an_end_is_not_kept() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000, then_hold=True) as url:
        client = client_of(url)
        async with client.running():
            with pytest.raises(WalletUnavailable, match="does not end"), anyio.fail_after(5):
                await anext(client.settlements())


async def test_a_preimage_of_another_invoice_does_not_count_as_paid() -> None:
    bolt11 = Node("33" * 32).sign(Draft("x", 1_000, 600, "", None), int(time.time())).bolt11
    for answer in ({"preimage": "00" * 32}, {"preimage": "zz"}, {}):
        async with answering(json_response(answer)) as url:
            with pytest.raises(WalletAmbiguous):
                await FakePayer(url, "token").pay(bolt11)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*INVOICE, "x"]), inner, max_size=9)
    ),
    max_leaves=15,
)


@given(value=_JSON, own_id=st.none() | st.just("mine"))
@settings(max_examples=100)
def test_any_json_is_an_invoice_or_a_bad_answer(value: object, own_id: str | None) -> None:
    try:
        Fields(value).invoice(own_id=own_id)
    except BadAnswer as error:
        assert str(error)


@given(name=st.sampled_from(sorted(INVOICE)), value=_JSON)
@settings(max_examples=100)
def test_a_changed_member_is_read_exactly_or_refused(name: str, value: object) -> None:
    try:
        invoice = Fields({**INVOICE, name: value}).invoice()
    except BadAnswer:
        return
    assert getattr(invoice, name) == value
    assert type(getattr(invoice, name)) is type(value) or name == "state"


def test_bad_answers_are_not_wallet_errors_by_themselves() -> None:
    assert not issubclass(BadAnswer, WalletError)
