"""The composition root: builds the parts from the settings, runs them in one task group, stops them in order.

Order of starting: database, backends and wallet, relays' publisher, engine (which tells every unfinished job that
the process restarted), and only then intake. Order of stopping: intake, running jobs (bounded), stored events
that relays have not confirmed (bounded), the rest by cancellation. A second signal skips the waiting; whatever is
cut off is found again on the next start.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address
from urllib.parse import urlsplit

import anyio
import structlog

from pylon import logs
from pylon.backends.echo import EchoBackend, EchoConfig
from pylon.backends.embedded import EmbeddedBackend, EmbeddedConfig
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.control.server import serve_control
from pylon.jobs import facts
from pylon.jobs.cashier import Cashier, CashierConfig
from pylon.jobs.catalogue import Catalogue, Offer
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Intake, IntakeConfig
from pylon.jobs.lifecycle import Rules
from pylon.jobs.policy import IntakePolicy
from pylon.jobs.ports import Backend, Clock, Wallet
from pylon.jobs.pricing import Price
from pylon.jobs.recorder import Recorder, RecorderConfig
from pylon.jobs.runner import Runner, RunnerConfig
from pylon.jobs.textgen import KIND
from pylon.live_views import LiveViews, Parts
from pylon.lock import instance_lock
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.messages import Filter
from pylon.paths import Paths, private_folder
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import OutboxPublisher
from pylon.relays.state import PoolConfig
from pylon.settings import (
    EchoBackendSettings,
    EmbeddedBackendSettings,
    LoadedSettings,
    OpenAIBackendSettings,
    PaymentMode,
    Settings,
    SettingsError,
    WalletKind,
)
from pylon.store.records import ENDED
from pylon.store.writer import Store
from pylon.wallets.fake import FakeWallet, FakeWalletConfig

log = structlog.get_logger("pylon.daemon")

_REQUESTS = "requests"
_CANCELS = "cancels"
_CURSOR_EVERY_S = 15.0
_CURSOR_MARK = "cursor "
_CANCELS_EVERY_S = 2.0
_IDS_PER_FILTER = 200
_FLUSH_S = 5.0


class _Doorway:
    """Lets relays start before intake exists: what comes earlier is dropped, and asked for again by `since`."""

    def __init__(self) -> None:
        self.intake: Intake | None = None

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Pass an event on."""
        return "not-ready" if self.intake is None else self.intake.offer(event, relay_url)


def run_daemon(loaded: LoadedSettings, paths: Paths, key: SecretKey, *, debug: bool = False) -> int:
    """Run until stopped; returns the exit code. Raises one-sentence errors when it cannot start."""
    settings = loaded.settings
    check_startable(settings)
    private_folder(paths.state_dir)
    logs.configure(settings.log.level, settings.log.format, secrets=secrets_of(settings, key), debug=debug)
    with instance_lock(paths.lock_file):
        anyio.run(_main, settings, paths, key, backend_options={"use_uvloop": _has_uvloop()})
    return 0


def check_startable(settings: Settings) -> None:
    """Raise `SettingsError` when starting would sell nothing, or for nothing."""
    if not settings.models:
        raise SettingsError(
            "nothing is declared for sale: add [[backends]] and [[models]] to pylon.toml (pylon init proposes them)"
        )
    if settings.payment.mode is not PaymentMode.PREPAY:
        return
    out = "connect a wallet ([wallet] in pylon.toml), give the work away (--free), or try the market (pylon demo)"
    if settings.wallet.kind is WalletKind.NONE:
        raise SettingsError(f"payment.mode is prepay and no wallet is connected: {out}")
    if settings.wallet.kind is WalletKind.FAKE and not all(_is_local(url) for url in settings.relays.urls):
        raise SettingsError(f"the fake wallet takes play money and the relays are public: {out}")


def secrets_of(settings: Settings, key: SecretKey) -> list[str]:
    """Return every secret in use, for the log's redactor."""
    given = [settings.identity.nsec, settings.identity.mnemonic, settings.wallet.token]
    given += [each.api_key for each in settings.backends if isinstance(each, OpenAIBackendSettings)]
    return [key.reveal_nsec(), key.reveal_hex(), *(each.get_secret_value() for each in given if each is not None)]


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
        mode = facts.Mode.FREE if settings.payment.mode is PaymentMode.FREE else facts.Mode.PREPAY
        hint = settings.relays.urls[0]
        offers = make_offers(settings)
        backends = make_backends(settings, paths)
        wallet = make_wallet(settings, clock) if mode is facts.Mode.PREPAY else None
        self._door = _Doorway()
        self.pool = RelayPool(make_pool_config(settings), key=key, sink=self._door, clock=clock, rng=rng)
        engine = Engine(store, Recorder(key, make_recorder_config(settings)), clock)
        self._publisher = OutboxPublisher(self.pool, engine, self.pool.config, clock=clock, rng=rng)
        runner = Runner(
            engine,
            backends,
            offers,
            key,
            self._publisher,
            RunnerConfig(
                limit_bytes=settings.relays.max_event_bytes,
                partial_interval_s=settings.jobs.partial_interval_s,
                partial_min_chars=settings.jobs.partial_min_chars,
                relay_hint=hint,
            ),
            clock,
        )
        self._cashier = None
        if wallet is not None:
            self._cashier = Cashier(
                engine,
                wallet,
                CashierConfig(
                    network=settings.wallet.network.value,
                    invoice_grace_s=settings.payment.invoice_grace_s,
                    lookup_min_s=settings.payment.lookup_min_s,
                    lookup_max_s=settings.payment.lookup_max_s,
                ),
                clock,
                rng,
                lambda job: runner.eta_s(job, engine.open_jobs.load((job.backend, job.model), job.customer).queued),
            )
        intake = Intake(
            engine,
            runner,
            Catalogue(offers),
            backends.__getitem__,
            self._publisher,
            key,
            make_intake_config(settings, mode),
            clock,
            payable=lambda: None if wallet is None or wallet.state().ready else "the wallet does not answer",
        )
        engine.plug_in(runner, self._cashier, self._publisher)
        self.parts = Parts(store, engine, runner, intake, self.pool, backends, wallet, mode, key.public_hex)
        self._views = LiveViews(self.parts, clock, stop=self._stop.set, stopping=self._stop.is_set)

    async def run(self) -> None:
        """Run until a stop is asked for and carried out."""
        parts = self.parts
        async with AsyncExitStack() as held, anyio.create_task_group() as tasks:
            for backend in parts.backends.values():
                await held.enter_async_context(backend.running())
            if parts.wallet is not None:
                await held.enter_async_context(parts.wallet.running())
            tasks.start_soon(self._watch_signals)
            await tasks.start(parts.runner.run)
            tasks.start_soon(self._publisher.run)
            if self._cashier is not None:
                tasks.start_soon(self._cashier.run)
            await self._subscribe()
            await parts.engine.resume()
            self._door.intake = parts.intake
            tasks.start_soon(parts.engine.run)
            tasks.start_soon(self.pool.run)
            tasks.start_soon(self._refresh_cancels)
            tasks.start_soon(self._save_cursors)
            await tasks.start(serve_control, self._views, self._paths.control_socket)
            log.info("pylon is running", npub=encode_npub(parts.pubkey), payment=parts.payment_mode.value)
            await self._stop.wait()
            await self._wind_down()
            tasks.cancel_scope.cancel()

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        """Ask for requests from where each relay was last read, and for cancellations of open jobs."""
        marks = await self._store.write(lambda tx: tx.marks())
        cursors = {
            name.removeprefix(_CURSOR_MARK): value for name, value in marks.items() if name.startswith(_CURSOR_MARK)
        }
        oldest = int(self._clock()) - self._settings.intake.max_age_s

        def requests(since: int) -> Sequence[Filter]:
            return [{"kinds": [KIND], "since": max(since, oldest)}]

        self.pool.subscribe(_REQUESTS, requests, cursors=cursors)
        self.pool.subscribe(_CANCELS, self._cancel_filters, since=0)

    def _cancel_filters(self, since: int) -> Sequence[Filter]:
        ids = self._cancellable()
        parts = [ids[start : start + _IDS_PER_FILTER] for start in range(0, len(ids), _IDS_PER_FILTER)]
        return [{"kinds": [5], "#e": part} for part in parts]

    def _cancellable(self) -> list[str]:
        return sorted(job.id for job in self.parts.engine.open_jobs if job.work not in ENDED)

    async def _refresh_cancels(self) -> None:
        """Keep the `#e` filter on the jobs that are open; at most one change every two seconds (Nexus: 60 a minute)."""
        asked: list[str] = []
        while True:
            ids = self._cancellable()
            # A job that came and went in between needs no filter; one that went may stay in it.
            if not set(ids) <= set(asked) or (asked and not ids):
                asked = ids
                self.pool.refresh(_CANCELS)
            await anyio.sleep(_CANCELS_EVERY_S)

    async def _save_cursors(self) -> None:
        while True:
            await anyio.sleep(_CURSOR_EVERY_S)
            await self._store_cursors()

    async def _store_cursors(self) -> None:
        cursors = self.pool.cursors(_REQUESTS)
        await self.parts.engine.query(
            lambda tx: [tx.set_mark(_CURSOR_MARK + url, cursor) for url, cursor in cursors.items()]
        )

    # --- stopping ---------------------------------------------------------------------------------------------

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._stop.is_set():
                    self._stop_at_once.set()
                self._stop.set()

    async def _wind_down(self) -> None:
        """Take no more jobs, let what runs finish, have stored events confirmed; each within its time."""
        self.parts.intake.stopped = "the provider is stopping"
        log.info("stopping: running jobs may finish", timeout_s=self._settings.daemon.stop_timeout_s)
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await self._stop_at_once.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            with anyio.move_on_after(self._settings.daemon.stop_timeout_s):
                await self.parts.runner.drain()
            with anyio.move_on_after(_FLUSH_S):
                while self.parts.engine.outbox_pending and self.pool.any_connected:
                    await anyio.sleep(0.05)
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


# --- from settings to the parts' own configurations --------------------------------------------------------------


def make_offers(settings: Settings) -> tuple[Offer, ...]:
    """Return what is for sale."""
    slots = {backend.name: backend.slots for backend in settings.backends}
    return tuple(
        Offer(
            name=model.name,
            backend=model.backend,
            backend_model=model.name_at_backend,
            price=Price(model.base_msats, model.input_msats_per_1k, model.output_msats_per_1k),
            aliases=tuple(model.aliases),
            max_output_tokens=model.max_output_tokens,
            default_output_tokens=model.unasked_output_tokens,
            context_tokens=model.context_tokens,
            slots=slots[model.backend],
        )
        for model in settings.models
    )


def make_backends(settings: Settings, paths: Paths) -> dict[str, Backend]:
    """Return the configured backends by name, none of them running yet."""
    made: dict[str, Backend] = {}
    for each in settings.backends:
        sold = tuple(model.name_at_backend for model in settings.models if model.backend == each.name)
        match each:
            case OpenAIBackendSettings():
                made[each.name] = OpenAIBackend(
                    OpenAIConfig(
                        name=each.name,
                        url=each.url,
                        api_key=None if each.api_key is None else each.api_key.get_secret_value(),
                        connect_timeout_s=each.connect_timeout_s,
                        first_token_timeout_s=each.first_token_timeout_s,
                        stall_timeout_s=each.stall_timeout_s,
                    )
                )
            case EmbeddedBackendSettings():
                made[each.name] = EmbeddedBackend(
                    EmbeddedConfig(
                        name=each.name,
                        gguf=each.gguf,
                        model_name=sold[0] if sold else each.name,
                        log_path=paths.state_dir / f"pylon.backend-{each.name}.log",
                        context_tokens=each.context_tokens,
                        slots=each.slots,
                        threads=each.threads or None,
                        gpu_layers=each.gpu_layers,
                        start_timeout_s=each.start_timeout_s,
                        first_token_timeout_s=each.first_token_timeout_s,
                        stall_timeout_s=each.stall_timeout_s,
                    )
                )
            case EchoBackendSettings():
                made[each.name] = EchoBackend(EchoConfig(name=each.name, models=sold or ("echo",)))
    return made


def make_wallet(settings: Settings, clock: Clock) -> Wallet:
    """Return the configured wallet, not running yet. Raises `SettingsError` when something of it is missing."""
    wallet = settings.wallet
    if wallet.token is None or wallet.url is None:
        raise SettingsError(
            "wallet.token is missing: set PYLON_WALLET_TOKEN, or a systemd credential named wallet_token"
        )
    config = FakeWalletConfig(token=wallet.token.get_secret_value(), url=wallet.url, timeout_s=wallet.timeout_s)
    return FakeWallet(config, clock)


def make_pool_config(settings: Settings) -> PoolConfig:
    """Return the relays' configuration."""
    relays = settings.relays
    return PoolConfig(
        urls=tuple(relays.urls),
        connect_timeout_s=relays.connect_timeout_s,
        ping_interval_s=relays.ping_interval_s,
        pong_timeout_s=relays.pong_timeout_s,
        backoff_min_s=relays.backoff_min_s,
        backoff_max_s=relays.backoff_max_s,
        max_frame_bytes=relays.max_frame_bytes,
        publish_timeout_s=relays.publish_timeout_s,
        customer_relays_per_job=relays.customer_relays_per_job,
        customer_relays_total=relays.customer_relays_total,
        allow_private_hosts=relays.allow_private_hosts,
    )


def make_recorder_config(settings: Settings) -> RecorderConfig:
    """Return what storing steps needs."""
    jobs, payment = settings.jobs, settings.payment
    return RecorderConfig(
        rules=Rules(max_attempts=jobs.max_attempts, max_invoices=payment.max_invoices_per_job),
        retain_plaintext_s=jobs.retain_plaintext_s,
        delivery_timeout_s=jobs.delivery_timeout_s,
        invoice_expiry_s=payment.invoice_expiry_s,
        success_feedback=jobs.success_feedback,
        relay_hint=settings.relays.urls[0],
    )


def make_intake_config(settings: Settings, mode: facts.Mode) -> IntakeConfig:
    """Return the rules of the way in."""
    intake, jobs, payment = settings.intake, settings.jobs, settings.payment
    return IntakeConfig(
        mode=mode,
        policy=IntakePolicy(
            max_age_s=intake.max_age_s,
            max_future_s=intake.max_future_s,
            replies_per_minute=intake.replies_per_minute,
            requests_per_customer_per_minute=intake.requests_per_customer_per_minute,
            max_queued=jobs.queue_size,
            max_queued_per_customer=jobs.queue_size,
            max_open_invoices=payment.max_open_invoices,
            max_open_invoices_per_customer=payment.max_open_invoices_per_customer,
            max_prompt_bytes=intake.max_prompt_bytes,
        ),
        job_timeout_s=jobs.timeout_s,
        max_pending=jobs.max_pending_intake,
        limit_bytes=settings.relays.max_event_bytes,
        customer_relays=settings.relays.customer_relays_per_job,
        relay_hint=settings.relays.urls[0],
    )


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
