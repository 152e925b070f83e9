"""`pylon pause`, `pylon resume` and `pylon drain`: the machine is its owner's."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import duration, moment, size
from pylon.cli.options import JsonOption
from pylon.cli.output import EXIT_USAGE, fail, say
from pylon.cli.views import NOT_RUNNING, control_client, require_free_home
from pylon.control.client import ControlClient, DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.control.owner_line import MAX_PAUSE_S, MAX_WHY, OwnerLine
from pylon.control.views import DaemonStatus
from pylon.lock import lock_holder
from pylon.paths import Paths
from pylon.text import printable

T = TypeVar("T")

_INTERRUPTED: Final = 130
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+", re.ASCII)
_LOOK_EVERY_S: Final = 0.2
_MEMORY_WAIT_S: Final = 5.0
_NOT_RUNNING: Final = "pylon is not running, and only a running daemon can be {}: pylon start"

ForOption = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="For so long, then it ends by itself: 45m, 2h, 1d12h.")
]
WhyOption = Annotated[
    str,
    typer.Option("--why", metavar="TEXT", help="Why, for yourself: pylon status shows it, customers never see it."),
]


def pause(
    ctx: typer.Context,
    for_: ForOption = None,
    why: WhyOption = "",
    now: Annotated[
        bool, typer.Option("--now", help="Put running jobs back into the queue; do not let them finish.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Leave the machine to its owner: take and start no jobs, and give the models' memory back.

    Running jobs finish first. Paid jobs that wait keep their deadline: where the pause outlasts it, what was paid
    becomes a refund due. A pause outlives a restart; it ends with its time, or with pylon resume.
    """
    context: CliContext = ctx.obj
    client = control_client(context.paths)
    line = _asked(context.paths, "paused", lambda: client.pause(_for_s(for_), _checked_why(why), at_once=now))
    status = _with_memory_back(client, line)
    line = line if status is None else status.owner
    if json:
        say(dump_json(line, indent=2))
        return
    until = "" if line.until is None else f" until {moment(line.until)}"
    say(f"paused{until}: no jobs are taken and none starts (pylon resume ends it)")
    _say_left(line)
    if line.freed_at is not None:
        say(f"{size(line.freed_bytes)} of memory are given back")
    elif line.running:
        say("the memory is given back when they have ended (pylon pause --now puts them back into the queue)")
    else:
        say("the memory is being given back: pylon status")
    for backend in () if status is None else status.backends:
        if backend.keeps_memory:
            say(f"backend {printable(backend.name)} keeps its memory: it cannot be told to give it back")


def resume(
    ctx: typer.Context,
    ignore_rules: Annotated[
        bool,
        typer.Option("--ignore-rules", help="Take jobs although a rule of [owner] says no, until all say yes."),
    ] = False,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="With --ignore-rules: only for so long, such as 2h.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take jobs again after a pause or a drain. The rules of [owner] hold again, unless they are to be ignored."""
    if for_ is not None and not ignore_rules:
        fail("--for goes with --ignore-rules: without it nothing ends", EXIT_USAGE)
    context: CliContext = ctx.obj
    client = control_client(context.paths)
    before = _asked(context.paths, "resumed", client.status).owner
    line = _asked(context.paths, "resumed", lambda: client.resume(_for_s(for_), ignore_rules=ignore_rules))
    if json:
        say(dump_json(line, indent=2))
    elif line.stance != "open":
        say(printable(f"your orders are ended, and a rule holds: {line.because}", limit=500))
        say("pylon resume --ignore-rules takes jobs anyway")
    elif line.rules_waived:
        until = "they all say yes" if line.waived_until is None else moment(line.waived_until)
        say(f"jobs are taken, whatever the rules of [owner] say, until {until}")
    else:
        say("jobs are taken again" if before.stance != "open" else "pylon was not paused: jobs are taken")


def drain(
    ctx: typer.Context,
    exit_: Annotated[
        bool, typer.Option("--exit", help="End the daemon when nothing is left; without it, it pauses.")
    ] = False,
    why: WhyOption = "",
) -> int:
    """Take no more jobs, finish what is there, and wait for that; then pylon pauses, or ends.

    What is finished is what runs and waits, and results on their way. An invoice that nobody paid yet is not waited
    for: if it is paid later, its job waits for the next resume or start. Ctrl-C ends the command, not the drain.
    Exit code 0 when nothing is left, 1 when the drain was ended before.
    """
    context: CliContext = ctx.obj
    paths = context.paths
    client = control_client(paths)
    line = _asked(paths, "drained", lambda: client.drain(_checked_why(why), exits=exit_))
    progress = _Progress()
    try:
        while line.stance == "draining":
            progress.show(_left(line))
            time.sleep(_LOOK_EVERY_S)
            line = client.status().owner
    except DaemonNotRunning:
        progress.end()
        return _gone(paths, exits=exit_)
    except KeyboardInterrupt:
        progress.end()
        say("the drain goes on: pylon status shows it, pylon resume ends it")
        return _INTERRUPTED
    progress.end()
    if line.stance == "open":
        fail("the drain was ended: pylon takes jobs again")
    if line.running or line.waiting or line.to_deliver:
        fail("the drain was ended by a pause: pylon status")
    say("drained: nothing is left, and pylon is paused (pylon resume takes jobs again)")
    if line.unpaid:
        say(f"{_jobs(line.unpaid)} not paid yet: what is paid now waits until pylon resumes")
    return 0


def _gone(paths: Paths, *, exits: bool) -> int:
    """Say what became of a daemon that no longer answers."""
    while lock_holder(paths.lock_file) is not None:
        time.sleep(_LOOK_EVERY_S)
    if exits and not paths.orders_file.exists():
        say("drained, and pylon has stopped")
        return 0
    fail("pylon has ended before it was drained; it goes on with that when it is started")


def _asked(paths: Paths, done: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except DaemonNotRunning:
        require_free_home(paths)
        fail(_NOT_RUNNING.format(done), NOT_RUNNING)


def _with_memory_back(client: ControlClient, line: OwnerLine) -> DaemonStatus | None:
    """Return the status once the memory is given back, or after a while; at once while jobs still run."""
    deadline = time.monotonic() + _MEMORY_WAIT_S
    while True:
        try:
            status = client.status()
        except DaemonNotRunning:
            return None
        if status.owner.running or status.owner.freed_at is not None or time.monotonic() > deadline:
            return status
        time.sleep(_LOOK_EVERY_S)


def _say_left(line: OwnerLine) -> None:
    if line.running or line.waiting or line.to_deliver or line.unpaid:
        say(_left(line))
    late = line.first_deadline_at
    if late is not None and line.until is not None and line.until >= late:
        say(f"the pause outlasts the deadline of a paid job ({moment(late)}): what was paid becomes a refund due")
        say("pylon drain finishes what is there first")
    elif late is not None and line.until is None:
        say(f"the first deadline of a paid job that waits is {moment(late)}: then its money becomes a refund due")


def _left(line: OwnerLine) -> str:
    paid = f" ({line.waiting_paid} paid)" if line.waiting_paid else ""
    parts = (
        f"{line.running} running" if line.running else "",
        f"{line.waiting} waiting{paid}" if line.waiting else "",
        f"{line.to_deliver} to deliver" if line.to_deliver else "",
        f"{line.unpaid} unpaid" if line.unpaid else "",
    )
    return f"jobs: {', '.join(part for part in parts if part) or 'none left'}"


def _jobs(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


class _Progress:
    """One line that changes on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._last = ""
        self._since = time.monotonic()

    def show(self, text: str) -> None:
        shown = f"{text} (since {duration(int(time.monotonic() - self._since))})" if self._live else text
        if shown == self._last:
            return
        if self._live:
            sys.stdout.write(f"\r\x1b[K{shown}")
        else:
            say(shown)
        sys.stdout.flush()
        self._last = shown

    def end(self) -> None:
        if self._live and self._last:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


def _for_s(text: str | None) -> int | None:
    if text is None:
        return None
    found = 0
    if _DURATION.fullmatch(text):
        found = sum(int(number) * _UNITS_S[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", text))
    if not 1 <= found <= MAX_PAUSE_S:
        fail(f"--for {printable(text)} is no time: write it like 45m, 2h or 1d12h, ten years at most", EXIT_USAGE)
    return found


def _checked_why(text: str) -> str:
    if len(text.strip()) > MAX_WHY:
        fail(f"--why takes at most {MAX_WHY} characters", EXIT_USAGE)
    return text.strip()
