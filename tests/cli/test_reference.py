"""The page of all commands is what the commands say."""

from __future__ import annotations

import re

from pylon.cli.app import COMMANDS
from pylon.cli.reference import PAGE, render


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run: python -m pylon.cli.reference"


def test_every_command_is_on_it_with_an_example() -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    shown = {section.splitlines()[0] for section in sections}
    assert {"pylon", *(f"pylon {name}" for name in COMMANDS)} <= shown
    without = [section.splitlines()[0] for section in sections if "Example: pylon" not in section]
    assert without == []
