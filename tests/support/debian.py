"""The programs of Debian packages that live tests need: found, or installed by apt-get where we are root.

    python -m tests.support.debian

installs what is missing; `make test-live` runs it. Where that cannot be, the tests are skipped and say what to
install; with PYLON_REQUIRE_LIVE=1 both are failures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.foreign_venvs import required

PROGRAM = "systemd-analyze"
PACKAGE = "systemd"
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-y", "--no-install-recommends")


def advice() -> str:
    """Return the sentence that says what is missing."""
    return f"{PROGRAM} is needed: install Debian's {PACKAGE} (apt-get install {PACKAGE}) and run it again"


def systemd_analyze() -> str:
    """Return the program, or skip the test; where live tests are required, fail it."""
    found = shutil.which(PROGRAM)
    if found is not None:
        return found
    if required():
        pytest.fail(advice())
    pytest.skip(advice())


def install() -> None:
    """Install the package. Raises `CalledProcessError` or `OSError`."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run([*_APT, "install", PACKAGE], check=True, env=environ)
    except subprocess.CalledProcessError:
        subprocess.run([*_APT, "update"], check=True, env=environ)  # an image may come without any lists
        subprocess.run([*_APT, "install", PACKAGE], check=True, env=environ)


def main() -> int:
    """Install what is missing, as far as that is possible here."""
    if shutil.which(PROGRAM) is not None:
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        print(f"Installing Debian's {PACKAGE} for the tests (once)", flush=True)
        try:
            install()
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"make: {PACKAGE} could not be installed: {error}", file=sys.stderr)
            return 1
        return 0
    print(advice(), file=sys.stderr)
    return 1 if required() else 0


if __name__ == "__main__":
    sys.exit(main())
