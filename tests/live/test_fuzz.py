"""A minute of fuzzing from the kept corpus on, as `make fuzz` does for ten."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.foreign_venvs import required

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]


def test_a_minute_of_hostile_frames_breaks_nothing(tmp_path: Path) -> None:
    if find_spec("atheris") is None and not required():
        pytest.skip("atheris is not installed: `make test-live` does it")
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "1", "--discard", "--crashes", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, f"{run.stderr[-4_000:]}\nkept in {tmp_path}"
    assert "inputs tried" in run.stdout
