"""`pylon reload`: have the daemon read its settings again, and say what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pylon.cli.context import CliContext
from pylon.cli.options import JsonOption
from pylon.cli.output import EXIT_FAILED, fail, say
from pylon.cli.views import NOT_RUNNING, control_client, require_free_home
from pylon.control.client import DaemonNotRunning
from pylon.control.codec import dump_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.control.views import SettingsLine


def command(ctx: typer.Context, json: JsonOption = False) -> int:
    """Have the daemon read its settings again, as SIGHUP does; running jobs are not touched.

    It reads what it was started with: the file, the lists of customers, credentials; flags stay as they were.
    What can change at once does, and what needs a restart is listed. Exit code: 0 done, 1 what was read is wrong
    and nothing has changed, 3 no daemon runs.
    """
    context: CliContext = ctx.obj
    try:
        line = control_client(context.paths).reload()
    except DaemonNotRunning:
        require_free_home(context.paths)
        fail("pylon is not running: it reads its settings when it starts", NOT_RUNNING)
    if json:
        say(dump_json(line, indent=2))
        return EXIT_FAILED if line.error else 0
    if line.error:
        fail(f"the settings stay as they were: {line.error}")
    _show(line)
    return 0


def _show(line: SettingsLine) -> None:
    for change in line.applied:
        say(f"changed: {printable(change.text, limit=400)}")
    for change in line.restart:
        say(f"needs a restart: {printable(change.text, limit=400)}")
    if not (line.applied or line.restart):
        say("nothing has changed")
