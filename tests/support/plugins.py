"""Distributions with backend plug-ins, as an installer leaves them: modules, and a dist-info with entry points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

API = "from pylon.plugin import *\n"


def install_plugin(
    folder: Path, dist: str, kinds: Mapping[str, str], source: str = "", version: str = "1.0"
) -> None:
    """Install a distribution into a folder of the path: `kinds` are its entry points, `source` is its one module.

    The module is called as the distribution is, with underscores.
    """
    folder.mkdir(exist_ok=True)
    module = dist.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    lines = ["[pylon.backends]", *(f"{kind} = {value}" for kind, value in kinds.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
