"""Settings read again while the daemon runs: what can change under running jobs does, the rest waits for a restart.

`plan` decides, without running anything: it makes the settings that are in force afterwards, those that cannot
change as they were. They are checked like any others, so that what is live and what waits never contradict each
other; where they would, everything waits. `Reloader` reads, has the running parts take the result, and keeps what
came of it for `pylon status`. A wrong file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import anyio
import anyio.to_thread
import structlog
from pydantic import ValidationError

from pylon import assembly
from pylon.access_files import read_access
from pylon.control.views import ChangeLine, SettingsLine, ViewError
from pylon.errors import describe_error
from pylon.jobs import facts
from pylon.jobs.access import Access
from pylon.jobs.allowance import Allowance
from pylon.jobs.announcer import Announcer
from pylon.jobs.cashier import Cashier
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.credit import Credit
from pylon.jobs.intake import Intake
from pylon.jobs.ports import Clock
from pylon.jobs.recorder import Recorder
from pylon.jobs.refunder import Refunder
from pylon.jobs.runner import Runner
from pylon.owner.hours import Wall
from pylon.owner.rules import OwnerRules
from pylon.service.notify import Notifier
from pylon.settings import ModelSettings, PaymentSettings, Settings, SettingsError
from pylon.settings.difference import Difference, differences
from pylon.subscriptions import Subscriptions

log = structlog.get_logger("pylon.daemon")

RUNNING: Final = "takes jobs"
_LIVE: Final = ("name", "payment", "refunds", "jobs", "intake", "announce", "owner", "daemon", "nexus", "log")
_GIFTS: Final = ("free_output_tokens", "free_output_tokens_per_customer")

Routes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings in force after a reload, what changed by it, and what waits for a restart."""

    settings: Settings
    applied: tuple[Difference, ...]
    restart: tuple[Difference, ...]


def plan(running: Settings, wanted: Settings, routes: Mapping[str, Routes]) -> Plan:
    """Return what a reload does. `routes` are those of every model that was sold since the start."""
    try:
        settings = _in_force(running, wanted, routes)
        assembly.check_startable(settings)
    except (ValidationError, SettingsError):
        settings = running
    return Plan(settings, differences(running, settings), differences(settings, wanted))


def _in_force(running: Settings, wanted: Settings, routes: Mapping[str, Routes]) -> Settings:
    """Return what is wanted as far as it can change while jobs run. Raises `ValidationError`."""
    parts = dict(running) | {name: getattr(wanted, name) for name in _LIVE}
    kept: dict[str, object] = {"mode": running.payment.mode}
    if (assembly.make_allowance_rules(running) is None) != (assembly.make_allowance_rules(wanted) is None):
        # What was given away in the last day is counted from the start on, or not at all.
        kept |= {name: getattr(running.payment, name) for name in _GIFTS}
    parts["payment"] = PaymentSettings.model_validate(dict(wanted.payment) | kept)
    # The zap receipts of an address are asked for from the start on.
    parts["announce"] = wanted.announce.model_copy(update={"lud16": running.announce.lud16})
    parts["models"] = tuple(_sold(running, wanted, routes))
    return Settings(**parts)


def _sold(running: Settings, wanted: Settings, routes: Mapping[str, Routes]) -> list[ModelSettings]:
    """Return the models for sale: known ones by their new words and prices, new ones where that is all they are.

    A backend is made for the models that are sold on it (it fetches them, it drops them from memory): one that it
    was not made for waits.
    """
    before = {model.name: model for model in running.models}
    served = {route for each in routes.values() for route in each}
    sold = []
    for model in wanted.models:
        known = routes.get(model.name)
        if known == model.routes or (known is None and served.issuperset(model.routes)):
            sold.append(model)
        elif model.name in before:
            sold.append(before[model.name])
    return sold


class RuleKeeper(Protocol):
    """Keeps the owner's rules."""

    async def set_rules(self, rules: OwnerRules, wall: Wall) -> None:
        """Let other rules hold from now on."""
        ...


@dataclass(slots=True)
class Changeable:
    """The running parts that take other rules."""

    recorder: Recorder
    runner: Runner
    intake: Intake
    announcer: Announcer
    refunder: Refunder
    subscriptions: Subscriptions
    cashier: Cashier | None = None
    credit: Credit | None = None
    allowance: Allowance | None = None
    owner: RuleKeeper | None = None

    def take(self, settings: Settings, access: Access) -> None:
        """Have every part go on by these settings; all in one turn of the loop, so that none is ahead."""
        offers = assembly.make_offers(settings)
        catalogue = Catalogue(offers)
        self.recorder.reconfigure(assembly.make_recorder_config(settings))
        if self.cashier is not None:
            self.cashier.reconfigure(assembly.make_cashier_config(settings))
        if self.credit is not None:
            self.credit.reconfigure(assembly.make_credit_rules(settings))
        rules = assembly.make_allowance_rules(settings)
        if self.allowance is not None and rules is not None:
            self.allowance.reconfigure(rules)
        self.refunder.reconfigure(assembly.make_refunder_config(settings))
        self.runner.reconfigure(assembly.make_runner_config(settings), offers)
        mode = facts.Mode(settings.payment.mode.value)
        self.intake.reconfigure(assembly.make_intake_config(settings, mode, access), catalogue)
        self.announcer.reconfigure(assembly.make_announce_config(settings), offers)
        self.subscriptions.sell(sorted(catalogue.kinds))


@dataclass(frozen=True, slots=True)
class Outside:
    """What surrounds a running daemon: who started it, where its settings come from, where its log goes.

    `read_again` may block, and raises `SettingsError`. `heed_log(in force, read)` has the log follow `[log]` of the
    first and hide the secrets of both.
    """

    notifier: Notifier
    read_again: Callable[[], Settings]
    heed_log: Callable[[Settings, Settings], None]


@dataclass
class Reloader:
    """Implements `Reloading`. `settings` are those in force; `shut` says why nothing is reloaded now."""

    settings: Settings
    outside: Outside
    parts: Changeable
    clock: Clock
    shut: str | None = "the provider is starting"
    asked_too_early: bool = False
    line: SettingsLine = field(init=False)
    _routes: dict[str, Routes] = field(init=False)
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    def __post_init__(self) -> None:
        self.line = SettingsLine(int(self.clock()))
        self._routes = {model.name: model.routes for model in self.settings.models}

    async def reload(self) -> SettingsLine:
        """Read the settings again and apply them. Raises `ViewError` where that is not the time.

        A wrong file is an outcome, in `error` of what is returned.
        """
        async with self._lock:
            if self.shut is not None:
                self.asked_too_early = True
                raise ViewError(f"{self.shut}: try again")
            await self.outside.notifier.reloading()
            try:
                self.line = await self._reload()
            finally:
                with anyio.CancelScope(shield=True):
                    await self.outside.notifier.ready(RUNNING)
            return self.line

    async def _reload(self) -> SettingsLine:
        now = int(self.clock())
        try:
            wanted = await anyio.to_thread.run_sync(self._read)
            made = plan(self.settings, wanted, self._routes)
            access = await anyio.to_thread.run_sync(read_access, made.settings)
        except (ValueError, OSError, RecursionError) as error:
            why = str(error) if isinstance(error, SettingsError) else describe_error(error)
            log.error("the settings stay as they were", error=why)
            return replace(self.line, read_at=now, error=why, applied=())
        lists = _list_changes(self.parts.intake.access, access)
        self.parts.take(made.settings, access)
        if self.parts.owner is not None and made.settings.owner != self.settings.owner:
            rules, wall = assembly.make_owner_rules(made.settings), assembly.make_wall(made.settings)
            await self.parts.owner.set_rules(rules, wall)
        self.outside.heed_log(made.settings, wanted)
        self.settings = made.settings
        for model in made.settings.models:
            self._routes[model.name] = model.routes
        line = SettingsLine(now, applied=(*_lines(made.applied), *lists), restart=_lines(made.restart))
        log.info(
            "the settings were read again",
            applied=[each.text for each in line.applied],
            needs_restart=[each.key for each in line.restart],
        )
        return line

    def _read(self) -> Settings:
        wanted = self.outside.read_again()
        assembly.check_startable(wanted)
        return wanted


def _lines(found: tuple[Difference, ...]) -> tuple[ChangeLine, ...]:
    return tuple(ChangeLine(each.key, each.before, each.after) for each in found)


def _list_changes(before: Access, after: Access) -> tuple[ChangeLine, ...]:
    """Return how the lists of customers themselves changed."""
    pairs = (
        ("customers on intake.allow_file", before.allow, after.allow),
        ("customers on intake.deny_file", before.deny, after.deny),
    )
    return tuple(
        ChangeLine(key, str(len(old)), f"{len(new)} ({len(new - old)} new, {len(old - new)} gone)")
        for key, old, new in pairs
        if old != new
    )
