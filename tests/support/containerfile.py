"""config/Containerfile, read by dockerfile-parse: its stages, each a list of instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "config" / "Containerfile"

Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """Return each stage's instructions, its FROM first; comments are left out."""
    with CONTAINERFILE.open("rb") as file:
        parsed: list[dict[str, Any]] = DockerfileParser(fileobj=file).structure
    found: list[list[Instruction]] = []
    for each in parsed:
        if each["instruction"] == "COMMENT":
            continue
        if each["instruction"] == "FROM":
            found.append([])
        found[-1].append((each["instruction"], each["value"]))
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    """Return the values of one instruction, in their order."""
    return [value for instruction, value in stage if instruction == name]
