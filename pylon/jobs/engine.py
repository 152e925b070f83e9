"""The one door through which a job's state changes: facts in, one transaction each, effects after COMMIT.

`Recorder` decides and stores on the writer thread; `Engine` brings facts to it, waits out a store that cannot
commit, and hands the effects to those who carry them out: the workplace (runner), the till (cashier) and the
publisher. All three are rebuilt from the database by `resume`, so nothing that a crash loses between COMMIT and
effect is lost for good.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import anyio

from pylon.jobs import effects as do
from pylon.jobs import facts
from pylon.jobs.credit import WINDOW_S, Credit
from pylon.jobs.desks import RefundDesk, Till, Workplace
from pylon.jobs.giving_back import GIVING_BACK, NO_BOOKS
from pylon.jobs.lifecycle import begin
from pylon.jobs.openjobs import OpenJobs
from pylon.jobs.policy import MAX_CUSTOMERS
from pylon.jobs.ports import Clock, Publisher
from pylon.jobs.recorder import Moved, Recorder
from pylon.jobs.textgen import TextJob
from pylon.store.customers import earned_of_customers, postpaid_jobs
from pylon.store.errors import AlreadyAccepted, StaleVersion, StoreUnavailable
from pylon.store.records import (
    Books,
    InvoiceRow,
    InvoiceState,
    Job,
    Money,
    OutboxItem,
    OutboxState,
    OutboxTopic,
    Work,
)
from pylon.store.refunds import jobs_due
from pylon.store.tx import Tx
from pylon.store.writer import Store

T = TypeVar("T")

_RETRY_S: Final = 0.5
_SWEEP_S: Final = 1.0
_PURGE_EVERY_S: Final = 30.0
_PURGE_AT_ONCE: Final = 500
_PURGE_PAUSE_S: Final = 0.2
_PROBE_MARK: Final = "probe"
_CAN_EXPIRE: Final = frozenset({Work.AWAITING_PAYMENT, Work.QUEUED, Work.RUNNING, Work.BILLING})


class Engine:
    """Applies facts to jobs. Its in-memory view (open jobs, counts, books) changes only after COMMIT."""

    def __init__(self, store: Store, recorder: Recorder, clock: Clock) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._workplace: Workplace | None = None
        self._till: Till | None = None
        self._publisher: Publisher | None = None
        self._credit: Credit | None = None
        self._desk: RefundDesk | None = None
        self._stuck: deque[tuple[Callable[[Tx], Any], Callable[[Any], None]]] = deque()
        self._counts: Counter[tuple[Work, Money]] = Counter()
        self._open = OpenJobs()
        self._pending: set[str] = set()
        self._all_sent = anyio.Event()
        self._books = NO_BOOKS
        self._dead_letters = 0
        self._held_up = 0  # callers that wait until they can write
        self._unwritable = False
        self.faults: Counter[str] = Counter()

    # --- what others look at ----------------------------------------------------------------------------------

    @property
    def open_jobs(self) -> OpenJobs:
        """Return every job whose work or money is not finished."""
        return self._open

    @property
    def counts(self) -> Mapping[tuple[Work, Money], int]:
        """Return how many jobs are in each pair of states."""
        return +self._counts

    @property
    def books(self) -> Books:
        """Return the sums of money."""
        return self._books

    @property
    def outbox_pending(self) -> int:
        """Return how many stored events no relay has confirmed yet."""
        return len(self._pending)

    @property
    def dead_letters(self) -> int:
        """Return how many stored events ended unconfirmed."""
        return self._dead_letters

    @property
    def healthy(self) -> bool:
        """Tell whether steps can be committed; intake stops while they cannot."""
        return self._store.health.healthy and not (self._unwritable or self._stuck or self._held_up)

    # --- start and run ----------------------------------------------------------------------------------------

    def plug_in(
        self,
        workplace: Workplace,
        till: Till | None,
        publisher: Publisher,
        credit: Credit | None = None,
        desk: RefundDesk | None = None,
    ) -> None:
        """Connect those who carry effects out, and who keeps account of credit; before `resume`."""
        self._workplace, self._till, self._publisher = workplace, till, publisher
        self._credit, self._desk = credit, desk

    async def resume(self) -> None:
        """Load everything unfinished and tell it that the process restarted."""
        counts, books, dead_letters, jobs, items, invoices = await self._store.write(
            lambda tx: (
                tx.counts(),
                tx.books(),
                tx.dead_letters(),
                tx.unfinished_jobs(),
                tx.pending_outbox(),
                tx.undecided_invoices(),
            )
        )
        self._counts = Counter(counts)
        self._books, self._dead_letters = books, dead_letters
        if self._credit is not None:
            now = int(self._clock())
            paid = await self.query(lambda tx: earned_of_customers(tx, MAX_CUSTOMERS))
            self._credit.load(paid, await self.query(lambda tx: postpaid_jobs(tx, now - WINDOW_S)), now)
        if self._desk is not None:
            for job in await self.query(jobs_due):
                self._desk.follow(job)
        for job in jobs:
            self._open.put(job)
        for item in items:
            self._deliver(item)
        for row in invoices:
            self._hand_to_till(row, fresh=False)
        for job in jobs:
            await self.apply(job.id, facts.Restarted())

    async def run(self) -> None:
        """Watch deadlines, erase old text and store what a full disk held up, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_deadlines)
            tasks.start_soon(self._retry_stuck)
            tasks.start_soon(self._purge)

    # --- facts ------------------------------------------------------------------------------------------------

    def accept(
        self,
        job: Job,
        text: TextJob,
        mode: facts.Mode,
        *,
        start: bool,
        done: Callable[[Moved | None], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Store a new job; with `start` its first attempt in the same transaction (its slot is taken already).

        Exactly one of `done` (None: this request was accepted before) and `failed` is called, on the loop. A
        store that cannot commit fails at once: nothing was promised yet.
        """
        now = int(self._clock())
        request_json = text.event.to_json()
        if self._open.get(job.id) is not None:
            done(None)
            return
        self._open.put(begin(job, mode).job)  # it takes its place before COMMIT, so that a burst finds it taken

        def run(tx: Tx) -> Moved:
            return self._recorder.accept(tx, job, mode, request_json, start=start, now=now)

        def committed(moved: Moved) -> None:
            self._carry_out(moved, text)
            done(moved)

        def not_committed(error: BaseException) -> None:
            self._open.drop(job.id)
            if isinstance(error, AlreadyAccepted):
                done(None)
            else:
                self._note(error)
                failed(error)

        self._store.post(run, committed, not_committed)

    async def apply(self, job_id: str, *news: facts.Fact) -> Job | None:
        """Apply facts in one transaction and return the job after it; None when there is no such job.

        Waits out a store that cannot commit: what happened has happened, and must be stored.
        """
        moved = await self._write(self._transaction(job_id, news), self._committed)
        return None if moved is None else moved.job

    def post(self, job_id: str, *news: facts.Fact) -> None:
        """Apply facts without waiting; stored as soon as the store can."""
        self._persist(self._transaction(job_id, news), self._committed)

    async def received(self, payment_hash: str, amount_msats: int, settled_at: int) -> bool:
        """Apply a settlement to the job whose invoice it pays; False when no invoice of ours has this hash."""
        row = await self.query(lambda tx: tx.invoice_by_hash(payment_hash))
        if row is None:
            return False
        kind = facts.Paid if amount_msats >= row.amount_msats else facts.PaidShort
        await self.apply(row.job_id, kind(payment_hash, amount_msats, settled_at))
        return True

    async def zapped(
        self, event_id: str, payment_hash: str, amount_msats: int, settled_at: int, payer: str
    ) -> bool:
        """Apply a zap to the job whose reply it was sent to; False when no reply of ours has this event id."""
        job = await self.query(lambda tx: tx.job_of_reply(event_id))
        if job is None:
            return False
        by_customer = payer == job.customer
        await self.apply(job.id, facts.Zapped(payment_hash, amount_msats, settled_at, by_customer))
        return True

    async def query(self, read: Callable[[Tx], T]) -> T:
        """Run a small read or mark on the writer, waiting out a store that cannot commit."""
        return await self._write(read, None)

    async def outbox_empty(self) -> None:
        """Wait until every stored event is confirmed or given up, those of facts posted before included."""
        await self.query(lambda tx: None)
        while self._pending:
            self._all_sent = anyio.Event()
            await self._all_sent.wait()

    # --- DeliverySink -----------------------------------------------------------------------------------------

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay confirmed a stored event."""
        # Nobody waits for it: it can share the commit of whatever comes next.
        self._persist(
            self._outbox_end(event_id, OutboxState.SENT, facts.Confirmed()), self._outbox_ended, patient=True
        )

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay confirmed a stored event before its deadline."""
        self._persist(self._outbox_end(event_id, OutboxState.DEAD, facts.GaveUp(why)), self._outbox_ended)

    def _outbox_end(
        self, event_id: str, state: OutboxState, fact: facts.Fact
    ) -> Callable[[Tx], tuple[str, OutboxState, Moved | None]]:
        now = int(self._clock())

        def run(tx: Tx) -> tuple[str, OutboxState, Moved | None]:
            ended = tx.end_outbox(event_id, state)
            if ended is None or ended[1] is not OutboxTopic.RESULT:
                return event_id, state, None
            return event_id, state, self._recorder.transact(tx, ended[0], (fact,), now)

        return run

    def _outbox_ended(self, outcome: tuple[str, OutboxState, Moved | None]) -> None:
        event_id, state, moved = outcome
        if event_id in self._pending:
            self._pending.discard(event_id)
            if not self._pending:
                self._all_sent.set()
            self._dead_letters += state is OutboxState.DEAD
        self._committed(moved)

    # --- after COMMIT -----------------------------------------------------------------------------------------

    def _transaction(self, job_id: str, news: tuple[facts.Fact, ...]) -> Callable[[Tx], Moved | None]:
        now = int(self._clock())
        return lambda tx: self._recorder.transact(tx, job_id, news, now)

    def _committed(self, moved: Moved | None) -> None:
        if moved is not None:
            self._carry_out(moved, None)

    def _carry_out(self, moved: Moved, text: TextJob | None) -> None:
        assert self._workplace is not None and self._publisher is not None
        self._count(moved)
        job = moved.job
        for item in moved.items:
            self._deliver(item)
        for row in moved.invoices:
            self._hand_to_till(row, fresh=True)
        if self._desk is not None:
            for refund, fresh in moved.refunds:
                self._desk.pay(refund, fresh=fresh)
        for effect in moved.effects:
            if isinstance(effect, do.BeginAttempt):
                self._workplace.run_attempt(job, text)
            elif isinstance(effect, do.Enqueue):
                self._workplace.enqueue(job)
            elif isinstance(effect, do.StopWork):
                self._workplace.stop(job.id)

    def _count(self, moved: Moved) -> None:
        job = moved.job
        if moved.before is not None:
            self._counts[(moved.before.work, moved.before.money)] -= 1
        self._counts[(job.work, job.money)] += 1
        if moved.books is not NO_BOOKS:
            self._books += moved.books
        if self._credit is not None:
            self._credit.follow(job, moved.books.earned_msats)
        if self._desk is not None and job.money in GIVING_BACK:
            self._desk.follow(job)
        if job.purge_at is None:
            self._open.put(job)
        else:
            self._open.drop(job.id)

    def _deliver(self, item: OutboxItem) -> None:
        assert self._publisher is not None and item.event_json is not None
        self._pending.add(item.event_id)
        self._publisher.deliver(item.event_id, item.event_json, item.relays, item.deadline_at)

    def _hand_to_till(self, row: InvoiceRow, *, fresh: bool) -> None:
        if self._till is None:
            return
        if row.state is InvoiceState.WANTED:
            self._till.make(row, fresh=fresh)
        else:
            self._till.watch(row)

    # --- a store that cannot commit ---------------------------------------------------------------------------

    async def _write(self, run: Callable[[Tx], T], committed: Callable[[T], None] | None) -> T:
        try:
            return await self._store.write(run, committed)
        except (StoreUnavailable, StaleVersion) as error:
            self._note(error)
        self._held_up += 1
        try:
            while True:
                await anyio.sleep(_RETRY_S)
                try:
                    return await self._store.write(run, committed)
                except (StoreUnavailable, StaleVersion) as error:
                    self._note(error)
        finally:
            self._held_up -= 1

    def _persist(self, run: Callable[[Tx], T], committed: Callable[[T], None], *, patient: bool = False) -> None:
        def failed(error: BaseException) -> None:
            self._note(error)
            if isinstance(error, StoreUnavailable | StaleVersion):
                self._stuck.append((run, committed))

        self._store.post(run, committed, failed, patient=patient)

    def _note(self, error: BaseException) -> None:
        self.faults[type(error).__name__] += 1
        if isinstance(error, StoreUnavailable):
            self._unwritable = True

    async def _probe(self) -> None:
        """Learn by a write whether the database takes writes again; a transaction that only reads cannot tell."""
        now = int(self._clock())
        try:
            await self._store.write(lambda tx: tx.set_mark(_PROBE_MARK, now))
        except StoreUnavailable as error:
            self._note(error)
        else:
            self._unwritable = False

    # --- tasks ------------------------------------------------------------------------------------------------

    async def _retry_stuck(self) -> None:
        while True:
            await anyio.sleep(_RETRY_S)
            if self._unwritable:
                await self._probe()
            # Each stays until it is stored: intake stays shut until all are.
            while self._stuck:
                try:
                    await self._store.write(*self._stuck[0])
                except (StoreUnavailable, StaleVersion) as error:
                    self._note(error)
                    break
                except Exception as error:  # noqa: BLE001 - a fault of ours must not hold up the others
                    self._note(error)
                self._stuck.popleft()

    async def _watch_deadlines(self) -> None:
        while True:
            now = self._clock()
            due = [job.id for job in self._open if job.deadline_at <= now and job.work in _CAN_EXPIRE]
            for job_id in due:
                await self.apply(job_id, facts.Deadline())
            await anyio.sleep(_SWEEP_S)

    async def _purge(self) -> None:
        while True:
            now = int(self._clock())
            purged = await self.query(lambda tx, now=now: tx.purge(now, _PURGE_AT_ONCE))  # type: ignore[misc]
            # Jobs that still send something come up again: without a pause they would keep the writer busy.
            await anyio.sleep(_PURGE_EVERY_S if purged < _PURGE_AT_ONCE else _PURGE_PAUSE_S)
