"""The service under systemd: through `systemctl` and `journalctl`, of the system or of the user's own manager."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.service.manager import Places, ServiceState
from pylon.service.steps import Remove, Run, Step, Write, run, said
from pylon.service.units import (
    SYSTEM_USER,
    UNIT_NAME,
    Scope,
    ServiceError,
    UnitFacts,
    read_template,
    sealed,
    systemd_unit,
)
from pylon.text import printable

_ASKED: Final = (
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "SubState",
    "StatusText",
    "MainPID",
    "NRestarts",
    "Result",
)
_UP: Final = frozenset({"active", "reloading"})


@dataclass(frozen=True, slots=True)
class Systemd:
    """Implements `ServiceManager`."""

    scope: Scope
    places: Places

    @property
    def unit_path(self) -> Path:
        """Where the administrator's units lie, or the user's."""
        if self.scope is Scope.SYSTEM:
            return self.places.root / "etc/systemd/system" / UNIT_NAME
        config = self.places.environ.get("XDG_CONFIG_HOME") or str(self.places.home / ".config")
        return Path(config) / "systemd/user" / UNIT_NAME

    @property
    def users_path(self) -> Path:
        """Where the service's user is declared."""
        return self.places.root / "etc/sysusers.d/pylon.conf"

    def render(self, facts: UnitFacts) -> str:
        """Return the unit's text."""
        return systemd_unit(facts)

    def check(self) -> None:
        """Raise unless systemd runs here and answers."""
        try:
            done = run(self._systemctl("show", "--property=Version"))
        except ServiceError as error:
            raise ServiceError(
                f"this machine has no systemd ({error}): start it with pylon start --detach"
            ) from None
        if done.returncode:
            whose = "the user's manager" if self.scope is Scope.USER else "systemd"
            hint = "start it with pylon start --detach, or see the unit with pylon service install --print"
            raise ServiceError(f"{whose} does not answer ({said(done)}): {hint}")

    def install(self, facts: UnitFacts, *, now: bool) -> list[Step]:
        """Return the steps: the user, the unit, enabled for the next boot or login."""
        steps: list[Step] = []
        if self.scope is Scope.SYSTEM:
            steps.append(Write(self.users_path, sealed(read_template("systemd/pylon.sysusers.conf"), "# {}")))
            steps.append(Run(("systemd-sysusers", str(self.users_path))))
            # Before the first start too: its settings are made there.
            owned = ("-o", SYSTEM_USER, "-g", SYSTEM_USER, "-m", "0700")
            steps.append(Run(("install", "-d", *owned, str(facts.home))))
        steps.append(Write(self.unit_path, self.render(facts)))
        steps.append(Run(self._systemctl("daemon-reload")))
        steps.append(Run(self._systemctl("enable", UNIT_NAME)))
        return [*steps, *self.start()] if now else steps

    def uninstall(self) -> list[Step]:
        """Return the steps; the service's user and its files stay."""
        steps: list[Step] = [Run(self._systemctl("disable", "--now", UNIT_NAME), may_fail=True)]
        steps.append(Remove(self.unit_path))
        if self.scope is Scope.SYSTEM:
            steps.append(Remove(self.users_path))
        return [*steps, Run(self._systemctl("daemon-reload"))]

    def start(self) -> list[Step]:
        """Return the step, which waits until the daemon is ready or has failed."""
        return [Run(self._systemctl("start", UNIT_NAME))]

    def stop(self) -> list[Step]:
        """Return the step, which waits for running jobs."""
        return [Run(self._systemctl("stop", UNIT_NAME))]

    def state(self) -> ServiceState:
        """Ask systemd."""
        done = run(self._systemctl("show", UNIT_NAME, f"--property={','.join(_ASKED)}"))
        if done.returncode:
            raise ServiceError(f"systemctl failed: {said(done)}")
        told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        active, result = told.get("ActiveState", ""), told.get("Result", "")
        return ServiceState(
            installed=told.get("LoadState") == "loaded",
            running=active in _UP,
            failed=active == "failed",
            word=printable(f"{active} ({told.get('SubState', '')})"),
            enabled=printable(told.get("UnitFileState", "")),
            pid=_number(told.get("MainPID", "")),
            detail=printable(told.get("StatusText", "") if result in ("", "success") else result, limit=300),
            restarts=_number(told.get("NRestarts", "")),
        )

    def log_command(self, facts: UnitFacts, *, lines: int, follow: bool) -> tuple[str, ...]:
        """Return journalctl's words."""
        of = ("--user-unit", UNIT_NAME) if self.scope is Scope.USER else ("--unit", UNIT_NAME)
        shown = ("--no-pager", "--output=short-iso", "--lines", str(lines))
        return ("journalctl", *of, *shown, *(("--follow",) if follow else ()))

    def _systemctl(self, *words: str) -> tuple[str, ...]:
        return ("systemctl", *(("--user",) if self.scope is Scope.USER else ()), *words)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
