"""The service managers that can run a pylon, each behind the same few questions; `manager_of` picks one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pylon.service.steps import Step
from pylon.service.units import Scope, ServiceError, UnitFacts


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How the service stands: `word` as its manager says it, `detail` what it adds."""

    installed: bool
    running: bool
    word: str
    failed: bool = False
    enabled: str = ""
    pid: int = 0
    detail: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where units lie: below `root`, or in the home of whoever asks."""

    root: Path
    home: Path
    environ: Mapping[str, str]
    uid: int


class ServiceManager(Protocol):
    """What the commands need of one. Everything may raise `ServiceError`."""

    @property
    def scope(self) -> Scope:
        """Whose service it is."""
        ...

    @property
    def unit_path(self) -> Path:
        """Where its unit lies."""
        ...

    def render(self, facts: UnitFacts) -> str:
        """Return the unit's text."""
        ...

    def check(self) -> None:
        """Raise unless the manager is there and answers."""
        ...

    def install(self, facts: UnitFacts, *, now: bool) -> list[Step]:
        """Return the steps of installing; with `now` it is started too."""
        ...

    def uninstall(self) -> list[Step]:
        """Return the steps of stopping and removing it."""
        ...

    def start(self) -> list[Step]:
        """Return the steps of starting it."""
        ...

    def stop(self) -> list[Step]:
        """Return the steps of stopping it."""
        ...

    def state(self) -> ServiceState:
        """Ask how it stands."""
        ...

    def log_command(self, facts: UnitFacts, *, lines: int, follow: bool) -> tuple[str, ...]:
        """Return the program that shows its log."""
        ...


def manager_of(scope: Scope, places: Places, platform: str | None = None) -> ServiceManager:
    """Return this machine's service manager. Raises `ServiceError` where Pylon knows none."""
    platform = platform or sys.platform
    if platform == "darwin":
        from pylon.service.launchd import Launchd

        return Launchd(scope, places)
    if platform.startswith("linux"):
        from pylon.service.systemd import Systemd

        return Systemd(scope, places)
    raise ServiceError(f"no service manager is known for {platform}: start it with pylon start --detach")
