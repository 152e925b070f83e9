"""How the Rust programs are built, whole or not at all, and what happens without cargo. Nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import rust_programs
from tests.support.rust_programs import NOSTR_RS_RELAY, CannotBuild, find_program, provide_tools, rust_program

# Stands in for cargo: says what cargo says, and makes a program of the given version where it is told to.
CARGO = """\
import os, pathlib, sys
match sys.argv[1:]:
    case ["--version"]:
        print("cargo {cargo}.0 (0123456 2026-01-01)")
        sys.exit()
    case ["info", "nostr-rs-relay@0.8.12"]:
        home = pathlib.Path(os.environ["CARGO_HOME"])
        assert home.parent.name == ".nostr-rs-relay-0.8.12", "the user's own"
        source = home / "registry" / "src" / "index" / "nostr-rs-relay-0.8.12"
        source.mkdir(parents=True, exist_ok=True)
        source.joinpath("Cargo.lock").write_text("time 0.3.25")
    case ["update", "time@0.3.25", "--precise", version]:
        pathlib.Path("Cargo.lock").write_text(f"time {{version}}")
    case ["install", "--path", source, "--locked", "--root", root]:
        assert pathlib.Path(source, "Cargo.lock").read_text() == "time 0.3.36", "it would not compile"
        print("  Downloaded one v1.0.0", file=sys.stderr)
        print("   Compiling one v1.0.0", file=sys.stderr)
        compiled = pathlib.Path(os.environ["CARGO_TARGET_DIR"], "one")
        if {fails}:
            compiled.parent.mkdir()
            compiled.touch()
            sys.exit("error: linker `cc` not found")
        assert compiled.exists() is {goes_on}, "begun anew, or not"
        binary = pathlib.Path(root, "bin", "nostr-rs-relay")
        binary.parent.mkdir(parents=True)
        binary.write_text("#!/bin/sh\\necho nostr-rs-relay 0.8.12\\n")
        binary.chmod(0o755)
    case other:
        sys.exit(f"error: {{other}}")
"""


def cargo_text(*, cargo: str = "1.82", fails: bool = False, goes_on: bool = False) -> str:
    return CARGO.format(cargo=cargo, fails=fails, goes_on=goes_on)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_CACHE", str(tmp_path / "cache"))
    for name in ("PYLON_REQUIRE_LIVE", "CARGO_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    return tmp_path / "cache"


def path_of(folder: Path, monkeypatch: pytest.MonkeyPatch, programs: Mapping[str, str]) -> None:
    """Let these programs, and no others but the shell, be there."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def cargo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path_of(tmp_path / "path", monkeypatch, {"cargo": cargo_text(), "protoc": ""})


@pytest.mark.usefixtures("cargo")
def test_it_is_built_once_and_nothing_else_is_left(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rust_programs.main() == 0
    assert rust_program(NOSTR_RS_RELAY) == cache / "rust" / "nostr-rs-relay-0.8.12" / "bin" / "nostr-rs-relay"
    assert [path.name for path in (cache / "rust").iterdir()] == ["nostr-rs-relay-0.8.12"]
    assert "Building nostr-rs-relay 0.8.12" in capsys.readouterr().out
    assert rust_programs.main() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("cargo")
@pytest.mark.parametrize("broken", ["", "#!/bin/sh\necho nostr-rs-relay 0.8.0\n", "#!/nowhere\n"])
def test_one_that_is_broken_or_another_version_is_built_again(cache: Path, broken: str) -> None:
    binary = cache / "rust" / NOSTR_RS_RELAY.folder / "bin" / NOSTR_RS_RELAY.name
    binary.parent.mkdir(parents=True)
    binary.write_text(broken)
    binary.chmod(0o755)
    assert rust_programs.main() == 0
    assert rust_programs.is_whole(binary, NOSTR_RS_RELAY)


@pytest.mark.usefixtures("cargo")
def test_without_a_writable_cache_it_lies_in_the_projects_own_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    assert rust_programs.main() == 0
    assert rust_program(NOSTR_RS_RELAY).is_relative_to(tmp_path / "prefix" / "foreign" / "rust")


def test_a_failed_build_says_what_cargo_said_and_the_next_goes_on_with_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path_of(tmp_path / "path", monkeypatch, {"cargo": cargo_text(fails=True), "protoc": ""})
    assert rust_programs.main() == 1
    assert find_program(NOSTR_RS_RELAY) is None
    said = capsys.readouterr().err
    assert "make: nostr-rs-relay 0.8.12 could not be built: cargo install ended with code 1" in said
    assert "error: linker `cc` not found" in said

    (tmp_path / "path" / "cargo").write_text(f"#!{sys.executable}\n{cargo_text(goes_on=True)}")
    assert rust_programs.main() == 0
    assert [path.name for path in (cache / "rust").iterdir()] == [NOSTR_RS_RELAY.folder]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 100.1, 101.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    rust_programs.report_progress(
        ["  Downloaded a v1.0.2\n", "   Compiling a v1.0.2\n", "   Compiling b v2\n"], "it"
    )
    assert capsys.readouterr().out == "it: 1 crates fetched, 2 compiled, 20 s\n"


def test_a_missing_tool_is_installed_from_debian_where_we_may(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    there = {"apt-get"}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(command[:2])
        updated = ["apt-get", "update"] in ran
        if command[1] == "install" and updated:
            there.add("protoc")
        return subprocess.CompletedProcess(command, 0 if updated else 100)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(subprocess, "run", run)
    provide_tools(NOSTR_RS_RELAY)
    assert ran == [["apt-get", "install"], ["apt-get", "update"], ["apt-get", "install"]]
    provide_tools(NOSTR_RS_RELAY)
    assert len(ran) == 3


def test_a_missing_tool_that_we_may_not_install_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    with pytest.raises(CannotBuild) as error:
        provide_tools(NOSTR_RS_RELAY)
    said = "nostr-rs-relay is built with protoc: install it (on Debian: apt install protobuf-compiler)"
    assert str(error.value) == said


@pytest.mark.parametrize("cargo", [None, "1.81", "0.99"])
def test_without_a_new_enough_cargo_tests_are_skipped_and_say_what_to_install(
    cargo: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path_of(tmp_path / "path", monkeypatch, {"cargo": cargo_text(cargo=cargo)} if cargo else {})
    assert rust_programs.main() == 0
    assert "cargo 1.82 or newer is needed: install Rust" in capsys.readouterr().err
    assert find_program(NOSTR_RS_RELAY) is None
    with pytest.raises(pytest.skip.Exception, match=r"cargo 1\.82 or newer is needed: install Rust"):
        rust_program(NOSTR_RS_RELAY)


def test_where_live_tests_are_required_no_cargo_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of(tmp_path / "path", monkeypatch, {})
    monkeypatch.setenv("PYLON_REQUIRE_LIVE", "1")
    assert rust_programs.main() == 1
    with pytest.raises(pytest.fail.Exception, match=r"cargo 1\.82 or newer is needed"):
        rust_program(NOSTR_RS_RELAY)


@pytest.mark.usefixtures("cargo")
def test_one_that_is_not_built_is_one_sentence_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(AssertionError) as error:
        rust_program(NOSTR_RS_RELAY)
    said = str(error.value)
    assert str(cache / "rust" / NOSTR_RS_RELAY.folder) in said
    assert "run `make test-live`" in said
    assert "\n" not in said
