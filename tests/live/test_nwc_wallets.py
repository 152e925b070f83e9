"""The `nwc` wallet over wallet services that we did not write: what `Wallet` promises, method by method."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pylon.jobs.ports import (
    Direction,
    Invoice,
    InvoiceRequest,
    Payment,
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
from tests.support.nwc_makes import Make, NwcService, nwc_service
from tests.support.nwc_wallet import nwc_wallet
from tests.support.relay import relay_process
from tests.support.wallet import listed_by

pytestmark = [pytest.mark.e2e, pytest.mark.live]

PUSH_LIMIT_S = 10.0
EXPIRY_S = 600
NO_SUCH_HASH = "00" * 32


@pytest.fixture(params=list(Make), ids=str)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NwcService]:
    make: Make = request.param
    lnbits = None if make is Make.LDK else request.getfixturevalue("lnbits")
    with relay_process() as relay, nwc_service(tmp_path, make, relay.url, lnbits=lnbits) as running:
        yield running


@asynccontextmanager
async def wallets(service: NwcService, *, timeout_s: float = 10.0) -> AsyncIterator[tuple[Wallet, Wallet]]:
    """Run the provider's wallet and the customer's."""
    async with (
        nwc_wallet(service.provider, timeout_s=timeout_s) as provider,
        nwc_wallet(service.customer, timeout_s=timeout_s) as customer,
    ):
        yield provider, customer


def wanted(amount_msats: int = 21_000, own_id: str = "") -> InvoiceRequest:
    own_id = own_id or secrets.token_hex(8)
    return InvoiceRequest(own_id, amount_msats, EXPIRY_S, description=f"job {own_id}")


async def balances(provider: Wallet, customer: Wallet) -> tuple[int, int]:
    return await provider.balance_msats(), await customer.balance_msats()


async def test_it_tells_what_it_is_and_can(service: NwcService) -> None:
    async with wallets(service) as (provider, _):
        state = await provider.check()
    assert (state.ready, state.detail, state.network) == (True, "", service.make.network)
    assert state.abilities >= {WalletAbility.PAY, WalletAbility.BALANCE, WalletAbility.LIST}
    assert (WalletAbility.PUSH in state.abilities) is service.make.pushes


async def test_an_invoice_is_what_was_asked_for_and_is_found_again(service: NwcService) -> None:
    request, other = wanted(), wanted(22_000)
    since = int(time.time()) - 5
    async with wallets(service) as (provider, customer):
        invoice = await provider.create_invoice(request)
        read = read_invoice(invoice.bolt11)
        check_invoice(read, amount_msats=21_000, network=service.make.network, now=time.time())
        assert (read.payment_hash, invoice.own_id) == (invoice.payment_hash, request.own_id)
        assert read.expires_at - read.created_at == EXPIRY_S

        # The awkward one shows the preimage already: it proves nothing.
        found = await provider.look_up(invoice.payment_hash)
        assert found is not None
        assert (found.state, found.received_msats, found.settled_at) == (PaymentState.PENDING, 0, None)
        assert (found.amount_msats, found.expires_at) == (21_000, read.expires_at)

        second = await provider.create_invoice(other)
        assert [each.bolt11 for each in await provider.find(request.own_id, request.description)] == [
            invoice.bolt11
        ]
        assert await provider.find("neverasked", "job neverasked") == ()
        listed = {each.payment_hash for each in await listed_by(provider, since)}
        assert listed == {invoice.payment_hash, second.payment_hash}
        assert await listed_by(provider, int(time.time()) + 3600) == ()
        assert await provider.look_up(NO_SUCH_HASH) is None
        assert await customer.look_up(invoice.payment_hash) is None


async def test_every_invoice_of_one_id_is_found_however_many_there_are(service: NwcService) -> None:
    """An ambiguous time-out may leave two; and the list is longer than a page of it."""
    request = wanted()
    async with wallets(service) as (provider, _):
        first = await provider.create_invoice(request)
        for _ in range(45):
            await provider.create_invoice(wanted())
        second = await provider.create_invoice(request)
        found = await provider.find(request.own_id, request.description)
        assert {each.payment_hash for each in found} == {first.payment_hash, second.payment_hash}
        assert len(await listed_by(provider, 0)) == 47


async def test_a_payment_is_made_once_and_both_sides_say_so(service: NwcService) -> None:
    request = wanted()
    since = int(time.time()) - 5
    async with wallets(service) as (provider, customer):
        before = await balances(provider, customer)
        invoice = await provider.create_invoice(request)
        assert await customer.look_up_payment(invoice.payment_hash) is None
        paid = await customer.pay(invoice.bolt11, own_id="first", max_fee_msats=1000)
        check_payment(paid, invoice)

        again = await customer.pay(invoice.bolt11, own_id="first", max_fee_msats=1000)
        check_payment(again, invoice)
        known = await customer.look_up_payment(invoice.payment_hash)
        assert known is not None
        check_payment(known, invoice)
        found = await provider.look_up(invoice.payment_hash)
        assert found is not None
        assert (found.state, found.received_msats) == (PaymentState.SETTLED, 21_000)
        assert found.settled_at is not None
        assert abs(found.settled_at - time.time()) < 60
        assert await balances(provider, customer) == (before[0] + 21_000, before[1] - 21_000)

        for wallet, direction in ((provider, Direction.INCOMING), (customer, Direction.OUTGOING)):
            (listed,) = [
                each for each in await wallet.transactions(since) if each.payment_hash == invoice.payment_hash
            ]
            assert (listed.direction, listed.state) == (direction, PaymentState.SETTLED)
            assert (listed.amount_msats, listed.fee_msats) == (21_000, 0)


def check_payment(payment: Payment, invoice: Invoice) -> None:
    assert (payment.state, payment.payment_hash) == (PaymentState.SETTLED, invoice.payment_hash)
    assert (payment.amount_msats, payment.fee_msats) == (invoice.amount_msats, 0)
    assert payment.preimage is not None
    assert hashlib.sha256(bytes.fromhex(payment.preimage)).hexdigest() == invoice.payment_hash


async def test_settlements_are_pushed_where_the_wallet_pushes(service: NwcService) -> None:
    heard: list[Received] = []
    news = anyio.Event()

    async def listen(wallet: Wallet) -> None:
        async with aclosing(wallet.settlements()) as settlements:
            async for received in settlements:
                heard.append(received)
                news.set()

    async with wallets(service) as (provider, customer), anyio.create_task_group() as tasks:
        await provider.check()
        tasks.start_soon(listen, provider)
        # Both are through with their subscriptions once they have been answered.
        invoices = [await provider.create_invoice(wanted(amount)) for amount in (21_000, 34_000)]
        for invoice in invoices:
            await customer.pay(invoice.bolt11, own_id=invoice.own_id, max_fee_msats=0)
            if service.make.pushes:
                with anyio.fail_after(PUSH_LIMIT_S):
                    await news.wait()
                news = anyio.Event()
        if service.make.pushes:
            expected = [(each.payment_hash, each.amount_msats) for each in invoices]
            assert [(each.payment_hash, each.amount_msats) for each in heard] == expected
        else:
            assert heard == []
        tasks.cancel_scope.cancel()


async def test_a_refusal_costs_nothing(service: NwcService) -> None:
    async with wallets(service) as (provider, customer):
        before = await balances(provider, customer)
        dear = await provider.create_invoice(wanted(before[1] + 1_000_000))
        with pytest.raises(WalletRefused, match="balance is too low"):
            await customer.pay(dear.bolt11, own_id="dear", max_fee_msats=0)
        known = await customer.look_up_payment(dear.payment_hash)
        assert known is None or known.state is PaymentState.FAILED
        with pytest.raises(WalletRefused):
            await customer.pay(dear.bolt11[:-1] + "q", own_id="torn", max_fee_msats=0)
        assert await balances(provider, customer) == before


async def test_fractions_of_a_sat_are_paid_or_refused_and_never_rounded(service: NwcService) -> None:
    request = wanted(1_500)
    async with wallets(service) as (provider, customer):
        before = await balances(provider, customer)
        if service.make is not Make.LDK:
            with pytest.raises(WalletError, match="whole sats"):
                await provider.create_invoice(request)
            assert await provider.find(request.own_id, request.description) == ()
            return
        invoice = await provider.create_invoice(request)
        assert read_invoice(invoice.bolt11).amount_msats == 1_500
        check_payment(await customer.pay(invoice.bolt11, own_id="fraction", max_fee_msats=0), invoice)
        found = await provider.look_up(invoice.payment_hash)
        assert found is not None
        assert (found.state, found.received_msats) == (PaymentState.SETTLED, 1_500)
        assert await balances(provider, customer) == (before[0] + 1_500, before[1] - 1_500)


async def test_a_service_that_is_away_and_comes_back(service: NwcService) -> None:
    """The relay takes what nobody answers: then nothing is known of a call that changes something."""
    request = wanted()
    async with wallets(service, timeout_s=1.5) as (provider, customer):
        before = await balances(provider, customer)
        made = await provider.create_invoice(request)
        service.program.kill()
        with pytest.raises(WalletUnavailable, match="did not answer"):
            await provider.look_up(made.payment_hash)
        assert not (await provider.check()).ready
        with pytest.raises(WalletAmbiguous, match="did not answer"):
            await provider.create_invoice(wanted())
        with pytest.raises(WalletUnavailable):  # it asks first what became of it, and that changes nothing
            await customer.pay(made.bolt11, own_id="paid while away", max_fee_msats=0)
        await service.program.restart()
        state = await provider.check()
        assert (state.ready, state.detail) == (True, "")
        assert await balances(provider, customer) == before
        found = await provider.find(request.own_id, request.description)
        if service.make is Make.LDK:
            assert found == ()  # the nodes keep nothing over a restart
        else:
            assert [each.payment_hash for each in found] == [made.payment_hash]
            check_payment(await customer.pay(made.bolt11, own_id="paid at last", max_fee_msats=0), made)


async def test_a_service_ends_with_who_started_it(service: NwcService) -> None:
    assert service.program.forsake() == 0
