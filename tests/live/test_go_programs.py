"""How the programs in Go are built, whole or not at all, and what happens without Go. Nothing is downloaded."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import go_programs
from tests.support.go_programs import GoProgram, find_program, program_path

THING = GoProgram("thing", "example.org/some/cmd", "v1.2.3", (1, 24))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYLON_REQUIRE_LIVE", raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(go_programs, "ALL", (THING,))
    return tmp_path / "cache"


def go(monkeypatch: pytest.MonkeyPatch, folder: Path, *, version: str = "go1.26.8", fails: bool = False) -> None:
    """Let there be a Go of this version alone on the path, which builds a file or fails."""
    folder.mkdir()
    program = folder / "go"
    build = (
        "echo 'cmd/x.go: no such thing' >&2; exit 1" if fails else 'echo "" > "$GOBIN/cmd"; chmod +x "$GOBIN/cmd"'
    )
    lines = (
        "#!/bin/sh",
        f'if [ "$1" = version ]; then echo "go version {version} linux/amd64"; exit; fi',
        f'echo "$@" >> {folder}/asked',
        f"""if [ "$1" = mod ]; then echo '{{"Dir": "{folder}"}}'; exit; fi""",
        f'echo "$GOPATH $GOCACHE $GOTOOLCHAIN" >> {folder}/environ',
        f"pwd > {folder}/where",
        f'echo "$CGO_CFLAGS $CGO_CPPFLAGS" >> {folder}/flags',
        build,
    )
    program.write_text("\n".join(lines) + "\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{Path(shutil.which('sh') or '/bin/sh').parent}")
    which: Mapping[str, str] = {"go": str(program)}
    monkeypatch.setattr(shutil, "which", which.get)


def test_a_program_is_built_once_and_named_by_us(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go(monkeypatch, tmp_path / "bin")
    assert go_programs.main() == 0
    assert program_path(THING) == cache / "go" / "thing-v1.2.3" / "thing"
    assert [each.name for each in (cache / "go").iterdir()] == ["thing-v1.2.3"]
    capsys.readouterr()
    assert go_programs.main() == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "bin" / "asked").read_text() == "install -v -trimpath example.org/some/cmd@v1.2.3\n"
    where = cache / "go"
    assert (tmp_path / "bin" / "environ").read_text() == f"{where / 'path'} {where / 'build'} local\n"


def test_what_its_c_code_lacks_is_put_where_it_looks(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(monkeypatch, tmp_path / "bin")
    (tmp_path / "bin" / "x.hpp").write_text("// from elsewhere")
    headers = {"x/x.hpp": ("example.org/other@v1.0.0", "x.hpp")}
    sets = {"example.org/some/version": "1.2.3"}
    monkeypatch.setattr(go_programs, "processor_level", lambda: "fast")
    wants = replace(THING, compilers=("go",), headers=headers, sets=sets, tuned=True)
    monkeypatch.setattr(go_programs, "ALL", (wants,))
    assert go_programs.main() == 0
    assert program_path(wants) == cache / "go" / "thing-v1.2.3-fast" / "thing"
    include = cache / "go" / "include" / "thing-v1.2.3-fast"
    assert (include / "x" / "x.hpp").read_text() == "// from elsewhere"
    assert (tmp_path / "bin" / "flags").read_text() == f"-O3 -g0 -march=fast -I{include}\n"
    fetched, built = (tmp_path / "bin" / "asked").read_text().splitlines()
    assert fetched == "mod download -json example.org/other@v1.0.0"
    assert built == "install -v -trimpath -ldflags -X=example.org/some/version=1.2.3 example.org/some/cmd@v1.2.3"


def test_a_program_of_our_own_is_built_where_it_lies_and_anew_when_it_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(monkeypatch, tmp_path / "bin")
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.go").write_text("package main")
    own = replace(THING, source=source)
    monkeypatch.setattr(go_programs, "ALL", (own,))
    assert go_programs.main() == 0
    first = program_path(own)
    assert first.is_relative_to(cache / "go")
    assert (tmp_path / "bin" / "asked").read_text() == "install -v -trimpath -buildvcs=false .\n"
    assert (tmp_path / "bin" / "where").read_text() == f"{source}\n"
    (source / "main.go").write_text("package main // changed")
    assert find_program(own) is None
    assert go_programs.main() == 0
    assert program_path(own) != first


def test_a_failed_build_leaves_nothing_and_says_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go(monkeypatch, tmp_path / "bin", fails=True)
    assert go_programs.main() == 1
    assert list((cache / "go").iterdir()) == []
    said = capsys.readouterr().err
    assert "cmd/x.go: no such thing" in said
    assert "thing v1.2.3 could not be built" in said
    with pytest.raises(pytest.fail.Exception, match="run `make test-live`, which does it"):
        program_path(THING)


def test_what_was_left_half_done_is_built_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(monkeypatch, tmp_path / "bin")
    (cache / "go" / THING.folder).mkdir(parents=True)
    assert go_programs.main() == 0
    assert find_program(THING) is not None


def test_without_a_writable_cache_the_environment_holds_the_programs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(monkeypatch, tmp_path / "bin")
    cache.write_text("a file where the folder should be")
    assert go_programs.main() == 0
    assert program_path(THING).is_relative_to(tmp_path / "prefix" / "foreign" / "go")


@pytest.mark.parametrize("version", ["go1.23.9", "go0.9", "nonsense"])
def test_without_a_new_enough_go_tests_are_skipped_and_say_what_to_install(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go(monkeypatch, tmp_path / "bin", version=version)
    assert go_programs.main() == 0
    assert "the tests of thing will be skipped" in capsys.readouterr().err
    with pytest.raises(pytest.skip.Exception, match=r"thing needs Go 1\.24 or newer: install"):
        program_path(THING)


def test_without_a_compiler_where_one_is_needed_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(monkeypatch, tmp_path / "bin")
    wants = GoProgram("thing", THING.package, THING.version, THING.oldest, compilers=("gcc",))
    with pytest.raises(pytest.skip.Exception, match=r"needs Go 1\.24 or newer, gcc: install"):
        program_path(wants)


def test_where_live_tests_are_required_no_go_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Mapping[str, str] = {}
    monkeypatch.setattr(shutil, "which", nothing.get)
    monkeypatch.setenv("PYLON_REQUIRE_LIVE", "1")
    assert go_programs.main() == 1
    with pytest.raises(pytest.fail.Exception, match=r"Go 1\.24 or newer"):
        program_path(THING)
