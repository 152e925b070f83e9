"""How Debian's programs are found or installed, and what happens where they cannot be. Nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest

from tests.support import debian


def machine(monkeypatch: pytest.MonkeyPatch, *there: str, root: bool = True, fails: int = 0) -> list[list[str]]:
    """Have a machine with these programs, whose apt-get fails so many times; returns what is run."""
    calls: list[list[str]] = []
    programs = set(there)

    def run(command: list[str], **_: Any) -> None:
        calls.append([word for word in command if not word.startswith("-") and "::" not in word])
        if len(calls) <= fails:
            raise subprocess.CalledProcessError(100, command)
        if "install" in command:
            programs.add(debian.PROGRAM)

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.delenv("PYLON_REQUIRE_LIVE", raising=False)
    return calls


def test_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = machine(monkeypatch, debian.PROGRAM)
    assert debian.main() == 0
    assert debian.systemd_analyze() == "/usr/bin/systemd-analyze"
    assert calls == []


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        (0, [["apt-get", "install", "systemd"]]),
        (1, [["apt-get", "install", "systemd"], ["apt-get", "update"], ["apt-get", "install", "systemd"]]),
    ],
)
def test_root_has_it_installed(monkeypatch: pytest.MonkeyPatch, fails: int, calls: list[list[str]]) -> None:
    made = machine(monkeypatch, "apt-get", fails=fails)
    assert debian.main() == 0
    assert made == calls
    assert debian.systemd_analyze()


def test_an_installation_that_fails_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, "apt-get", fails=9)
    assert debian.main() == 1
    assert "systemd could not be installed" in capsys.readouterr().err


@pytest.mark.parametrize(("there", "root"), [((), True), (("apt-get",), False)])
def test_elsewhere_tests_are_skipped_or_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: tuple[str, ...], root: bool
) -> None:
    calls = machine(monkeypatch, *there, root=root)
    assert debian.main() == 0
    assert "install Debian's systemd" in capsys.readouterr().err
    with pytest.raises(pytest.skip.Exception, match="install Debian's systemd"):
        debian.systemd_analyze()
    monkeypatch.setenv("PYLON_REQUIRE_LIVE", "1")
    assert debian.main() == 1
    with pytest.raises(pytest.fail.Exception, match="install Debian's systemd"):
        debian.systemd_analyze()
    assert calls == []
