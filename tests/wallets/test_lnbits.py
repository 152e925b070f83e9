"""The LNbits wallet against a real LNbits: every method, what is special in it, push, and its restarts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from pylon.jobs.ports import (
    Direction,
    Invoice,
    InvoiceRequest,
    PaymentState,
    Received,
    Wallet,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import check_invoice, read_invoice
from pylon.wallets import lnbits as module
from pylon.wallets.fake_server.node import Draft, Node
from pylon.wallets.http import TokenRefused
from pylon.wallets.lnbits import LnbitsConfig, LnbitsWallet
from tests.support.lnbits import NETWORK, Account, Lnbits, lnbits_process
from tests.support.wallet import listed_by

FEE_MSATS = 10_000


def own() -> str:
    return secrets.token_hex(16)


def order(own_id: str = "", amount_msats: int = 21_000, expiry_s: int = 600, **more: str) -> InvoiceRequest:
    own_id = own_id or own()
    return InvoiceRequest(own_id, amount_msats, expiry_s, **({"description": f"a job ({own_id})"} | more))


def wallet_of(running: Lnbits, account: Account, *, pays: bool = False, timeout_s: float = 10) -> LnbitsWallet:
    pay_token = account.admin_key if pays else None
    return LnbitsWallet(LnbitsConfig(running.url, account.invoice_key, pay_token, timeout_s), time.time)


async def paid(running: Lnbits, bolt11: str) -> None:
    await anyio.to_thread.run_sync(running.pay, bolt11)


async def until_state(wallet: Wallet, payment_hash: str, state: PaymentState) -> Invoice:
    found = None
    with anyio.move_on_after(15):
        while (found := await wallet.look_up(payment_hash)) is None or found.state is not state:  # noqa: ASYNC110
            await anyio.sleep(0.05)
        return found
    raise AssertionError(f"not {state}: {found}")


@asynccontextmanager
async def listening(
    running: Lnbits, account: Account, wallet: Wallet
) -> AsyncIterator[MemoryObjectReceiveStream[Received | WalletError]]:
    """What the wallet yields, once it does hear: a first payment shows it."""
    send, receive = anyio.create_memory_object_stream[Received | WalletError](100)

    async def listen() -> None:
        try:
            async with aclosing(wallet.settlements()) as settlements:
                async for received in settlements:
                    await send.send(received)
        except WalletError as error:
            await send.send(error)

    async with anyio.create_task_group() as tasks, receive, send:
        tasks.start_soon(listen)
        with anyio.fail_after(20):
            while not receive.statistics().current_buffer_used:
                await paid(running, await anyio.to_thread.run_sync(running.invoice, account, 1))
                await anyio.sleep(0.1)
        while receive.statistics().current_buffer_used:
            receive.receive_nowait()
        yield receive
        tasks.cancel_scope.cancel()


async def heard(stream: MemoryObjectReceiveStream[Received | WalletError], payment_hash: str) -> Received:
    with anyio.fail_after(10):
        async for each in stream:
            assert isinstance(each, Received)
            if each.payment_hash == payment_hash:
                return each
    raise AssertionError("the stream ended")


# --- receiving ------------------------------------------------------------------------------------------------


async def test_an_invoice_from_its_making_to_its_settlement(lnbits: Lnbits) -> None:
    account = lnbits.account()
    wallet, request = wallet_of(lnbits, account), order()
    async with wallet.running():
        assert wallet.state().detail == "not asked yet"
        assert (await wallet.check()).ready
        invoice = await wallet.create_invoice(request)
        facts = read_invoice(invoice.bolt11)
        check_invoice(facts, amount_msats=21_000, network=NETWORK, now=time.time())
        assert facts.description == request.description
        assert (facts.payment_hash, facts.expires_at) == (invoice.payment_hash, invoice.expires_at)
        assert facts.expires_at - facts.created_at == 600
        assert wallet.state().network == NETWORK
        open_one = await wallet.look_up(invoice.payment_hash)
        assert open_one is not None
        assert (open_one.state, open_one.received_msats, open_one.own_id) == ("pending", 0, request.own_id)
        assert abs(open_one.expires_at - invoice.expires_at) <= 1
        await paid(lnbits, invoice.bolt11)
        settled = await wallet.look_up(invoice.payment_hash)
        assert settled is not None
        assert (settled.state, settled.received_msats) == (PaymentState.SETTLED, 21_000)
        assert settled.settled_at is not None
        assert abs(settled.settled_at - time.time()) < 60
        assert await wallet.find(request.own_id, request.description) == (settled,)
        assert await wallet.balance_msats() == 21_000 == lnbits.balance_msats(account)
        assert await wallet.look_up("00" * 32) is None
        assert await wallet.look_up("no hash") is None


async def test_every_invoice_of_an_id_is_found_and_no_other(lnbits: Lnbits) -> None:
    wallet, request = wallet_of(lnbits, lnbits.account()), order()
    async with wallet.running():
        await wallet.create_invoice(order(f"{request.own_id}0"))
        made = [await wallet.create_invoice(request) for _ in range(2)]
        found = await wallet.find(request.own_id, request.description)
        assert [each.payment_hash for each in found] == [each.payment_hash for each in made]
        assert await wallet.find(own()) == ()


async def test_an_invoice_is_found_by_its_memo_alone(lnbits: Lnbits) -> None:
    account, own_id = lnbits.account(), own()
    wallet = wallet_of(lnbits, account)
    bolt11 = lnbits.invoice(account, 5, memo=f"a job ({own_id})")
    lnbits.invoice(account, 5, memo=f"another job ({own_id})")
    async with wallet.running():
        (found,) = await wallet.find(own_id, f"a job ({own_id})")
        assert found.bolt11 == bolt11


async def test_the_hash_of_a_description_stands_in_the_invoice_and_our_id_is_still_found(lnbits: Lnbits) -> None:
    wallet, request = wallet_of(lnbits, lnbits.account()), order(description_hash="ab" * 32)
    async with wallet.running():
        invoice = await wallet.create_invoice(request)
        assert read_invoice(invoice.bolt11).description_hash == "ab" * 32
        assert [each.payment_hash for each in await wallet.find(request.own_id)] == [invoice.payment_hash]


@pytest.mark.parametrize("amount_msats", [500, 1_500, 0, 999])
async def test_only_whole_sats_are_asked_for(lnbits: Lnbits, amount_msats: int) -> None:
    account = lnbits.account()
    wallet = wallet_of(lnbits, account)
    async with wallet.running():
        with pytest.raises(WalletRefused, match=f"whole sats only, not over {amount_msats} msats"):
            await wallet.create_invoice(order(amount_msats=amount_msats))
        assert lnbits.payments(account) == []
        assert WalletAbility.MSAT_PRECISION not in wallet.state().abilities


async def test_what_lnbits_refuses_is_told_in_its_words(lnbits: Lnbits) -> None:
    wallet = wallet_of(lnbits, lnbits.account())
    async with wallet.running():
        with pytest.raises(WalletRefused, match="is too high"):
            await wallet.create_invoice(order(amount_msats=10**15))
        assert wallet.state().ready


async def test_an_expired_invoice_is_no_more_pending_and_late_money_is_seen(lnbits: Lnbits) -> None:
    account = lnbits.account()
    wallet = wallet_of(lnbits, account)
    async with wallet.running():
        closed, left = [await wallet.create_invoice(order(expiry_s=1)) for _ in range(2)]
        await until_state(wallet, closed.payment_hash, PaymentState.EXPIRED)
        # LNbits takes money for an expired invoice, as long as no look-up has closed it.
        await paid(lnbits, left.bolt11)
        settled = await wallet.look_up(left.payment_hash)
        assert settled is not None
        assert (settled.state, settled.received_msats) == (PaymentState.SETTLED, 21_000)
        payer = lnbits.account(sats=100)
        late = wallet_of(lnbits, payer, pays=True)
        async with late.running():
            with pytest.raises(WalletRefused, match="and closed"):
                await late.pay(closed.bolt11, own_id=own(), max_fee_msats=FEE_MSATS)
        assert lnbits.balance_msats(payer) == 100_000
        assert await wallet.balance_msats() == 21_000


async def test_the_list_is_paged_and_holds_what_failed(lnbits: Lnbits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    account = lnbits.account()
    wallet = wallet_of(lnbits, account, pays=True)
    async with wallet.running():
        start = int(time.time())
        made = [await wallet.create_invoice(order(expiry_s=1 if number == 2 else 600)) for number in range(5)]
        await paid(lnbits, made[3].bolt11)
        await until_state(wallet, made[2].payment_hash, PaymentState.EXPIRED)
        listed = await listed_by(wallet, start)
        assert [each.payment_hash for each in listed] == [each.payment_hash for each in made]
        assert [each.state for each in listed] == ["pending", "pending", "expired", "settled", "pending"]
        await wallet.pay(lnbits.invoice(lnbits.customer, 6), own_id=own(), max_fee_msats=FEE_MSATS)
        told = await wallet.transactions(start)
        assert [each.direction for each in told] == [Direction.INCOMING] * 5 + [Direction.OUTGOING]
        assert (told[-1].amount_msats, told[-1].state, told[-1].fee_msats) == (6_000, PaymentState.SETTLED, 0)
        moved = [each.amount_msats for each in told if each.state is PaymentState.SETTLED]
        assert moved == [21_000, 6_000]
        assert await listed_by(wallet, int(time.time()) + 60) == ()


# --- paying ---------------------------------------------------------------------------------------------------


async def test_a_payment_is_made_once(lnbits: Lnbits) -> None:
    payer = lnbits.account(sats=100)
    wallet, bolt11 = wallet_of(lnbits, payer, pays=True), lnbits.invoice(lnbits.provider, 21)
    payment_hash, own_id = read_invoice(bolt11).payment_hash, own()
    async with wallet.running():
        assert WalletAbility.PAY in wallet.state().abilities
        assert await wallet.look_up_payment(payment_hash) is None
        payment = await wallet.pay(bolt11, own_id=own_id, max_fee_msats=FEE_MSATS)
        assert (payment.state, payment.amount_msats, payment.fee_msats) == (PaymentState.SETTLED, 21_000, 0)
        assert payment.preimage is not None
        assert "preimage" not in repr(payment)
        assert await wallet.pay(bolt11, own_id=own_id, max_fee_msats=FEE_MSATS) == payment
        assert await wallet.look_up_payment(payment_hash) == payment
        assert lnbits.balance_msats(payer) == 79_000
        assert lnbits.payments(payer)[0]["extra"] == {"pylon_own_id": own_id}


async def test_payments_at_the_same_moment_are_made_once(lnbits: Lnbits) -> None:
    payer = lnbits.account(sats=100)
    wallet, bolt11 = wallet_of(lnbits, payer, pays=True), lnbits.invoice(lnbits.provider, 21)
    states: list[str] = []

    async def pay() -> None:
        try:
            states.append((await wallet.pay(bolt11, own_id="same", max_fee_msats=FEE_MSATS)).state)
        except WalletAmbiguous:
            states.append("ambiguous")

    async with wallet.running(), anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(pay)
    assert set(states) <= {"settled", "ambiguous"}
    assert "settled" in states
    assert lnbits.balance_msats(payer) == 79_000


async def test_what_cannot_be_paid_is_refused_and_costs_nothing(lnbits: Lnbits) -> None:
    poor = lnbits.account(sats=5)
    wallet = wallet_of(lnbits, poor, pays=True)
    foreign = Node("11" * 32).sign(Draft("x", 2_000, 600, "elsewhere", None), int(time.time())).bolt11
    async with wallet.running():
        with pytest.raises(WalletRefused, match="Insufficient balance"):
            await wallet.pay(lnbits.invoice(lnbits.provider, 21), own_id=own(), max_fee_msats=FEE_MSATS)
        with pytest.raises(WalletRefused, match=r"may spend up to 2000 msats on the fee .* 1999 msats are allowed"):
            await wallet.pay(lnbits.invoice(lnbits.provider, 1), own_id=own(), max_fee_msats=1_999)
        with pytest.raises(WalletRefused, match="not paid"):
            await wallet.pay("lnbc1nonsense", own_id=own(), max_fee_msats=FEE_MSATS)
        paid_already = lnbits.invoice(lnbits.provider, 1)
        await paid(lnbits, paid_already)
        with pytest.raises(WalletRefused, match="already paid"):
            await wallet.pay(paid_already, own_id=own(), max_fee_msats=FEE_MSATS)
        for _ in range(2):  # the second time a failed payment is known
            with pytest.raises(WalletError) as caught:
                await wallet.pay(foreign, own_id=own(), max_fee_msats=FEE_MSATS)
            assert not isinstance(caught.value, WalletUnavailable)
        assert lnbits.balance_msats(poor) == 5_000
        assert wallet.state().ready


async def test_without_the_admin_key_it_only_receives(lnbits: Lnbits) -> None:
    account = lnbits.account(sats=100)
    wallet = wallet_of(lnbits, account)
    async with wallet.running():
        assert WalletAbility.PAY not in (await wallet.check()).abilities
        with pytest.raises(WalletRefused, match=r"wallet\.pay_token, its admin key, is not set"):
            await wallet.pay(lnbits.invoice(lnbits.provider, 1), own_id=own(), max_fee_msats=FEE_MSATS)
    wrong = LnbitsWallet(LnbitsConfig(lnbits.url, account.invoice_key, account.invoice_key), time.time)
    async with wrong.running():
        assert "wallet.pay_token is not the admin key" in (await wrong.check()).detail
        with pytest.raises(TokenRefused, match=r"check wallet\.pay_token"):
            await wrong.pay(lnbits.invoice(lnbits.provider, 1), own_id=own(), max_fee_msats=FEE_MSATS)
    assert lnbits.balance_msats(account) == 100_000


async def test_a_wallet_that_pays_itself_tells_invoice_and_payment_apart(lnbits: Lnbits) -> None:
    wallet = wallet_of(lnbits, lnbits.account(sats=100), pays=True)
    async with wallet.running():
        invoice = await wallet.create_invoice(order())
        assert await wallet.look_up_payment(invoice.payment_hash) is None
        payment = await wallet.pay(invoice.bolt11, own_id=own(), max_fee_msats=FEE_MSATS)
        found = await wallet.look_up(invoice.payment_hash)
        assert found is not None
        assert (found.state, found.received_msats) == (PaymentState.SETTLED, 21_000)
        assert await wallet.look_up_payment(invoice.payment_hash) == payment


# --- keys -----------------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_one_sentence_and_no_unknown_invoice(lnbits: Lnbits) -> None:
    bolt11 = lnbits.invoice(lnbits.provider, 3)
    wallet = LnbitsWallet(LnbitsConfig(lnbits.url, "0" * 32, "1" * 32), time.time)
    async with wallet.running():
        state = await wallet.check()
        assert state.detail == "LNbits does not accept the key: Wallet not found.; check wallet.token"
        for call in (
            wallet.create_invoice(order()),
            wallet.look_up(read_invoice(bolt11).payment_hash),
            listed_by(wallet, 0),
            wallet.pay(bolt11, own_id="x", max_fee_msats=FEE_MSATS),
        ):
            with pytest.raises(TokenRefused, match="check wallet"):
                await call


# --- push -----------------------------------------------------------------------------------------------------


async def test_a_settlement_is_pushed_within_a_second_and_once(lnbits: Lnbits) -> None:
    account = lnbits.account()
    wallet = wallet_of(lnbits, account)
    async with wallet.running(), listening(lnbits, account, wallet) as stream:
        invoices = [await wallet.create_invoice(order()) for _ in range(2)]
        took_s = []
        for invoice in invoices:
            started = time.monotonic()
            await paid(lnbits, invoice.bolt11)
            received = await heard(stream, invoice.payment_hash)
            took_s.append(time.monotonic() - started)
            assert received.amount_msats == 21_000
        assert min(took_s) < 1, took_s
        assert stream.statistics().current_buffer_used == 0, "LNbits pushes twice, and the second is dropped"


async def test_a_forged_push_is_not_believed_and_breaks_nothing(lnbits: Lnbits) -> None:
    """Whoever has the invoice key can push: only what LNbits itself confirms counts."""
    account = lnbits.account()
    wallet = wallet_of(lnbits, account)
    async with wallet.running(), listening(lnbits, account, wallet) as stream:
        unpaid, real = [await wallet.create_invoice(order()) for _ in range(2)]
        forged = {"payment_hash": unpaid.payment_hash, "amount": 21_000, "status": "success"}
        lies = (json.dumps({"wallet_balance": 1, "payment": forged}), "no json", "[]", '{"payment": 5}', "{}")
        for text in lies:
            await anyio.to_thread.run_sync(lnbits.push, account, text)
        await paid(lnbits, real.bolt11)
        with anyio.fail_after(10):
            first = await stream.receive()
        assert isinstance(first, Received)
        assert first.payment_hash == real.payment_hash


# --- restarts and limits --------------------------------------------------------------------------------------


async def test_lnbits_restarts_in_the_middle_of_everything(fresh_lnbits: Lnbits) -> None:
    account = fresh_lnbits.account(sats=100)
    wallet = wallet_of(fresh_lnbits, account, pays=True, timeout_s=3)
    async with wallet.running():
        made, unpaid = [await wallet.create_invoice(order()) for _ in range(2)]
        bolt11 = fresh_lnbits.invoice(fresh_lnbits.customer, 7)
        async with listening(fresh_lnbits, account, wallet) as stream:
            await paid(fresh_lnbits, made.bolt11)
            await wallet.pay(bolt11, own_id=own(), max_fee_msats=FEE_MSATS)
            fresh_lnbits.kill()
            with anyio.fail_after(20):
                async for each in stream:
                    if isinstance(each, WalletUnavailable):
                        break
        for call in (wallet.look_up(made.payment_hash), wallet.create_invoice(order()), wallet.balance_msats()):
            with pytest.raises(WalletUnavailable, match="cannot be reached"):
                await call
        with pytest.raises(WalletUnavailable):
            await wallet.pay(bolt11, own_id=own(), max_fee_msats=FEE_MSATS)
        state = await wallet.check()
        assert not state.ready
        assert "LNbits cannot be reached" in state.detail
        await fresh_lnbits.restart()
        assert (await wallet.check()).ready
        kept = await wallet.look_up(made.payment_hash)
        assert kept is not None
        assert (kept.state, kept.received_msats) == (PaymentState.SETTLED, 21_000)
        await until_state(wallet, unpaid.payment_hash, PaymentState.FAILED)
        again = await wallet.pay(bolt11, own_id=own(), max_fee_msats=FEE_MSATS)
        assert again.state is PaymentState.SETTLED
        balance_msats = await wallet.balance_msats()
        # Each payment by which the listener was tried out came in, too.
        tried = [each for each in await listed_by(wallet, 0) if each.received_msats == 1_000]
        assert balance_msats == 100_000 + 21_000 - 7_000 + 1_000 * len(tried)
        async with listening(fresh_lnbits, account, wallet) as stream:
            later = await wallet.create_invoice(order())
            await paid(fresh_lnbits, later.bolt11)
            await heard(stream, later.payment_hash)


async def test_too_many_calls_are_unavailable(tmp_path_factory: pytest.TempPathFactory) -> None:
    limit = {"LNBITS_RATE_LIMIT_NO": "30", "LNBITS_RATE_LIMIT_UNIT": "minute"}
    with lnbits_process(tmp_path_factory.mktemp("limited"), environ=limit) as limited:
        wallet = wallet_of(limited, limited.provider)
        async with wallet.running():
            with pytest.raises(WalletUnavailable, match="too many calls"):
                for _ in range(100):
                    await wallet.balance_msats()
            assert "HTTP status 429" in wallet.state().detail


def test_the_keys_are_checked_and_never_shown() -> None:
    with pytest.raises(ValueError, match="invoice/read key") as caught:
        LnbitsConfig("http://127.0.0.1", "a key/with more")
    assert "a key" not in str(caught.value)
    with pytest.raises(ValueError, match="admin key"):
        LnbitsConfig("http://127.0.0.1", "abc", "")
    config = LnbitsConfig("http://127.0.0.1", "sesame", "opensesame")
    assert "sesame" not in repr(config)


def test_httpx_logs_no_key(lnbits: Lnbits, caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        account = lnbits.account()
        wallet = wallet_of(lnbits, account)
        with caplog.at_level("DEBUG"):
            async with wallet.running(), listening(lnbits, account, wallet):
                await wallet.check()
        assert account.invoice_key not in caplog.text.replace(httpx.__name__, "")

    anyio.run(use)
