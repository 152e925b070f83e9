"""For how long nobody has used this machine: the time of the last key or mouse, as far as the system tells it.

Linux: logind's sessions. Who sits in front of a terminal (ssh included) is told by the terminal itself; who sits in
front of a graphical session by its idle hint, which the desktop sets after a while without input, or to the second
by `xprintidle` where that is installed and we run in that session. macOS: the I/O registry. Load is no sign of a
person: our own jobs make load, and whoever reads makes none.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pylon.owner.programs import Ask, Silent, ask_program
from pylon.owner.rules import Unknown

_HID_IDLE: Final = re.compile(r'"HIDIdleTime"\s*=\s*([0-9]{1,19})')
_SESSION_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_TERMINAL: Final = re.compile(r"(?:tty|pts/)[A-Za-z0-9]{1,16}", re.ASCII)
_PROPERTIES: Final = ("Id", "Class", "Type", "State", "TTY", "IdleHint", "IdleSinceHint")
_MAX_SESSIONS: Final = 256

NOBODY: Final = math.inf
"""Nobody is logged in."""

ReadAt = Callable[[str], float | None]
"""Returns when a terminal was last read from, unix seconds; None when it is not there."""


async def idle_s(
    now: float,
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str],
    ask: Ask = ask_program,
    read_at: ReadAt | None = None,
) -> float | Unknown:
    """Return for how many seconds nobody has used this machine, `NOBODY` when nobody is logged in. Never raises."""
    try:
        if platform == "darwin":
            return parse_ioreg(await ask(["/usr/sbin/ioreg", "-c", "IOHIDSystem", "-d", "4"]))
        if platform != "linux":
            return Unknown(f"on {platform} nothing is known to ask")
        shown = await _x_idle_s(environ, ask)
        return await _logind_idle_s(now, ask, read_at or _read_at, shown)
    except Silent as error:
        return Unknown(str(error))


def parse_ioreg(said: str) -> float | Unknown:
    """Return what macOS's I/O registry tells, in seconds."""
    found = [int(each) for each in _HID_IDLE.findall(said)]
    return min(found) / 1e9 if found else Unknown("the I/O registry tells no HIDIdleTime")


async def _x_idle_s(environ: Mapping[str, str], ask: Ask) -> float | None:
    """Return what the X server of our own session tells; None where there is none to ask."""
    if not environ.get("DISPLAY") or environ.get("XDG_SESSION_TYPE") == "wayland":
        return None  # beside Wayland, X does not see every key
    try:
        said = (await ask(["xprintidle"])).strip()
    except Silent:
        return None
    return int(said) / 1000 if said.isascii() and said.isdigit() and len(said) < 16 else None


async def _logind_idle_s(now: float, ask: Ask, read_at: ReadAt, shown: float | None) -> float | Unknown:
    ids = parse_sessions(await ask(["loginctl", "list-sessions", "--no-legend"]))
    if not ids:
        return NOBODY if shown is None else shown
    wanted = [f"--property={name}" for name in _PROPERTIES]
    sessions = list(parse_properties(await ask(["loginctl", "show-session", *wanted, "--", *ids])))
    return least_idle_s(sessions, now, read_at, shown)


def parse_sessions(said: str) -> list[str]:
    """Return the ids that `loginctl list-sessions` lists."""
    first = [line.split()[0] for line in said.splitlines() if line.strip()]
    return [word for word in first if _SESSION_ID.fullmatch(word)][:_MAX_SESSIONS]


def parse_properties(said: str) -> Iterator[dict[str, str]]:
    """Yield what `loginctl show-session` tells of each session."""
    for block in said.split("\n\n"):
        session = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if session:
            yield session


def least_idle_s(
    sessions: Iterable[Mapping[str, str]], now: float, read_at: ReadAt, shown: float | None
) -> float | Unknown:
    """Return for how long the session that was used last is idle. `shown` is what our own X server tells."""
    idle = [NOBODY]
    for session in sessions:
        # Others are the login screen, and what systemd itself opens.
        if not session.get("Class", "").startswith("user") or session.get("Class") == "user-incomplete":
            continue
        kind, terminal = session.get("Type", ""), session.get("TTY", "")
        if kind == "x11" and shown is not None:
            idle.append(shown)
        elif kind in ("x11", "wayland", "mir"):
            idle.append(_hinted_s(session, now))
        elif _TERMINAL.fullmatch(terminal):
            at = read_at(terminal)
            idle.append(NOBODY if at is None else max(0.0, now - at))
    return min(idle)


def _hinted_s(session: Mapping[str, str], now: float) -> float:
    """Return for how long a graphical session says that it is idle; one that does not say so is used."""
    since = session.get("IdleSinceHint", "")
    if session.get("IdleHint") != "yes" or not (since.isascii() and since.isdigit() and len(since) < 20):
        return 0.0
    return max(0.0, now - int(since) / 1e6)


def _read_at(terminal: str) -> float | None:
    # A key that is pressed is read from the terminal by whatever runs in it: that is how `w` knows too.
    try:
        return (Path("/dev") / terminal).stat().st_atime
    except OSError:
        return None
