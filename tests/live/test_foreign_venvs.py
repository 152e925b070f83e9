"""How the programs that we did not write are installed: whole or not at all, and said so. Nothing is downloaded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_venvs
from tests.support.foreign_venvs import LNBITS, NOSTR_RELAY, foreign_python


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    return tmp_path / "cache"


def pip(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """Let the environment be made, with an interpreter that does nothing, and pip work or fail."""

    def run(command: list[str | Path], **_: Any) -> None:
        if command[1:3] == ["-m", "venv"]:
            (Path(command[3]) / "bin").mkdir()
            (Path(command[3]) / "bin" / "python").touch()
        elif fails:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_missing_environment_is_one_sentence_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(AssertionError) as error:
        foreign_python(NOSTR_RELAY)
    said = str(error.value)
    assert str(cache / "venvs" / "nostr-relay-1.14") in said
    assert "run `make test-live`" in said
    assert "\n" not in said


def test_what_is_installed_is_found_and_not_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip(monkeypatch, fails=False)
    assert foreign_venvs.main() == 0
    assert foreign_python(NOSTR_RELAY) == cache / "venvs" / "nostr-relay-1.14" / "bin" / "python"
    made = sorted(foreign.folder for foreign in foreign_venvs.ALL)
    assert sorted(path.name for path in (cache / "venvs").iterdir()) == made
    capsys.readouterr()
    assert foreign_venvs.main() == 0
    assert capsys.readouterr().out == ""


def test_one_that_is_broken_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = cache / "venvs" / "lnbits-1.6.2" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("no interpreter")
    broken.chmod(0o700)
    assert not foreign_venvs.is_whole(broken, LNBITS)
    (broken.parent.parent / "half").touch()
    real = subprocess.run

    def run(command: list[str | Path], **options: Any) -> None:
        if command[1:3] == ["-m", "venv"]:
            (Path(command[3]) / "bin").mkdir()
            (Path(command[3]) / "bin" / "python").touch()
        elif Path(command[0]) == broken:
            real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    assert foreign_venvs.main(["lnbits"]) == 0
    assert not (broken.parent.parent / "half").exists()


def test_where_no_python_can_run_it_that_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    monkeypatch.setenv("PATH", str(cache))
    assert foreign_venvs.main(["lnbits"]) == 0
    assert "its tests are left out" in capsys.readouterr().out
    assert not cache.exists()


def test_a_failed_installation_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip(monkeypatch, fails=True)
    assert foreign_venvs.main() == 1
    assert list((cache / "venvs").iterdir()) == []
    assert "nostr-relay 1.14 could not be installed" in capsys.readouterr().err


def test_without_a_cache_they_lie_in_the_projects_own_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("no folder")
    pip(monkeypatch, fails=False)
    assert foreign_venvs.main() == 0
    assert foreign_python(NOSTR_RELAY).is_relative_to(tmp_path / "prefix" / "foreign")
