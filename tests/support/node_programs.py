"""The programs of tests/live/node: their packages from npm, and each as a process of its own.

    PYLON_CACHE=~/.cache/pylon-tests python -m tests.support.node_programs

installs the packages that are missing; `make test-live` runs it. They lie in a folder named after the lock file,
built beside its place and renamed when complete. Without Node nothing is installed, and the tests that need it are
skipped and say so; with PYLON_REQUIRE_LIVE=1 both are failures.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from tests.support.foreign_venvs import cache_places, required, writable

SCRIPTS = Path(__file__).parents[1] / "live" / "node"
OLDEST = (20, 19)  # what the packages ask for
MISSING = "Node {}.{} or newer with npm is needed: install it (on Debian: apt install nodejs npm)".format(*OLDEST)
INSTALL_LIMIT_S = 900.0
READY_LIMIT_S = 60.0


# --- the packages -----------------------------------------------------------------------------------------------


def find_node() -> str | None:
    """Return the path of a Node that is new enough and has npm beside it, or None."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.(\d+)\.", said)
    return node if version is not None and tuple(map(int, version.groups())) >= OLDEST else None


def folder_name() -> str:
    """Return the name of the folder that has exactly these packages."""
    return f"node-{hashlib.sha256((SCRIPTS / 'package-lock.json').read_bytes()).hexdigest()[:12]}"


def find_packages() -> Path | None:
    """Return the `node_modules` of our lock file, where it was installed."""
    for place in cache_places():
        packages = place / folder_name() / "node_modules"
        if packages.is_dir():
            return packages
    return None


def node_and_packages() -> tuple[str, Path]:
    """Return what a test needs to run. Skips the test without a Node, or fails it where Node is required."""
    node = find_node()
    if node is None:
        if required():
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    packages = find_packages()
    where = " or ".join(str(place / folder_name()) for place in cache_places())
    assert packages is not None, f"the packages are not installed in {where}: run `make test-live`, which does it"
    return node, packages


def install() -> None:
    """Install the lock file's packages; no script of theirs runs. Raises `CalledProcessError` and `OSError`."""
    place = writable(cache_places())
    building = Path(tempfile.mkdtemp(prefix=f".{folder_name()}-", dir=place))
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / name, building)
        cache = building / "cache"  # npm's own may not be writable, and is of no use twice
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--cache", str(cache)]
        subprocess.run(command, cwd=building, check=True, timeout=INSTALL_LIMIT_S)
        shutil.rmtree(cache, ignore_errors=True)
        target = place / folder_name()
        if target.exists() and not (target / "node_modules").is_dir():
            shutil.rmtree(target)
        if not target.exists():
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def main() -> int:
    """Install what is missing."""
    if find_node() is None:
        print(f"make: {MISSING}", file=sys.stderr)
        if not required():
            print("make: the tests of wallets that run in Node will be skipped", file=sys.stderr)
        return int(required())
    if find_packages() is not None:
        return 0
    print("Installing the Node packages of the live tests (140 MB, once)", flush=True)
    start = time.monotonic()
    try:
        install()
    except (subprocess.SubprocessError, OSError) as error:
        print(f"make: the Node packages could not be installed: {error}", file=sys.stderr)
        return 1
    print(f"Node packages: {time.monotonic() - start:.0f} s", flush=True)
    return 0


# --- a running program ------------------------------------------------------------------------------------------


class NodeProgram:
    """One script of tests/live/node in a process: gets `orders` as JSON, answers with JSON when it is ready.

    It ends when we do, since its stdin ends then. A later `start` gives it the same orders again.
    """

    def __init__(self, folder: Path, script: str, orders: Mapping[str, Any]) -> None:
        node, packages = node_and_packages()
        self.folder = folder / f"node-{script}"
        self.folder.mkdir()
        for path in SCRIPTS.glob("*.mjs"):
            shutil.copy(path, self.folder)  # beside the packages, or its imports would not find them
        (self.folder / "node_modules").symlink_to(packages)
        (self.folder / "package.json").write_text('{"type": "module"}')
        self._command = [node, f"{script}.mjs"]
        self._orders = orders
        self._process: subprocess.Popen[str] | None = None

    async def restart(self) -> dict[str, Any]:
        """Kill it and start it again."""
        self.kill()
        return await anyio.to_thread.run_sync(self.start)

    def start(self) -> dict[str, Any]:
        """Start it and return, once it is ready, what it says then."""
        assert self._process is None, "it runs already"
        with (self.folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(self._orders) + "\n")
        process.stdin.flush()
        said, _, _ = select.select([process.stdout], [], [], READY_LIMIT_S)
        line = process.stdout.readline() if said else ""
        if not line:
            self.kill()
            raise AssertionError(f"{self._command[1]} did not become ready: {self.log()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it as a crash would; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(timeout=10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def forsake(self) -> int:
        """End its stdin, as our own death would, and return its exit code."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        code = process.wait(timeout=10)
        self.kill()
        return code

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
