"""The composition root: builds the parts from the settings, runs them in one task group, stops them in order.

Order of starting: database (restored books are compared first), backends and wallet, relays' publisher, engine
(which tells every unfinished job that the process restarted), and only then intake. Order of stopping: intake,
running jobs (bounded), stored events that relays have not confirmed (bounded), the rest by cancellation. A second
signal skips the waiting; whatever is cut off is found again on the next start.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import anyio
import structlog
from anyio.abc import TaskGroup

from pylon import assembly, logs
from pylon.access_files import read_access
from pylon.control.server import serve_control
from pylon.jobs import facts
from pylon.jobs.allowance import WINDOW_S
from pylon.jobs.announcement import SHARED_KINDS
from pylon.jobs.announcer import Announcer
from pylon.jobs.cashier import Cashier
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Intake
from pylon.jobs.ports import Clock, DeliverySink, Wallet
from pylon.jobs.recorder import Recorder
from pylon.jobs.refunder import Refunder
from pylon.jobs.runner import Runner
from pylon.jobs.zaps import LOOK_BACK_S, ZapDesk
from pylon.live_views import LiveViews, Parts
from pylon.lock import instance_lock
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.messages import Filter
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND
from pylon.nostr.nip90 import FEEDBACK_KIND
from pylon.paths import Paths, private_folder
from pylon.relays.pool import RelayPool
from pylon.relays.profiles import ProfileReader
from pylon.relays.publisher import OutboxPublisher
from pylon.salvaging import Salvage
from pylon.settings import LoadedSettings, Settings, SettingsError
from pylon.store.customers import free_jobs
from pylon.store.records import CURSOR_MARK, ENDED, RESTORED_MARK
from pylon.store.tx import Tx
from pylon.store.writer import Store

log = structlog.get_logger("pylon.daemon")

_REQUESTS = "requests"
_CANCELS = "cancels"
_OWN = "own"
_REFUNDS = "refunds"
_ZAPS = "zaps"
_CURSOR_EVERY_S = 15.0
_CANCELS_EVERY_S = 2.0
_IDS_PER_FILTER = 200
_REFUNDS_ASKED = 1_000  # the newest: what customers say of older ones is asked for again when these are gone
_FLUSH_S = 5.0
_LEAVE_S = 2.0
_FIRST_ANSWER_S = 2.0
_SWITCH_S = 0.001
_GC_THRESHOLD = (50_000, 20, 20)


class _Doorway:
    """Lets relays start before intake exists: what comes earlier is dropped, and asked for again by `since`."""

    def __init__(self) -> None:
        self.intake: Intake | None = None
        self.announcer: Announcer | None = None
        self.refunder: Refunder | None = None
        self.profiles: ProfileReader | None = None
        self.zaps: ZapDesk | None = None

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Pass an event on."""
        if event.kind == FEEDBACK_KIND and self.refunder is not None:
            return self.refunder.hear(event)
        if self.profiles is not None and self.profiles.wants(event):
            return self.profiles.hear(event)
        if event.kind in SHARED_KINDS and self.announcer is not None:
            return self.announcer.hear(event)
        if event.kind == ZAP_RECEIPT_KIND and self.zaps is not None:
            return self.zaps.hear(event)
        return "not-ready" if self.intake is None else self.intake.offer(event, relay_url)


class _Ears:
    """Hears how deliveries ended, for the engine's events and for the announcer's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.announcer: Announcer | None = None

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay has an event."""
        self._owner(event_id).confirmed(event_id, relay_url)

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay took an event."""
        self._owner(event_id).gave_up(event_id, why)

    def _owner(self, event_id: str) -> DeliverySink:
        announcer = self.announcer
        return announcer if announcer is not None and announcer.owns(event_id) else self._engine


def run_daemon(loaded: LoadedSettings, paths: Paths, key: SecretKey, *, debug: bool = False) -> int:
    """Run until stopped; returns the exit code. Raises one-sentence errors when it cannot start."""
    settings = loaded.settings
    assembly.check_startable(settings)
    private_folder(paths.state_dir)
    logs.configure(settings.log.level, settings.log.format, secrets=assembly.secrets_of(settings, key), debug=debug)
    # The store's thread gives up the interpreter's lock at every call of SQLite; with the default of 5 ms it would
    # wait that long to get it back from a busy loop, several times a commit.
    sys.setswitchinterval(_SWITCH_S)
    with instance_lock(paths.lock_file):
        anyio.run(_main, settings, paths, key, backend_options={"use_uvloop": _has_uvloop()})
    return 0


class Daemon:
    """The parts of one running provider."""

    def __init__(self, settings: Settings, paths: Paths, key: SecretKey, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._paths = paths
        self._store = store
        self._clock = clock
        self._stop = anyio.Event()
        self._stop_at_once = anyio.Event()
        rng = random.Random()  # noqa: S311 - jitter, not secrets
        mode = facts.Mode(settings.payment.mode.value)
        offers = assembly.make_offers(settings)
        catalogue = Catalogue(offers)
        self._kinds = sorted(catalogue.kinds)
        backends = assembly.make_backends(settings, paths)
        wallet = assembly.make_wallet(settings, clock, key, paths)
        self._door = _Doorway()
        pool_config = assembly.make_pool_config(settings)
        self.pool = RelayPool(pool_config, key=key, sink=self._door, clock=clock, rng=rng)
        recorder = Recorder(key, assembly.make_recorder_config(settings))
        engine = Engine(store, recorder, clock)
        ears = _Ears(engine)
        self._publisher = OutboxPublisher(self.pool, ears, pool_config, clock=clock, rng=rng)
        runner_config = assembly.make_runner_config(settings)
        runner = Runner(engine, backends, offers, key, self._publisher, runner_config, clock)
        self._cashier = None
        if wallet is not None:
            config = assembly.make_cashier_config(settings)
            self._cashier = Cashier(engine, wallet, config, clock, rng, runner.eta_s)
        credit = assembly.make_credit(settings)
        self._allowance = assembly.make_allowance(settings)
        intake = Intake(
            engine,
            runner,
            catalogue,
            backends.__getitem__,
            self._publisher,
            key,
            assembly.make_intake_config(settings, mode, read_access(settings)),
            clock,
            payable=lambda: None if _is_payable(wallet) else "the wallet does not answer",
            credit=credit,
            allowance=self._allowance,
        )
        profiles = self._door.profiles = ProfileReader(self.pool)
        self._refunder = self._door.refunder = Refunder(
            engine,
            wallet,
            assembly.make_payees(settings, clock),
            profiles,
            key.public_hex,
            assembly.make_refunder_config(settings),
            clock,
            rng,
        )
        engine.plug_in(runner, self._cashier, self._publisher, credit, self._refunder)
        zap_author = assembly.make_zap_author(settings, clock)
        if zap_author is not None:
            network = settings.wallet.network.value
            self._door.zaps = ZapDesk(engine, key.public_hex, network, zap_author, clock)
        self._announcer = ears.announcer = self._door.announcer = Announcer(
            assembly.make_announce_config(settings),
            offers,
            key,
            self._publisher,
            engine,
            clock,
            states=lambda: {name: backend.state() for name, backend in backends.items()},
            paused=lambda: intake.paused is not None or (mode is not facts.Mode.FREE and not _is_payable(wallet)),
            connected=self.pool.connected_urls,
            all_found=lambda: self.pool.all_caught_up(_OWN),
        )
        self.parts = Parts(
            store,
            engine,
            runner,
            intake,
            self.pool,
            backends,
            wallet,
            mode,
            key.public_hex,
            self._announcer,
            self._refunder,
        )
        self._views = LiveViews(self.parts, clock, stop=self._stop.set, stopping=self._stop.is_set)
        terms = assembly.make_salvage_terms(settings, catalogue)

        def salvage(taken_at: int) -> Salvage:
            return Salvage(
                store, recorder, wallet, pool_config, key, terms, clock, rng, taken_at, say=self._say_comparing
            )

        self._salvage = salvage

    async def run(self) -> None:
        """Run until a stop is asked for and carried out."""
        parts = self.parts
        async with AsyncExitStack() as held:
            # Outside the task group: backends and wallet outlive the tasks that use them.
            for backend in parts.backends.values():
                await held.enter_async_context(backend.running())
            if parts.wallet is not None:
                await held.enter_async_context(parts.wallet.running())
            async with anyio.create_task_group() as tasks:
                await self._run_parts(tasks)

    async def _run_parts(self, tasks: TaskGroup) -> None:
        parts = self.parts
        tasks.start_soon(self._watch_signals)
        restored = (await self._store.write(lambda tx: tx.marks())).get(RESTORED_MARK)
        if restored is not None:
            # Nothing else runs before these books are compared, but what tells how far that is.
            await tasks.start(serve_control, self._views, self._paths.control_socket)
            if not await self._compare(restored):
                tasks.cancel_scope.cancel()
                return
        await tasks.start(parts.runner.run)
        tasks.start_soon(self._publisher.run)
        if self._cashier is not None:
            tasks.start_soon(self._cashier.run)
        tasks.start_soon(self._refunder.run)
        if self._door.zaps is not None:
            tasks.start_soon(self._door.zaps.run)
        await self._subscribe()
        await parts.engine.resume()
        # Older requests are refused by their age.
        oldest = int(self._clock()) - self._settings.intake.max_age_s - self._settings.intake.max_future_s
        parts.intake.remember(await self._store.write(lambda tx: tx.accepted_since(oldest)))
        if self._allowance is not None:
            since = int(self._clock()) - WINDOW_S
            self._allowance.load(await self._store.write(lambda tx: free_jobs(tx, since)))
        if parts.wallet is not None:
            # Requests come with the first frame, and are refused while the wallet has not answered yet.
            with anyio.move_on_after(_FIRST_ANSWER_S):
                await parts.wallet.check()
        self._door.intake = parts.intake
        tasks.start_soon(parts.engine.run)
        tasks.start_soon(self.pool.run)
        tasks.start_soon(self._refresh, _CANCELS, self._cancellable)
        tasks.start_soon(self._refresh, _REFUNDS, self._refundable)
        tasks.start_soon(self._save_cursors)
        tasks.start_soon(self._announcer.run)
        if restored is None:
            await tasks.start(serve_control, self._views, self._paths.control_socket)
        # What was loaded stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)
        log.info(
            "pylon is running",
            name=self._settings.name,
            npub=encode_npub(parts.pubkey),
            payment=parts.payment_mode.value,
        )
        await self._stop.wait()
        await self._wind_down()
        tasks.cancel_scope.cancel()

    async def _compare(self, taken_at: int) -> bool:
        """Compare restored books with relays and wallet; False when a stop was asked for first."""
        async with anyio.create_task_group() as tasks:

            async def leave() -> None:
                await self._stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave)
            await self._salvage(taken_at).run()
            tasks.cancel_scope.cancel()
        self.parts.intake.stopped = None
        return not self._stop.is_set()

    def _say_comparing(self, how_far: str) -> None:
        self.parts.intake.stopped = f"the books come from a backup and are compared first: {how_far}"

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        """Ask for requests from where each relay was last read, and for cancellations of open jobs."""
        now = int(self._clock())
        urls = [relay.url for relay in self.pool.states()]

        def load(tx: Tx) -> dict[str, int]:
            marks = tx.marks()
            for url in urls:
                # Reading begins now: should we be killed before a cursor is stored, the next start asks from here.
                if CURSOR_MARK + url not in marks:
                    tx.set_mark(CURSOR_MARK + url, now)
            found = ((name.removeprefix(CURSOR_MARK), value) for name, value in marks.items())
            return {url: value for url, value in found if url in urls}

        cursors = await self._store.write(load)
        oldest = now - self._settings.intake.max_age_s

        def requests(since: int) -> Sequence[Filter]:
            return [{"kinds": self._kinds, "since": max(since, oldest)}]

        self.pool.subscribe(_REQUESTS, requests, cursors=cursors)
        self.pool.subscribe(_CANCELS, self._cancel_filters, since=0)
        self.pool.subscribe(_REFUNDS, self._refund_filters, since=0)
        if self._door.zaps is not None:
            zapped: Filter = {"kinds": [ZAP_RECEIPT_KIND], "#p": [self.parts.pubkey]}
            self.pool.subscribe(_ZAPS, lambda since: [{**zapped, "since": max(since, now - LOOK_BACK_S)}], since=0)
        mine: Filter = {"kinds": sorted(SHARED_KINDS), "authors": [self.parts.pubkey]}
        self.pool.subscribe(_OWN, lambda since: [mine], since=0)

    def _cancel_filters(self, since: int) -> Sequence[Filter]:
        ids = self._cancellable()
        parts = [ids[start : start + _IDS_PER_FILTER] for start in range(0, len(ids), _IDS_PER_FILTER)]
        return [{"kinds": [5], "#e": part} for part in parts]

    def _cancellable(self) -> list[str]:
        return sorted(job.id for job in self.parts.engine.open_jobs if job.work not in ENDED)

    def _refund_filters(self, since: int) -> Sequence[Filter]:
        """Return where customers say how they want their money back: only those who are owed any are asked for."""
        customers, ids = self._refunder.customers, self._refundable()
        parts = [ids[start : start + _IDS_PER_FILTER] for start in range(0, len(ids), _IDS_PER_FILTER)]
        return [
            {"kinds": [FEEDBACK_KIND], "#e": part, "authors": sorted({customers[each] for each in part})}
            for part in parts
        ]

    def _refundable(self) -> list[str]:
        return sorted(list(self._refunder.customers)[-_REFUNDS_ASKED:])

    async def _refresh(self, name: str, wanted: Callable[[], list[str]]) -> None:
        """Keep a `#e` filter on the jobs it is about, changed every two seconds at most (Nexus: 60 a minute)."""
        asked: list[str] = []
        while True:
            ids = wanted()
            # A job that came and went in between needs no filter; one that went may stay in it.
            if not set(ids) <= set(asked) or (asked and not ids):
                asked = ids
                self.pool.refresh(name)
            await anyio.sleep(_CANCELS_EVERY_S)

    async def _save_cursors(self) -> None:
        while True:
            await anyio.sleep(_CURSOR_EVERY_S)
            await self._store_cursors()

    async def _store_cursors(self) -> None:
        cursors = self.pool.cursors(_REQUESTS)

        def store(tx: Tx) -> None:
            for url, cursor in cursors.items():
                tx.set_mark(CURSOR_MARK + url, cursor)

        await self.parts.engine.query(store)

    # --- stopping ---------------------------------------------------------------------------------------------

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    self._read_lists()
                    continue
                if self._stop.is_set():
                    self._stop_at_once.set()
                self._stop.set()

    def _read_lists(self) -> None:
        """Read the lists of customers again; one that is wrong changes nothing."""
        try:
            access = self.parts.intake.access = read_access(self._settings)
        except SettingsError as error:
            log.error("the lists of customers stay as they were", error=str(error))
        else:
            log.info("the lists of customers were read again", allow=len(access.allow), deny=len(access.deny))

    async def _wind_down(self) -> None:
        """Take no more jobs, let what runs finish, have stored events confirmed; each within its time."""
        self.parts.intake.stopped = "the provider is stopping"
        log.info("stopping: running jobs may finish", timeout_s=self._settings.daemon.stop_timeout_s)
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await self._stop_at_once.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            with anyio.move_on_after(_LEAVE_S):
                await self._announcer.leave(_LEAVE_S)
            with anyio.move_on_after(self._settings.daemon.stop_timeout_s):
                await self.parts.runner.drain()
                await self.parts.engine.query(lambda tx: None)  # whatever the last attempts reported is stored
            with anyio.move_on_after(_FLUSH_S):
                await self.parts.engine.outbox_empty()
            with anyio.move_on_after(_FLUSH_S):
                await self._store_cursors()
            tasks.cancel_scope.cancel()


async def _main(settings: Settings, paths: Paths, key: SecretKey) -> None:
    store = await Store.open(paths.database)
    try:
        await Daemon(settings, paths, key, store, time.time).run()
    finally:
        with anyio.CancelScope(shield=True):
            await store.aclose()


def _is_payable(wallet: Wallet | None) -> bool:
    return wallet is None or wallet.state().ready


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
