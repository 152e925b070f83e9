"""The programs that we did not write and test against, each from PyPI in a virtual environment of its own.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.foreign_venvs

makes those that are missing; `make test-live` runs it. One is built beside its place and renamed when complete, so
that it is there whole or not at all, whoever else builds at the same time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Foreign:
    """One program: its name on PyPI, the version that the tests know, and the module that shows it is installed."""

    name: str
    version: str
    module: str

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


NOSTR_RELAY = Foreign("nostr-relay", "1.14", "nostr_relay")
NOSTR_DVM = Foreign("nostr-dvm", "1.1.8", "nostr_dvm")
ALL = (NOSTR_RELAY, NOSTR_DVM)


def cache_places() -> list[Path]:
    """Return the folders where what was installed may lie: the download cache, else the project's environment."""
    cache = Path(os.environ.get("PYLON_CACHE") or "~/.cache/pylon-tests").expanduser()
    return [cache, Path(sys.prefix) / "foreign"]


def places() -> list[Path]:
    """Return the folders where environments may lie."""
    cache, own = cache_places()
    return [cache / "venvs", own]


def foreign_python(foreign: Foreign) -> Path:
    """Return the interpreter of a program's environment. Raises `AssertionError` when it was not made."""
    python = find_python(foreign)
    where = " or ".join(str(place / foreign.folder) for place in places())
    assert python is not None, f"{foreign.folder} is not installed in {where}: run `make test-live`, which does it"
    return python


def find_python(foreign: Foreign) -> Path | None:
    """Return the interpreter of a program's environment, where it was made."""
    for place in places():
        python = place / foreign.folder / "bin" / "python"
        if python.exists():  # not so when the Python that made it is gone
            return python
    return None


def make(foreign: Foreign) -> None:
    """Install a program from PyPI, from prebuilt wheels alone. Raises `CalledProcessError` and `OSError`."""
    place = writable(places())
    building = Path(tempfile.mkdtemp(prefix=f".{foreign.folder}-", dir=place))
    try:
        subprocess.run([sys.executable, "-m", "venv", building], check=True)
        python = building / "bin" / "python"
        install = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        wanted = ["--only-binary", ":all:", f"{foreign.name}=={foreign.version}"]
        subprocess.run([str(python), *install, *wanted], check=True)
        subprocess.run([python, "-c", f"import {foreign.module}"], check=True)
        target = place / foreign.folder
        if target.exists() and not (target / "bin" / "python").exists():
            shutil.rmtree(target)
        if not target.exists():
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def writable(candidates: list[Path]) -> Path:
    """Return the first folder that can be written, made where it was missing. Raises `OSError`."""
    for place in candidates:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    raise OSError(f"none of these can be written: {', '.join(map(str, candidates))}")


def main() -> int:
    """Make what is missing."""
    for foreign in ALL:
        if find_python(foreign) is not None:
            continue
        print(f"Installing {foreign.name} {foreign.version} for the live tests (once)", flush=True)
        start = time.monotonic()
        try:
            make(foreign)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"make: {foreign.name} {foreign.version} could not be installed: {error}", file=sys.stderr)
            return 1
        print(f"{foreign.name} {foreign.version}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
