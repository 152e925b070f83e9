"""The `pylon` command: global options, the list of commands, and one line for whatever goes wrong.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 not running, 4 the wallet cannot be asked, 130
interrupted. Nothing is imported here that a command does not need; see `pylon.cli.lazy`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NoReturn, TextIO

import typer
from typer.main import get_command

from pylon import __version__
from pylon.cli.context import CliContext
from pylon.cli.lazy import LazyCommand, LazyGroup
from pylon.cli.output import sentence_of
from pylon.paths import HOME_VARIABLE
from pylon.text import printable

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

COMMANDS: Final = {
    "init": LazyCommand(
        "pylon.cli.init", "command", "Make or import the identity and write the first settings.", "pylon init"
    ),
    "identity": LazyCommand(
        "pylon.cli.identity", "app", "Show, encrypt or decrypt the identity.", "pylon identity show"
    ),
    "config": LazyCommand("pylon.cli.config", "app", "Show or change the settings.", "pylon config show"),
    "start": LazyCommand("pylon.cli.start", "command", "Run the daemon in the foreground.", "pylon start --free"),
    "stop": LazyCommand("pylon.cli.stop", "command", "Stop the daemon gracefully.", "pylon stop --timeout 60"),
    "pause": LazyCommand(
        "pylon.cli.owner", "pause", "Leave the machine to its owner for a while.", "pylon pause --for 2h"
    ),
    "resume": LazyCommand("pylon.cli.owner", "resume", "Take jobs again.", "pylon resume"),
    "drain": LazyCommand(
        "pylon.cli.owner", "drain", "Finish what is there and take nothing more.", "pylon drain --exit"
    ),
    "reload": LazyCommand(
        "pylon.cli.reload", "command", "Have the daemon read its settings again.", "pylon reload --json"
    ),
    "service": LazyCommand(
        "pylon.cli.service", "app", "Run as a service of systemd or launchd.", "pylon service install"
    ),
    "status": LazyCommand("pylon.cli.status", "command", "Show what is going on.", "pylon status --json"),
    "backends": LazyCommand(
        "pylon.cli.backends", "app", "Find, list, try and measure model servers.", "pylon backends detect"
    ),
    "relays": LazyCommand("pylon.cli.relays", "app", "List, check, add and remove relays.", "pylon relays check"),
    "doctor": LazyCommand("pylon.cli.doctor", "command", "Try everything that selling needs.", "pylon doctor"),
    "jobs": LazyCommand("pylon.cli.jobs", "app", "List, show and cancel jobs.", "pylon jobs list --work running"),
    "refunds": LazyCommand(
        "pylon.cli.refunds", "app", "List refunds that are due, pay them or write them off.", "pylon refunds list"
    ),
    "earnings": LazyCommand("pylon.cli.earnings", "command", "Show settled payments.", "pylon earnings --since 7d"),
    "price": LazyCommand(
        "pylon.cli.price", "command", "Explain what a job costs.", "pylon price my-model --prompt 'What is salt?'"
    ),
    "reconcile": LazyCommand(
        "pylon.cli.reconcile", "command", "Compare the books with the wallet.", "pylon reconcile --since 7d"
    ),
    "backup": LazyCommand(
        "pylon.cli.backup",
        "backup",
        "Write identity, settings and books into one encrypted file.",
        "pylon backup pylon.backup",
    ),
    "restore": LazyCommand("pylon.cli.backup", "restore", "Bring a backup back.", "pylon restore pylon.backup"),
    "request": LazyCommand(
        "pylon.cli.request", "command", "Buy a job.", "pylon request 'What is salt?' --bid 21 --pay"
    ),
    "wallet": LazyCommand(
        "pylon.cli.wallet", "app", "Connect a wallet, look into it, move money.", "pylon wallet status"
    ),
    "nexus": LazyCommand("pylon.cli.nexus", "app", "Ask Nexus about the market.", "pylon nexus stats"),
    "completion": LazyCommand(
        "pylon.cli.completion", "command", "Print the script that lets a shell complete.", "pylon completion bash"
    ),
    "announce": LazyCommand(
        "pylon.cli.announce", "app", "Show, publish or withdraw the announcement.", "pylon announce show"
    ),
    "providers": LazyCommand(
        "pylon.cli.providers", "command", "List the providers that relays know.", "pylon providers --model smollm2"
    ),
    "demo": LazyCommand(
        "pylon.cli.demo", "command", "Show the whole market on this machine, with play money.", "pylon demo"
    ),
}


class _Commands(LazyGroup):
    """All of `pylon`."""

    lazy: ClassVar = COMMANDS


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: pylon status",
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    home: Annotated[
        str | None,
        typer.Option(
            "--home", metavar="FOLDER", help=f"Where this pylon's files lie, instead of ${HOME_VARIABLE}."
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Settings to read, instead of the home's.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Sell this machine's inference on Nostr (NIP-90) for Lightning payments."""
    if version:
        typer.echo(f"pylon {__version__}")
        raise typer.Exit
    if home is not None:
        if not home.strip():
            raise typer.BadParameter("the name of the folder is empty", param_hint="--home")
        os.environ[HOME_VARIABLE] = str(Path(home).expanduser().absolute())
    ctx.obj = CliContext(debug)
    if config is not None:
        # The commands that read settings have this option themselves; here it becomes their default.
        ctx.default_map = {
            "start": {"config": config},
            "request": {"config": config},
            "price": {"config": config},
            "doctor": {"config": config},
            "reconcile": {"config": config},
            "backup": {"config": config},
            "config": {"show": {"config": config}, "set": {"config": config}},
            "wallet": {
                verb: {"config": config} for verb in ("status", "balance", "invoice", "pay", "history", "connect")
            },
            "nexus": {"stats": {"config": config}},
            "backends": {verb: {"config": config} for verb in ("detect", "list", "test", "bench")},
            "relays": {verb: {"config": config} for verb in ("list", "check", "add", "remove")},
            "announce": {name: {"config": config} for name in ("show", "publish", "withdraw")},
            "providers": {"config": config},
            "identity": {verb: {"config": config} for verb in ("show", "encrypt", "decrypt")},
            "service": {"install": {"config": config}},
        }
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    _prepare(sys.stdout)
    _prepare(sys.stderr)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        code = BROKEN_PIPE
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. What goes wrong is one line on stderr."""
    args = _debug_first(arguments)
    debug = args[:1] == ["--debug"]
    try:
        command: Any = get_command(app)
        answer = command.main(args, prog_name="pylon", standalone_mode=False)
        return answer if isinstance(answer, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _abandon_stdout()
        return BROKEN_PIPE
    except typer.Abort as error:
        interrupted = isinstance(error.__context__ or error.__cause__, KeyboardInterrupt)
        return _fail("aborted", INTERRUPTED if interrupted else 1)
    except typer.TyperException as error:
        return _fail(_usage(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  (the one place that shows the operator what nobody handled)
        if debug:
            _show_traceback(error)
        return _fail(sentence_of(error), getattr(error, "exit_code", 1))


def _debug_first(arguments: Sequence[str]) -> list[str]:
    """Let `--debug` stand anywhere before `--`: it is wanted after something failed, at the end of the line."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before, after = list(arguments[:end]), list(arguments[end:])
    if "--debug" not in before:
        return before + after
    return ["--debug", *(word for word in before if word != "--debug"), *after]


def _fail(message: str, code: int) -> int:
    print(f"pylon: {printable(message, limit=2000)}", file=sys.stderr)
    return code


def _usage(error: typer.TyperException) -> str:
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "pylon"
    return f"{' '.join(message.split())} (see: {where} --help)"


def _show_traceback(error: Exception) -> None:
    import traceback

    text = "".join(traceback.format_exception(error)).rstrip()
    print(printable(text, limit=100_000, keep_newlines=True), file=sys.stderr)


def _prepare(stream: TextIO | None) -> None:
    # A terminal that cannot show a character gets its escape; a failed encoding must not end the command.
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    # Python flushes stdout once more at exit and would complain about the reader that has gone.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
