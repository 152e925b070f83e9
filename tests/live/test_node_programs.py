"""How the Node packages are installed, whole or not at all, and what happens without Node. No download."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import node_programs
from tests.support.node_programs import NodeProgram, find_packages, folder_name, node_and_packages

Which = Callable[[str], str | None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYLON_REQUIRE_LIVE", raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    return tmp_path / "cache"


def node(monkeypatch: pytest.MonkeyPatch, *, version: str | None = "v20.19.0", npm_fails: bool = False) -> None:
    """Let there be a Node of this version, or none, whose npm makes a package or fails."""

    def run(command: list[str], *, cwd: Path | None = None, **_: Any) -> subprocess.CompletedProcess[str]:
        if "--version" in command:
            return subprocess.CompletedProcess(command, 0, f"{version}\n", "")
        assert command[:2] == ["npm", "ci"]
        assert cwd is not None
        assert (cwd / "package-lock.json").is_file()
        (cwd / "node_modules").mkdir()
        if npm_fails:
            raise subprocess.CalledProcessError(1, command)
        (cwd / "node_modules" / "ws").mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    which: Which = lambda name: f"/usr/bin/{name}" if version is not None else None  # noqa: E731
    monkeypatch.setattr(shutil, "which", which)
    monkeypatch.setattr(subprocess, "run", run)


def test_packages_are_installed_once_in_a_folder_of_their_lock_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node(monkeypatch)
    assert node_programs.main() == 0
    assert find_packages() == cache / folder_name() / "node_modules"
    assert [path.name for path in cache.iterdir()] == [folder_name()]
    capsys.readouterr()
    assert node_programs.main() == 0
    assert capsys.readouterr().out == ""


def test_another_lock_file_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch)
    node_programs.install()
    (tmp_path / "package-lock.json").write_text("{}")
    monkeypatch.setattr(node_programs, "SCRIPTS", tmp_path)
    assert find_packages() is None


def test_a_failed_installation_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node(monkeypatch, npm_fails=True)
    assert node_programs.main() == 1
    assert list(cache.iterdir()) == []
    assert "could not be installed" in capsys.readouterr().err


def test_what_an_older_program_left_half_done_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch)
    (cache / folder_name()).mkdir(parents=True)
    assert node_programs.main() == 0
    assert find_packages() is not None


def test_without_a_writable_cache_the_environment_holds_the_packages(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(monkeypatch)
    cache.write_text("a file where the folder should be")
    assert node_programs.main() == 0
    assert find_packages() == tmp_path / "prefix" / "foreign" / folder_name() / "node_modules"


@pytest.mark.parametrize("version", [None, "v18.20.4", "v20.18.3", "nonsense"])
def test_without_a_new_enough_node_tests_are_skipped_and_say_what_to_install(
    version: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node(monkeypatch, version=version)
    assert node_programs.main() == 0
    assert "Node 20.19 or newer with npm is needed" in capsys.readouterr().err
    with pytest.raises(pytest.skip.Exception, match=r"Node 20\.19 or newer with npm is needed: install it"):
        node_and_packages()


def test_where_live_tests_are_required_no_node_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch, version=None)
    monkeypatch.setenv("PYLON_REQUIRE_LIVE", "1")
    assert node_programs.main() == 1
    with pytest.raises(pytest.fail.Exception, match=r"Node 20\.19 or newer"):
        node_and_packages()


def test_missing_packages_are_one_sentence_that_says_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(monkeypatch)
    with pytest.raises(AssertionError) as error:
        NodeProgram(tmp_path, "nwc_ldk", {})
    said = str(error.value)
    assert str(cache / folder_name()) in said
    assert "run `make test-live`" in said
    assert "\n" not in said
