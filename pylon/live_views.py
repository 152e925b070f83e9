"""What a running daemon answers over the control API: its parts' states, without asking any of them anything."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import anyio

from pylon import __version__
from pylon.control.owner_line import OwnerLine, RuleLine
from pylon.control.views import (
    AnnouncementView,
    BackendLine,
    DaemonState,
    DaemonStatus,
    EarningsView,
    IntakeLine,
    JobDetail,
    JobsQuery,
    JobView,
    ModelLine,
    NotFound,
    QueueLine,
    RefundView,
    RelayLine,
    SettingsLine,
    StoreLine,
    ViewError,
    WalletLine,
)
from pylon.jobs import facts
from pylon.jobs.announcer import Announcer, AnnouncingOff
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Intake
from pylon.jobs.lanes import Lane
from pylon.jobs.ports import Backend, BackendHealth, Clock, Wallet
from pylon.jobs.refund_case import RefundRefused
from pylon.jobs.refunder import Refunder
from pylon.jobs.runner import Runner
from pylon.nostr.keys import encode_npub
from pylon.offline import OfflineViews, books_line, job_view
from pylon.owner.desk import OrdersNotKept, OwnerDesk, Stance
from pylon.owner.memory import keeps_memory
from pylon.relays.pool import RelayPool
from pylon.relays.state import RelayState, RelayStatus
from pylon.store.records import Work
from pylon.store.writer import Store

_CONFIRMATION_S = 5.0  # less than the control API gives an answer


class Reloading(Protocol):
    """Reads the settings again; `line` is what came of it last."""

    line: SettingsLine

    async def reload(self) -> SettingsLine:
        """Read and apply them. Raises `ViewError` where that is not the time."""
        ...


@dataclass(slots=True)
class Parts:
    """The running parts of a daemon, for those who look at all of them."""

    store: Store
    engine: Engine
    runner: Runner
    intake: Intake
    pool: RelayPool
    backends: Mapping[str, Backend]
    wallet: Wallet | None
    payment_mode: facts.Mode
    pubkey: str
    announcer: Announcer | None = None
    refunder: Refunder | None = None
    owner: OwnerDesk | None = None
    reloader: Reloading | None = None


class LiveViews:
    """Implements `ControlViews`. `stopping` tells whether a stop is under way, `stop` asks for one."""

    def __init__(
        self, parts: Parts, clock: Clock, *, stop: Callable[[], None], stopping: Callable[[], bool]
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._stop = stop
        self._stopping = stopping
        self._started_at = clock()
        self._offline = OfflineViews(parts.store.path)

    def status(self) -> DaemonStatus:
        """Return the state of every part."""
        parts = self._parts
        state, reasons = self._state()
        paused = parts.intake.paused
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            npub=encode_npub(parts.pubkey),
            pubkey=parts.pubkey,
            started_at=int(self._started_at),
            uptime_s=int(self._clock() - self._started_at),
            state=state,
            state_reasons=reasons,
            payment_mode=parts.payment_mode.value,
            store=self._store_line(),
            relays=tuple(_relay_line(each) for each in parts.pool.states()),
            backends=tuple(self._backend_line(each) for each in parts.backends.values()),
            models=tuple(_model_line(lane) for lane in parts.runner.lanes.values() if lane.sold),
            wallet=self._wallet_line(),
            queue=tuple(
                self._queue_line(lane) for lane in parts.runner.lanes.values() if lane.sold or lane.holds_jobs
            ),
            jobs_by_state={f"{work}/{money}": count for (work, money), count in parts.engine.counts.items()},
            books=books_line(parts.engine.books),
            refused=parts.intake.counters.as_dict(),
            missed_models=parts.intake.missed_models.as_dict(),
            intake=IntakeLine(accepted=parts.intake.accepted, paused=paused or ""),
            owner=OwnerLine() if parts.owner is None else owner_line(parts.owner),
            outbox_pending=parts.engine.outbox_pending,
            dead_letters=parts.engine.dead_letters,
            settings=None if parts.reloader is None else parts.reloader.line,
        )

    async def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        """Return at most `query.limit` jobs, newest first."""
        return await anyio.to_thread.run_sync(self._offline.jobs, query)

    async def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        """Return one job. Raises `NotFound` or `Ambiguous`."""
        return await anyio.to_thread.run_sync(lambda: self._offline.job(id_or_prefix, show_input=show_input))

    async def cancel_job(self, id_or_prefix: str) -> JobView:
        """Cancel as the operator. Raises `ViewError` when the job had ended, or its result is on its way."""
        job_id = await anyio.to_thread.run_sync(self._offline.find, id_or_prefix)
        job = await self._parts.engine.apply(job_id, facts.Cancel(facts.CancelledBy.OPERATOR))
        if job is None:
            raise NotFound(f"no job's id starts with {id_or_prefix}")
        if job.work is not Work.CANCELLED:
            raise ViewError(f"the job cannot be cancelled any more: it is {job.work.value}")
        return job_view(job)

    async def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        """Return what is due or under way, each with what it waits for."""
        found = await anyio.to_thread.run_sync(lambda: self._offline.refunds(ended=ended))
        return [self._now(each) for each in found]

    async def pay_refund(self, id_or_prefix: str, to: str = "") -> RefundView:
        """Order a refund, and wait a while for what comes of it. Raises `ViewError`."""
        job_id = await anyio.to_thread.run_sync(self._offline.find, id_or_prefix)
        refunder = self._refunder()
        try:
            await refunder.order(job_id, to)
        except RefundRefused as error:
            raise ViewError(str(error)) from error
        await refunder.outcome(job_id, _CONFIRMATION_S)
        return await self._refund(job_id)

    async def write_off(self, id_or_prefix: str, reason: str) -> RefundView:
        """Record that a refund will not be paid. Raises `ViewError`."""
        job_id = await anyio.to_thread.run_sync(self._offline.find, id_or_prefix)
        try:
            await self._refunder().write_off(job_id, reason)
        except RefundRefused as error:
            raise ViewError(str(error)) from error
        return await self._refund(job_id)

    async def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        """Return settled payments of a time."""
        return await anyio.to_thread.run_sync(lambda: self._offline.earnings(since, by, until=until, local=local))

    def announcement(self) -> AnnouncementView:
        """Return what was published last. Raises `ViewError` where nothing announces."""
        announcer = self._announcer()
        return AnnouncementView(announcer.state.value, tuple(event.to_json() for event in announcer.events))

    async def publish_announcement(self) -> AnnouncementView:
        """Announce now, and wait a while for a relay to confirm it. Raises `ViewError`."""
        try:
            await self._announcer().publish()
        except AnnouncingOff as error:
            raise ViewError(str(error)) from error
        return await self._confirmed()

    async def withdraw_announcement(self) -> AnnouncementView:
        """Withdraw the announcement, and wait a while for a relay to confirm that. Raises `ViewError`."""
        await self._announcer().withdraw()
        return await self._confirmed()

    async def pause(self, for_s: int | None = None, why: str = "", *, at_once: bool = False) -> OwnerLine:
        """Take and start no more jobs, for a time or until `resume`. Raises `ViewError`."""
        return await self._order(lambda desk: desk.pause(until=self._at(for_s), why=why, at_once=at_once))

    async def resume(self, for_s: int | None = None, *, ignore_rules: bool = False) -> OwnerLine:
        """End a pause or drain; with `ignore_rules` the rules say nothing for a time. Raises `ViewError`."""
        return await self._order(lambda desk: desk.resume(ignore_rules=ignore_rules, until=self._at(for_s)))

    async def drain(self, why: str = "", *, exits: bool = False) -> OwnerLine:
        """Take no more jobs and finish what is there, then pause or end. Raises `ViewError`."""
        return await self._order(lambda desk: desk.drain(exits=exits, why=why))

    async def _order(self, give: Callable[[OwnerDesk], Awaitable[None]]) -> OwnerLine:
        desk = self._parts.owner
        if desk is None:
            raise ViewError("this daemon takes no orders")
        if self._stopping():
            raise ViewError("the daemon is stopping: order it after the next start")
        try:
            await give(desk)
        except OrdersNotKept as error:
            raise ViewError(str(error)) from error
        return owner_line(desk)

    def _at(self, for_s: int | None) -> int | None:
        return None if for_s is None else int(self._clock()) + for_s

    async def reload(self) -> SettingsLine:
        """Read the settings again. Raises `ViewError`."""
        if self._parts.reloader is None:
            raise ViewError("this daemon has nothing to read its settings from")
        return await self._parts.reloader.reload()

    def request_stop(self) -> None:
        """Ask for a graceful stop."""
        self._stop()

    def _refunder(self) -> Refunder:
        if self._parts.refunder is None:
            raise ViewError("this daemon gives nothing back")
        return self._parts.refunder

    async def _refund(self, job_id: str) -> RefundView:
        return self._now(await anyio.to_thread.run_sync(self._offline.refund, job_id))

    def _now(self, view: RefundView) -> RefundView:
        """Return a refund as of now: the database does not know what it waits for."""
        refunder = self._parts.refunder
        return view if refunder is None else replace(view, waits=refunder.waits(view.job))

    def _announcer(self) -> Announcer:
        if self._parts.announcer is None:
            raise ViewError("this daemon announces nothing")
        return self._parts.announcer

    async def _confirmed(self) -> AnnouncementView:
        relay = await self._announcer().confirmation(_CONFIRMATION_S)
        return replace(self.announcement(), confirmed_by=relay)

    # --- lines ------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[DaemonState, tuple[str, ...]]:
        if self._stopping():
            return DaemonState.STOPPING, ()
        parts = self._parts
        health = [backend.state() for backend in parts.backends.values()]
        reasons = []
        if not parts.pool.any_connected:
            reasons.append("no relay is connected")
        reasons += [f"backend {each.name}: {each.health.value}" for each in health if each.health in _NOT_READY]
        if parts.wallet is not None and not parts.wallet.state().ready:
            reasons.append(f"wallet: {parts.wallet.state().detail}")
        held = None if parts.owner is None else parts.owner.held
        if held is not None:
            reasons.append(held.shown)
        elif (paused := parts.intake.paused) is not None:
            reasons.append(f"no jobs are taken: {paused}")
        if parts.owner is not None and parts.owner.stance is not Stance.OPEN:
            return DaemonState(parts.owner.stance.value), tuple(reasons)
        if not reasons:
            return DaemonState.READY, ()
        if any(each.health in (BackendHealth.UNKNOWN, BackendHealth.LOADING) for each in health):
            return DaemonState.STARTING, tuple(reasons)
        return DaemonState.DEGRADED, tuple(reasons)

    def _store_line(self) -> StoreLine:
        health = self._parts.store.health
        return StoreLine(health.healthy, health.detail, _size(self._parts.store.path))

    def _backend_line(self, backend: Backend) -> BackendLine:
        state = backend.state()
        runner = self._parts.runner
        lanes = [lane for lane in runner.lanes.values() if lane.sold or lane.holds_jobs]
        places = [place for lane in lanes for place in lane.places if place.backend is backend]
        detail = state.detail
        if (open_s := runner.circuit_open_s(state.name)) > 0:
            detail = f"fails too often: left alone for {open_s:.0f} s more" + (f" ({detail})" if detail else "")
        return BackendLine(
            name=state.name,
            kind=state.kind,
            health=state.health.value,
            detail=detail,
            models=tuple(model.name for model in state.models),
            slots=sum(place.route.slots for place in places),
            busy=sum(place.busy for place in places),
            memory_bytes=state.memory_bytes,
            keeps_memory=keeps_memory(backend),
        )

    def _wallet_line(self) -> WalletLine | None:
        if self._parts.wallet is None:
            return None
        state = self._parts.wallet.state()
        return WalletLine(kind=state.kind, ready=state.ready, detail=state.detail, network=state.network)

    def _queue_line(self, lane: Lane) -> QueueLine:
        open_jobs = [job for job in self._parts.engine.open_jobs if job.model == lane.offer.name]
        return QueueLine(
            backend=_backends_of(lane),
            model=lane.offer.name,
            queued=sum(job.work is Work.QUEUED for job in open_jobs),
            running=sum(job.work is Work.RUNNING for job in open_jobs),
            slots=lane.slots,
            reserved=sum(job.work is Work.AWAITING_PAYMENT for job in open_jobs),
        )


_NOT_READY = frozenset({BackendHealth.UNKNOWN, BackendHealth.LOADING, BackendHealth.DOWN})


def owner_line(desk: OwnerDesk) -> OwnerLine:
    """Return what the daemon does with jobs, and why."""
    held, left, freed = desk.held, desk.left(), desk.freed
    waiver = desk.waiver
    return OwnerLine(
        stance=desk.stance.value,
        by="" if held is None else "order" if desk.order is not None else "rules",
        since=None if held is None else desk.since,
        until=desk.until,
        because="" if held is None else held.shown,
        exits=desk.order is not None and desk.order.exits,
        running=left.running,
        waiting=left.waiting,
        waiting_paid=left.waiting_paid,
        to_deliver=left.to_deliver,
        unpaid=left.unpaid,
        first_deadline_at=left.first_deadline_at,
        freed_at=None if freed is None else freed[0],
        freed_bytes=0 if freed is None else freed[1],
        rules=tuple(
            RuleLine(each.rule.value, each in desk.pausing, each.why, each.allows, each.until)
            for each in desk.verdicts
        ),
        rules_waived=waiver is not None,
        waived_until=None if waiver is None else waiver.until,
    )


def _relay_line(state: RelayState) -> RelayLine:
    refused = [each.detail for each in state.subscriptions if each.detail]
    troubles = [state.trouble, *refused] if state.trouble else refused
    detail = state.last_error if state.status is not RelayStatus.CONNECTED else "; ".join(troubles)
    return RelayLine(
        url=state.url,
        status=state.status.value,
        authenticated=state.authenticated,
        detail=detail or state.last_notice,
        received=state.received,
        sent=state.sent,
        accepted=state.accepted,
        refused=state.refused,
        dropped=sum(state.dropped.values()),
        reconnects=state.reconnects,
        latency_ms=state.latency_ms,
    )


def _model_line(lane: Lane) -> ModelLine:
    offer = lane.offer
    available = any(
        place.state.health is BackendHealth.READY and place.state.lists(place.backend_model)
        for place in lane.places
    )
    return ModelLine(
        name=offer.name,
        backend=_backends_of(lane),
        base_msats=offer.price.base_msats,
        per_1k_input_msats=offer.price.input_msats_per_1k,
        per_1k_output_msats=offer.price.output_msats_per_1k,
        aliases=offer.aliases,
        available=available,
    )


def _backends_of(lane: Lane) -> str:
    return ", ".join(place.name for place in lane.places)


def _size(path: Path) -> int:
    found = 0
    for each in (path, path.with_name(path.name + "-wal")):
        try:
            found += each.stat().st_size
        except OSError:
            continue  # the log is not always there
    return found
