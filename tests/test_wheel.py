"""What a wheel installs is all there: it is built here, and used as it would be, apart from this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel puts among the site packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def from_wheel(site: Path, *arguments: str) -> str:
    """Run pylon as installed there, with the dependencies of this environment."""
    environ = {**os.environ, "PYTHONPATH": str(site), "PYLON_HOME": str(site.parent / "home")}
    words = [sys.executable, "-m", "pylon", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd=site.parent, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_wheel_that_runs(installed: Path) -> None:
    code = "import pylon; print(pylon.__file__)"
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=installed, env=environ, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed)


@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_units_are_rendered_from_what_the_wheel_brings(installed: Path, scope: str) -> None:
    if scope == "--system":
        words = ["--home", "/var/lib/pylon", "service", "install", scope, "--print"]
    else:
        words = ["service", "install", scope, "--print"]
    printed = from_wheel(installed, *words)
    assert "Type=notify" in printed
    assert "sealed by pylon" in printed


def test_every_template_is_in_it(installed: Path) -> None:
    for kind in ("systemd", "launchd"):
        here = {path.name: path.read_bytes() for path in (ROOT / "config" / kind).iterdir()}
        there = {path.name: path.read_bytes() for path in (installed / "pylon/service/templates" / kind).iterdir()}
        assert here == there
