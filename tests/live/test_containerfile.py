"""The steps of config/Containerfile, carried out below a scratch root: no container engine is needed.

What its RUN lines do, what its ENTRYPOINT starts, what its HEALTHCHECK says and what its STOPSIGNAL ends are the
file's own words; only the paths are below the scratch root, and the interpreter is this machine's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pylon.nostr.keys import SecretKey
from tests.support.containerfile import ROOT, stages, values
from tests.support.relay import relay_process

pytestmark = pytest.mark.live

LIMIT_S = 120.0


class Scratch:
    """A root of its own for an image's paths."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def words(self, text: str) -> str:
        """Return a command with its absolute paths below the root."""
        return re.sub(r"(?<![\w/.-])/(src|opt/pylon|var/lib/pylon)\b", rf"{self.root}/\1", text)

    def sh(self, command: str, *, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a step as an engine would, with /bin/sh -c."""
        return subprocess.run(
            ["/bin/sh", "-c", self.words(command)],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )


def base_environ(folder: Path) -> dict[str, str]:
    """Return the environment of a step: `python` is this machine's, and pip keeps what it downloads."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}")
    kept = {
        name: value for name, value in os.environ.items() if name in ("HOME", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR")
    }
    return {**kept, "PATH": f"{programs}:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_its_steps_make_a_pylon_that_starts_is_healthy_and_stops(tmp_path: Path) -> None:
    scratch, environ = Scratch(tmp_path / "root"), base_environ(tmp_path)
    source = tmp_path / "root" / "src"
    source.mkdir(parents=True)
    build, final = stages()
    for copied in values(build, "COPY"):
        for word in copied.split()[:-1]:
            if (ROOT / word).is_dir():
                shutil.copytree(ROOT / word, source / word, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / word, source)
    for command in values(build, "RUN"):
        done = scratch.sh(command, cwd=source, environ=environ)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(source)  # the second stage has nothing of it

    home = tmp_path / "root" / "var" / "lib" / "pylon"
    for command in values(final, "RUN"):
        if os.geteuid() == 0:
            done = scratch.sh(command, cwd=tmp_path, environ=environ)
            assert done.returncode == 0, done.stderr
            assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (10001, 0o700)
            os.chown(home, 0, 0)  # the test runs as who it is, and cannot become another here
        else:
            home.mkdir(mode=0o700, parents=True)
    variables = dict(word.split("=", 1) for value in values(final, "ENV") for word in value.split())
    environ = {**environ, **{name: scratch.words(value) for name, value in variables.items()}}
    environ["PATH"] = environ["PATH"].replace("/usr/local/bin", f"{tmp_path}/bin")
    environ["PYLON_NSEC"] = SecretKey.generate().reveal_nsec()

    health = values(final, "HEALTHCHECK")[0].partition("CMD ")[2]
    assert scratch.sh(health, cwd=home, environ=environ).returncode == 1, "nothing runs yet"
    words = json.loads(values(final, "ENTRYPOINT")[0]) + json.loads(values(final, "CMD")[0])
    with relay_process() as relay:
        (home / "pylon.toml").write_text(
            f'[relays]\nurls = ["{relay.url}"]\n[payment]\nmode = "free"\n'
            '[[backends]]\nname = "e"\nkind = "echo"\n[[models]]\nname = "echo"\nbackend = "e"\n'
        )
        with subprocess.Popen(words, cwd=home, env=environ, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                deadline = time.monotonic() + LIMIT_S
                while scratch.sh(health, cwd=home, environ=environ).returncode != 0:
                    assert daemon.poll() is None, daemon.stderr and daemon.stderr.read()
                    assert time.monotonic() < deadline, "it did not become healthy"
                    time.sleep(0.2)
                daemon.send_signal(signal.Signals[values(final, "STOPSIGNAL")[0]])
                assert daemon.wait(LIMIT_S) == 0
            finally:
                daemon.kill()
