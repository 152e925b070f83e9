"""The NWC wallet when relays or the wallet fail: which error each thing is, and no payment made twice."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest

from pylon.customer.purse import WalletPayer, require_ready
from pylon.jobs.ports import (
    PaymentState,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import read_invoice
from pylon.wallets.nwc import NwcWallet
from tests.support.nwc_service import METHODS, Manner, NwcService
from tests.support.nwc_wallet import nwc_wallet, order, wallet_with
from tests.support.relay import RelayProcess, relay_process
from tests.support.wallet import listed_by


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    with relay_process() as process:
        yield process


# --- what goes wrong ------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[NwcWallet, NwcService], Awaitable[object]]] = {
    "make_invoice": lambda wallet, service: wallet.create_invoice(order()),
    "lookup_invoice": lambda wallet, service: wallet.look_up("ab" * 32),
    "list_transactions": lambda wallet, service: wallet.find("job-1"),
    "get_balance": lambda wallet, service: wallet.balance_msats(),
    "pay_invoice": lambda wallet, service: wallet.pay(service.invoice_elsewhere(), own_id="x", max_fee_msats=0),
}
CHANGING = ("make_invoice", "pay_invoice")
R, U, A = WalletRefused, WalletUnavailable, WalletAmbiguous


@pytest.mark.parametrize("method", CALLS)
async def test_no_relay_is_certainly_unavailable(method: str, relay: RelayProcess) -> None:
    service = NwcService("ws://127.0.0.1:9")
    async with nwc_wallet(service.uri, timeout_s=5) as wallet:
        with pytest.raises(WalletError, match=r"no relay of the wallet can be used \(ws://127.0.0.1:9: ") as caught:
            await CALLS[method](wallet, service)
        assert type(caught.value) is WalletUnavailable
        assert "Connection refused" in wallet.state().detail
        assert service.client.reveal_hex() not in wallet.state().detail


async def test_no_info_event_is_certainly_unavailable(relay: RelayProcess) -> None:
    service = NwcService(relay.url)
    async with nwc_wallet(service.uri, timeout_s=0.3) as wallet:
        with pytest.raises(WalletUnavailable, match="have no info event of it"):
            await wallet.create_invoice(order())


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("acts", [False, True], ids=["silent", "mute"])
async def test_silence_after_a_changing_call_is_unclear(method: str, acts: bool, relay: RelayProcess) -> None:
    manner = Manner(mute={method}) if acts else Manner(silent={method})
    async with wallet_with(relay, manner, timeout_s=0.3) as (wallet, service):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(WalletError, match="did not answer") as caught:
            patch.setattr("pylon.wallets.nwc.PAY_TIMEOUT_S", 0.3)
            await CALLS[method](wallet, service)
        assert type(caught.value) is (WalletAmbiguous if method in CHANGING else WalletUnavailable)
        assert f"the wallet did not answer {method} within 0.3 s (a relay took it)" in wallet.state().detail
        assert not wallet.state().ready


@pytest.mark.parametrize(
    ("code", "reads", "makes", "pays", "said"),
    [
        ("RATE_LIMITED", U, U, U, "wants to be asked less often"),
        ("UNAUTHORIZED", R, R, R, "does not know this connection"),
        ("RESTRICTED", R, R, R, "does not allow this connection to"),
        ("QUOTA_EXCEEDED", R, R, R, "budget of this connection"),
        ("INSUFFICIENT_BALANCE", R, R, R, "balance is too low"),
        ("NOT_IMPLEMENTED", R, R, R, "the wallet has no "),
        ("PAYMENT_FAILED", R, R, R, "the payment failed"),
        ("INTERNAL", U, A, A, r"failed at \w+ \(INTERNAL\)"),
        ("OTHER", U, R, A, r"failed at \w+ \(OTHER\)|refuses to make the invoice"),
        ("WHO_KNOWS\x1b[2J", U, A, A, r"\(WHO_KNOWS\\x1b\[2J\)"),
    ],
)
async def test_each_error_is_of_its_class_and_one_sentence(
    relay: RelayProcess,
    code: str,
    reads: type[WalletError],
    makes: type[WalletError],
    pays: type[WalletError],
    said: str,
) -> None:
    words = "the wallet's words\x1b[31m"
    async with wallet_with(relay) as (wallet, service):
        for method, expected in (("get_balance", reads), ("make_invoice", makes), ("pay_invoice", pays)):
            service.manner.errors = {method: (code, words)}
            with pytest.raises(WalletError, match=said) as caught:
                await CALLS[method](wallet, service)
            assert isinstance(caught.value, expected), method
            assert r"the wallet's words\x1b[31m" in str(caught.value) or "payment failed" in str(caught.value)
        assert service.sent() == []


async def test_a_refused_connection_is_a_fault_and_a_refused_call_is_none(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        service.manner.errors = {"get_balance": ("RESTRICTED", "receive only")}
        assert (await wallet.check()).ready
        with pytest.raises(WalletRefused, match="receive only"):
            await wallet.balance_msats()
        assert wallet.state().ready
        service.manner.errors = {"get_balance": ("UNAUTHORIZED", "gone")}
        with pytest.raises(WalletRefused):
            await wallet.balance_msats()
        assert (
            "does not know this connection any more: make a new one there (it says: gone)" in wallet.state().detail
        )
        assert (await wallet.check()).ready, "a wallet that answers again is ready again"


async def test_a_wallet_without_get_info_is_judged_by_its_info_event(relay: RelayProcess) -> None:
    some = tuple(each for each in METHODS if each not in ("get_info", "list_transactions", "pay_invoice"))
    manner = Manner(methods=some, errors={"get_info": ("NOT_IMPLEMENTED", "")})
    async with wallet_with(relay, manner) as (wallet, service):
        state = await wallet.check()
        assert state.ready
        assert not state.abilities & {WalletAbility.LIST, WalletAbility.PAY}
        await wallet.create_invoice(order())
        assert await wallet.find("job-1") == () == await listed_by(wallet, 0)
        with pytest.raises(WalletRefused, match="keeps no list"):
            await wallet.transactions(0)
        assert service.asked["list_transactions"] == 0


async def test_a_list_that_was_announced_and_is_withheld_is_done_without(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(errors={"list_transactions": ("RESTRICTED", "")})) as (wallet, service):
        assert WalletAbility.LIST in (await wallet.check()).abilities
        assert await wallet.find("job-1") == () == await listed_by(wallet, 0)
        assert service.asked["list_transactions"] == 1
        assert WalletAbility.LIST not in wallet.state().abilities
        assert wallet.state().ready


@pytest.mark.parametrize("code", ["NOT_IMPLEMENTED", "RESTRICTED", "OTHER"])
async def test_where_a_look_up_does_not_tell_the_list_does(relay: RelayProcess, code: str) -> None:
    async with wallet_with(relay, Manner(errors={"lookup_invoice": (code, "cannot")})) as (wallet, service):
        payment = await wallet.pay(service.invoice_elsewhere(), own_id="x", max_fee_msats=0)
        assert await wallet.look_up_payment(payment.payment_hash) == payment
        if code != "OTHER":
            invoice = await wallet.create_invoice(order())
            found = await wallet.look_up(invoice.payment_hash)
            assert found is not None and found.state is PaymentState.PENDING
        service.manner.errors["list_transactions"] = ("RESTRICTED", "not this either")
        with pytest.raises(WalletError, match="cannot"):
            await wallet.pay(service.invoice_elsewhere(), own_id="y", max_fee_msats=0)
        assert len(service.sent()) == 1, "what cannot be asked about is not paid"


@pytest.mark.parametrize("text", ["nonsense", "{}", '{"result": {}}', '{"result": {"transactions": 5}}', "[]"])
@pytest.mark.parametrize("method", ["make_invoice", "list_transactions", "get_balance"])
async def test_nonsense_is_unclear_where_something_may_have_changed(
    method: str, text: str, relay: RelayProcess
) -> None:
    async with wallet_with(relay, Manner(nonsense={method: text})) as (wallet, service):
        with pytest.raises(WalletError, match=f"the wallet answered {method} with ") as caught:
            await CALLS[method](wallet, service)
        assert type(caught.value) is (WalletAmbiguous if method in CHANGING else WalletUnavailable)
        assert not wallet.state().ready


async def test_an_unknown_encryption_is_said(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(encryption="nip99")) as (wallet, _):
        with pytest.raises(WalletRefused, match="offers no encryption that Pylon speaks"):
            await wallet.balance_msats()
        state = await wallet.check()
        assert not state.ready and "offers no encryption" in state.detail


async def test_what_is_not_an_answer_is_counted(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(first_by_stranger=True, answers_twice=True)) as (wallet, _):
        for _ in range(3):
            assert await wallet.balance_msats() == 1_000_000
        assert wallet.counters["undecryptable"] == 3
        assert wallet.counters["unasked"] >= 5  # the lie about another request, and the second answers


# --- payments that are unclear --------------------------------------------------------------------------------


async def test_a_payment_that_was_made_and_not_answered_is_found(
    relay: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylon.wallets.nwc.PAY_TIMEOUT_S", 0.3)
    async with wallet_with(relay, Manner(mute={"pay_invoice"}), timeout_s=0.3) as (wallet, service):
        bolt11 = service.invoice_elsewhere()
        with pytest.raises(WalletAmbiguous):
            await wallet.pay(bolt11, own_id="x", max_fee_msats=0)
        found = await wallet.look_up_payment(read_invoice(bolt11).payment_hash)
        assert found is not None and found.state is PaymentState.SETTLED
        assert await wallet.pay(bolt11, own_id="x", max_fee_msats=0) == found
        assert len(service.sent()) == service.asked["pay_invoice"] == 1


async def test_a_payment_that_may_still_be_made_is_not_asked_for_again(
    relay: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylon.wallets.nwc.PAY_TIMEOUT_S", 0.2)
    async with wallet_with(relay, Manner(silent={"pay_invoice"}), timeout_s=0.2) as (wallet, service):
        bolt11 = service.invoice_elsewhere()
        for said in ("did not answer pay_invoice", "knows nothing of it yet"):
            with pytest.raises(WalletAmbiguous, match=said):
                await wallet.pay(bolt11, own_id="x", max_fee_msats=0)
        service.manner.errors = {"lookup_invoice": ("INTERNAL", "")}
        with pytest.raises(WalletAmbiguous, match="whether the invoice was paid is not known"):
            await wallet.pay(bolt11, own_id="x", max_fee_msats=0)
        assert service.asked["pay_invoice"] == 1
        service.manner = Manner()
        wallet._asked[read_invoice(bolt11).payment_hash] = time.time() - 1  # the request has expired
        assert (await wallet.pay(bolt11, own_id="x", max_fee_msats=0)).state is PaymentState.SETTLED


@pytest.mark.parametrize("code", ["PAYMENT_FAILED", "INTERNAL"])
async def test_a_payment_that_is_called_failed_and_was_made_counts_as_made(relay: RelayProcess, code: str) -> None:
    async with wallet_with(relay, Manner(late_errors={"pay_invoice": (code, "already paid")})) as (wallet, service):
        payment = await wallet.pay(service.invoice_elsewhere(), own_id="x", max_fee_msats=0)
        assert (payment.state, payment.fee_msats) == (PaymentState.SETTLED, 1_000)
        assert payment.preimage is not None


@pytest.mark.parametrize(("state", "expected"), [("pending", WalletAmbiguous), ("failed", WalletRefused)])
async def test_the_wallets_list_decides_what_a_failure_means(
    relay: RelayProcess, state: str, expected: type[WalletError]
) -> None:
    async with wallet_with(relay, Manner(slow_s={"pay_invoice": 0.1})) as (wallet, service):
        bolt11 = service.invoice_elsewhere()
        service.manner.late_errors = {"pay_invoice": ("PAYMENT_FAILED", "no route")}
        async with anyio.create_task_group() as tasks:

            async def revise() -> None:
                await service.until_asked("pay_invoice")
                service.entries[-1].state, service.entries[-1].settled_at = state, None

            tasks.start_soon(revise)
            with pytest.raises(expected):
                await wallet.pay(bolt11, own_id="x", max_fee_msats=0)


async def test_a_customer_pays_from_it(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(gives_proof=False)) as (wallet, service):
        await require_ready(wallet)
        bolt11 = service.invoice_elsewhere()
        payer = WalletPayer(wallet, 5_000)
        preimage = await payer.pay(bolt11)
        assert preimage == service.preimages[read_invoice(bolt11).payment_hash]
        assert payer.fee_msats == 1_000


async def test_a_payment_without_proof_is_looked_up(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(gives_proof=False)) as (wallet, service):
        payment = await wallet.pay(service.invoice_elsewhere(), own_id="x", max_fee_msats=0)
        assert payment.preimage is not None
        service.manner.errors = {"lookup_invoice": ("NOT_FOUND", "")}
        service.manner.methods = ("pay_invoice",)
        service.manner.nonsense = {"list_transactions": '{"result": {"transactions": []}}'}
        with pytest.raises(WalletAmbiguous, match="shows no proof"):
            await wallet.pay(service.invoice_elsewhere(), own_id="y", max_fee_msats=0)


async def test_two_calls_at_once_pay_once(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(slow_s={"pay_invoice": 0.2})) as (wallet, service):
        bolt11 = service.invoice_elsewhere()
        outcomes: list[str] = []

        async def pay() -> None:
            try:
                outcomes.append((await wallet.pay(bolt11, own_id="x", max_fee_msats=0)).state)
            except WalletAmbiguous as error:
                outcomes.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pay)
            tasks.start_soon(pay)
        assert sorted(outcomes) == ["settled", "the payment is under way"]
        assert len(service.sent()) == 1


@pytest.mark.parametrize(
    ("bolt11", "said"), [("no invoice", "not paid"), ("lnbc1qqqq", "not paid")], ids=["text", "broken"]
)
async def test_what_cannot_be_paid_is_never_asked_for(relay: RelayProcess, bolt11: str, said: str) -> None:
    async with wallet_with(relay) as (wallet, service):
        with pytest.raises(WalletRefused, match=said):
            await wallet.pay(bolt11, own_id="x", max_fee_msats=0)
        assert not service.requests


async def test_an_expired_invoice_is_not_paid(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        bolt11 = service.invoice_elsewhere(expiry_s=1)
        await anyio.sleep_until(anyio.current_time() + max(0.0, read_invoice(bolt11).expires_at - time.time()))
        with pytest.raises(WalletRefused, match="has expired"):
            await wallet.pay(bolt11, own_id="x", max_fee_msats=0)
        assert service.asked["pay_invoice"] == 0


# --- a service that goes and comes ----------------------------------------------------------------------------


async def test_an_invoice_asked_for_while_the_service_was_away_is_made_once(relay: RelayProcess) -> None:
    async with wallet_with(relay, timeout_s=0.3) as (wallet, service):
        await wallet.check()
        await service.stop()
        with pytest.raises(WalletAmbiguous):
            await wallet.create_invoice(order())
        assert not wallet.state().ready
        await service.start()
        assert (await wallet.check()).ready
        assert await wallet.find("job-1", order().description) == ()
        invoice = await wallet.create_invoice(order())
        assert [each.payment_hash for each in await wallet.find("job-1")] == [invoice.payment_hash]


async def test_a_request_expires(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        await wallet.balance_msats()
        later = time.time() + 5 + 61
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.support.nwc_service.time.time", lambda: later)
            with anyio.move_on_after(0.3) as scope:
                await wallet.balance_msats()
        assert scope.cancelled_caught
        assert service.asked["get_balance"] == 1
