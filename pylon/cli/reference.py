"""The page of all commands, `docs/commands.md`: what each says of itself with `--help`.

After a change of a command: `python -m pylon.cli.reference`. A test keeps the page true.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

from pylon.cli.app import COMMANDS, run

PAGE: Final = Path(__file__).parents[2] / "docs" / "commands.md"
_WIDTH: Final = "100"
_HEAD: Final = """\
# Every command

Written by `python -m pylon.cli.reference` from the commands' own `--help`; a test keeps it true.
"""


def render() -> str:
    """Return the page."""
    parts = [_HEAD, _section("pylon", [])]
    for name in COMMANDS:
        parts.append(_section(f"pylon {name}", [name]))
        parts += [_section(f"pylon {name} {verb}", [name, verb]) for verb in verbs_of(name)]
    return "\n".join(parts)


def verbs_of(name: str) -> tuple[str, ...]:
    """Return the verbs of a command that is a noun; none for any other."""
    return tuple(getattr(COMMANDS[name].load(name), "commands", {}))


def _section(title: str, words: list[str]) -> str:
    return f"## {title}\n\n```\n$ {' '.join(['pylon', *words, '--help'])}\n{help_of(words)}\n```\n"


def help_of(words: list[str]) -> str:
    """Return what `pylon WORDS --help` prints, at a fixed width."""
    said = io.StringIO()
    before = os.environ.get("COLUMNS"), os.environ.get("TERMINAL_WIDTH")
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = _WIDTH
    try:
        with redirect_stdout(said):
            run([*words, "--help"])
    finally:
        for name, value in zip(("COLUMNS", "TERMINAL_WIDTH"), before, strict=True):
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(render())
    sys.stdout.write(f"{PAGE}\n")
