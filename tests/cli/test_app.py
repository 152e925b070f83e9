"""The shell of the command: what it imports, how it fails, what its help says."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pylon import __version__
from pylon.cli.app import COMMANDS, run
from pylon.cli.lazy import LazyCommand
from pylon.logs import LogFormat, LogLevel
from tests.support.fake_daemon import fake_daemon, run_pylon

SLOW = {
    *("pydantic", "pydantic_settings", "httpx", "rich", "structlog", "sqlalchemy", "starlette", "uvicorn", "anyio"),
    *("asyncio", "coincurve", "websockets", "nostr_sdk", "orjson"),
}
LIST_MODULES = """
import sys
from pylon.cli.app import run
code = run(sys.argv[1:])
print("MODULES", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def modules_after(*arguments: str, home: Path) -> tuple[int, set[str]]:
    """Run a command line in a fresh process; return its exit code and the packages it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments],
        capture_output=True, text=True, timeout=30, env={**os.environ, "PYLON_HOME": str(home)}, check=False,
    )  # fmt: skip
    listed = done.stdout.splitlines()[-1].split()
    assert listed[0] == "MODULES"
    return done.returncode, set(listed[1:])


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    code, modules = modules_after("--help", home=tmp_path)
    assert code == 0
    assert "typer" in modules
    assert not modules & (SLOW | {"http", "ssl", "socket", "platformdirs"})


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--debug", "--home", "{home}", "status"]])
def test_status_imports_nothing_slow(tmp_path: Path, arguments: list[str]) -> None:
    filled = [word.replace("{home}", str(tmp_path)) for word in arguments]
    code, modules = modules_after(*filled, home=tmp_path)
    assert code == 3
    assert modules & SLOW == set()
    with fake_daemon(tmp_path):
        code, modules = modules_after(*filled, home=tmp_path)
    assert code == 0
    assert "http" in modules
    assert modules & SLOW == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_with_an_example(name: str, tmp_path: Path) -> None:
    done = run_pylon(name, "--help", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip().startswith(f"Example: pylon {name}")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("name", ["stop", "status", "start", "earnings"])
def test_list_of_commands_says_what_the_command_says(name: str) -> None:
    listed = COMMANDS[name].help.rstrip(".")
    assert (COMMANDS[name].load(name).help or "").startswith(listed)


def test_start_knows_the_log_settings() -> None:
    options = {param.name: param for param in COMMANDS["start"].load("start").params}
    assert set(options["log_level"].type_descriptor.choices) == {str(level) for level in LogLevel}
    assert set(options["log_format"].type_descriptor.choices) == {str(each) for each in LogFormat}


def test_bare_command_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert text.splitlines()[-1].strip() == "Example: pylon status"
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"pylon {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean 'status'"),
        (["status", "--quick"], "No such option: --quick (see: pylon status --help)"),
        (["status", "\x1b[31mred"], "\\x1b[31mred"),
        (["jobs", "list", "--limit", "0"], "--limit"),
        (["jobs", "list", "--work", "sleeping"], "--work"),
        (["jobs", "show"], "Missing argument 'ID' (see: pylon jobs show --help)"),
        (["jobs"], "Missing command (see: pylon jobs --help)"),
        (["--home", " ", "status"], "the name of the folder is empty"),
        (["earnings", "--since", "soon"], "a time ago (24h, 7d, 4w)"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pylon: ")
    assert err.count("\n") == 1
    assert said in err
    assert "\x1b" not in err


def stand_in(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `pylon stop` raise `error`."""

    def command() -> None:
        raise error

    monkeypatch.setattr(LazyCommand, "load", lambda self, name: _as_command(command, name))


def _as_command(function: object, name: str) -> object:
    app = typer.Typer(add_completion=False)
    app.command(name)(function)  # type: ignore[type-var]
    return typer.main.get_command(app)


class CodedError(Exception):
    exit_code = 7


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("broken\nin two \x1b[31m"), 1, "pylon: ValueError: broken\\x0ain two \\x1b[31m\n"),
        (ExceptionGroup("unhandled", [OSError("disk full")]), 1, "pylon: OSError: disk full\n"),
        (CodedError("own code"), 7, "pylon: CodedError: own code\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 1, "pylon: aborted\n"),
    ],
)
def test_any_fault_is_one_line(
    error: BaseException, code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stand_in(monkeypatch, error)
    assert run(["stop"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("arguments", [["--debug", "stop"], ["stop", "--debug"]])
def test_traceback_only_with_debug_and_never_raw(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, ValueError("red \x1b[31m"))
    assert run(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "pylon: ValueError: red \\x1b[31m"
    assert "\x1b" not in err


def test_own_exceptions_are_their_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").write_text("")
    assert run(["stop"]) == 1
    assert capsys.readouterr().err.startswith("pylon: cannot read the lock file ")


def test_settings_given_for_all_reach_the_commands_that_read_them(tmp_path: Path) -> None:
    done = run_pylon("--config", str(tmp_path / "none.toml"), "config", "show", home=tmp_path)
    assert done.returncode == 2
    assert "none.toml: cannot be read" in done.stderr
    assert run_pylon("--home", str(tmp_path / "b"), "config", "path", home=tmp_path).stdout.startswith(
        str(tmp_path / "b")
    )


def test_shell_completion_knows_commands_and_their_options(tmp_path: Path) -> None:
    def completed(words: str, count: int) -> list[str]:
        asked = {"_PYLON_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        environment = {**os.environ, "PYLON_HOME": str(tmp_path), **asked}
        command = [sys.executable, "-m", "pylon"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
        return done.stdout.split()

    assert completed("pylon st", 1) == ["start", "stop", "status"]
    assert completed("pylon jobs ", 2) == ["list", "show", "cancel", "refused"]
    assert "--money" in completed("pylon jobs list --m", 3)


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m pylon --help | true"], capture_output=True, timeout=30, check=False
    )
    assert done.stderr == b""


def test_a_terminal_that_cannot_show_a_character_gets_its_escape(tmp_path: Path) -> None:
    environment = {**os.environ, "PYLON_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pylon", "stätus"]
    done = subprocess.run(command, capture_output=True, timeout=30, env=environment, check=False)
    assert done.returncode == 2
    assert b"st\\xe4tus" in done.stderr


def test_interrupt_is_130(tmp_path: Path) -> None:
    with fake_daemon(tmp_path, "stubborn") as daemon:
        environment = {**os.environ, "PYLON_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "pylon", "stop"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == b"asked to stop\n"  # and it waits for the daemon now
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_colours_only_on_a_terminal(tmp_path: Path) -> None:
    with fake_daemon(tmp_path):
        assert "\x1b" not in run_pylon("status", home=tmp_path).stdout
        ours, theirs = pty.openpty()
        environment = {**os.environ, "PYLON_HOME": str(tmp_path), "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "pylon", "status"]
        subprocess.run(command, stdout=theirs, timeout=30, env=environment, check=True)
        os.close(theirs)
        shown = os.read(ours, 65536).decode()
        os.close(ours)
    assert "\x1b[32mready\x1b[0m" in shown
    # The only escape sequences are ours.
    assert {part.partition("m")[0] for part in shown.split("\x1b[")[1:]} <= {"0", "1", "2", "31", "32", "33"}
