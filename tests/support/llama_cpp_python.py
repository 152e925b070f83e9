"""The library `llama-cpp-python`, compiled from its source on PyPI, in a virtual environment of its own.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.llama_cpp_python

compiles its wheel (5 to 15 minutes on two cores, once), keeps it with the other wheels in the download cache and
installs it, with what its own server needs; `make test-live` runs it. Without a C++ compiler nothing is built, and
the tests that need it are skipped and say so; with PYLON_REQUIRE_LIVE=1 both are failures.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_venvs import Foreign, cache_places, find_python, is_whole, make, required, writable

SAY_EVERY_S: Final = 20.0
LLAMA_CPP_PYTHON: Final = Foreign(
    "llama-cpp-python", "0.3.36", "llama_cpp", also=("llama-cpp-python[server]==0.3.36",)
)
# For any x86-64 of the last ten years, as the cache may outlive the machine; without what reads images.
_CMAKE: Final = "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF"
_STEP: Final = re.compile(r"\[(\d+)/(\d+)\] ")


def llama_cpp_python() -> Path:
    """Return an interpreter that has the library. Skips the test where there can be none, or fails it."""
    python = find_python(LLAMA_CPP_PYTHON)
    if python is not None:
        return python
    absent = missing_tool()
    if absent is not None and not required():
        pytest.skip(absent)
    pytest.fail(absent or "llama-cpp-python is not built: run `make test-live`, which does it")


def missing_tool() -> str | None:
    """Return what is missing to compile it and what to do, None when everything is there."""
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return None
    return "llama-cpp-python needs a C++ compiler: install one (on Debian: apt install g++)"


def wheels() -> list[Path]:
    """Return the folders where its wheel may lie."""
    return [place / "wheels" for place in cache_places()]


def find_wheel() -> Path | None:
    """Return its wheel, where it was built."""
    name = f"llama_cpp_python-{LLAMA_CPP_PYTHON.version}-*{platform.machine()}.whl"
    return next((wheel for folder in wheels() for wheel in folder.glob(name)), None)


def build_wheel() -> Path:
    """Compile its wheel. Raises `CalledProcessError`, with the last of what was said, and `OSError`."""
    place = writable(wheels())
    with tempfile.TemporaryDirectory(prefix=".llama-cpp-python-", dir=place) as building:
        wanted = f"{LLAMA_CPP_PYTHON.name}=={LLAMA_CPP_PYTHON.version}"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
        # Verbose: it is the only way to see how far the compiler is. Its own cache would keep a second copy.
        command = [*pip, "--verbose", "--no-binary", LLAMA_CPP_PYTHON.name, "--wheel-dir", building, wanted]
        _run(command, {**os.environ, "CMAKE_ARGS": _CMAKE})
        (wheel,) = Path(building).glob("*.whl")
        return wheel.replace(place / wheel.name)


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    """Run a build, telling now and then how far it is."""
    start = said_at = time.monotonic()
    step = "downloading"
    last: deque[str] = deque(maxlen=30)
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if found := _STEP.search(line):
                step = f"{found[1]} of {found[2]} steps"
            now = time.monotonic()
            if now - said_at >= SAY_EVERY_S:
                said_at = now
                print(f"{LLAMA_CPP_PYTHON.name}: {step}, {now - start:.0f} s", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output="".join(last))


def main(_arguments: Sequence[str] = ()) -> int:
    """Compile and install it where it is missing or broken."""
    python = find_python(LLAMA_CPP_PYTHON)
    if python is not None and is_whole(python, LLAMA_CPP_PYTHON):
        return 0
    absent = missing_tool()
    wheel = find_wheel()
    if wheel is None and absent is not None:
        print(f"make: {absent}", file=sys.stderr)
        if required():
            return 1
        print("make: the tests of llama-cpp-python will be skipped", file=sys.stderr)
        return 0
    start = time.monotonic()
    try:
        if wheel is None:
            print(
                f"Compiling llama-cpp-python {LLAMA_CPP_PYTHON.version} for the tests (minutes, once)", flush=True
            )
            wheel = build_wheel()
        make(LLAMA_CPP_PYTHON, wheel.parent)
    except (subprocess.CalledProcessError, OSError) as error:
        print(getattr(error, "output", None) or "", file=sys.stderr)
        print(f"make: llama-cpp-python could not be built: {error}", file=sys.stderr)
        return 1
    print(f"llama-cpp-python {LLAMA_CPP_PYTHON.version}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
