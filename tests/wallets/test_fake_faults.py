"""Every fault of the fake wallet, seen from the client: what it says, and what was really done."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from pylon.jobs.ports import (
    InvoiceRequest,
    PaymentState,
    Received,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.wallets.fake import FakeWallet
from pylon.wallets.fake_server.faults import OWNER_ACTS, Dice, Faults, parse_fault_words, parse_faults
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.wallet import WalletProcess, listed_by


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletProcess]:
    with WalletProcess(tmp_path_factory.mktemp("faults")) as process:
        yield process


@asynccontextmanager
async def watching(wallet: WalletProcess, client: FakeWallet) -> AsyncIterator[MemoryObjectReceiveStream[Received]]:
    """What the settlements stream delivers, once it is open."""
    send, receive = anyio.create_memory_object_stream[Received](100)

    async def listen() -> None:
        async with aclosing(client.settlements()) as stream:
            async for received in stream:
                await send.send(received)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await wallet.streams(1)
        with receive, send:
            yield receive
            tasks.cancel_scope.cancel()
    await wallet.streams(0)


async def take(stream: MemoryObjectReceiveStream[Received], count: int) -> list[Received]:
    with anyio.fail_after(10):
        return [await stream.receive() for _ in range(count)]


def order(own_id: str, amount_msats: int = 10_000, expiry_s: int = 600) -> InvoiceRequest:
    return InvoiceRequest(own_id, amount_msats, expiry_s)


@pytest.mark.parametrize(
    ("fault", "made"),
    [("lost", 0), ("error_before", 0), ("ambiguous", 1), ("error_after", 1), ("hang", 1)],
)
async def test_an_unanswered_create_is_ambiguous_and_find_tells_what_was_made(
    wallet: WalletProcess, fault: str, made: int
) -> None:
    client = wallet.client(timeout_s=0.4)
    async with client.running():
        async with wallet.misbehaving(**{fault: 1}):
            with pytest.raises(WalletAmbiguous, match="may have done"):
                await client.create_invoice(order(f"create-{fault}"))
            assert not client.state().ready
            assert (await wallet.report())["struck"][fault] >= 1
        found = await client.find(f"create-{fault}")
        assert len(found) == made
        assert client.state().ready
        if made:
            again = await client.create_invoice(order(f"create-{fault}"))
            assert await client.find(f"create-{fault}") == (*found, again)


@pytest.mark.parametrize("fault", ["lost", "error_before", "ambiguous", "error_after", "hang"])
async def test_an_unanswered_question_is_unavailable_since_nothing_hangs_on_it(
    wallet: WalletProcess, fault: str
) -> None:
    client = wallet.client(timeout_s=0.4)
    async with client.running():
        invoice = await client.create_invoice(order(f"ask-{fault}"))
        async with wallet.misbehaving(**{fault: 1}):
            for ask in (
                lambda: client.look_up(invoice.payment_hash),
                lambda: client.find(f"ask-{fault}"),
                lambda: listed_by(client, 0),
                client.balance_msats,
            ):
                with pytest.raises(WalletUnavailable):
                    await ask()
            assert not (await client.check()).ready
        assert await client.look_up(invoice.payment_hash) == invoice


@pytest.mark.parametrize("fault", ["lost", "ambiguous", "error_after"])
async def test_a_payment_repeated_under_its_own_id_is_made_once(wallet: WalletProcess, fault: str) -> None:
    client, payer = wallet.client(), wallet.payer()
    bolt11 = Node("22" * 32).sign(Draft("x", 5_000, 600, "out", None), int(time.time())).bolt11
    async with client.running():
        await payer.pay((await client.create_invoice(order(f"in-{fault}"))).bolt11)
        before = await client.balance_msats()
        async with wallet.misbehaving(**{fault: 1}):
            with pytest.raises(WalletAmbiguous):
                await client.pay(bolt11, own_id=f"out-{fault}", max_fee_msats=100)
        payment = await client.pay(bolt11, own_id=f"out-{fault}", max_fee_msats=100)
        assert payment.state is PaymentState.SETTLED
        assert before - await client.balance_msats() == 5_000 + payment.fee_msats


async def test_only_the_named_acts_are_hit(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running(), wallet.misbehaving(acts=["payer_pay"], ambiguous=1):
        invoice = await client.create_invoice(order("acts"))
        before = await wallet.books()
        with pytest.raises(WalletAmbiguous):
            await payer.pay(invoice.bolt11)
        after = await wallet.books()
        assert after["received_msats"] - before["received_msats"] == 10_000
        await wallet.set_faults()
        with pytest.raises(WalletRefused, match="already paid"):
            await payer.pay(invoice.bolt11)
        assert await wallet.books() == after


async def test_a_delay_within_the_timeout_only_takes_time_and_beyond_it_is_ambiguous(wallet: WalletProcess) -> None:
    client = wallet.client(timeout_s=1)
    async with client.running():
        async with wallet.misbehaving(delay=1, delay_s=0.05):
            await client.create_invoice(order("delayed"))
            assert (await wallet.report())["struck"]["delay"] >= 1
        async with wallet.misbehaving(delay=1, delay_s=3_600, acts=["create"]):
            with pytest.raises(WalletAmbiguous):
                await client.create_invoice(order("too-late"))
            assert await client.find("too-late") == ()


async def test_a_restart_breaks_streams_and_calls_and_passes(wallet: WalletProcess) -> None:
    client = wallet.client(timeout_s=2)
    broken = anyio.Event()

    async def listen() -> None:
        with pytest.raises(WalletUnavailable):
            async with aclosing(client.settlements()) as stream:
                await anext(stream)
        broken.set()

    async with client.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await wallet.streams(1)
        await wallet.set_faults(restart=1, restart_s=1, acts=["create"])
        with pytest.raises(WalletAmbiguous):
            await client.create_invoice(order("restarted"))
        with anyio.fail_after(10):
            await broken.wait()
            assert not (await client.check()).ready, "new connections are refused for a while"
            await wallet.set_faults()
            assert (await client.check()).ready
        assert len(await client.find("restarted")) <= 1


async def test_a_killed_process_comes_back_with_its_faults_gone_and_its_books_kept(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        invoice = await client.create_invoice(order("killed"))
        await payer.pay(invoice.bolt11)
        books = await wallet.books()
        await wallet.set_faults(lost=1)
        await wallet.restart()
        assert await wallet.books() == books
        settled = await client.look_up(invoice.payment_hash)
        assert settled is not None
        assert settled.state is PaymentState.SETTLED


async def test_a_restart_may_fail_open_invoices_but_never_a_settled_one(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        paid, unpaid = await client.create_invoice(order("kept")), await client.create_invoice(order("failed"))
        await payer.pay(paid.bolt11)
        await wallet.set_faults(fail_on_restart=1, restart_s=0)
        await wallet.drop_everything()
        await wallet.set_faults()
        kept, failed = await client.look_up(paid.payment_hash), await client.look_up(unpaid.payment_hash)
        assert kept is not None
        assert failed is not None
        assert (kept.state, failed.state) == (PaymentState.SETTLED, PaymentState.FAILED)
        with pytest.raises(WalletRefused, match="cancelled"):
            await payer.pay(unpaid.bolt11)


async def test_notices_may_be_lost_and_a_look_up_fills_the_gap(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running(), watching(wallet, client) as notices:
        unseen, seen = await client.create_invoice(order("unseen")), await client.create_invoice(order("seen"))
        async with wallet.misbehaving(notice_loss=1):
            await payer.pay(unseen.bolt11)
        await payer.pay(seen.bolt11)
        # The only notice is the second one's: the first was lost, not late.
        assert [n.payment_hash for n in await take(notices, 1)] == [seen.payment_hash]
        found = await client.look_up(unseen.payment_hash)
        assert found is not None
        assert (found.state, found.received_msats) == (PaymentState.SETTLED, 10_000)


async def test_notices_may_come_twice_and_late(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running(), watching(wallet, client) as notices:
        doubled, late = await client.create_invoice(order("doubled")), await client.create_invoice(order("late"))
        async with wallet.misbehaving(notice_duplicate=1):
            await payer.pay(doubled.bolt11)
            first, second = await take(notices, 2)
        assert first == second
        assert first.payment_hash == doubled.payment_hash
        before = await wallet.books()
        async with wallet.misbehaving(notice_delay=1, notice_delay_s=0.2):
            await payer.pay(late.bolt11)
            assert [n.payment_hash for n in await take(notices, 1)] == [late.payment_hash]
            assert (await wallet.report())["struck"]["notice_delay"] >= 1
        assert (await wallet.books())["received_msats"] - before["received_msats"] == 10_000


async def test_a_new_stream_may_start_with_old_notices(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        invoice = await client.create_invoice(order("replayed"))
        await payer.pay(invoice.bolt11)
        async with wallet.misbehaving(notice_replay=1), watching(wallet, client) as notices:
            (old,) = await take(notices, 1)
            assert old.payment_hash == invoice.payment_hash


async def test_a_stale_wallet_denies_a_settlement_once(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        invoice = await client.create_invoice(order("stale"))
        await payer.pay(invoice.bolt11)
        async with wallet.misbehaving(stale=1):
            assert await client.look_up(invoice.payment_hash) == invoice, "as if it had not been paid"
            told = await client.look_up(invoice.payment_hash)
            assert told is not None
            assert (told.state, told.received_msats) == (PaymentState.SETTLED, 10_000)


async def test_a_forgotten_invoice_is_gone_and_can_not_be_paid(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        paid, unpaid = await client.create_invoice(order("known")), await client.create_invoice(order("forgotten"))
        await payer.pay(paid.bolt11)
        async with wallet.misbehaving(forget=1):
            assert await client.look_up(unpaid.payment_hash) is None
            assert await client.look_up(paid.payment_hash) is not None
        assert await client.look_up(unpaid.payment_hash) is None
        assert await client.find("forgotten") == ()
        with pytest.raises(WalletRefused, match="no such invoice"):
            await payer.pay(unpaid.bolt11)


async def test_a_short_report_is_the_same_lie_everywhere_and_the_books_stay_true(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    before = await wallet.books()
    async with client.running(), watching(wallet, client) as notices:
        invoice = await client.create_invoice(order("short", 10_001))
        async with wallet.misbehaving(short=1):
            await payer.pay(invoice.bolt11)
        (notice,) = await take(notices, 1)
        told = await client.look_up(invoice.payment_hash)
        assert told is not None
        assert notice.amount_msats == told.received_msats == 5_000
    assert (await wallet.books())["received_msats"] - before["received_msats"] == 10_001


async def test_an_invoice_may_be_paid_twice(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    before = await wallet.books()
    async with client.running(), wallet.misbehaving(pay_twice=1), watching(wallet, client) as notices:
        invoice = await client.create_invoice(order("both"))
        assert await payer.pay(invoice.bolt11) == await payer.pay(invoice.bolt11)
        assert [n.amount_msats for n in await take(notices, 2)] == [10_000, 20_000]
        told = await client.look_up(invoice.payment_hash)
        assert told is not None
        assert told.received_msats == 20_000
    assert (await wallet.books())["received_msats"] - before["received_msats"] == 20_000


async def test_an_expired_invoice_is_payable_only_under_the_fault(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    async with client.running():
        invoice = await client.create_invoice(order("expired", expiry_s=1))
        with anyio.fail_after(10):
            while True:
                told = await client.look_up(invoice.payment_hash)
                assert told is not None
                if told.state is PaymentState.EXPIRED:
                    break
                await anyio.sleep(0.05)
        with pytest.raises(WalletRefused, match="expired"):
            await payer.pay(invoice.bolt11)
        async with wallet.misbehaving(pay_expired=1):
            await payer.pay(invoice.bolt11)
        told = await client.look_up(invoice.payment_hash)
        assert told is not None
        assert told.state is PaymentState.SETTLED


async def test_under_all_faults_at_once_the_books_are_exact(wallet: WalletProcess) -> None:
    """A workload whose every step may go wrong; afterwards every msat is accounted for by an invoice."""
    client, payer = wallet.client(timeout_s=2), wallet.payer(timeout_s=2)
    before = await wallet.books()
    storm = {
        **dict.fromkeys(("lost", "ambiguous", "error_before", "error_after", "delay"), 0.15),
        **dict.fromkeys(("notice_loss", "notice_duplicate", "notice_delay", "stale", "forget"), 0.2),
        "restart": 0.004,  # of each call: it hits all 40 customers
        "restart_s": 0.05,
        "delay_s": 0.05,
        "fail_on_restart": 0.3,
        "acts": [*OWNER_ACTS, "payer_pay"],
    }
    async with client.running():
        await wallet.set_faults(**storm)

        async def customer(number: int) -> None:
            for _ in range(20):  # what did not go through is tried again, by another invoice
                try:
                    invoice = await client.create_invoice(order(f"storm-{number}", 1_000 + number))
                    await client.look_up(invoice.payment_hash)
                    await payer.pay(invoice.bolt11)
                except WalletError:
                    await anyio.sleep(0.02)  # as any client does: a restart refuses everything for a while
                    continue
                return

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(customer, number)
        await wallet.set_faults()
        listed = [i for i in await listed_by(client, 0) if i.own_id.startswith("storm-")]
        settled = [i for i in listed if i.state is PaymentState.SETTLED]
        assert settled
        assert all(i.received_msats == i.amount_msats for i in settled)
        received = (await wallet.books())["received_msats"] - before["received_msats"]
        assert received == sum(i.received_msats for i in settled)
        struck = (await wallet.report())["struck"]
        assert {"lost", "ambiguous", "error_before", "error_after", "delay"} <= struck.keys()


def test_faults_are_read_from_words_and_json() -> None:
    expected = Faults(lost=0.25, delay=1.0, delay_s=2.0, acts=("create", "pay"))
    assert parse_fault_words(["lost=0.25", "delay=1", "delay_s=2", "acts=create,pay"]) == expected
    assert parse_fault_words(['{"lost": 0.25, "delay": 1, "delay_s": 2, "acts": ["create", "pay"]}']) == expected
    assert parse_fault_words([]) == Faults()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["losst=1"], "no fault 'losst'"),
        (["lost"], "not of the form"),
        (["lost=1.5"], "from 0 to 1"),
        (["lost=nan"], "needs a number"),
        (["lost=-1"], "from 0 to 1"),
        (["delay_s=4000"], "from 0 to 3600"),
        (["acts=steal"], "'acts' is a list"),
        (["lost=x"], "could not convert"),
        (["{"], "Expecting property name"),
        (['{"lost": true}'], "needs a number"),
        (['{"lost": "1"}'], "needs a number"),
    ],
)
def test_wrong_faults_are_named(words: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_fault_words(words)


def test_the_same_seed_strikes_the_same_way() -> None:
    faults = parse_faults({"lost": 0.5})

    def throws(seed: str) -> list[bool]:
        dice = Dice(faults, random.Random(seed))
        return [dice.roll("lost") for _ in range(64)]

    assert throws("7:1") == throws("7:1")
    assert throws("7:1") != throws("7:2")
    never, always = Dice(Faults(), random.Random(1)), Dice(Faults(lost=1.0), random.Random(1))
    assert not any(never.roll("lost") for _ in range(100))
    assert all(always.roll("lost") for _ in range(100))
    assert (never.struck["lost"], always.struck["lost"]) == (0, 100)
