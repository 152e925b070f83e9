"""A house: everything of `pylon.jobs` over a real database, with stand-ins outside and a clock that stands still.

    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask("Tell me a joke.")
        await house.reaches(request.id, Work.DELIVERED)

Leaving the block without `house.drain()` is a crash: every task is cancelled where it stands. A second
`open_house(world)` is the next start, on the same database, wallet, server and relays.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import anyio
import anyio.lowlevel

from pylon.jobs import facts
from pylon.jobs.access import Access
from pylon.jobs.allowance import Allowance, AllowanceRules
from pylon.jobs.cashier import Cashier, CashierConfig
from pylon.jobs.catalogue import Catalogue, Offer
from pylon.jobs.credit import Credit, CreditRules
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Intake, IntakeConfig
from pylon.jobs.lanes import RunnerConfig
from pylon.jobs.lifecycle import Rules
from pylon.jobs.policy import IntakePolicy
from pylon.jobs.pricing import Price
from pylon.jobs.recorder import Recorder, RecorderConfig
from pylon.jobs.router import CircuitRule
from pylon.jobs.runner import Runner
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FeedbackStatus, cancel_draft
from pylon.nostr.nip90_replies import Feedback
from pylon.store.records import Attempt, InvoiceRow, Job, Money, Settlement, Work
from pylon.store.tx import Tx
from pylon.store.writer import Store
from tests.support.events import CUSTOMER, PROVIDER, job_request, signed
from tests.support.stand_ins import RELAY, FakeBackend, FakeClock, FakeLightning, FakeRelays, Run

T = TypeVar("T")

OFFER = Offer(
    name="small",
    backend="local",
    backend_model="served-model",
    price=Price(base_msats=1_500, output_msats_per_1k=1_000),
    aliases=("tiny",),
    max_output_tokens=512,
    default_output_tokens=64,
)
PRICE_MSATS = 2_000
"""What a job of `OFFER` with its default output costs: 1,564 msats, rounded up to whole sats."""


async def until(condition: Callable[[], T | None], within_s: float = 5.0) -> T:
    """Return the first true value of `condition`. Raises `TimeoutError`."""
    with anyio.fail_after(within_s):
        while True:
            if value := condition():
                return value
            await anyio.sleep(0.002)


class Disk:
    """What the database lies on. While `broken`, no change can be committed."""

    def __init__(self) -> None:
        self.broken = False

    def connect(self, path: Path, **options: Any) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            changes = 0

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith("BEGIN"):
                    self.changes = self.total_changes
                if sql == "COMMIT" and disk.broken and self.total_changes != self.changes:
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *args)

        return _connect(path, factory=Connection, **options)


_connect = sqlite3.connect


@dataclass
class World:
    """What a house stands in, and how it is set up. It outlives the house."""

    path: Path
    limit_s: float = 20.0  # what a test may take
    mode: facts.Mode = facts.Mode.PREPAY
    offers: tuple[Offer, ...] = (OFFER,)
    recorder: RecorderConfig = field(
        default_factory=lambda: RecorderConfig(rules=Rules(max_attempts=3, max_invoices=3), relay_hint=RELAY)
    )
    runner: RunnerConfig = field(
        default_factory=lambda: RunnerConfig(
            first_partial_s=0.0,
            partial_interval_s=0.0,
            partial_min_chars=1,
            retry_delay_s=0.005,
            health_interval_s=0.01,
            health_interval_down_s=0.01,
            announce_after_s=0.01,
            circuit=CircuitRule(failures=1_000_000),  # what fails is tried again at once
            relay_hint=RELAY,
        )
    )
    policy: IntakePolicy = field(default_factory=lambda: IntakePolicy(requests_per_customer_per_minute=100_000))
    intake: IntakeConfig = field(default_factory=lambda: IntakeConfig(relay_hint=RELAY, max_pending=10_000))
    cashier: CashierConfig = field(
        default_factory=lambda: CashierConfig(
            network="regtest", retry_min_s=0.005, retry_max_s=0.02, health_interval_s=0.05
        )
    )
    access: Access = field(default_factory=Access)
    allowance: AllowanceRules | None = None
    credit: CreditRules = field(default_factory=CreditRules)
    monotonic: Callable[[], float] = time.monotonic
    disk: Disk = field(default_factory=Disk)
    clock: FakeClock = field(default_factory=FakeClock)
    relays: FakeRelays = field(default_factory=FakeRelays)
    backends: dict[str, FakeBackend] = field(default_factory=lambda: {"local": FakeBackend()})
    key: SecretKey = PROVIDER
    wallet: FakeLightning = field(init=False)

    def __post_init__(self) -> None:
        self.wallet = FakeLightning(self.clock)

    @property
    def backend(self) -> FakeBackend:
        return self.backends["local"]


@dataclass
class House:
    """The running parts, and what tests ask of them."""

    world: World
    store: Store
    engine: Engine
    runner: Runner
    cashier: Cashier | None
    intake: Intake
    recorder: Recorder

    # --- what customers do --------------------------------------------------------------------------------------

    def offer(self, event: Event) -> str | None:
        return self.intake.offer(event, RELAY)

    def ask(self, prompt: str = "Tell me a joke.", *, key: SecretKey = CUSTOMER, **request: Any) -> Event:
        """Send a request that is addressed to us; it must be taken or answered."""
        request.setdefault("providers", [self.world.key.public_hex])
        request.setdefault("created_at", int(self.world.clock.now))
        event = job_request(prompt, key=key, **request)
        assert self.offer(event) is None
        return event

    def cancel(self, job_id: str, key: SecretKey = CUSTOMER) -> str | None:
        return self.offer(signed(cancel_draft(job_id, 5050), key, int(self.world.clock.now)))

    async def invoiced(self, job_id: str, number: int = 1) -> Feedback:
        """Wait until the customer was asked to pay for the `number`th time."""
        status = FeedbackStatus.PAYMENT_REQUIRED
        return await until(lambda: dict(enumerate(self.world.relays.feedback(job_id, status), 1)).get(number))

    async def pay(self, job_id: str, amount_msats: int | None = None, *, number: int = 1, push: bool = True) -> str:
        """Pay the `number`th invoice that was published; returns its payment hash."""
        asked = await self.invoiced(job_id, number)
        wallet = self.world.wallet
        payment_hash = next(each.payment_hash for each in wallet.made if each.bolt11 == asked.bolt11)
        await until(lambda: wallet.listeners)
        wallet.settle(payment_hash, amount_msats, push=push)
        return payment_hash

    # --- what is stored -------------------------------------------------------------------------------------------

    async def read(self, query: Callable[[Tx], T]) -> T:
        return await self.store.write(query)

    async def job(self, job_id: str) -> Job:
        job = await self.read(lambda tx: tx.job(job_id))
        assert job is not None
        return job

    async def reaches(self, job_id: str, work: Work, money: Money | None = None) -> Job:
        """Wait until the stored job is in these states."""
        with anyio.fail_after(5):
            while True:
                job = await self.read(lambda tx: tx.job(job_id))
                if job is not None and job.work is work and money in (None, job.money):
                    return job
                await anyio.sleep(0.002)

    async def attempts(self, job_id: str) -> list[Attempt]:
        return await self.read(lambda tx: tx.attempts(job_id))

    async def invoices(self, job_id: str) -> list[InvoiceRow]:
        return await self.read(lambda tx: tx.invoices_of(job_id))

    async def settlements(self, job_id: str) -> list[Settlement]:
        return await self.read(lambda tx: tx.settlements_of(job_id))

    async def check_books(self) -> None:
        """What memory says is what the database says, and both add up to what the wallet received."""
        stored = await self.read(lambda tx: tx.books())
        assert self.engine.books == stored
        given_back = stored.refunded_msats + stored.written_off_msats
        assert stored.received_msats == stored.earned_msats + stored.owed_msats + given_back

    # --- what goes on ---------------------------------------------------------------------------------------------

    async def run(self, number: int = 1, backend: str = "local") -> Run:
        """Wait for the `number`th call of `generate`."""
        runs = self.world.backends[backend].runs
        return await until(lambda: runs[number - 1] if len(runs) >= number else None)

    async def quiet(self) -> None:
        """Wait until what was posted to the store is committed and told."""
        for _ in range(3):
            await self.read(lambda tx: None)
            await anyio.lowlevel.checkpoint()

    async def fill_disk(self) -> None:
        """Leave the database no page to grow by: what is large cannot be stored."""
        pages = await self.read(lambda tx: tx._execute("PRAGMA page_count").fetchone()[0])
        await self.read(lambda tx: tx._execute(f"PRAGMA max_page_count = {pages}").fetchall())

    async def free_disk(self) -> None:
        # It may share its group with a write that still fails.
        await self.engine.query(lambda tx: tx._execute("PRAGMA max_page_count = 1000000").fetchall())


Prepare = Callable[[Engine, Runner, Intake], Awaitable[None]]


@asynccontextmanager
async def open_house(world: World, prepare: Prepare | None = None) -> AsyncIterator[House]:
    """Start everything as the daemon does, after `prepare`; on leaving, end everything as a crash does."""
    world.relays.sink = None
    with patch("pylon.store.writer.sqlite3.connect", world.disk.connect):
        store = await Store.open(world.path)
    try:
        with ExitStack() as patches:
            patches.enter_context(
                patch.multiple(
                    "pylon.jobs.engine", _SWEEP_S=0.01, _RETRY_S=0.01, _PURGE_EVERY_S=0.02, _PURGE_PAUSE_S=0.02
                )
            )
            patches.enter_context(patch.multiple("pylon.jobs.cashier", _LOOK_EVERY_S=0.01))
            with anyio.fail_after(world.limit_s):
                async with anyio.create_task_group() as tasks:
                    yield await _start(world, store, tasks, prepare)
                    tasks.cancel_scope.cancel()
    finally:
        world.relays.sink = None
        with anyio.CancelScope(shield=True):
            await store.aclose()


async def _start(world: World, store: Store, tasks: anyio.abc.TaskGroup, prepare: Prepare | None = None) -> House:
    recorder = Recorder(world.key, world.recorder)
    engine = Engine(store, recorder, world.clock)
    runner = Runner(
        engine,
        world.backends,
        world.offers,
        world.key,
        world.relays,
        world.runner,
        world.clock,
        world.monotonic,
    )
    cashier = None
    if world.mode is not facts.Mode.FREE:
        rng = random.Random(1)
        cashier = Cashier(engine, world.wallet, world.cashier, world.clock, rng, runner.eta_s)
    credit = Credit(world.credit) if world.mode is facts.Mode.POSTPAY else None
    intake = Intake(
        engine,
        runner,
        Catalogue(world.offers),
        world.backends.__getitem__,
        world.relays,
        world.key,
        replace(world.intake, mode=world.mode, policy=world.policy, access=world.access),
        world.clock,
        payable=lambda: None if world.wallet.ready else "the wallet does not answer",
        credit=credit,
        allowance=None if world.allowance is None else Allowance(world.allowance),
    )
    engine.plug_in(runner, cashier, world.relays, credit)
    world.relays.sink = engine
    if prepare is not None:
        await prepare(engine, runner, intake)
    await tasks.start(runner.run)
    await engine.resume()
    if cashier is not None:
        tasks.start_soon(cashier.run)
    intake.remember(await store.write(lambda tx: tx.accepted_since(0)))
    tasks.start_soon(engine.run)
    return House(world, store, engine, runner, cashier, intake, recorder)


def rows(path: Path, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Read a database file past the store."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql, params).fetchall()
    finally:
        connection.close()
