"""The NWC wallet over a real relay, against wallet services of every manner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest

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
from pylon.nostr.encryption import Encryption
from pylon.wallets.nwc import NwcWallet
from tests.support.nwc_service import METHODS, Manner, NwcService, nwc_service
from tests.support.nwc_wallet import nwc_wallet
from tests.support.relay import RelayProcess, relay_process

AWKWARD = {
    "good": Manner(),
    "NIP-04 only": Manner(encryption="nip04"),
    "no encryption tag": Manner(encryption=None),
    "no state": Manner(states=False),
    "preimages of unpaid invoices": Manner(states=False, leaks_preimages=True),
    "descriptions by their hash": Manner(hashes_descriptions=True, keeps_metadata=False),
    "no metadata": Manner(keeps_metadata=False),
    "answers twice": Manner(answers_twice=True),
    "answers without a p tag": Manner(addresses_answers=False),
    "others answer first": Manner(first_by_stranger=True),
    "small pages": Manner(pages=1),
    "all of it": Manner(
        encryption="nip04", notifications=False, states=False, leaks_preimages=True, hashes_descriptions=True,
        keeps_metadata=False, answers_twice=True, first_by_stranger=True, pages=2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    with relay_process() as process:
        yield process


@asynccontextmanager
async def wallet_with(
    relay: RelayProcess, manner: Manner | None = None, *, timeout_s: float = 5.0
) -> AsyncIterator[tuple[NwcWallet, NwcService]]:
    async with (
        nwc_service(relay.url, manner=manner) as service,
        nwc_wallet(service.uri, timeout_s=timeout_s) as wallet,
    ):
        yield wallet, service


def order(own_id: str = "job-1", amount_msats: int = 21_000, **more: Any) -> InvoiceRequest:
    more.setdefault("description", f"NIP-90 job ({own_id})")
    return InvoiceRequest(own_id, amount_msats, 600, **more)


@asynccontextmanager
async def listening(wallet: NwcWallet) -> AsyncIterator[Callable[[], Awaitable[Received]]]:
    """Have the settlements read; yields a function that waits for the next."""
    send, receive = anyio.create_memory_object_stream[Received](100)

    async def listen() -> None:
        async with aclosing(wallet.settlements()) as settlements:
            async for received in settlements:
                await send.send(received)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with anyio.fail_after(10):
            while not wallet._link._listeners:  # noqa: ASYNC110 - a generator announces nothing
                await anyio.sleep(0.01)

        async def following() -> Received:
            with anyio.fail_after(10):
                return await receive.receive()

        yield following
        tasks.cancel_scope.cancel()
    with send, receive:
        pass


# --- a good wallet, and every awkward one ---------------------------------------------------------------------


async def test_it_is_a_wallet_that_tells_what_it_can_do(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        as_port: Wallet = wallet
        assert not as_port.state().ready
        state = await wallet.check()
        assert state.ready, state.detail
        assert (state.name, state.kind, state.detail, state.network) == ("nwc", "nwc", "", "regtest")
        assert state.abilities == frozenset(WalletAbility) - {WalletAbility.MSAT_PRECISION}
        await wallet.check()
        assert service.asked["get_info"] == 1, "a wallet that has just answered is not asked how it is"
    assert not wallet.state().ready
    assert wallet.state().detail.startswith("not connected to the wallet's relays")


@pytest.mark.parametrize("manner", AWKWARD.values(), ids=AWKWARD)
async def test_an_invoice_is_made_found_paid_and_seen(relay: RelayProcess, manner: Manner) -> None:
    async with wallet_with(relay, manner) as (wallet, service):
        invoice = await wallet.create_invoice(order())
        other = await wallet.create_invoice(order("job-12"))
        check_invoice(read_invoice(invoice.bolt11), amount_msats=21_000, network="regtest", now=time.time())
        assert (invoice.own_id, invoice.state, invoice.received_msats) == ("job-1", PaymentState.PENDING, 0)
        assert 590 <= invoice.expires_at - time.time() <= 600

        found = await wallet.find("job-1", order().description)
        assert [each.payment_hash for each in found] == [invoice.payment_hash]
        assert found[0].bolt11 == invoice.bolt11
        assert await wallet.find("job-3", order("job-3").description) == ()
        pending = await wallet.look_up(invoice.payment_hash)
        assert pending is not None
        assert (pending.state, pending.settled_at, pending.received_msats) == (PaymentState.PENDING, None, 0)
        assert await wallet.look_up("00" * 32) is None
        assert await wallet.look_up("no hash") is None

        await service.receive(invoice.bolt11)
        settled = await wallet.look_up(invoice.payment_hash)
        assert settled is not None and settled.settled_at is not None
        assert (settled.state, settled.received_msats) == (PaymentState.SETTLED, 21_000)
        listed = await wallet.list_invoices(int(time.time()) - 60)
        assert [(each.payment_hash, each.state) for each in listed] == [
            (invoice.payment_hash, PaymentState.SETTLED),
            (other.payment_hash, PaymentState.PENDING),
        ]
        assert await wallet.list_invoices(int(time.time()) + 60) == ()
        assert await wallet.balance_msats() == 1_021_000
        expected = Encryption.NIP44 if "nip44" in (manner.encryption or "") else Encryption.NIP04
        assert service.encryptions == {expected}


@pytest.mark.parametrize("manner", AWKWARD.values(), ids=AWKWARD)
async def test_an_invoice_elsewhere_is_paid_once(relay: RelayProcess, manner: Manner) -> None:
    async with wallet_with(relay, manner) as (wallet, service):
        bolt11 = service.invoice_elsewhere()
        payment_hash = read_invoice(bolt11).payment_hash
        assert await wallet.look_up_payment(payment_hash) is None
        payment = await wallet.pay(bolt11, own_id="refund-1", max_fee_msats=5_000)
        assert (payment.state, payment.amount_msats, payment.fee_msats) == (PaymentState.SETTLED, 21_000, 1_000)
        assert payment.preimage is not None
        assert hashlib.sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment_hash
        assert payment.preimage not in repr(payment)
        assert await wallet.pay(bolt11, own_id="refund-1", max_fee_msats=5_000) == payment
        assert await wallet.look_up_payment(payment_hash) == payment
        assert service.asked["pay_invoice"] == 1
        assert await wallet.balance_msats() == 978_000
        (line,) = await wallet.transactions(int(time.time()) - 60)
        assert (line.direction, line.payment_hash, line.state) == (
            Direction.OUTGOING,
            payment_hash,
            PaymentState.SETTLED,
        )
        assert (line.amount_msats, line.fee_msats) == (21_000, 1_000)


async def test_a_wallet_that_pays_itself_has_both_sides(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, _):
        invoice = await wallet.create_invoice(order())
        assert await wallet.look_up_payment(invoice.payment_hash) is None
        await wallet.pay(invoice.bolt11, own_id="own", max_fee_msats=0)
        received, sent = (
            await wallet.look_up(invoice.payment_hash),
            await wallet.look_up_payment(invoice.payment_hash),
        )
        assert received is not None and received.state is PaymentState.SETTLED
        assert sent is not None and sent.state is PaymentState.SETTLED
        lines = await wallet.transactions(0)
        assert {each.direction for each in lines} == set(Direction)


async def test_a_description_hash_is_asked_for_as_such(relay: RelayProcess) -> None:
    digest = hashlib.sha256(b"a zap request").hexdigest()
    async with wallet_with(relay, Manner(keeps_metadata=False)) as (wallet, _):
        invoice = await wallet.create_invoice(order(description="", description_hash=digest))
        assert read_invoice(invoice.bolt11).description_hash == digest
        (found,) = await wallet.find("job-1", "a zap request")
        assert found.payment_hash == invoice.payment_hash


async def test_a_description_without_our_id_gets_it(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(keeps_metadata=False)) as (wallet, _):
        invoice = await wallet.create_invoice(order("own-7", description="Pylon: a test"))
        assert read_invoice(invoice.bolt11).description == "Pylon: a test (own-7)"
        assert len(await wallet.find("own-7")) == len(await wallet.find("own-7", "Pylon: a test")) == 1


async def test_many_transactions_are_read_page_by_page(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        made = [await wallet.create_invoice(order(f"job-{number}")) for number in range(25)]
        listed = await wallet.list_invoices(0)
        assert [each.payment_hash for each in listed] == [each.payment_hash for each in made]
        service.manner.knows_offset = False
        assert len(await wallet.list_invoices(0)) == service.manner.pages


# --- push -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manner", [Manner(), Manner(encryption="nip04"), Manner(terse_notices=True)], ids=["both", "nip04", "terse"]
)
async def test_a_settlement_is_pushed_once(relay: RelayProcess, manner: Manner) -> None:
    async with wallet_with(relay, manner) as (wallet, service):
        first, second = [await wallet.create_invoice(order(f"job-{number}")) for number in (1, 2)]
        async with listening(wallet) as following:
            await service.receive(first.bolt11)
            received = await following()
            assert (received.payment_hash, received.amount_msats) == (first.payment_hash, 21_000)
            assert abs(received.settled_at - time.time()) < 5
            service.notify(service.entries[0])  # once more, as wallets do
            await service.receive(second.bolt11)
            assert (await following()).payment_hash == second.payment_hash


async def test_what_a_terse_notice_tells_is_asked_before_it_counts(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(terse_notices=True)) as (wallet, service):
        first, second = [await wallet.create_invoice(order(f"job-{number}")) for number in (1, 2)]
        async with listening(wallet) as following:
            service.notify(service.entries[0])  # a lie: nobody has paid it
            await service.until_asked("lookup_invoice")
            await service.receive(second.bolt11)
            assert (await following()).payment_hash == second.payment_hash
        assert first.state is PaymentState.PENDING


async def test_what_the_wallet_itself_paid_is_no_settlement(relay: RelayProcess) -> None:
    async with wallet_with(relay) as (wallet, service):
        invoice = await wallet.create_invoice(order())
        async with listening(wallet) as following:
            await wallet.pay(service.invoice_elsewhere(), own_id="x", max_fee_msats=0)
            await service.receive(invoice.bolt11)
            assert (await following()).payment_hash == invoice.payment_hash


async def test_without_notifications_there_is_no_push_to_rely_on(relay: RelayProcess) -> None:
    async with wallet_with(relay, Manner(notifications=False)) as (wallet, _):
        assert WalletAbility.PUSH not in (await wallet.check()).abilities
        with anyio.move_on_after(0.2) as scope:
            async for _received in wallet.settlements():
                raise AssertionError("nothing was pushed")
        assert scope.cancelled_caught, "the stream waits"


async def test_a_broken_line_ends_the_stream_and_comes_back(relay: RelayProcess) -> None:
    with relay_process() as own:
        async with wallet_with(own) as (wallet, service):
            invoice = await wallet.create_invoice(order())
            with pytest.raises(WalletUnavailable, match="the connection to the wallet's relays broke"):
                async with aclosing(wallet.settlements()) as settlements, anyio.create_task_group() as tasks:
                    following = settlements.__anext__()

                    async def break_it() -> None:
                        await service.until_asked("make_invoice")
                        while not wallet._link._listeners:  # noqa: ASYNC110 - a generator announces nothing
                            await anyio.sleep(0.01)
                        own.kill()

                    tasks.start_soon(break_it)
                    try:
                        await following
                    except WalletUnavailable as error:
                        broken = error
                    tasks.cancel_scope.cancel()
                raise broken
            assert "no relay of the wallet can be used" in wallet.state().detail
            assert own.url in wallet.state().detail
            own.start()
            service.manner.slow_s = {}
            with anyio.fail_after(10):
                while await _fails(wallet.look_up(invoice.payment_hash)):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            found = await wallet.look_up(invoice.payment_hash)
            assert found is not None and found.payment_hash == invoice.payment_hash


async def _fails(call: Awaitable[Invoice | None]) -> bool:
    try:
        return await call is None
    except WalletUnavailable:
        return True


# --- several relays -------------------------------------------------------------------------------------------


async def test_several_relays_are_all_used_and_one_is_enough(relay: RelayProcess) -> None:
    with relay_process() as second:
        async with nwc_service(relay.url, second.url) as service, nwc_wallet(service.uri) as wallet:
            await wallet.check()
            async with listening(wallet) as following:
                invoice = await wallet.create_invoice(order())
                second.kill()
                await service.receive(invoice.bolt11)
                assert (await following()).payment_hash == invoice.payment_hash
            assert len(await wallet.find("job-1", order().description)) == 1
            assert wallet.state().ready


async def test_relays_that_demand_auth_get_it_from_the_connections_key() -> None:
    with relay_process(nip42="both") as private:
        async with wallet_with(private) as (wallet, _):
            assert (await wallet.check()).ready
            assert (await wallet.create_invoice(order())).amount_msats == 21_000


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
        ("OTHER", U, A, A, r"failed at \w+ \(OTHER\)"),
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
        assert "does not know this connection (any more): make a new one there: gone" in wallet.state().detail
        assert (await wallet.check()).ready, "a wallet that answers again is ready again"


async def test_a_wallet_without_get_info_is_judged_by_its_info_event(relay: RelayProcess) -> None:
    some = tuple(each for each in METHODS if each not in ("get_info", "list_transactions", "pay_invoice"))
    manner = Manner(methods=some, errors={"get_info": ("NOT_IMPLEMENTED", "")})
    async with wallet_with(relay, manner) as (wallet, service):
        state = await wallet.check()
        assert state.ready
        assert not state.abilities & {WalletAbility.LIST, WalletAbility.PAY}
        await wallet.create_invoice(order())
        assert await wallet.find("job-1") == () == await wallet.list_invoices(0)
        with pytest.raises(WalletRefused, match="keeps no list"):
            await wallet.transactions(0)
        assert service.asked["list_transactions"] == 0


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
