"""The composition root: builds the parts from the settings, runs them in one task group, stops them in order.

Order of starting: the owner's orders, database (restored books are compared first), backends and wallet, relays'
publisher, engine (which tells every unfinished job that the process restarted), and only then intake. Order of
stopping: intake, running jobs (bounded), stored events that relays have not confirmed (bounded), the rest by
cancellation. A second signal skips the waiting; whatever is cut off is found again on the next start.

A service manager is told that we are ready when all of that runs: the store is open, the engine has taken up what
it had, the relays' tasks are started and the control socket listens (docs/service.md).
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import structlog
from anyio.abc import TaskGroup

from pylon import assembly, logs
from pylon.access_files import read_access
from pylon.benches import BenchWatch
from pylon.control.server import serve_control
from pylon.control.views import ViewError
from pylon.doorway import Doorway, Ears
from pylon.jobs import facts
from pylon.jobs.allowance import WINDOW_S
from pylon.jobs.announcer import Announcer
from pylon.jobs.cashier import Cashier
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Closed, Intake
from pylon.jobs.ports import BackendState, Clock, Wallet
from pylon.jobs.recorder import Recorder
from pylon.jobs.refunder import Refunder
from pylon.jobs.runner import Runner
from pylon.jobs.zaps import ZapDesk
from pylon.live_views import LiveViews, Parts
from pylon.lock import instance_lock
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.owner.desk import OwnerDesk
from pylon.owner.words import Held
from pylon.paths import Paths, private_folder
from pylon.relays.pool import RelayPool
from pylon.relays.profiles import ProfileReader
from pylon.relays.publisher import OutboxPublisher
from pylon.reloading import RUNNING, Changeable, Outside, Reloader
from pylon.salvaging import Salvage
from pylon.service.notify import Notifier
from pylon.service.watchdog import feed
from pylon.settings import LoadedSettings, Settings
from pylon.store.customers import free_jobs
from pylon.store.records import RESTORED_MARK
from pylon.store.writer import Store
from pylon.subscriptions import OWN, Subscriptions

log = structlog.get_logger("pylon.daemon")

_FLUSH_S = 5.0
_LEAVE_S = 2.0
_FIRST_ANSWER_S = 2.0
_SWITCH_S = 0.001
_GC_THRESHOLD = (50_000, 20, 20)
_MORE_TIME_S = 90.0  # asked for again and again while restored books are compared


def run_daemon(
    loaded: LoadedSettings,
    paths: Paths,
    key: SecretKey,
    *,
    read_again: Callable[[], Settings] | None = None,
    notifier: Notifier | None = None,
    debug: bool = False,
) -> int:
    """Run until stopped; returns the exit code. Raises one-sentence errors when it cannot start.

    `read_again` reads the settings once more, as this start read them. Without `notifier` the service manager of
    the environment is told how things stand, where there is one.
    """
    settings = loaded.settings
    notifier = notifier or Notifier.take(os.environ, os.getpid())
    assembly.check_startable(settings)
    private_folder(paths.state_dir)

    def heed_log(settings: Settings, also_read: Settings) -> None:
        secrets = [each for held in (settings, also_read) for each in assembly.secrets_of(held, key)]
        logs.configure(settings.log.level, settings.log.format, secrets=secrets, debug=debug)

    heed_log(settings, settings)
    if notifier.watchdog_s is not None:
        faulthandler.enable()  # whom the watchdog ends for its silence says first where it hung
    # The store's thread gives up the interpreter's lock at every call of SQLite; with the default of 5 ms it would
    # wait that long to get it back from a busy loop, several times a commit.
    sys.setswitchinterval(_SWITCH_S)
    with instance_lock(paths.lock_file):
        outside = Outside(notifier, read_again or (lambda: settings), heed_log)
        anyio.run(_main, settings, paths, key, outside, backend_options={"use_uvloop": _has_uvloop()})
    return 0


class Daemon:
    """The parts of one running provider."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        key: SecretKey,
        store: Store,
        clock: Clock,
        outside: Outside,
    ) -> None:
        self._paths = paths
        self._notifier = outside.notifier
        self._store = store
        self._clock = clock
        self._stop = anyio.Event()
        self._stop_at_once = anyio.Event()
        rng = random.Random()  # noqa: S311 - jitter, not secrets
        mode = facts.Mode(settings.payment.mode.value)
        offers = assembly.make_offers(settings)
        catalogue = Catalogue(offers)
        backends = assembly.make_backends(settings, paths)
        wallet = assembly.make_wallet(settings, clock, key, paths)
        self._door = Doorway()
        pool_config = assembly.make_pool_config(settings)
        self.pool = RelayPool(pool_config, key=key, sink=self._door, clock=clock, rng=rng)
        recorder = Recorder(key, assembly.make_recorder_config(settings))
        engine = Engine(store, recorder, clock)
        ears = Ears(engine)
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
        self._subscriptions = Subscriptions(
            self.pool,
            store,
            engine,
            self._refunder,
            clock,
            kinds=sorted(catalogue.kinds),
            pubkey=key.public_hex,
            max_age_s=settings.intake.max_age_s,
            zaps=self._door.zaps is not None,
        )

        def states() -> dict[str, BackendState]:
            return {name: backend.state() for name, backend in backends.items()}

        benches = self._benches = BenchWatch(paths.benches_file, settings, states, runner.expect)
        self._announcer = ears.announcer = self._door.announcer = Announcer(
            assembly.make_announce_config(settings),
            offers,
            key,
            self._publisher,
            engine,
            clock,
            states=states,
            paused=lambda: intake.paused is not None or (mode is not facts.Mode.FREE and not _is_payable(wallet)),
            connected=self.pool.connected_urls,
            all_found=lambda: self.pool.all_caught_up(OWN),
            measured=lambda: benches.claims,
        )

        def close(held: Held | None) -> None:
            intake.held = None if held is None else Closed(held.shown, held.told)

        self._owner = OwnerDesk(
            assembly.make_owner_rules(settings),
            assembly.make_sensors(clock, os.environ, backends.values),
            paths.orders_file,
            runner,
            list(backends.values()),
            lambda: engine.open_jobs,
            clock,
            assembly.make_wall(settings),
            close=close,
            stop=self._stop.set,
        )
        changeable = Changeable(
            recorder,
            runner,
            intake,
            self._announcer,
            self._refunder,
            self._subscriptions,
            self._cashier,
            credit,
            self._allowance,
            self._owner,
        )
        self._reloader = Reloader(settings, outside, changeable, clock)
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
            self._owner,
            self._reloader,
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
        await self._owner.begin()  # a paused daemon loads nothing
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
        await self._subscriptions.open()
        await parts.engine.resume()
        # Whoever books money comes after the books are read: what is read would be older than what was booked.
        if self._cashier is not None:
            tasks.start_soon(self._cashier.run)
        tasks.start_soon(self._refunder.run)
        if self._door.zaps is not None:
            tasks.start_soon(self._door.zaps.run)
        await self._look_back()
        await self._benches.look()  # what the first customer is told of the time
        tasks.start_soon(self._benches.run)
        self._door.intake = parts.intake
        tasks.start_soon(parts.engine.run)
        tasks.start_soon(self.pool.run)
        self._subscriptions.keep(tasks)
        tasks.start_soon(self._announcer.run)
        tasks.start_soon(self._owner.run)
        if restored is None:
            await tasks.start(serve_control, self._views, self._paths.control_socket)
        # What was loaded stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)
        npub, mode = encode_npub(parts.pubkey), parts.payment_mode.value
        log.info("pylon is running", name=self._reloader.settings.name, npub=npub, payment=mode)
        self._reloader.shut = None
        await self._notifier.ready(RUNNING)
        tasks.start_soon(feed, self._notifier, lambda: self._store.write(lambda tx: None))
        if self._reloader.asked_too_early:
            await self._reload()
        await self._stop.wait()
        self._reloader.shut = "the provider is stopping"
        await self._notifier.stopping("running jobs may finish")
        await self._wind_down()
        tasks.cancel_scope.cancel()

    async def _compare(self, taken_at: int) -> bool:
        """Compare restored books with relays and wallet; False when a stop was asked for first."""
        async with anyio.create_task_group() as tasks:

            async def leave() -> None:
                await self._stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave)
            tasks.start_soon(self._ask_for_time)
            await self._salvage(taken_at).run()
            tasks.cancel_scope.cancel()
        self.parts.intake.stopped = None
        return not self._stop.is_set()

    async def _ask_for_time(self) -> None:
        while True:
            await self._notifier.more_time(_MORE_TIME_S)
            await self._notifier.status(self.parts.intake.stopped or "")
            await anyio.sleep(_MORE_TIME_S / 3)

    def _say_comparing(self, how_far: str) -> None:
        self.parts.intake.stopped = f"the books come from a backup and are compared first: {how_far}"

    # --- signals and stopping ---------------------------------------------------------------------------------

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as tasks:
                async for number in signals:
                    if number == signal.SIGHUP:
                        tasks.start_soon(self._reload)  # a stop must not wait for it
                        continue
                    if self._stop.is_set():
                        self._stop_at_once.set()
                    self._stop.set()

    async def _reload(self) -> None:
        try:
            await self._reloader.reload()
        except ViewError as error:
            log.warning("the settings are not read again now", reason=str(error))

    async def _look_back(self) -> None:
        """Learn what was before this start: requests taken, work given away, what was paid meanwhile."""
        # Older requests are refused by their age.
        settings, parts = self._reloader.settings, self.parts
        oldest = int(self._clock()) - settings.intake.max_age_s - settings.intake.max_future_s
        parts.intake.remember(await self._store.write(lambda tx: tx.accepted_since(oldest)))
        if self._allowance is not None:
            since = int(self._clock()) - WINDOW_S
            self._allowance.load(await self._store.write(lambda tx: free_jobs(tx, since)))
        if parts.wallet is not None:
            # Requests come with the first frame, and are refused while the wallet has not answered yet, or what
            # their customer paid meanwhile is not known.
            with anyio.move_on_after(_FIRST_ANSWER_S):
                await parts.wallet.check()
                if self._cashier is not None:
                    await self._cashier.caught_up.wait()

    async def _wind_down(self) -> None:
        """Take no more jobs, let what runs finish, have stored events confirmed; each within its time."""
        self.parts.intake.stopped = "the provider is stopping"
        self.parts.runner.start_nothing_more()
        stop_timeout_s = self._reloader.settings.daemon.stop_timeout_s
        log.info("stopping: running jobs may finish", timeout_s=stop_timeout_s)
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await self._stop_at_once.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            await self._owner.leave()
            with anyio.move_on_after(_LEAVE_S):
                await self._announcer.leave(_LEAVE_S)
            with anyio.move_on_after(stop_timeout_s):
                await self.parts.runner.drain()
                await self.parts.engine.query(lambda tx: None)  # whatever the last attempts reported is stored
            with anyio.move_on_after(_FLUSH_S):
                await self.parts.engine.outbox_empty()
            with anyio.move_on_after(_FLUSH_S):
                await self._subscriptions.store_cursors()
            tasks.cancel_scope.cancel()


async def _main(settings: Settings, paths: Paths, key: SecretKey, outside: Outside) -> None:
    store = await Store.open(paths.database)
    try:
        await Daemon(settings, paths, key, store, time.time, outside).run()
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
