"""The Rust programs of the live tests: built from crates.io once, with the crate's own lock file, and kept.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.rust_programs

builds those that are missing or broken; `make test-live` runs it. One is built beside its place and renamed when
complete; a build that was cut off is gone on with, and what one downloaded and compiled is removed at its end.
Without cargo nothing is built, and the tests that need it are skipped and say so; with PYLON_REQUIRE_LIVE=1 both
are failures.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.foreign_venvs import cache_places, required, writable

OLDEST = (1, 82)  # the first whose `info` fetches a package
NO_CARGO = "cargo {}.{} or newer is needed: install Rust (on Debian: apt install cargo)".format(*OLDEST)
PROGRESS_EVERY_S = 15.0
LAST_LINES = 40

_FETCHED = re.compile(r"\s*Downloaded \S+ v\d")
_COMPILED = re.compile(r"\s*Compiling ")


@dataclass(frozen=True, slots=True)
class RustProgram:
    """One program: its name on crates.io, the version that the tests know, and what building it needs.

    `tools` are programs that must be there, each with the Debian package that has it. `updates` are what its lock
    file has to have newer, since a current compiler refuses what is in it.
    """

    name: str
    version: str
    tools: tuple[tuple[str, str], ...] = ()
    updates: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


NOSTR_RS_RELAY = RustProgram(
    "nostr-rs-relay",
    "0.8.12",
    tools=(("protoc", "protobuf-compiler"),),
    updates=(("time@0.3.25", "0.3.36"),),
)
ALL = (NOSTR_RS_RELAY,)


class CannotBuild(Exception):
    """A program was not built; the message says why, its first line in one sentence."""


# --- what the tests run -----------------------------------------------------------------------------------------


def places() -> list[Path]:
    """Return the folders where built programs may lie."""
    cache, own = cache_places()
    return [cache / "rust", own / "rust"]


def find_program(program: RustProgram) -> Path | None:
    """Return the path of a program, where it was built."""
    for place in places():
        binary = place / program.folder / "bin" / program.name
        if binary.is_file():
            return binary
    return None


def rust_program(program: RustProgram) -> Path:
    """Return the path of a program. Skips the test where there is no cargo, or fails it where that is required."""
    binary = find_program(program)
    if binary is not None:
        return binary
    if find_cargo() is None:
        if required():
            pytest.fail(NO_CARGO)
        pytest.skip(NO_CARGO)
    where = " or ".join(str(place / program.folder) for place in places())
    raise AssertionError(f"{program.folder} is not built in {where}: run `make test-live`, which does it")


# --- building them ----------------------------------------------------------------------------------------------


def find_cargo() -> str | None:
    """Return the path of a cargo that is new enough, or None."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return None
    said = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"cargo (\d+)\.(\d+)\.", said)
    return cargo if version is not None and tuple(map(int, version.groups())) >= OLDEST else None


def is_whole(binary: Path, program: RustProgram) -> bool:
    """Tell whether a program still runs on this machine and is the version that the tests know."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return False
    return said.returncode == 0 and program.version in said.stdout


def provide_tools(program: RustProgram) -> None:
    """See to what the build needs: installed where we may, from Debian. Raises `CannotBuild`."""
    for tool, package in program.tools:
        if shutil.which(tool) is not None:
            continue
        if os.geteuid() == 0 and shutil.which("apt-get") is not None:
            print(f"Installing {package}, which {program.name} is built with", flush=True)
            _apt_install(package)
        if shutil.which(tool) is None:
            raise CannotBuild(f"{program.name} is built with {tool}: install it (on Debian: apt install {package})")


def _apt_install(package: str) -> None:
    install = ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", package]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "update", "--quiet=2"], install):
        done = subprocess.run(command, env=environ, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if command is install and done.returncode == 0:
            return


def build(program: RustProgram) -> None:
    """Build a program from crates.io, unless it is built meanwhile. Raises `CannotBuild` and `OSError`."""
    place = writable(places())
    working = place / f".{program.folder}"
    working.mkdir(exist_ok=True)
    with (working / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it takes minutes: who comes second waits, and takes it as it is
        target = place / program.folder
        if is_whole(target / "bin" / program.name, program):
            return
        # What is downloaded for it is of no use twice, and the user's own folder may not be writable.
        environ = {"CARGO_HOME": str(working / "cargo"), **os.environ, "CARGO_TERM_COLOR": "never"}
        environ["CARGO_TARGET_DIR"] = str(working / "target")
        source = _fetch(program, working, environ)
        done = working / "done"
        shutil.rmtree(done, ignore_errors=True)
        install = ["cargo", "install", "--path", str(source), "--locked", "--root", str(done)]
        _run(install, working, environ, program.folder)
        shutil.rmtree(target, ignore_errors=True)
        done.rename(target)
        shutil.rmtree(working, ignore_errors=True)


def _fetch(program: RustProgram, working: Path, environ: Mapping[str, str]) -> Path:
    """Return a folder with the program's source and a lock file that compiles. Raises `CannotBuild`."""
    # Showing a package downloads and unpacks it; nothing else in cargo does that without building it.
    _run(["cargo", "info", f"{program.name}@{program.version}"], working, environ, program.folder)
    (unpacked,) = Path(environ["CARGO_HOME"]).glob(f"registry/src/*/{program.folder}")
    source = working / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(unpacked, source)
    for package, version in program.updates:
        _run(["cargo", "update", package, "--precise", version], source, environ, program.folder)
    return source


def _run(command: list[str], folder: Path, environ: Mapping[str, str], what: str) -> None:
    """Run a step in a folder and tell how far it is. Raises `CannotBuild` with the end of what it said."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        last = report_progress(process.stderr, what)
    if process.returncode != 0:
        raise CannotBuild(f"{' '.join(command[:2])} ended with code {process.returncode}\n" + "".join(last))


def report_progress(lines: Iterable[str], what: str) -> deque[str]:
    """Read what cargo says to its end, print a line of progress now and then, and return its last lines."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    start = told = time.monotonic()
    fetched = compiled = 0
    for line in lines:
        last.append(line)
        fetched += _FETCHED.match(line) is not None
        compiled += _COMPILED.match(line) is not None
        now = time.monotonic()
        if now - told >= PROGRESS_EVERY_S:
            told = now
            print(f"{what}: {fetched} crates fetched, {compiled} compiled, {now - start:.0f} s", flush=True)
    return last


def main() -> int:
    """Build what is missing."""
    for program in ALL:
        binary = find_program(program)
        if binary is not None and is_whole(binary, program):
            continue
        if find_cargo() is None:
            print(f"make: {NO_CARGO}", file=sys.stderr)
            if not required():
                print(f"make: the tests with {program.name} will be skipped", file=sys.stderr)
            return int(required())
        print(f"Building {program.name} {program.version} for the tests (some minutes, once)", flush=True)
        start = time.monotonic()
        try:
            provide_tools(program)
            build(program)
        except (CannotBuild, OSError) as error:
            print(f"make: {program.name} {program.version} could not be built: {error}", file=sys.stderr)
            return 1
        print(f"{program.name} {program.version}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
