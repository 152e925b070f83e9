"""Giving money back: who is paid when, and never twice, whatever the wallet does and whenever the process ends."""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from pylon.jobs import facts
from pylon.jobs.desks import Till, Workplace
from pylon.jobs.engine import Engine
from pylon.jobs.lifecycle import Rules
from pylon.jobs.ports import (
    InvoiceRequest,
    PayeeRefused,
    PayeeUnavailable,
    Payment,
    WalletAbility,
    WalletRefused,
    WalletState,
)
from pylon.jobs.recorder import Recorder, RecorderConfig
from pylon.jobs.refund_case import RefunderConfig, RefundRefused
from pylon.jobs.refunder import Refunder
from pylon.jobs.repayment import RepaymentConfig
from pylon.nostr.event import Event
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_replies import Feedback, parse_feedback
from pylon.nostr.refunds import wish_draft
from pylon.store import refunds
from pylon.store.records import Job, Money, Refund, RefundState, Settlement, Work
from pylon.store.tx import Tx
from pylon.store.writer import Store
from pylon.wallets.fake import FakeWallet
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, signed
from tests.support.house import rows, until
from tests.support.stand_ins import FakeRelays
from tests.support.wallet import WalletProcess

SEEDS = int(os.environ.get("PYLON_REFUND_SEEDS", "4"))
CUSTOMERS_NODE = Node("44" * 32)
DUE_MSATS = 2_000
LIMIT_S = 60.0
WILD = {
    **{"lost": 0.1, "error_before": 0.05, "error_after": 0.1, "ambiguous": 0.15, "hang": 0.03, "hang_s": 0.8},
    **{"restart": 0.02, "restart_s": 0.15, "delay": 0.3, "delay_s": 0.1},
}
QUICK = RefunderConfig(
    network="regtest",
    auto=True,
    min_expiry_s=1,
    retry_min_s=0.02,
    retry_max_s=0.2,
    repayment=RepaymentConfig(grace_s=1, ask_min_s=0.02, ask_max_s=0.2),
)


def invoice(amount_msats: int = DUE_MSATS, expiry_s: int = 600, node: Node = CUSTOMERS_NODE) -> str:
    return node.sign(Draft("theirs", amount_msats, expiry_s, "a refund", None), int(time.time())).bolt11


@dataclass
class TestPayees:
    """Lightning addresses that answer as the test wants; `asked` counts how often."""

    __test__ = False

    answer: Callable[[str, int], str] = lambda address, amount_msats: invoice(amount_msats)
    asked: int = 0

    async def invoice_for(self, address: str, amount_msats: int) -> str:
        self.asked += 1
        return self.answer(address, amount_msats)


@dataclass
class TestProfiles:
    __test__ = False

    addresses: dict[str, str] = field(default_factory=dict)

    async def lightning_address(self, pubkey: str) -> str | None:
        return self.addresses.get(pubkey)


class Nowhere:
    """A workplace in which nothing is done."""

    def enqueue(self, job: Job) -> None:
        raise AssertionError("no job of these tests is to run")

    run_attempt = enqueue

    def stop(self, job_id: str) -> None:
        raise AssertionError("no job of these tests is to run")


@dataclass
class Desk:
    """One life of the process, over what outlives it."""

    store: Store
    engine: Engine
    refunder: Refunder
    relays: FakeRelays

    async def money(self, job_id: str) -> Money:
        job = await self.store.write(lambda tx: tx.job(job_id))
        assert job is not None
        return job.money

    async def reaches(self, job_id: str, money: Money) -> None:
        with anyio.fail_after(LIMIT_S):
            while await self.money(job_id) is not money:  # noqa: ASYNC110 - the database tells nobody
                await anyio.sleep(0.01)

    async def waits(self, job_id: str, why: str) -> None:
        await until(lambda: why in self.refunder.waits(job_id))

    async def refunds(self, job_id: str) -> list[Refund]:
        return await self.store.write(lambda tx: refunds.refunds_of(tx, job_id))

    def errors(self, job_id: str, prefix: ErrorPrefix) -> list[Feedback]:
        said = [parse_feedback(each) for each in self.relays.durable if job_id in each.tag_values("e")]
        return [each for each in said if each.status is FeedbackStatus.ERROR and each.prefix is prefix]

    def wish(self, job_id: str, to: str, *, age_s: int = 0, by: object = CUSTOMER) -> str | None:
        key = CUSTOMER if by is CUSTOMER else STRANGER
        draft = wish_draft(job_id, PROVIDER.public_hex, to)
        return self.refunder.hear(signed(draft, key, int(time.time()) - age_s))


@dataclass
class World:
    """A database with paid jobs that were running when the process died for the last time, and a funded wallet."""

    path: Path
    wallet: WalletProcess
    config: RefunderConfig = QUICK
    payees: TestPayees = field(default_factory=TestPayees)
    profiles: TestProfiles = field(default_factory=TestProfiles)
    relays: FakeRelays = field(default_factory=FakeRelays)
    timeout_s: float = 5.0

    async def owe(self, *amounts_msats: int, address: str = "") -> list[str]:
        """Have jobs paid that can never be done; returns their ids. What was received is in the wallet."""
        client = self.wallet.client()
        async with client.running():
            asked = InvoiceRequest("funds", sum(amounts_msats) + 100_000, 600)
            made = await client.create_invoice(asked)
            await self.wallet.payer().pay(made.bolt11)
        store = await Store.open(self.path)
        ids = []
        tags = (("lud16", address),) if address else ()
        for number, amount_msats in enumerate(amounts_msats):
            draft = wish_draft("ab" * 32, "cd" * 32, "x@y.example")
            request = signed(replace(draft, kind=5050, tags=tags, content=str(number)), CUSTOMER, 1_700_000_000)
            await store.write(lambda tx, r=request, a=amount_msats: _insert(tx, r, a))  # type: ignore[misc]
            ids.append(request.id)
        await store.aclose()
        return ids

    @asynccontextmanager
    async def life(self, wallet: FakeWallet | None = None) -> AsyncIterator[Desk]:
        """One life of the process; leaving the block ends it as a crash does."""
        store = await Store.open(self.path)
        wallet = wallet or self.wallet.client(timeout_s=self.timeout_s)
        rules = Rules(max_attempts=1)
        engine = Engine(store, Recorder(PROVIDER, RecorderConfig(rules=rules)), time.time)
        refunder = Refunder(
            engine,
            wallet,
            self.payees,
            self.profiles,
            PROVIDER.public_hex,
            self.config,
            time.time,
            random.Random(1),
        )
        engine.plug_in(cast(Workplace, Nowhere()), cast(Till, None), self.relays, None, refunder)
        self.relays.sink = engine
        try:
            async with wallet.running(), anyio.create_task_group() as tasks:
                await wallet.check()
                await engine.resume()
                tasks.start_soon(refunder.run)
                tasks.start_soon(engine.run)
                tasks.start_soon(_keep_checking, wallet)
                yield Desk(store, engine, refunder, self.relays)
                tasks.cancel_scope.cancel()
        finally:
            self.relays.sink = None
            with anyio.CancelScope(shield=True):
                await store.aclose()


async def _keep_checking(wallet: FakeWallet) -> None:
    while True:
        await wallet.check()
        await anyio.sleep(0.1)


def _insert(tx: Tx, request: Event, amount_msats: int) -> None:
    job = Job(
        id=request.id,
        customer=request.pubkey,
        kind=5050,
        backend="b",
        model="m",
        price_msats=amount_msats,
        max_tokens=1,
        accepted_at=1_700_000_000,
        deadline_at=4_000_000_000,
        work=Work.RUNNING,
        money=Money.SETTLED,
        attempts=1,
    )
    tx.insert_job(job, request.to_json())
    tx.begin_attempt(job.id, 1, 1_700_000_000)
    tx.book(Settlement(request.id[:62] + "00", job.id, amount_msats, 0, 1_700_000_000))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with WalletProcess(tmp_path) as wallet:
        yield World(tmp_path / "db", wallet)


# --- who is paid, and when ------------------------------------------------------------------------------------


async def test_a_refund_goes_to_the_address_in_the_request(world: World) -> None:
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await desk.reaches(job_id, Money.REFUNDED)
        (paid,) = await desk.refunds(job_id)
        assert (paid.state, paid.amount_msats, paid.fee_msats) == (RefundState.PAID, DUE_MSATS, 2)
        assert paid.destination == "alice@pay.example"
        await until(lambda: desk.errors(job_id, ErrorPrefix.REFUNDED))
        (due,) = desk.errors(job_id, ErrorPrefix.REFUND_DUE)
        assert due.amount_msats == DUE_MSATS
        (event,) = [each for each in world.relays.durable if each.tag("refunded")]
        assert event.tag("refunded") == ("refunded", str(DUE_MSATS), paid.payment_hash)
        books = desk.engine.books
        assert (books.refunded_msats, books.refund_fees_msats, books.owed_msats) == (DUE_MSATS, 2, 0)
        assert await desk.store.write(lambda tx: tx.books()) == books


async def test_a_refund_goes_to_the_customers_profile(world: World) -> None:
    world.profiles.addresses[CUSTOMER.public_hex] = "carol@pay.example"
    (job_id,) = await world.owe(DUE_MSATS)
    async with world.life() as desk:
        await desk.reaches(job_id, Money.REFUNDED)
        assert (await desk.refunds(job_id))[0].destination == "carol@pay.example"


async def test_nothing_goes_by_itself_unless_it_may(world: World) -> None:
    world.config = replace(QUICK, auto=False)
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await desk.waits(job_id, "it is for you to order")
        assert world.payees.asked == 0
        await desk.refunder.order(job_id)
        await desk.refunder.outcome(job_id, LIMIT_S)
        assert await desk.money(job_id) is Money.REFUNDED
        with pytest.raises(RefundRefused, match="the job's money is refunded"):
            await desk.refunder.order(job_id)


async def test_the_caps_hold_over_restarts_and_not_for_orders(world: World) -> None:
    cheap = replace(QUICK.repayment, max_fee_msats=5)
    world.config = replace(QUICK, max_msats_per_job=2_000, max_msats_per_day=4_006, repayment=cheap)
    big, first, second = await world.owe(2_001, 2_000, 2_000, address="alice@pay.example")
    async with world.life() as desk:
        await desk.waits(big, "max_msats_per_job")
        await until(lambda: "max_msats_per_day" in desk.refunder.waits(first) + desk.refunder.waits(second))
        await until(lambda: len(desk.refunder.customers) == 2)
    async with world.life() as desk:
        (left,) = desk.refunder.customers.keys() - {big}
        await desk.waits(left, "max_msats_per_day")
        assert (await world.wallet.books())["paid_msats"] == 2_000
        await desk.refunder.order(big)
        await desk.reaches(big, Money.REFUNDED)
        assert await desk.money(left) is Money.REFUND_DUE


async def test_an_order_survives_a_crash(world: World) -> None:
    world.config = replace(QUICK, auto=False)
    silent = "the address is silent"

    def silence(address: str, amount_msats: int) -> str:
        raise PayeeUnavailable(silent)

    world.payees.answer = silence
    (job_id,) = await world.owe(DUE_MSATS)
    async with world.life() as desk:
        await desk.refunder.order(job_id, "Dave@pay.example")
        await desk.waits(job_id, silent)
    world.payees.answer = TestPayees().answer
    async with world.life() as desk:
        await desk.reaches(job_id, Money.REFUNDED)
        assert (await desk.refunds(job_id))[0].destination == "dave@pay.example"


async def test_a_customers_own_invoice(world: World) -> None:
    (job_id,) = await world.owe(DUE_MSATS)
    async with world.life() as desk:
        await desk.waits(job_id, "no lightning address")
        assert desk.wish(job_id, invoice(), by=STRANGER) == "unknown-job"
        assert desk.wish("ab" * 32, invoice()) == "unknown-job"
        now = int(time.time())
        honest = signed(wish_draft(job_id, PROVIDER.public_hex, "alice@pay.example"), CUSTOMER, now)
        tags = (*honest.tags[:2], ("refund", "mallory@pay.example"))
        assert desk.refunder.hear(Event(**{**honest.as_dict(), "tags": tags})) == "bad-signature"
        other = signed(wish_draft(job_id, STRANGER.public_hex, "alice@pay.example"), CUSTOMER, now)
        assert desk.refunder.hear(other) == "unknown-job"  # it was said to another provider
        ahead = signed(wish_draft(job_id, PROVIDER.public_hex, "alice@pay.example"), CUSTOMER, now + 10_000)
        assert desk.refunder.hear(ahead) == "intake-full"
        # Of no use: the customer hears why, and what to send.
        assert desk.wish(job_id, invoice(DUE_MSATS + 1), age_s=9) is None
        await until(lambda: len(desk.errors(job_id, ErrorPrefix.REFUND_DUE)) == 2)
        assert "send an invoice over 2000 msats" in desk.errors(job_id, ErrorPrefix.REFUND_DUE)[1].info
        good = invoice()
        assert desk.wish(job_id, good, age_s=3) is None
        await desk.reaches(job_id, Money.REFUNDED)
        (paid,) = await desk.refunds(job_id)
        assert paid.bolt11 == good


async def test_what_was_said_before_does_not_replace_what_was_said_last(world: World) -> None:
    world.config = replace(QUICK, auto=False)
    (job_id,) = await world.owe(DUE_MSATS)
    async with world.life() as desk:
        for age_s, name in ((5, "old"), (1, "new"), (3, "between")):
            assert desk.wish(job_id, f"{name}@pay.example", age_s=age_s) is None
        await anyio.sleep(0.05)
        await desk.refunder.order(job_id)
        await desk.reaches(job_id, Money.REFUNDED)
        assert (await desk.refunds(job_id))[0].destination == "new@pay.example"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda amount: invoice(amount + 1), "msats were agreed"),
        (lambda amount: "lnbc1" + "d" * 60, "not a valid invoice"),
        (lambda amount: CUSTOMERS_NODE.sign(Draft("x", amount, 5, "", None), 1_700_000_000).bolt11, "expired"),
    ],
)
async def test_a_wrong_invoice_of_an_address_is_never_paid(
    made: Callable[[int], str], why: str, world: World
) -> None:
    world.payees.answer = lambda address, amount_msats: made(amount_msats)
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await desk.waits(job_id, why)
        assert await desk.refunds(job_id) == []
        with pytest.raises(RefundRefused, match="2000 msats are due"):
            await desk.refunder.order(job_id, made(DUE_MSATS))


async def test_one_invoice_is_never_used_for_two_refunds(world: World) -> None:
    same = invoice()
    world.payees.answer = lambda address, amount_msats: same
    jobs = await world.owe(DUE_MSATS, DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await until(lambda: len(desk.refunder.customers) == 1)
        (left,) = desk.refunder.customers
        await desk.waits(left, "used before")
        assert len(await desk.refunds(left)) == 0 and left in jobs
        assert (await world.wallet.books())["paid_msats"] == DUE_MSATS


async def test_a_refused_payment_is_followed_by_another_invoice(world: World) -> None:
    world.config = replace(QUICK, repayment=replace(QUICK.repayment, max_fee_msats=1))
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        with anyio.fail_after(LIMIT_S):
            while len(failed := await desk.refunds(job_id)) < 3:  # noqa: ASYNC110 - the database tells nobody
                await anyio.sleep(0.02)
    assert {each.state for each in failed[:2]} == {RefundState.FAILED} and "the route costs" in failed[0].reason
    assert len({each.payment_hash for each in failed}) == len(failed)
    world.config = QUICK
    async with world.life() as desk:
        await desk.reaches(job_id, Money.REFUNDED)
    assert (await world.wallet.books())["paid_msats"] == DUE_MSATS


async def test_written_off(world: World) -> None:
    world.config = replace(QUICK, auto=False)
    (job_id,) = await world.owe(DUE_MSATS)
    async with world.life() as desk:
        job = await desk.refunder.write_off(job_id, "paid in person")
        assert job.money is Money.WRITTEN_OFF
        (row,) = await desk.refunds(job_id)
        assert (row.state, row.amount_msats, row.reason) == (RefundState.WRITTEN_OFF, DUE_MSATS, "paid in person")
        assert (desk.engine.books.written_off_msats, desk.engine.books.owed_msats) == (DUE_MSATS, 0)
        assert await desk.store.write(lambda tx: tx.books()) == desk.engine.books
        (told,) = desk.errors(job_id, ErrorPrefix.WRITTEN_OFF)
        assert "person" not in told.info
        with pytest.raises(RefundRefused):
            await desk.refunder.write_off(job_id, "again")


async def test_an_address_that_refuses_is_not_asked_again(world: World) -> None:
    def refuse(address: str, amount_msats: int) -> str:
        raise PayeeRefused("it takes at least 10 sats")

    world.payees.answer = refuse
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await desk.waits(job_id, "it takes at least 10 sats")
        await anyio.sleep(0.5)
        assert world.payees.asked == 1


class ReceivesOnly(FakeWallet):
    def state(self) -> WalletState:
        return replace(super().state(), abilities=frozenset({WalletAbility.PUSH}))


async def test_a_wallet_that_cannot_pay_says_so(world: World) -> None:
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life(ReceivesOnly(world.wallet.config(), time.time)) as desk:
        await desk.waits(job_id, "cannot pay")
        with pytest.raises(RefundRefused, match="write it off"):
            await desk.refunder.order(job_id)


async def test_the_invoice_is_committed_before_the_wallet_is_called(world: World) -> None:
    seen: list[tuple[Any, ...]] = []

    class Watched(FakeWallet):
        async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
            seen.extend(rows(world.path, "SELECT own_id, state FROM refunds"))
            assert seen[-1][0] == own_id
            return await super().pay(bolt11, own_id=own_id, max_fee_msats=max_fee_msats)

    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life(Watched(world.wallet.config(), time.time)) as desk:
        await desk.reaches(job_id, Money.REFUNDED)
    assert [state for _, state in seen] == ["committed"]


async def test_what_is_paid_after_the_refund_is_due_by_itself(world: World) -> None:
    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life() as desk:
        await desk.reaches(job_id, Money.REFUNDED)
        job = await desk.engine.apply(job_id, facts.Paid("ef" * 32, 700, int(time.time())))
        assert job is not None and job.money is Money.REFUND_DUE
        assert desk.engine.books.refund_due_msats == 700
        await desk.reaches(job_id, Money.REFUNDED)
        assert [each.amount_msats for each in await desk.refunds(job_id)] == [DUE_MSATS, 700]
        due = [each.amount_msats for each in desk.errors(job_id, ErrorPrefix.REFUND_DUE)]
        assert due == [DUE_MSATS, 700]
        assert await desk.store.write(lambda tx: tx.books()) == desk.engine.books


async def test_a_payment_that_was_called_failed_and_was_not(world: World) -> None:
    class Lies(FakeWallet):
        async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
            await super().pay(bolt11, own_id=own_id, max_fee_msats=max_fee_msats)
            raise WalletRefused("no route")

    (job_id,) = await world.owe(DUE_MSATS, address="alice@pay.example")
    async with world.life(Lies(world.wallet.config(), time.time)) as desk:
        await desk.reaches(job_id, Money.REFUNDED)
        (paid,) = await desk.refunds(job_id)
        assert (paid.state, paid.fee_msats) == (RefundState.PAID, 2)
        assert await desk.store.write(lambda tx: tx.books()) == desk.engine.books
    assert (await world.wallet.books())["paid_msats"] == DUE_MSATS


# --- whatever happens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_never_paid_twice_and_never_lost(tmp_path: Path, seed: int) -> None:
    """A wallet that lies about what it did, and a process that dies again and again."""
    rng = random.Random(seed)

    def fetch(address: str, amount_msats: int) -> str:
        if rng.random() < 0.2:
            raise PayeeUnavailable("it is silent")
        return invoice(amount_msats, expiry_s=rng.randint(2, 4))

    async with WalletProcess(tmp_path, seed=seed) as wallet:
        world = World(tmp_path / "db", wallet, payees=TestPayees(fetch), timeout_s=0.5)
        amounts = [rng.randint(1, 9) * 1_000 for _ in range(12)]
        jobs = await world.owe(*amounts, address="alice@pay.example")
        before = (await wallet.books())["balance_msats"]
        await wallet.set_faults(**WILD)
        for _ in range(10):
            async with world.life():
                await anyio.sleep(rng.uniform(0, 0.6))
        await wallet.set_faults()
        async with world.life() as desk:
            for job_id in jobs:
                await desk.reaches(job_id, Money.REFUNDED)
            stored = [row for job_id in jobs for row in await desk.refunds(job_id)]
            books = await desk.store.write(lambda tx: tx.books())
            assert desk.engine.books == books
            await until(lambda: all(desk.errors(job_id, ErrorPrefix.REFUNDED) for job_id in jobs))
        client = wallet.client()
        async with client.running():
            sent = [each for each in await client.transactions(0) if each.direction == "outgoing"]
        paid = {row.payment_hash: row for row in stored if row.state is RefundState.PAID}
        assert {each.payment_hash for each in sent} == paid.keys()
        assert sorted(row.amount_msats for row in paid.values()) == sorted(amounts)
        assert len({row.job_id for row in paid.values()}) == len(jobs) == len(paid)
        assert {row.state for row in stored} <= {RefundState.PAID, RefundState.FAILED}
        truth = await wallet.books()
        assert (truth["paid_msats"], truth["fees_msats"]) == (books.refunded_msats, books.refund_fees_msats)
        assert truth["balance_msats"] - before == -(books.refunded_msats + books.refund_fees_msats)
        assert books.received_msats == books.refunded_msats == sum(amounts)
        assert books.owed_msats == 0
