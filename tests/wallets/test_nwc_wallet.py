"""The NWC wallet over a real relay, against wallet services of every manner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from pylon.jobs.ports import (
    Direction,
    Invoice,
    PaymentState,
    Received,
    Wallet,
    WalletAbility,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import check_invoice, read_invoice
from pylon.nostr.encryption import Encryption
from pylon.wallets.nwc import NwcWallet
from tests.support.nwc_service import Manner, nwc_service
from tests.support.nwc_wallet import nwc_wallet, order, wallet_with
from tests.support.relay import RelayProcess, relay_process
from tests.support.wallet import listed_by

AWKWARD = {
    "good": Manner(),
    "NIP-04 only": Manner(encryption="nip04"),
    "no encryption tag": Manner(encryption=None),
    "no state": Manner(states=False),
    "preimages of unpaid invoices": Manner(states=False, leaks_preimages=True),
    "descriptions by their hash": Manner(hashes_descriptions=True, keeps_metadata=False),
    "no metadata": Manner(keeps_metadata=False),
    "answers that name nobody": Manner(names_client=False),
    "answers twice": Manner(answers_twice=True),
    "others answer first": Manner(first_by_stranger=True),
    "small pages": Manner(pages=1),
    "all of it": Manner(
        encryption="nip04", notifications=False, states=False, leaks_preimages=True, hashes_descriptions=True,
        keeps_metadata=False, names_client=False, answers_twice=True, first_by_stranger=True, pages=2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    with relay_process() as process:
        yield process


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
        listed = await listed_by(wallet, int(time.time()) - 60)
        assert {(each.payment_hash, each.state) for each in listed} == {
            (invoice.payment_hash, PaymentState.SETTLED),
            (other.payment_hash, PaymentState.PENDING),
        }
        assert await listed_by(wallet, int(time.time()) + 60) == ()
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
        listed = await listed_by(wallet, 0)
        assert {each.payment_hash for each in listed} == {each.payment_hash for each in made}
        service.manner.knows_offset = False
        assert len(await listed_by(wallet, 0)) == service.manner.pages


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


async def test_a_broken_line_ends_the_stream_and_comes_back() -> None:
    with relay_process() as own:
        async with wallet_with(own) as (wallet, _):
            invoice = await wallet.create_invoice(order())

            async def listen() -> None:
                with pytest.raises(WalletUnavailable, match="the connection to the wallet's relays broke"):
                    async for _received in wallet.settlements():
                        raise AssertionError("nothing was paid")

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(listen)
                    while not wallet._link._listeners:  # noqa: ASYNC110 - a generator announces nothing
                        await anyio.sleep(0.01)
                    own.kill()
            assert f"no relay of the wallet can be used ({own.url}: " in wallet.state().detail
            own.start()
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
