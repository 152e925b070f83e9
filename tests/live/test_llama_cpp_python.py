"""How llama-cpp-python is compiled and installed, whole or not at all, and what happens without a compiler."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import foreign_venvs
from tests.support import llama_cpp_python as module
from tests.support.llama_cpp_python import llama_cpp_python

WHEEL = f"llama_cpp_python-{module.LLAMA_CPP_PYTHON.version}-py3-none-linux_{platform.machine()}.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYLON_REQUIRE_LIVE", raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    return tmp_path / "cache"


def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, fails: bool = False) -> Path:
    """Let pip be a program that compiles a little, says how far it is, and counts how often it is called."""
    calls = tmp_path / "calls"
    script = tmp_path / "pip.py"
    script.write_text(
        "import os, pathlib, sys\n"
        f"pathlib.Path({str(calls)!r}).open('a').write(os.environ['CMAKE_ARGS'] + chr(10))\n"
        "print('  [1/2] /usr/bin/g++ a.cpp'); print('  [2/2] /usr/bin/g++ b.cpp')\n"
        f"if {fails}: sys.exit('b.cpp: no such thing')\n"
        f"pathlib.Path(sys.argv[sys.argv.index('--wheel-dir') + 1], {WHEEL!r}).touch()\n"
    )
    python = sys.executable
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[str]:
        assert command[:5] == [python, "-m", "pip", "--disable-pip-version-check", "wheel"]
        assert command[-1] == "llama-cpp-python==0.3.36"
        return real([python, str(script), *command[5:]], **options)  # type: ignore[call-overload, no-any-return]

    def run(command: list[str | Path], **_: object) -> None:
        if command[1:3] == ["-m", "venv"]:
            (Path(command[3]) / "bin").mkdir()
            (Path(command[3]) / "bin" / "python").touch()
        elif not Path(command[0]).exists():
            raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(foreign_venvs.subprocess, "run", run)  # type: ignore[attr-defined]
    return calls


def test_it_is_compiled_once_and_its_wheel_outlives_its_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = compiler(monkeypatch, tmp_path)
    assert module.main() == 0
    said = capsys.readouterr().out
    assert "Compiling llama-cpp-python 0.3.36 for the tests" in said
    assert "llama-cpp-python: 2 of 2 steps" in said
    assert [file.name for file in (cache / "wheels").iterdir()] == [WHEEL]
    python = cache / "venvs" / "llama-cpp-python-0.3.36" / "bin" / "python"
    assert llama_cpp_python() == python
    assert "-DGGML_NATIVE=OFF" in calls.read_text()
    assert module.main() == 0
    assert capsys.readouterr().out == ""
    python.unlink()
    assert module.main() == 0
    assert python.exists()
    assert calls.read_text().count("\n") == 1


def test_where_the_cache_cannot_be_written_it_is_kept_in_the_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("no folder")
    compiler(monkeypatch, tmp_path)
    assert module.main() == 0
    assert llama_cpp_python().is_relative_to(tmp_path / "prefix" / "foreign")
    assert (tmp_path / "prefix" / "foreign" / "wheels" / WHEEL).exists()


def test_a_failed_compilation_leaves_nothing_and_says_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(monkeypatch, tmp_path, fails=True)
    assert module.main() == 1
    said = capsys.readouterr().err
    assert "b.cpp: no such thing" in said
    assert "make: llama-cpp-python could not be built" in said
    assert list((cache / "wheels").iterdir()) == []
    with pytest.raises(pytest.fail.Exception, match="run `make test-live`"):
        llama_cpp_python()


def test_without_a_compiler_its_tests_are_skipped_unless_they_are_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)  # type: ignore[attr-defined]
    assert module.main() == 0
    assert "needs a C++ compiler" in capsys.readouterr().err
    with pytest.raises(pytest.skip.Exception, match="needs a C"):
        llama_cpp_python()
    monkeypatch.setenv("PYLON_REQUIRE_LIVE", "1")
    assert module.main() == 1
    with pytest.raises(pytest.fail.Exception, match="needs a C"):
        llama_cpp_python()
