"""What the doctor says, and what its checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pylon.control.views import DaemonStatus
from pylon.jobs.ports import Clock
from pylon.nostr.keys import SecretKey
from pylon.paths import Paths
from pylon.settings import Settings


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # works, or could not be told; worth a look
    FAIL = "fail"  # does not work, or is not safe


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: printable sentences. `fix` says what to do, "" when nothing is to be done."""

    level: Level
    check: str
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known before the checks that need settings start. `key` and `daemon` are None where there is none."""

    settings: Settings
    paths: Paths
    key: SecretKey | None
    daemon: DaemonStatus | None
    clock: Clock


def ok(check: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, check, what)


def warn(check: str, what: str, fix: str = "") -> Finding:
    """Return a finding that is worth a look."""
    return Finding(Level.WARN, check, what, fix)


def fail(check: str, what: str, fix: str = "") -> Finding:
    """Return a finding of something that does not work."""
    return Finding(Level.FAIL, check, what, fix)
