"""The service under launchd, on a Mac: an agent of the user's session, or a daemon that runs as one user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pylon.service.manager import Places, ServiceState
from pylon.service.steps import Remove, Run, Step, Write, run, said
from pylon.service.units import LABEL, Scope, ServiceError, UnitFacts, launchd_plist
from pylon.text import printable

_STATE = re.compile(r"^\s*(state|pid|last exit code|runs) = (.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Launchd:
    """Implements `ServiceManager`."""

    scope: Scope
    places: Places

    @property
    def unit_path(self) -> Path:
        """Where the property list lies."""
        if self.scope is Scope.SYSTEM:
            return self.places.root / "Library/LaunchDaemons" / f"{LABEL}.plist"
        return self.places.home / "Library/LaunchAgents" / f"{LABEL}.plist"

    @property
    def _domain(self) -> str:
        return "system" if self.scope is Scope.SYSTEM else f"gui/{self.places.uid}"

    @property
    def _target(self) -> str:
        return f"{self._domain}/{LABEL}"

    def render(self, facts: UnitFacts) -> str:
        """Return the property list."""
        return launchd_plist(facts)

    def check(self) -> None:
        """Raise unless launchd answers for this user."""
        try:
            done = run(("launchctl", "print", self._domain))
        except ServiceError as error:
            raise ServiceError(
                f"this machine has no launchd ({error}): start it with pylon start --detach"
            ) from None
        if done.returncode:
            raise ServiceError(
                f"launchd does not answer ({said(done)}): log in at this Mac, or pylon start --detach"
            )

    def install(self, facts: UnitFacts, *, now: bool) -> list[Step]:
        """Return the steps; without `now` it starts at the next login or boot."""
        steps: list[Step] = [Write(self.unit_path, self.render(facts))]
        return [*steps, *self.start()] if now else steps

    def uninstall(self) -> list[Step]:
        """Return the steps: launchd lets it go, which stops it, and its list is removed."""
        return [Run(("launchctl", "bootout", self._target), may_fail=True), Remove(self.unit_path)]

    def start(self) -> list[Step]:
        """Return the steps, which start it whether launchd knows it already or not."""
        return [
            Run(("launchctl", "enable", self._target)),
            Run(("launchctl", "bootstrap", self._domain, str(self.unit_path)), may_fail=True),
            Run(("launchctl", "kickstart", self._target)),
        ]

    def stop(self) -> list[Step]:
        """Return the step; it stays known, and does not start again by itself."""
        return [Run(("launchctl", "kill", "SIGTERM", self._target))]

    def state(self) -> ServiceState:
        """Ask launchd."""
        done = run(("launchctl", "print", self._target))
        installed = self.unit_path.exists()
        if done.returncode:
            return ServiceState(installed, False, "not loaded")
        told = dict(_STATE.findall(done.stdout)[::-1])  # the first of each is the service's own
        ended = told.get("last exit code", "0").split(":")[0]
        running = told.get("state") == "running"
        return ServiceState(
            installed=installed,
            running=running,
            failed=not running and ended.lstrip("-").isdigit() and ended != "0",
            word=printable(told.get("state", "unknown")),
            enabled="enabled" if installed else "",
            pid=int(pid) if (pid := told.get("pid", "")).isdigit() else 0,
            detail="" if running or ended == "0" else printable(f"last exit code {told.get('last exit code', '')}"),
        )

    def log_command(self, facts: UnitFacts, *, lines: int, follow: bool) -> tuple[str, ...]:
        """Return tail's words: launchd writes into a file."""
        return ("tail", "-n", str(lines), *(("-F",) if follow else ()), str(facts.log_file))
