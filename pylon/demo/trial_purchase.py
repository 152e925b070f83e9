"""`pylon doctor --buy`: one job bought from oneself, on a market that is made for it and goes with it.

A relay in this process, a second daemon as its child, and a customer: the backends and one model are the
operator's, everything else (keys, home, database) is thrown away afterwards. What the settings hold of backends,
secrets among it, reaches the child by its environment and lies on no disk. Work is given away, nothing announced.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson
from pydantic import BaseModel, SecretStr

from pylon.control.client import ControlClient, ControlError
from pylon.control.views import BackendLine, DaemonStatus
from pylon.customer.client import Customer, CustomerConfig, Order
from pylon.customer.updates import Failed, Partial, Result
from pylon.demo.homes import temporary_home
from pylon.demo.processes import ChildFailed, child, clean_environment
from pylon.doctor.findings import Finding, fail, ok, warn
from pylon.errors import describe_error
from pylon.jobs.ports import BackendHealth
from pylon.lock import LockFailed, lock_holder
from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import JobInput, request_draft
from pylon.paths import HOME_VARIABLE, Paths
from pylon.relays.local import local_relay
from pylon.relays.state import PoolConfig
from pylon.settings import (
    BackendSettings,
    ModelSettings,
    Settings,
    SettingsError,
    load_settings,
)
from pylon.settings.files import create_file
from pylon.store.errors import StoreError
from pylon.store.reports import Reports
from pylon.text import printable

DEFAULT_LIMIT_S: Final = 60.0
"""How long the purchase may take; a model that must be loaded first gets the time that its backend may take."""

MAX_TOKENS: Final = 16
PROMPT: Final = "Say yes."

_CHECK: Final = "purchase"
_ASK_EVERY_S: Final = 0.05
_WORDS_SHOWN: Final = 60
_TRANSLATION: Final = 5002
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SEE_ABOVE: Final = "see the backend's own finding above, and its server's log; then run the doctor again"

_SETTINGS: Final = """\
# Made by `pylon doctor --buy`; backends, models and a throw-away key are in the environment.
name = "pylon doctor"

[relays]
urls = ["{relay_url}"]
backoff_min_s = 0.1
backoff_max_s = 1.0
customer_relays_per_job = 0

[payment]
mode = "free"

[announce]
enabled = false

[jobs]
max_attempts = 1
partial_interval_s = 0.05
partial_min_chars = 1

[daemon]
stop_timeout_s = 0.0

[log]
format = "text"
"""


class Interrupted(Exception):
    """A signal ended the purchase; nothing of it is left."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Trial:
    """What is bought: a model as it is offered, on the backends that may be used for it, the first choice first."""

    model: ModelSettings
    backends: tuple[BackendSettings, ...]

    @property
    def loading_s(self) -> float:
        """How long a model may take to load."""
        return max((each.loading_s for each in self.backends), default=0.0)

    @property
    def place(self) -> str:
        """The model and its backends, for people."""
        return self.at(" or ".join(each.name for each in self.backends))

    def at(self, backend: str) -> str:
        """The model and the backend that ran it, for people."""
        return printable(f"{self.model.name} on {backend}")

    def environment(self, home: Path, key: SecretKey) -> dict[str, str]:
        """Return the whole environment of the daemon that sells it, secrets among it."""
        return {
            **clean_environment(),
            HOME_VARIABLE: str(home),
            "PYLON_NSEC": key.reveal_nsec(),
            "PYLON_BACKENDS": orjson.dumps([_plain(each.harmless()) for each in self.backends]).decode(),
            "PYLON_MODELS": orjson.dumps([self._offer()]).decode(),
        }

    def draft(self, provider: str) -> Draft:
        """Return the request for it, addressed to a provider (hex)."""
        kind = self.model.kinds[0]
        params = [
            ("model", [self.model.name]),
            ("max_tokens", [str(min(MAX_TOKENS, self.model.max_output_tokens))]),
        ]
        if kind == _TRANSLATION:
            params.append(("language", ["es"]))
        return request_draft(kind, [JobInput(PROMPT)], params=params, providers=[provider])

    def _offer(self) -> dict[str, Any]:
        usable = {each.name for each in self.backends}
        (backend, model), *more = (route for route in self.model.routes if route[0] in usable)
        also_on = [f"{other}={name}" for other, name in more]
        return {**_plain(self.model), "backend": backend, "backend_model": model, "also_on": also_on}


async def buy_from_oneself(
    paths: Paths,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    limit_s: float = DEFAULT_LIMIT_S,
) -> tuple[Finding, ...]:
    """Buy one job of the first model on offer and return what was found. Raises `Interrupted` on a signal.

    `limit_s` counts from the start of the second daemon; an embedded model's `start_timeout_s` comes on top.
    """
    try:
        settings = load_settings(config, None, environ).settings
    except SettingsError:
        return (fail(_CHECK, "nothing was bought: the settings are not valid", "correct them, as said above"),)
    if not settings.models:
        what = "nothing was bought: no model is on offer"
        return (fail(_CHECK, what, "add [[backends]] and [[models]]; pylon init proposes them"),)
    trial, skipped = choose(settings, held=_is_held(paths))
    findings = [_left_alone(each) for each in skipped]
    if trial is not None:
        findings.append(await _until_signal(trial, limit_s))
    return tuple(findings)


def choose(settings: Settings, *, held: bool) -> tuple[Trial | None, tuple[ModelSettings, ...]]:
    """Return the first model that can be tried, and those before it that cannot.

    Where a daemon may hold its embedded models (`held`) no second copy of them is loaded.
    """
    usable = {each.name: each for each in settings.backends if not (held and each.in_daemon)}
    skipped: list[ModelSettings] = []
    for model in settings.models:
        backends = tuple(usable[name] for name, _ in model.routes if name in usable)
        if backends:
            return Trial(model, backends), tuple(skipped)
        skipped.append(model)
    return None, tuple(skipped)


def _is_held(paths: Paths) -> bool:
    """Tell whether a daemon runs in this home; where that cannot be told, memory is spared."""
    try:
        return lock_holder(paths.lock_file) is not None
    except LockFailed:
        return True


def _left_alone(model: ModelSettings) -> Finding:
    what = (
        f"{printable(model.name)} on {model.backend} was not bought: the running pylon has loaded the model, "
        "and a second copy would take the memory of the first"
    )
    return warn(_CHECK, what, "stop it (pylon stop) and run pylon doctor --buy again, or buy it with pylon request")


def _plain(section: BaseModel) -> dict[str, Any]:
    """Return a table as plain values, its secrets in the clear."""
    values: dict[str, Any] = section.model_dump(mode="json", exclude_none=True)
    for name in values:
        value = getattr(section, name)
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
        elif isinstance(value, BaseModel):
            values[name] = _plain(value)  # a table within a plug-in's own
    return values


# --- the market that is made for it -----------------------------------------------------------------------------


async def _until_signal(trial: Trial, limit_s: float) -> Finding:
    """Buy, and leave nothing behind when a signal comes first."""
    finding: Finding | None = None
    # From before the folder is made on: until then a signal ends the process, and there is nothing to remove.
    with anyio.open_signal_receiver(*_SIGNALS) as signals:
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(stop_on_signal)
            finding = await _try(trial, limit_s + trial.loading_s)
            tasks.cancel_scope.cancel()
    if finding is None:
        raise Interrupted("interrupted")
    return finding


async def _try(trial: Trial, limit_s: float) -> Finding:
    stage = _Stage()
    try:
        with anyio.move_on_after(limit_s), temporary_home("pylon-trial-") as paths:
            return await _open_and_buy(trial, paths, stage)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is a finding
        return _broken(trial, error)
    what = f"{trial.place}: no result within {limit_s:g} s: {stage.waits_for}"
    return fail(_CHECK, what, _SEE_ABOVE)


@dataclass(slots=True)
class _Stage:
    """What is being waited for, printable."""

    waits_for: str = "the second pylon does not answer"


async def _open_and_buy(trial: Trial, paths: Paths, stage: _Stage) -> Finding:
    provider = SecretKey.generate()
    async with local_relay(nip42="both") as relay_url, _customer(relay_url) as customer:
        create_file(paths.config_file, _SETTINGS.format(relay_url=relay_url))
        running = child(
            "the second pylon",
            "pylon",
            ["start"],
            environ=trial.environment(paths.state_dir, provider),
            log_path=paths.log_file,
        )
        async with running:
            fault = await _until_ready(ControlClient(paths.control_socket), stage)
            if fault:
                return fail(_CHECK, f"{trial.place}: not for sale: {fault}", _SEE_ABOVE)
            stage.waits_for = "the job was not answered"
            asked_at = time.monotonic()
            async with customer.order(trial.draft(provider.public_hex)) as order:
                bought = await _follow(order, asked_at, stage)
            return await anyio.to_thread.run_sync(_finding, trial, bought, paths.database, order.id)


@asynccontextmanager
async def _customer(relay_url: str) -> AsyncIterator[Customer]:
    customer = Customer(
        CustomerConfig(),
        PoolConfig(urls=(relay_url,)),
        key=SecretKey.generate(),
        clock=time.time,
        rng=random.Random(),  # noqa: S311 - jitter, not secrets
    )
    async with customer.running():
        yield customer


async def _until_ready(control: ControlClient, stage: _Stage) -> str:
    """Wait until the daemon can sell; returns why it cannot where that is certain, "" when it can."""
    while True:
        try:
            status = await anyio.to_thread.run_sync(control.status)
        except ControlError:
            await anyio.sleep(_ASK_EVERY_S)
            continue
        connected = any(relay.status == "connected" for relay in status.relays)
        if connected and _has_model(status):
            return ""
        said = "; ".join(map(_standing, status.backends))
        unsettled = (BackendHealth.UNKNOWN, BackendHealth.LOADING)
        if connected and not any(each.health in unsettled for each in status.backends):
            return said
        stage.waits_for = said if connected else "the loopback relay is not connected"
        await anyio.sleep(_ASK_EVERY_S)


def _standing(backend: BackendLine) -> str:
    if backend.health != BackendHealth.READY:
        return printable(f"{backend.name}: {backend.health}: {backend.detail}")
    return printable(f"{backend.name}: does not have it; there are: {', '.join(backend.models) or 'none'}")


def _has_model(status: DaemonStatus) -> bool:
    ready = any(each.health == BackendHealth.READY for each in status.backends)
    return ready and any(model.available for model in status.models)


# --- the purchase -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bought:
    """How it ended: the result's text, or None and why. Seconds count from the request."""

    text: str | None
    fault: str = ""
    first_token_s: float = 0.0
    result_s: float = 0.0


async def _follow(order: Order, asked_at: float, stage: _Stage) -> Bought:
    """Follow the job to its end; the signature of what comes was checked."""
    first_s: float | None = None
    async with aclosing(order.updates()) as updates:
        async for update in updates:
            now_s = time.monotonic() - asked_at
            match update:
                case Partial():
                    first_s = now_s if first_s is None else first_s
                    stage.waits_for = f"the answer began after {first_s:.1f} s and did not end"
                case Failed(_, prefix, sentence):
                    return Bought(None, f"{prefix}: {sentence}" if prefix else sentence)
                case Result(_, content):
                    return Bought(content, "", now_s if first_s is None else first_s, now_s)
    raise AssertionError("updates end with their reader only")


def _finding(trial: Trial, bought: Bought, database: Path, job_id: str) -> Finding:
    """Return what a purchase means, with what the second daemon's database knows of it. Blocks."""
    backend, outcome = _booked(database, job_id)
    place = trial.at(backend) if backend else trial.place
    if bought.text is None:
        why = f"{bought.fault} ({outcome})" if outcome else bought.fault
        return fail(_CHECK, f"{place}: no result: {printable(why, limit=500)}", _SEE_ABOVE)
    said = (
        f"{place}: one job bought over a loopback relay, the first token after {bought.first_token_s:.1f} s, "
        f"the result after {bought.result_s:.1f} s"
    )
    words = " ".join(bought.text.split())
    if not words:
        fix = "a model that thinks first may need more tokens: try it with pylon request"
        return warn(_CHECK, f"{said}, and it is empty", fix)
    return ok(_CHECK, f"{said}: “{printable(words, limit=_WORDS_SHOWN)}”")


def _booked(database: Path, job_id: str) -> tuple[str, str]:
    """Return the backend that a job ran on and how its last attempt ended, "" where the books have neither."""
    try:
        detail = Reports(database).detail(job_id)
    except StoreError:
        return "", ""
    if detail is None or not detail.attempts:
        return "", ""
    return detail.job.backend, detail.attempts[-1].outcome


def _broken(trial: Trial, error: Exception) -> Finding:
    ended = _child_failure(error)
    if ended is None:
        return fail(_CHECK, f"{trial.place}: no result: {describe_error(error)}", "run the doctor again")
    last = f": {ended.log_lines[-1]}" if ended.log_lines else ""
    return fail(_CHECK, f"{trial.place}: no result: {ended}{last}", "correct what it says, then try again")


def _child_failure(error: BaseException) -> ChildFailed | None:
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _child_failure(each))), None)
    return error if isinstance(error, ChildFailed) else None
