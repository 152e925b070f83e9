"""`pylon start`: the daemon, in the foreground or in the background."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from pylon.cli.context import CliContext
from pylon.cli.options import ConfigOption
from pylon.cli.output import say

if TYPE_CHECKING:
    from pylon.paths import Paths
    from pylon.service.notify import Notifier
    from pylon.settings import Settings

_READY_WITHIN_S: Final = 120.0

# Spelled out: importing pylon.logs or pylon.settings for their enums would make `--help` slow.
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]


def command(
    ctx: typer.Context,
    free: Annotated[bool, typer.Option("--free", help="Work for nothing; no wallet is needed.")] = False,
    config: ConfigOption = None,
    relay: Annotated[
        list[str] | None,
        typer.Option("--relay", metavar="URL", help="Use this relay instead of the settings'; may be repeated."),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option("--log-level", help="The least serious lines logged.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option("--log-format", help="auto: text on a terminal, JSON lines otherwise.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Go on in the background once it is ready; it logs to a file.")
    ] = False,
) -> int:
    """Run the daemon in the foreground: connect to the relays, take jobs, get paid, deliver.

    It logs to stderr, stops gracefully on Ctrl-C, SIGTERM or `pylon stop`, and reads its settings again on SIGHUP
    or `pylon reload`. With --detach the command ends when the daemon is ready, with exit code 0, or has failed,
    and says why.
    """
    from pylon.cli.passphrase import unlock
    from pylon.daemon import run_daemon
    from pylon.settings import load_settings
    from pylon.settings.identity_file import load_identity

    context: CliContext = ctx.obj
    paths = context.paths
    file = config.expanduser().absolute() if config else None
    overrides: dict[str, object] = {
        "payment.mode": "free" if free else None,
        "relays.urls": relay or None,
        "log.level": log_level,
        "log.format": log_format,
    }
    loaded = load_settings(file, overrides, os.environ)
    before, unlocked = loaded.settings, unlock(loaded.settings, paths)

    def read_again() -> Settings:
        fresh = load_settings(file, overrides, os.environ).settings
        # A passphrase that was typed is in no file: that it is not there now is no change.
        same = fresh.identity == before.identity
        return fresh.model_copy(update={"identity": unlocked.identity}) if same else fresh

    key = load_identity(unlocked, paths)
    run = partial(
        run_daemon, replace(loaded, settings=unlocked), paths, key, read_again=read_again, debug=context.debug
    )
    return _detached(run, paths) if detach else run()


def _detached(run: partial[int], paths: Paths) -> int:
    from pylon.cli.output import sentence_of
    from pylon.paths import HOME_VARIABLE, private_folder
    from pylon.service.detach import run_detached

    private_folder(paths.state_dir)
    if os.environ.get(HOME_VARIABLE):
        os.environ[HOME_VARIABLE] = str(paths.state_dir)  # it may be relative to where the daemon will not be

    def run_and_tell(notifier: Notifier) -> int:
        return run(notifier=notifier)

    pid = run_detached(run_and_tell, sentence_of, paths.log_file, wait_s=_READY_WITHIN_S)
    say(f"pylon runs in the background as process {pid}; log: {paths.log_file}")
    return 0
