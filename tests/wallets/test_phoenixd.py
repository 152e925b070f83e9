"""phoenixd by its documented HTTP, against a stand-in on loopback: money, doubt, refusals, nonsense, push."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pylon.jobs.ports import (
    Direction,
    InvoiceRequest,
    PaymentState,
    Wallet,
    WalletAbility,
    WalletAmbiguous,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import check_invoice, read_invoice
from pylon.wallets import phoenixd as module
from pylon.wallets import phoenixd_wire as wire
from pylon.wallets.fake_server.node import Draft, Node
from pylon.wallets.http import TokenRefused
from pylon.wallets.phoenixd import PhoenixdConfig, PhoenixdWallet
from tests.support.phoenixd import FULL, LIMITED, PhoenixdStandIn, phoenixd
from tests.support.wallet import listed_by


@pytest.fixture
async def server() -> AsyncIterator[PhoenixdStandIn]:
    async with phoenixd() as stand_in:
        yield stand_in


def order(own_id: str = "own-1", amount_msats: int = 21_000, **more: Any) -> InvoiceRequest:
    return InvoiceRequest(own_id, amount_msats, 600, **more)


def foreign_invoice(amount_msats: int = 21_000) -> str:
    return Node("11" * 32).sign(Draft("x", amount_msats, 600, "elsewhere", None), int(time.time())).bolt11


async def never(request: Request) -> Response:
    await anyio.sleep_forever()
    raise AssertionError


def always(response: Response) -> Any:
    async def answer(request: Request) -> Response:
        return response

    return answer


# --- invoices -------------------------------------------------------------------------------------------------


async def test_it_is_a_wallet_that_knows_its_chain_and_may_pay(server: PhoenixdStandIn) -> None:
    wallet: Wallet = server.wallet()
    assert (wallet.state().ready, wallet.state().detail) == (False, "not asked yet")
    async with wallet.running():
        state = await wallet.check()
        await wallet.check()
        assert await wallet.balance_msats() == 50_000_000
    assert (state.name, state.ready, state.network, state.detail) == ("phoenixd", True, "regtest", "")
    assert state.abilities == frozenset(WalletAbility) - {WalletAbility.MSAT_PRECISION}
    assert server.paths("/payinvoice") == 1  # asked once, with nothing to pay
    assert server.forms == [{"invoice": ""}]


async def test_an_invoice_is_made_found_and_looked_up_by_our_own_id(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        made = await wallet.create_invoice(order("own-1", description="a job"))
        again = await wallet.create_invoice(order("own-1", description="a job"))
        await wallet.create_invoice(order("own-2"))
        assert await wallet.find("own-1", "a job") == (made, again)
        assert await wallet.find("own-3") == ()
        looked_up = await wallet.look_up(made.payment_hash)
        assert await wallet.look_up("00" * 32) is None
        assert await wallet.look_up("../getinfo") is None
    facts = read_invoice(made.bolt11)
    check_invoice(facts, amount_msats=21_000, network="regtest", now=time.time())
    assert (facts.description, made.expires_at - made.created_at, made.own_id) == ("a job", 600, "own-1")
    assert looked_up == made


async def test_a_description_hash_is_committed_to(server: PhoenixdStandIn) -> None:
    digest = hashlib.sha256(b"zap").hexdigest()
    wallet = server.wallet()
    async with wallet.running():
        made = await wallet.create_invoice(order(description="not this", description_hash=digest))
    assert read_invoice(made.bolt11).description_hash == digest


async def test_a_fraction_of_a_sat_is_refused_before_asking(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(WalletRefused, match="whole sats only, not over 21500 msats"):
            await wallet.create_invoice(order(amount_msats=21_500))
    assert server.asked == []


async def test_what_the_customer_paid_is_received_whatever_liquidity_cost(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        made = await wallet.create_invoice(order(amount_msats=30_000_000))
        await server.settle(made.payment_hash, fee_sats=21_000)
        settled = await wallet.look_up(made.payment_hash)
        [line] = await wallet.transactions(0)
    assert settled is not None and settled.settled_at is not None
    assert (settled.state, settled.received_msats) == (PaymentState.SETTLED, 30_000_000)
    assert abs(settled.settled_at - time.time()) < 60
    assert (line.direction, line.amount_msats, line.fee_msats) == (Direction.INCOMING, 30_000_000, 21_000_000)


async def test_an_expired_invoice_is_expired_and_one_paid_late_is_settled(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        made = await wallet.create_invoice(order())
        server.incoming[0]["isExpired"] = True
        expired = await wallet.look_up(made.payment_hash)
        await server.settle(made.payment_hash)
        settled = await wallet.look_up(made.payment_hash)
    assert expired is not None and (expired.state, expired.received_msats) == (PaymentState.EXPIRED, 0)
    assert settled is not None and settled.state is PaymentState.SETTLED


async def test_the_list_is_read_page_by_page(server: PhoenixdStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 4)
    wallet = server.wallet()
    async with wallet.running():
        made = [await wallet.create_invoice(order(f"own-{n}")) for n in range(8)]
        for number, entry in enumerate(server.incoming):
            entry["createdAt"] = 1_700_000_000_000 + 1000 * (number // 2)  # two at a time, across a page's edge
        server.incoming.append({**server.incoming[0], "paymentHash": "cd" * 32, "invoice": None})
        server.incoming[-1]["createdAt"] = 1_700_000_000_000  # a BOLT12 payment has no invoice
        server.incoming.sort(key=lambda each: each["createdAt"])
        listed = await listed_by(wallet, 1_700_000_001)
        everything = await listed_by(wallet, 0)
    assert {each.own_id for each in listed} == {each.own_id for each in made[2:]}
    assert {each.own_id for each in everything} == {each.own_id for each in made}


async def test_a_list_that_repeats_itself_ends(server: PhoenixdStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    wallet = server.wallet()
    async with wallet.running():
        await wallet.create_invoice(order())
        server.routes["/payments/incoming"] = always(JSONResponse(server.incoming))
        with pytest.raises(WalletUnavailable, match="without an end"):
            await listed_by(wallet, 0)


# --- paying ---------------------------------------------------------------------------------------------------


async def test_a_payment_is_exact_to_the_msat(server: PhoenixdStandIn) -> None:
    bolt11 = foreign_invoice(21_500)
    wallet = server.wallet()
    async with wallet.running():
        paid = await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        again = await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        found = await wallet.look_up_payment(paid.payment_hash)
        [line] = await wallet.transactions(0)
    assert (paid.state, paid.amount_msats, paid.fee_msats) == (PaymentState.SETTLED, 21_500, 4_086)
    assert paid.preimage == "ab" * 32 and "abab" not in repr(paid)
    assert again == paid == found
    assert server.paths("/payinvoice") == 1
    assert (line.direction, line.amount_msats, line.fee_msats) == (Direction.OUTGOING, 21_500, 4_086)


async def test_a_fee_above_the_limit_is_never_paid(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(WalletRefused, match="takes 4084 msats for this payment and 4083 msats are allowed"):
            await wallet.pay(foreign_invoice(), own_id="a", max_fee_msats=4_083)
    assert server.paths("/payinvoice") == 0


@pytest.mark.parametrize("bolt11", ["lnbcrt1nonsense", ""])
async def test_what_is_no_invoice_is_refused_before_asking(server: PhoenixdStandIn, bolt11: str) -> None:
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(WalletRefused, match="not paid"):
            await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
    assert server.asked == []


async def test_a_failed_payment_is_refused_with_its_reason_and_may_be_tried_again(server: PhoenixdStandIn) -> None:
    server.fails_with = "not enough funds\x1b[31m in wallet"
    bolt11 = foreign_invoice()
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(WalletRefused, match=r"could not pay: not enough funds\\x1b\[31m in wallet"):
            await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        failed = await wallet.look_up_payment(read_invoice(bolt11).payment_hash)
        server.fails_with = ""
        paid = await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
    assert failed is not None and failed.state is PaymentState.FAILED
    assert paid.state is PaymentState.SETTLED


async def test_after_a_time_out_the_payment_is_pending_and_is_not_paid_twice(server: PhoenixdStandIn) -> None:
    go_on = anyio.Event()
    server.before_paying = go_on.wait
    bolt11 = foreign_invoice()
    wallet = server.wallet(timeout_s=0.3)
    async with wallet.running():
        with pytest.raises(WalletAmbiguous, match="it may have done what was asked"):
            await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        assert (await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)).state is PaymentState.PENDING
        # A restarted client remembers nothing, and asks.
        other = server.wallet()
        async with other.running():
            assert (await other.pay(bolt11, own_id="a", max_fee_msats=10_000)).state is PaymentState.PENDING
    assert server.paths("/payinvoice") == 1
    go_on.set()


async def test_a_payment_still_on_its_way_to_the_server_is_not_sent_again(server: PhoenixdStandIn) -> None:
    server.routes["/payinvoice"] = never  # taken, and not in the list yet
    bolt11 = foreign_invoice()
    now = time.time()
    wallet = PhoenixdWallet(PhoenixdConfig(server.url, FULL, 0.3), lambda: now)
    async with wallet.running():
        for _ in range(2):
            with pytest.raises(WalletAmbiguous):
                await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        assert server.paths("/payinvoice") == 1
        now += 61
        del server.routes["/payinvoice"]
        assert (await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)).state is PaymentState.SETTLED


async def test_two_calls_at_once_pay_once(server: PhoenixdStandIn) -> None:
    bolt11 = foreign_invoice()
    wallet = server.wallet()
    doubts: list[WalletAmbiguous] = []

    async def pay() -> None:
        try:
            await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        except WalletAmbiguous as error:
            doubts.append(error)

    async with wallet.running(), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(pay)
    assert server.paths("/payinvoice") == 1
    assert len(doubts) == 2


async def test_said_to_have_failed_but_already_paid_counts_as_paid(server: PhoenixdStandIn) -> None:
    bolt11 = foreign_invoice()
    payment_hash = read_invoice(bolt11).payment_hash
    wallet = server.wallet()
    async with wallet.running():
        await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)
        path = f"/payments/outgoingbyhash/{payment_hash}"
        answers = [PlainTextResponse("Not found", 404), JSONResponse(server.outgoing[0])]

        async def first_unknown(request: Request) -> Response:
            return answers.pop(0)

        server.routes[path] = first_unknown
        fresh = server.wallet()
        async with fresh.running():
            assert (await fresh.pay(bolt11, own_id="a", max_fee_msats=10_000)).state is PaymentState.SETTLED


async def test_a_payment_whose_failure_cannot_be_confirmed_is_in_doubt(server: PhoenixdStandIn) -> None:
    bolt11 = foreign_invoice()
    path = f"/payments/outgoingbyhash/{read_invoice(bolt11).payment_hash}"
    answers: list[Response] = [PlainTextResponse("Not found", 404), PlainTextResponse("boom", 500)]

    async def then_broken(request: Request) -> Response:
        return answers.pop(0)

    server.routes[path] = then_broken
    server.fails_with = "already in progress"
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(WalletAmbiguous, match="already in progress"):
            await wallet.pay(bolt11, own_id="a", max_fee_msats=10_000)


async def test_the_limited_password_sells_and_does_not_pay(server: PhoenixdStandIn) -> None:
    wallet = server.wallet(LIMITED)
    async with wallet.running():
        state = await wallet.check()
        await wallet.create_invoice(order())
        with pytest.raises(WalletRefused, match="limited access; use http-password") as caught:
            await wallet.pay(foreign_invoice(), own_id="a", max_fee_msats=10_000)
    assert not isinstance(caught.value, TokenRefused)
    assert state.ready and WalletAbility.PAY not in state.abilities
    assert wallet.state().ready


async def test_whether_it_may_pay_stays_open_where_the_server_does_not_say(server: PhoenixdStandIn) -> None:
    server.routes["/payinvoice"] = always(PlainTextResponse("boom", 500))
    wallet = server.wallet()
    async with wallet.running():
        unclear = await wallet.check()
        del server.routes["/payinvoice"]
        clear = await wallet.check()
    assert unclear.ready and WalletAbility.PAY not in unclear.abilities
    assert clear.ready and WalletAbility.PAY in clear.abilities


# --- what goes wrong ------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_one_sentence_without_it(server: PhoenixdStandIn) -> None:
    wallet = server.wallet("wrong-password")
    async with wallet.running():
        state = await wallet.check()
        with pytest.raises(TokenRefused):
            await wallet.create_invoice(order())
        with pytest.raises(TokenRefused):
            await anext(wallet.settlements())
    assert not state.ready
    assert state.detail == "phoenixd does not accept the password (HTTP status 401); check wallet.token"
    for shown in (wallet.state(), wallet, PhoenixdConfig(server.url, "wrong-password")):
        assert "wrong-password" not in repr(shown)


@pytest.mark.parametrize(
    ("response", "reading", "making", "said"),
    [
        (PlainTextResponse("boom", 500), WalletUnavailable, WalletAmbiguous, r"HTTP status 500 \(boom\)"),
        (PlainTextResponse("<html>", 502), WalletUnavailable, WalletAmbiguous, "HTTP status 502"),
        (PlainTextResponse("", 302), WalletUnavailable, WalletAmbiguous, "HTTP status 302"),
        (PlainTextResponse("too long\x1b", 400), WalletRefused, WalletRefused, r"refused: too long\\x1b"),
        (PlainTextResponse("Unknown endpoint", 404), WalletUnavailable, WalletRefused, "check wallet.url"),
        (PlainTextResponse("hello"), WalletUnavailable, WalletAmbiguous, "not JSON"),
        (JSONResponse({"balanceSat": -1}), WalletUnavailable, WalletAmbiguous, "answered a"),
        (JSONResponse([]), WalletUnavailable, WalletAmbiguous, "not a JSON object"),
        (PlainTextResponse("x" * 5_000_000), WalletUnavailable, WalletAmbiguous, "more than"),
    ],
)
async def test_other_answers_are_sorted_into_not_done_perhaps_done_and_refused(
    server: PhoenixdStandIn, response: Response, reading: type[Exception], making: type[Exception], said: str
) -> None:
    server.routes = {path: always(response) for path in ("/getbalance", "/createinvoice")}
    wallet = server.wallet()
    async with wallet.running():
        with pytest.raises(reading, match=said) as read:
            await wallet.balance_msats()
        with pytest.raises(making, match=said):
            await wallet.create_invoice(order())
    assert "\n" not in str(read.value)


async def test_silence_is_doubt_only_for_what_changes_something(server: PhoenixdStandIn) -> None:
    server.routes = dict.fromkeys(("/getbalance", "/createinvoice"), never)
    wallet = server.wallet(timeout_s=0.2)
    async with wallet.running():
        with pytest.raises(WalletUnavailable):
            await wallet.balance_msats()
        with pytest.raises(WalletAmbiguous):
            await wallet.create_invoice(order())


async def test_nobody_there_is_certainly_not_done() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        wallet = PhoenixdWallet(PhoenixdConfig(f"http://127.0.0.1:{taken.getsockname()[1]}", FULL, 2), time.time)
        async with wallet.running():
            assert not (await wallet.check()).ready
            with pytest.raises(WalletUnavailable, match="cannot be reached"):
                await wallet.create_invoice(order())
            with pytest.raises(WalletUnavailable, match="cannot be reached"):
                await wallet.pay(foreign_invoice(), own_id="a", max_fee_msats=10_000)
            with pytest.raises(WalletUnavailable, match="websocket broke"):
                await anext(wallet.settlements())


async def test_a_fault_of_tls_is_certainly_not_done(server: PhoenixdStandIn) -> None:
    wallet = PhoenixdWallet(PhoenixdConfig(server.url.replace("http:", "https:"), FULL, 2), time.time)
    async with wallet.running():
        with pytest.raises(WalletUnavailable, match="SSL"):
            await wallet.create_invoice(order())
        with pytest.raises(WalletUnavailable, match="TLS"):
            await anext(wallet.settlements())


async def test_another_invoice_than_asked_for_is_nonsense(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        made = await wallet.create_invoice(order())
        server.routes[f"/payments/incoming/{'00' * 32}"] = always(JSONResponse(server.incoming[0]))
        with pytest.raises(WalletUnavailable, match="other than the one asked for"):
            await wallet.look_up("00" * 32)
        server.routes["/createinvoice"] = always(
            JSONResponse({"amountSat": 21, "paymentHash": "00" * 32, "serialized": made.bolt11})
        )
        with pytest.raises(WalletAmbiguous, match="another payment hash"):
            await wallet.create_invoice(order())


def test_the_chains_have_the_names_that_invoices_know() -> None:
    names = {chain: wire.network(b'{"chain":"%s"}' % chain.encode()) for chain in ("mainnet", "testnet3", "signet")}
    assert names == {"mainnet": "bitcoin", "testnet3": "testnet", "signet": "signet"}


# --- push -----------------------------------------------------------------------------------------------------


async def test_settlements_are_pushed_with_what_the_customer_paid(server: PhoenixdStandIn) -> None:
    wallet = server.wallet(LIMITED)
    async with wallet.running():
        made = await wallet.create_invoice(order(amount_msats=30_000_000))
        async with aclosing(wallet.settlements()) as settlements, anyio.create_task_group() as tasks:

            async def settle() -> None:
                await server.listening.wait()
                await server.push({"type": "payment_sent", "timestamp": 1})
                await server.settle(made.payment_hash, fee_sats=1_000)

            tasks.start_soon(settle)
            with anyio.fail_after(10):
                received = await anext(settlements)
    assert (received.payment_hash, received.amount_msats) == (made.payment_hash, 30_000_000)


async def test_a_stream_that_ends_or_talks_nonsense_is_unavailable(server: PhoenixdStandIn) -> None:
    wallet = server.wallet()
    async with wallet.running():
        for event in ([1], {"type": "payment_received", "paymentHash": "x"}):
            server.listening.clear()
            server.listeners.clear()
            async with anyio.create_task_group() as tasks:

                async def say(event: object = event) -> None:
                    await server.listening.wait()
                    await server.push(event)

                tasks.start_soon(say)
                with anyio.fail_after(10), pytest.raises(WalletUnavailable, match="answered"):
                    await anext(wallet.settlements())
        server.listening.clear()
        server.listeners.clear()
        async with anyio.create_task_group() as tasks:

            async def leave() -> None:
                await server.listening.wait()
                await server.listeners[0].close(1001, "restarting")

            tasks.start_soon(leave)
            with anyio.fail_after(10), pytest.raises(WalletUnavailable, match="closed by the wallet: 1001"):
                await anext(wallet.settlements())
    assert not wallet.state().ready
