"""`pylon completion`: its scripts, in the shells that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.cli.app import run
from tests.support.fake_daemon import run_pylon

BASH = shutil.which("bash")
ASK = """
source <(pylon completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
[[ $(complete -p pylon) == *"-F _pylon_completion pylon"* ]] || exit 9
_pylon_completion pylon
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `pylon` is this one."""
    program = tmp_path / "bin" / "pylon"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pylon "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PATH": path, "PYTHONPATH": root, "PYLON_HOME": str(tmp_path)}


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["jo"], {"jobs"}),
        (["jobs", ""], {"list", "show", "cancel", "refused"}),
        (["relays", "re"], {"remove"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["status", "--w"], {"--watch"}),
    ],
)
def test_bash_completes(environment: dict[str, str], words: list[str], completed: set[str]) -> None:
    assert BASH is not None
    command = [BASH, "--norc", "-c", ASK, "bash", "pylon", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == completed


@pytest.mark.parametrize(
    ("shell", "starts"), [("bash", "_pylon_completion()"), ("zsh", "#compdef pylon\n"), ("fish", "complete ")]
)
def test_each_shell_has_its_script(shell: str, starts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script.startswith(starts)
    assert f"_PYLON_COMPLETE=complete_{shell}" in script
    program = shutil.which(shell)
    if program is not None:
        checked = subprocess.run(
            [program, "-n"], input=script, capture_output=True, text=True, timeout=30, check=False
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_the_other_shells_ask_is_answered(tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PYLON_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "pylon jobs sh")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    done = run_pylon(home=tmp_path)
    assert "show" in done.stdout
    assert "cancel" not in done.stdout


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    err = capsys.readouterr().err
    assert "tcsh" in err
    assert "fish" in err
