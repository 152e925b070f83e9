"""What the README and the pages tell people to type exists: every command, every verb, every option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.cli.app import COMMANDS
from pylon.cli.reference import help_of, verbs_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "commands.md")]
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(pylon [^`]+)`")
_GLOBAL = {"--home", "--config", "--debug", "--version", "--help"}


def typed(page: Path) -> Iterator[str]:
    """Yield each command line of a page that calls pylon."""
    text = page.read_text()
    for block in _FENCE.findall(text):
        for line in block.splitlines():
            if found := re.match(r"^(?:\$ )?(?:[^#|]*\| )?(pylon [a-z].*)", line):
                yield found[1]
    yield from _INLINE.findall(_FENCE.sub("", text))


def words_of(line: str) -> list[str]:
    """Return the words of one command line: without a comment, what it is piped into, or a table's escapes."""
    bare = re.split(r" #|\s\||\s&|\s>", line.replace("\\|", "/"))[0]
    try:
        return shlex.split(bare)[1:]
    except ValueError:
        return bare.split()[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_tells_to_type_exists(page: Path) -> None:
    for line in typed(page):
        words = words_of(line)
        names = [word for word in words if not word.startswith("-")]
        options = {word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")} - {
            "--"
        }
        if not names or not re.fullmatch(r"[a-z]+", names[0]):
            continue  # `pylon --help` itself, or a sentence's `pylon …`
        assert names[0] in COMMANDS, f"{page.name}: {line}"
        known = list(verbs_of(names[0]))
        wanted = names[1].split("/") if known and len(names) > 1 else []
        for verb in wanted:
            assert verb in known, f"{page.name}: {line}"
        said = "\n".join(help_of([names[0], verb]) for verb in wanted or [""] if verb) or help_of([names[0]])
        for option in options - _GLOBAL:
            assert option in said, f"{page.name}: {line}: there is no {option}"


def test_there_is_something_to_check() -> None:
    assert sum(1 for page in PAGES for _ in typed(page)) > 60
