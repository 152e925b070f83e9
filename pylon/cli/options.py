"""Options that several commands have, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings to read, instead of the home's.")
]
"""The settings file; None for the one of the home."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Output for programs."""

RelayOption = Annotated[
    list[str] | None,
    typer.Option("--relay", metavar="URL", help="Use this relay instead of the settings'; may be repeated."),
]
"""Relays for this one command."""
