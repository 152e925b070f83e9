"""`pylon service`: installed, started, stopped and looked at as a service of systemd or launchd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylon.cli.options import ConfigOption, JsonOption
from pylon.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say, say_json, warn
from pylon.cli.views import NOT_RUNNING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pylon.service.manager import Places, ServiceManager, ServiceState
    from pylon.service.steps import Step
    from pylon.service.units import Scope

app = typer.Typer(rich_markup_mode=None, add_completion=False)

UserOption = Annotated[bool, typer.Option("--user", help="The service of your own login.")]
SystemOption = Annotated[bool, typer.Option("--system", help="The service of the machine, with its own user.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Go on although the unit was changed by hand.")]


@app.callback()
def _service() -> None:
    """Run as a service of systemd or launchd: started with the machine, watched, and stopped gracefully.

    Without --user or --system it is the user's service, or the system's when root asks.
    """


@app.command("install", epilog="Example: pylon service install --user --now")
def install(
    user: UserOption = False,
    system: SystemOption = False,
    now: Annotated[bool, typer.Option("--now", help="Start it too.")] = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    print_unit: Annotated[bool, typer.Option("--print", help="Print the unit, and do nothing.")] = False,
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="Let the system's service use GPUs, for embedded models or the owner's rule."),
    ] = False,
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", metavar="FOLDER", help="Where the secrets' files lie, each by its name."),
    ] = None,
    executable: Annotated[
        Path | None, typer.Option("--executable", metavar="FILE", help="The pylon to run; by default this one.")
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Write the unit and have it start with the machine (or the login), after showing what is wrong, if anything.

    A unit that was changed by hand is never overwritten without --force, which keeps a copy. The files of the
    folder of credentials (nsec, mnemonic, passphrase, wallet_token, wallet_pay_token, wallet_uri; .cred where
    systemd-creds encrypted them) are handed over by systemd's LoadCredential.
    """
    from pylon.cli.service_facts import gather, notes, refuse_hidden

    manager = _manager(user, system)
    facts = gather(
        manager.scope,
        _places(),
        config=config,
        credentials=credentials,
        executable=executable,
        gpu=gpu,
    )
    if print_unit:
        say(manager.render(facts).rstrip("\n"))
        return 0
    steps = manager.install(facts, now=now)
    if dry_run:
        return _show(steps)
    refuse_hidden(facts)
    manager.check()
    _do(steps, force=force)
    for note in notes(facts, now=now):
        say(note)
    return 0


@app.command("uninstall", epilog="Example: pylon service uninstall")
def uninstall(
    user: UserOption = False,
    system: SystemOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int:
    """Stop the service and remove its unit; settings, identity, books and the service's user stay."""
    manager = _manager(user, system)
    if not manager.unit_path.exists():
        say(f"pylon is not installed as a service of the {manager.scope}: there is no {manager.unit_path}")
        return 0
    steps = manager.uninstall()
    if dry_run:
        return _show(steps)
    manager.check()
    _do(steps, force=force)
    return 0


@app.command("start", epilog="Example: pylon service start")
def start(user: UserOption = False, system: SystemOption = False) -> int:
    """Start the service; with systemd this waits until the daemon is ready or has failed."""
    manager = _installed(user, system)
    _do(manager.start())
    return 0


@app.command("stop", epilog="Example: pylon service stop")
def stop(user: UserOption = False, system: SystemOption = False) -> int:
    """Stop the service gracefully: running jobs may finish, as with pylon stop."""
    manager = _installed(user, system)
    _do(manager.stop())
    return 0


@app.command("status", epilog="Example: pylon service status")
def status(user: UserOption = False, system: SystemOption = False, json: JsonOption = False) -> int:
    """Show how the service stands; pylon status shows what the daemon itself says.

    Exit code: 0 it runs, 1 it has failed or is on its way, 3 it is not running or not installed.
    """
    from pylon.service.steps import is_changed

    manager = _manager(user, system)
    manager.check()
    state = manager.state()
    changed = is_changed(manager.unit_path)
    if json:
        say_json(
            {
                "scope": manager.scope,
                "unit": str(manager.unit_path),
                "changed_by_hand": changed,
                **{name: getattr(state, name) for name in state.__slots__},
            }
        )
    else:
        _show_state(manager, state, changed=changed)
    if state.running:
        return 0
    stopped = not state.failed and (not state.installed or state.word.startswith(("inactive", "not ")))
    return NOT_RUNNING if stopped else EXIT_FAILED


@app.command("logs", epilog="Example: pylon service logs --follow")
def logs(
    user: UserOption = False,
    system: SystemOption = False,
    lines: Annotated[int, typer.Option("--lines", min=1, max=1_000_000, help="How many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
) -> int:
    """Show the service's log: of the journal with systemd, of the log file with launchd."""
    from pylon.cli.service_facts import gather

    manager = _manager(user, system)
    words = manager.log_command(gather(manager.scope, _places()), lines=lines, follow=follow)
    try:
        return subprocess.run(words, check=False).returncode
    except FileNotFoundError:
        fail(f"{words[0]} is not on this machine")


def _places() -> Places:
    from pylon.service.manager import Places

    return Places(Path("/"), Path.home(), os.environ, os.getuid())


def _manager(user: bool, system: bool) -> ServiceManager:
    from pylon.service.manager import manager_of

    return manager_of(_scope(user, system), _places())


def _scope(user: bool, system: bool) -> Scope:
    from pylon.service.units import Scope

    if user and system:
        fail("--user and --system exclude each other", EXIT_USAGE)
    return Scope.SYSTEM if system or (not user and os.geteuid() == 0) else Scope.USER


def _installed(user: bool, system: bool) -> ServiceManager:
    manager = _manager(user, system)
    if not manager.unit_path.exists():
        fail(f"pylon is not installed as a service of the {manager.scope}: run pylon service install first")
    manager.check()
    return manager


def _show(steps: Sequence[Step]) -> int:
    from pylon.service.steps import Run, is_changed, shown

    for step in steps:
        changed = not isinstance(step, Run) and is_changed(step.path)
        say(f"would {shown(step)}{' (changed by hand: only with --force)' if changed else ''}")
    return 0


def _do(steps: Sequence[Step], *, force: bool = True) -> None:
    from pylon.service.steps import carry_out, refuse_changed

    if not force:
        refuse_changed(steps)
    for step in steps:
        say(carry_out(step))


def _show_state(manager: ServiceManager, state: ServiceState, *, changed: bool) -> None:
    from pylon.cli.layout import Colour, Screen, cell

    colour = Colour.GOOD if state.running else Colour.BAD if state.failed else Colour.WARN
    unit = f"{manager.unit_path}{' (changed by hand)' if changed else ''}" if state.installed else "not installed"
    rows = [
        [cell("service"), cell(f"of the {manager.scope}")],
        [cell("unit"), cell(unit, limit=400)],
        [cell("state"), cell(state.word, colour)],
    ]
    rows += [[cell("because"), cell(state.detail, limit=400)]] if state.detail else []
    rows += [[cell("at start"), cell(state.enabled)]] if state.enabled else []
    rows += [[cell("process"), cell(str(state.pid))]] if state.pid else []
    rows += [[cell("restarts"), cell(str(state.restarts), Colour.WARN)]] if state.restarts else []
    screen = Screen()
    screen.table(rows)
    say(screen.text())
    if not state.installed:
        warn("install it with: pylon service install")
