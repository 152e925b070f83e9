"""`pylon start`: the daemon, in the foreground."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated, Literal

import typer

from pylon.cli.context import CliContext
from pylon.cli.options import ConfigOption

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
) -> int:
    """Run the daemon in the foreground: connect to the relays, take jobs, get paid, deliver.

    It logs to stderr and stops gracefully on Ctrl-C, SIGTERM or `pylon stop`.
    """
    from pylon.cli.passphrase import unlock
    from pylon.daemon import run_daemon
    from pylon.settings import load_settings
    from pylon.settings.identity_file import load_identity

    context: CliContext = ctx.obj
    paths = context.paths
    overrides: dict[str, object] = {
        "payment.mode": "free" if free else None,
        "relays.urls": relay or None,
        "log.level": log_level,
        "log.format": log_format,
    }
    loaded = load_settings(config.expanduser() if config else None, overrides, os.environ)
    loaded = replace(loaded, settings=unlock(loaded.settings, paths))
    return run_daemon(loaded, paths, load_identity(loaded.settings, paths), debug=context.debug)
