"""The programs in Go that we test against, each built from the Go module proxy, or by us on a library from there.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.go_programs [NAME...]

builds those that are missing, the named ones or all; `make test-live` runs it. Modules, Go's build cache and the
programs lie under `go` in the download cache, outside the checkout; a program is built beside its place and renamed
when complete. Without Go, or a C compiler where one is needed, nothing is built, and the tests that need it are
skipped and say so; with PYLON_REQUIRE_LIVE=1 both are failures.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_venvs import cache_places, required, writable

SAY_EVERY_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class GoProgram:
    """One program: the package that `go install` builds, the version that the tests know, the oldest Go for it.

    `compilers` must be there too (for cgo), and `environ` is what the build is told beyond our own. `sets` are
    texts for variables of the program, such as the version that a release's own build sets. `headers` are C headers
    that its module lacks, by the name it includes them under: the module that has each, and where in it. With
    `tuned` its C code is compiled for this processor's level, which is then part of the folder's name. `source` is
    the folder of a program of our own: `package` and `version` are then the library that it is made of, which its
    own `go.mod` names, and what is in that folder is part of the built one's name.
    """

    name: str
    package: str
    version: str
    oldest: tuple[int, int]
    compilers: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tuned: bool = False
    source: Path | None = None

    @property
    def folder(self) -> str:
        level = processor_level() if self.tuned else ""
        made_of = "" if self.source is None else digest(self.source)
        return "-".join(part for part in (self.name, self.version, level, made_of) if part)

    @property
    def needs(self) -> str:
        """What must be installed to build it, in a few words."""
        more = "".join(f", {each}" for each in self.compilers)
        return f"Go {self.oldest[0]}.{self.oldest[1]} or newer{more}"


def digest(source: Path) -> str:
    """Return a short text that another content of a folder of sources would not have."""
    each = [hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()) for path in sorted(source.iterdir())]
    return hashlib.sha256(b"".join(one.digest() for one in each)).hexdigest()[:12]


def processor_level() -> str:
    """Return gcc's name for what this processor can do beyond the oldest of its kind, empty when it is nothing."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    able = flags is not None and {"avx2", "bmi2", "fma", "f16c", "movbe"} <= set(flags[1].split())
    return "x86-64-v3" if able else ""


_OLDER_OLLAMA: Final = "github.com/ollama/ollama@v0.10.0"
# The last release for a Go before 1.26 (from 0.30 on the CPU backend wants CMake). The headers that its C++ has
# from others lie in folders named `vendor`, which no module carries; an older release of it has them elsewhere.
OLLAMA = GoProgram(
    "ollama",
    "github.com/ollama/ollama",
    "v0.23.0",
    (1, 24),
    compilers=("gcc", "g++"),
    environ={"CGO_ENABLED": "1"},
    sets={"github.com/ollama/ollama/version.Version": "0.23.0"},
    headers={
        "nlohmann/json.hpp": (_OLDER_OLLAMA, "llama/llama.cpp/common/json.hpp"),
        "nlohmann/json_fwd.hpp": (_OLDER_OLLAMA, "llama/llama.cpp/common/json.hpp"),
        "stb/stb_image.h": (_OLDER_OLLAMA, "llama/llama.cpp/common/stb_image.h"),
        "miniaudio/miniaudio.h": ("github.com/gen2brain/malgo@v0.11.24", "miniaudio.h"),
    },
    tuned=True,  # for the oldest processors it is several times slower
)
# Of nak's library: nak itself the proxy refuses (403).
CUSTOMER = GoProgram(
    "customer",
    "github.com/nbd-wtf/go-nostr",
    "v0.38.2",
    (1, 23),
    source=Path(__file__).parents[1] / "live" / "go",
)
ALL = (CUSTOMER, OLLAMA)
KNOWN: Final[Mapping[str, GoProgram]] = {each.name: each for each in ALL}


def places() -> list[Path]:
    """Return the folders where programs may lie."""
    return [place / "go" for place in cache_places()]


def find_program(program: GoProgram) -> Path | None:
    """Return the file of a program, where it was built."""
    for place in places():
        file = place / program.folder / program.name
        if file.is_file() and os.access(file, os.X_OK):
            return file
    return None


def program_path(program: GoProgram) -> Path:
    """Return the file of a program. Skips the test where it cannot be built, or fails it where that is required."""
    file = find_program(program)
    if file is not None:
        return file
    absent = missing_tool(program)
    if absent is not None and not required():
        pytest.skip(absent)
    where = " or ".join(str(place / program.folder) for place in places())
    pytest.fail(absent or f"{program.folder} is not built in {where}: run `make test-live`, which does it")


def missing_tool(program: GoProgram) -> str | None:
    """Return what is missing to build a program and what to do, None when everything is there."""
    go = shutil.which("go")
    said = "" if go is None else subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\bgo(\d+)\.(\d+)", said)
    new_enough = version is not None and (int(version[1]), int(version[2])) >= program.oldest
    if new_enough and all(shutil.which(each) for each in program.compilers):
        return None
    return f"{program.name} needs {program.needs}: install them (on Debian: apt install golang g++)"


def build(program: GoProgram) -> None:
    """Build a program. Raises `CalledProcessError`, with the last of what Go said, and `OSError`."""
    place = writable(places())
    building = Path(tempfile.mkdtemp(prefix=f".{program.folder}-", dir=place))
    environ = {
        **os.environ,
        "GOPATH": str(place / "path"),
        "GOCACHE": str(place / "build"),
        "GOBIN": str(building),
        "GOFLAGS": "-modcacherw",  # or the folder could not be removed
        "GOTOOLCHAIN": "local",
        **program.environ,
    }
    try:
        if program.compilers:
            environ |= _c_flags(program, place / "include" / program.folder, environ)
        values = " ".join(f"-X={name}={value}" for name, value in program.sets.items())
        linked = ["-ldflags", values] if values else []
        # Our own source lies in a checkout, of which Go may not ask git, and which a workspace may be around.
        what = [f"{program.package}@{program.version}"] if program.source is None else ["-buildvcs=false", "."]
        if program.source is not None:
            environ["GOWORK"] = "off"
        _run(program, ["go", "install", "-v", "-trimpath", *linked, *what], environ)
        (file,) = building.iterdir()
        if file.name != program.name:
            file.rename(building / program.name)
        target = place / program.folder
        if target.exists() and find_program(program) is None:
            shutil.rmtree(target)
        if not target.exists():
            building.chmod(0o755)
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _c_flags(program: GoProgram, include: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the C compilers are told; the missing headers are put into `include`, whose name is part of what
    Go keeps compiled code under.
    """
    include.mkdir(parents=True, exist_ok=True)
    for name, (module, path) in program.headers.items():
        said = subprocess.run(
            ["go", "mod", "download", "-json", module],
            env=environ,
            cwd=include.parents[1],
            check=True,
            capture_output=True,
            text=True,
        )
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(json.loads(said.stdout)["Dir"]) / path, include / name)
    level = processor_level() if program.tuned else ""
    flags = " ".join(["-O3", "-g0", *([f"-march={level}"] if level else [])])
    return {"CGO_CFLAGS": flags, "CGO_CXXFLAGS": flags, "CGO_CPPFLAGS": f"-I{include}"}


def _run(program: GoProgram, command: list[str], environ: Mapping[str, str]) -> None:
    """Run a build, telling now and then how far it is: some of its packages take minutes."""
    last: deque[str] = deque(maxlen=15)
    counts = Counter[str]()
    ended = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not ended.wait(SAY_EVERY_S):
            done = f"{counts['fetched']} modules fetched, {counts['begun']} packages begun"
            print(f"{program.name}: {done}, {time.monotonic() - start:.0f} s", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        with subprocess.Popen(
            command,
            cwd=program.source,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line)
                counts["fetched"] += line.startswith("go: downloading")
                counts["begun"] += not line.startswith(("go: ", "#", " "))
    finally:
        ended.set()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output="".join(last))


def main(names: Sequence[str] = ()) -> int:
    """Build what is missing, of the named programs or of all."""
    for program in [KNOWN[name] for name in names] or ALL:
        if find_program(program) is not None:
            continue
        absent = missing_tool(program)
        if absent is not None:
            print(f"make: {absent}", file=sys.stderr)
            if required():
                return 1
            print(f"make: the tests of {program.name} will be skipped", file=sys.stderr)
            continue
        takes = "minutes" if program.source is None else "seconds"
        print(f"Building {program.name} {program.version} for the tests ({takes}, once)", flush=True)
        start = time.monotonic()
        try:
            build(program)
        except (subprocess.CalledProcessError, OSError) as error:
            print(getattr(error, "output", None) or "", file=sys.stderr)
            print(f"make: {program.name} {program.version} could not be built: {error}", file=sys.stderr)
            return 1
        print(f"{program.name} {program.version}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
